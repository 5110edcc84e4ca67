"""The shipped encoder: small enough to ship, honest about its origin, and able to see."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from phosphene.encoders import encode, make_encoder
from phosphene.encoders.mlip import load_model
from phosphene.encoders.mlip.encoder import find_mlip
from phosphene.encoders.mlip.similarity import SCORES
from phosphene.encoders.mlip.store import read_config, untrained
from phosphene.evaluation.metrics import count_true, similarity, top_k
from phosphene.settings import load_preset
from phosphene.stimuli.scenes import scene_set
from phosphene.training.pretraining.card import model_card
from phosphene.training.pretraining.probes import Score, scene_probes
from phosphene.training.pretraining.settings import DataSettings, pretrain_settings

FOLDER = find_mlip("pocket")
FACTS = read_config(FOLDER)["facts"]
_PICTURES = 192


def test_it_is_small_enough_to_ship() -> None:
    weights = list(FOLDER.glob("*.safetensors"))
    assert 1 <= len(weights) <= 2
    assert max(path.stat().st_size for path in weights) <= 16e6


def test_it_was_trained_by_a_preset_of_this_repository_on_scenes_only() -> None:
    assert FACTS["data"]["source"] == "scenes"
    assert FACTS["start"] is None
    assert "fitted_on" not in FACTS["data"]
    settings = FACTS["settings"]
    for table, entries in load_preset("encoders", "mlip", FACTS["preset"]).items():
        for key, value in entries.items():
            # words are counted after training the tokenizer: fewer may be found than were asked for
            assert settings[table][key] == value, f"{table}.{key}"
    assert FACTS["steps"] == settings["training"]["steps"]


def test_its_card_says_what_it_is() -> None:
    card = (FOLDER / "card.md").read_text(encoding="utf-8")
    for said in ("procedural scenes only", FACTS["hardware"], "unseen compositions", "seen compositions", "chance"):
        assert said in card


def test_its_card_is_written_as_those_of_new_models_are() -> None:
    facts = {**FACTS, "untrained": untrained(read_config(FOLDER))}
    new = model_card(pretrain_settings(None, FACTS["settings"]), facts, [Score(**score) for score in FACTS["scores"]])
    lines = [text.splitlines() for text in ((FOLDER / "card.md").read_text(encoding="utf-8"), new)]
    kept, written = ([line for line in each if not line.startswith("* phosphene ")] for each in lines)
    assert kept == written


def test_the_table_in_the_docs_is_that_of_its_card() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "mlip.md").read_text(encoding="utf-8")
    lines = iter(docs.split("## The shipped weights")[1].split("## ")[0].splitlines())
    rows = [line.strip("| ").split(" | ")[2:] for line in lines if line.startswith("| ")][1:]
    found = [cell.strip() for row in rows for cell in row]
    alone = [score for score in FACTS["scores"] if score["score"] == "spatial"]
    by_probe = {(score["part"], score["task"]): score for score in alone}
    tasks = ("shape", "colour", "material", "all together", "image to text", "text to image")
    wanted = [by_probe[f"{part} compositions", task] for task in tasks for part in ("seen", "unseen")]
    assert found == [f"{100 * s['value']:.1f} ({100 * s['low']:.1f} to {100 * s['high']:.1f})" for s in wanted]


def test_the_example_of_three_scores_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "mlip.md").read_text(encoding="utf-8")
    example = docs.split("## Scores of pictures and captions")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"))
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" [")[0] for line in told] == [*SCORES]


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], float]:
    data = DataSettings.build(FACTS["settings"]["data"] | {"plain": 1.0})
    model, tokenizer = load_model(FOLDER)
    found = scene_probes(data, _PICTURES, model.config.image_size)(model, tokenizer)
    return {(score.part, score.task): score.value for score in found}


@pytest.mark.parametrize("part", ["seen compositions", "unseen compositions"])
@pytest.mark.parametrize(("task", "least"), [("shape", 0.9), ("colour", 0.9), ("material", 0.6), ("all together", 0.6)])
def test_it_names_what_it_sees(scores: dict[tuple[str, str], float], part: str, task: str, least: float) -> None:
    assert scores[part, task] >= least


def test_words_and_pictures_meet_in_one_space() -> None:
    stimuli = scene_set(100, seed=2**33, size=64)
    seen, read = (
        encode(stimuli, name, cache=False, progress=False).of(stimuli.ids, "pooled")
        for name in ("pocket", "pocket-text")
    )
    assert top_k(count_true(similarity(seen, read)), 1).mean() > 0.5  # chance 0.01


def test_targets_are_tokens_and_a_pooled_embedding() -> None:
    stimuli = scene_set(6, seed=7, size=64)
    targets = encode(stimuli, "pocket", cache=False, progress=False)
    assert targets.shape("tokens") == (65, 128)
    assert targets.shape("pooled") == (128,)
    assert np.isfinite(targets.of(stimuli.ids, "tokens")).all()


def test_its_identity_is_that_of_its_weights(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(FOLDER, copy)
    assert make_encoder(f"mlip:{copy}").identity == make_encoder("pocket").identity
