"""Fine-tuning: what a model brings with it, and which pictures it knows already."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_pairs import PICTURES, coloured, run, same, weights

from phosphene.encoders import encode, make_encoder
from phosphene.encoders.mlip import load_model, save_model
from phosphene.errors import InputError, LeakageError
from phosphene.settings import load_preset
from phosphene.stimuli import StimulusSet
from phosphene.training.pretraining import pretrain, run_settings
from phosphene.training.pretraining.objective import MLIPObjective


def test_a_model_is_fine_tuned_from_where_it_is(whole, tmp_path):
    still = run(tmp_path / "still", start=whole, training={"learning_rate": 1e-12, "weight_decay": 0.0})
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(still)[name], tensor, rtol=0, atol=1e-6)
    moved = run(tmp_path / "moved", coloured(30, seed=1), start=whole)
    assert not same(moved, whole)
    assert (moved / "tokenizer.json").read_text() == (whole / "tokenizer.json").read_text()
    facts = json.loads((moved / "config.json").read_text())["facts"]
    assert facts["start"] == json.loads((whole / "config.json").read_text())["weights"]
    with pytest.raises(InputError, match=r"has its own sizes: remove model\.width"):
        run(tmp_path / "wide", start=whole, model={"width": 32})
    with pytest.raises(InputError, match="there is no MLIP model 'nowhere'"):
        run(tmp_path / "none", start="nowhere")


def test_merging_has_no_weights_and_may_be_another_one_than_the_start_had(whole, tmp_path):
    merging = run(tmp_path / "on", start=whole, model={"merge": {"tokens": 0.8}}, training={"steps": 1})
    model = load_model(merging)[0]
    assert model.config.merge.tokens == 0.8
    assert any(model.image.rates)
    kept = run_settings(None, {"model": {"merge": {"tokens": 0.8}}}, merging)[0].model
    assert kept == run_settings(None, None, merging)[0].model == model.config
    other = run_settings(None, {"model": {"merge": {"flops": 0.9}}}, merging)[0].model.merge  # in place of its own
    assert (other.tokens, other.flops) == (None, 0.9)
    for none in (None, {}):
        off = run(tmp_path / f"off{none}", start=merging, model={"merge": none}, training={"steps": 1})
        assert not any(load_model(off)[0].image.rates)
    with pytest.raises(InputError, match=r"has its own sizes: remove model\.width"):
        run_settings(None, {"model": {"merge": {"tokens": 0.8}, "width": 32}}, whole)
    with pytest.raises(InputError, match="out of reach"):
        run(tmp_path / "far", start=whole, model={"merge": {"tokens": 0.01}})
    for start in (None, whole):
        with pytest.raises(InputError, match="model = 3"):
            run_settings(None, {"model": 3}, start)


def test_a_folder_with_the_name_of_a_shipped_model_is_refused_as_ambiguous(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = run_settings(None, None, "pocket")[1]
    shutil.copytree(whole, tmp_path / "pocket" / "model")
    with pytest.raises(InputError, match=r"'pocket' is a shipped model and a folder: \./pocket names"):
        pretrain(None, PICTURES, out=tmp_path / "run", start="pocket", progress=False)
    assert run_settings(None, None, "./pocket")[1] != shipped


def test_fine_tuning_keeps_the_objective_of_the_model_and_takes_the_rates_of_its_preset(tmp_path):
    first = run(tmp_path, objective={"temperature": 0.2, "token_temperature": 0.3, "frequency_weight": 0.0})
    temperatures = json.loads((first / "config.json").read_text())["facts"]["temperatures"]
    assert temperatures["temperature"] != 0.2
    settings, weights_ = run_settings(None, {"training": {"steps": 3}}, first)
    assert weights_ == json.loads((first / "config.json").read_text())["weights"]
    assert settings.model == load_model(first)[0].config
    assert settings.objective.frequency_weight == 0.0
    assert settings.objective.temperature == pytest.approx(temperatures["temperature"])
    assert settings.training.steps == 3
    assert settings.training.learning_rate == load_preset("encoders", "mlip", "fine-tune")["training"]["learning_rate"]
    assert run_settings("pocket", None, first)[0].objective.frequency_weight == 0.5


def test_the_sizes_and_the_card_are_those_of_the_model_to_start_from(whole, tmp_path, caplog):
    caplog.set_level("INFO")
    run_settings(None, None, whole)
    assert "sizes are those" not in caplog.text
    assert run_settings("pocket", None, whole)[0].model == load_model(whole)[0].config
    assert "sizes are those of the model to start from, not of preset 'pocket'" in caplog.text
    tuned = run(tmp_path, start=whole, training={"steps": 1})
    assert (tuned / "card.md").read_text().startswith("# Fine-tuned MLIP model, preset fine-tune\n")
    assert (whole / "card.md").read_text().startswith("# MLIP model\n")


ONLY_SCENES = "**Trained on procedural scenes only**: no photograph, no text written by people."


def test_the_card_tells_what_the_model_to_start_from_saw(whole, tmp_path):
    short = {"training": {"steps": 1}, "data": {"long_captions": "cut", "plain": 1.0}}
    photo = json.loads((whole / "config.json").read_text())
    scenes = run(tmp_path / "scenes", None, start=whole, **short)
    card = (scenes / "card.md").read_text()
    assert "procedural scenes only" not in card
    assert "no photograph" not in card
    assert "Nothing is known of its behaviour on photographs" not in card
    assert "**This run: procedural scenes**, after pictures in one before." in card
    seen = f"22 pictures with 66 captions (content {photo['facts']['data']['identity']})"
    assert f"* Before, as `{whole.parent.name}` (weights {photo['weights']}): {seen}." in card

    first = run(tmp_path / "first", None, **short)
    assert ONLY_SCENES in (first / "card.md").read_text()
    more = run(tmp_path / "more", None, start=first, **short)  # scenes throughout
    assert ONLY_SCENES in (more / "card.md").read_text()
    assert "* Before, as `first` (weights" in (more / "card.md").read_text()
    tuned = run(tmp_path / "tuned", start=more, **short)
    lines = [line for line in (tuned / "card.md").read_text().splitlines() if line.startswith("* Before")]
    assert [line.split("(weights ")[0] for line in lines] == ["* Before, as `first` ", "* Before, as `more` "]
    assert all(line.endswith("): procedural scenes.") for line in lines)
    assert str(tmp_path) not in (tuned / "card.md").read_text() + (tuned / "config.json").read_text()


def test_the_card_claims_nothing_of_a_start_that_does_not_tell(whole, tmp_path):
    model, tokenizer = load_model(whole)
    earlier = {"data": {"source": "scenes"}, "start": "0" * 32}  # a version that told the last run alone
    for name, facts, words in (
        ("silent", {}, "): nothing is told."),
        ("earlier", earlier, "): procedural scenes, after a model of which nothing is told."),
    ):
        save_model(tmp_path / name, model, tokenizer, facts=facts)
        card = (
            run(tmp_path / f"from-{name}", None, start=tmp_path / name, training={"steps": 1}) / "card.md"
        ).read_text()
        assert "procedural scenes only" not in card
        assert "**This run: procedural scenes**, after a model that does not tell all it was trained on." in card
        assert words in card


def test_the_card_tells_merging_and_what_the_objective_ended_with(tmp_path):
    out = run(tmp_path, model={"merge": {"tokens": 0.8}}, training={"steps": 3})
    facts, card = json.loads((out / "config.json").read_text())["facts"], (out / "card.md").read_text()
    assert (
        "* Trained and scored with token merging (merge.tokens = 0.8); as an encoder it merges nothing unless" in card
    )
    (line,) = [line for line in card.splitlines() if line.startswith("* Objective: ")]
    assert f"temperature {facts['temperatures']['temperature']:.4g} (learned, from 0.07)" in line
    assert "bias" not in line  # the form softmax has none
    fixed = run(tmp_path / "fixed", objective={"learn_temperature": False}, training={"steps": 1})
    assert ", temperature 0.07, token_temperature 0.07, " in (fixed / "card.md").read_text()


def test_fine_tuning_goes_on_with_what_the_form_of_the_loss_has_learned(tmp_path):
    first = run(tmp_path, objective={"form": "sigmoid", "bias": -3.0, "token_bias": -4.0})
    facts = json.loads((first / "config.json").read_text())["facts"]
    learned = facts["temperatures"] | facts["biases"]
    assert learned.keys() == {"temperature", "token_temperature", "bias", "token_bias"}
    assert (learned["bias"], learned["token_bias"]) != (-3.0, -4.0)
    objective = run_settings(None, None, first)[0].objective
    assert {name: getattr(objective, name) for name in learned} == pytest.approx(learned)
    assert MLIPObjective(objective).biases() == pytest.approx(facts["biases"])
    asked = run_settings(None, {"objective": {"bias": -1.0}}, first)[0].objective
    assert (asked.bias, asked.token_bias) == (-1.0, learned["token_bias"])
    other = run_settings(None, {"objective": {"form": "softmax"}}, first)[0].objective
    assert (other.temperature, other.bias) == (0.07, -3.0)


def test_pictures_that_were_trained_on_are_remembered(whole, tmp_path):
    more = StimulusSet([f"m{row}" for row in range(12)], coloured(12, seed=3).pixels(), [["a thing"]] * 12)
    tuned = run(tmp_path / "tuned", more, start=whole, data={"held_out": 0.0})
    trained = json.loads((whole / "config.json").read_text())["facts"]["data"]["fitted_on"]
    for folder, expected in ((whole, {*trained}), (tuned, {*trained, *more.ids.tolist()})):
        assert encode(PICTURES, make_encoder(f"mlip:{folder}"), cache=False).fitted_on == expected
    scenes = run(tmp_path / "scenes", None, data={"plain": 1.0})
    assert encode(PICTURES, make_encoder(f"mlip:{scenes}"), cache=False).fitted_on is None


def held_ids(out):
    """Ids of PICTURES that a run set aside."""
    facts = json.loads((out / "config.json").read_text())["facts"]
    assert facts["data"]["held_out_pictures"] + facts["data"]["training_pictures"] == len(PICTURES)
    return {*PICTURES.ids.tolist()} - {*facts["data"]["fitted_on"]}


def test_fine_tuning_is_not_probed_on_pictures_the_model_knows(whole, tmp_path, caplog):
    known = [name for name in PICTURES.ids.tolist() if name not in held_ids(whole)]
    # another id, other captions: known by the pixels
    copies = StimulusSet(
        ["q0", "q1", "q2"],
        np.concatenate([PICTURES.pixels(PICTURES.rows(known[3:5])), coloured(1, seed=8).pixels()]),
        [["other"], ["words"], ["new"]],
    )
    with pytest.raises(LeakageError, match="2 held-out pictures of 3, such as q0, q1: the model to start from"):
        run(tmp_path, coloured(12, seed=9), start=whole, held_out=copies)
    tuned = run(tmp_path / "tuned", coloured(12, seed=9), start=whole, held_out=coloured(4, seed=8))
    with pytest.raises(LeakageError, match="q0, q1"):  # what the first model knew, the second one knows as well
        run(tmp_path, coloured(12, seed=7), start=tuned, held_out=copies)
    with pytest.raises(LeakageError, match="such as p00"):
        run(tmp_path, coloured(12, seed=7), start=tuned, held_out=coloured(2, seed=9))
    assert "pictures" not in json.loads((tuned.parent / "scorecard.json").read_text())["model"]


def test_pictures_the_model_knows_are_not_set_aside(whole, tmp_path, caplog):
    unknown = held_ids(whole)
    assert len(unknown) == 2
    for seed in (3, 4):
        assert held_ids(run(tmp_path / str(seed), seed=seed, start=whole, training={"steps": 1})) == unknown
    assert "only 2 of 24 are new" not in caplog.text
    run(tmp_path / "few", start=whole, training={"steps": 1}, data={"held_out": 0.5})
    assert "only 2 of 24 are new to the model to start from" in caplog.text
    known = PICTURES.select([name for name in PICTURES.ids.tolist() if name not in unknown])
    with pytest.raises(InputError, match="needs two that the model to start from was not trained on, found 0 among 22"):
        run(tmp_path / "none", known, start=whole)


def test_a_model_that_does_not_tell_its_pictures_is_fine_tuned_with_a_warning(whole, tmp_path, caplog):
    model, tokenizer = load_model(whole)
    facts = json.loads((whole / "config.json").read_text())["facts"]
    del facts["pictures"]
    save_model(tmp_path / "old", model, tokenizer, facts=facts)
    run(tmp_path / "run", start=tmp_path / "old", training={"steps": 1})
    assert "does not tell the pixels it was trained on" in caplog.text


def test_fine_tuning_needs_a_model_to_start_from(tmp_path):
    with pytest.raises(InputError, match="preset 'fine-tune' needs a model to start from"):
        pretrain("fine-tune", PICTURES, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
