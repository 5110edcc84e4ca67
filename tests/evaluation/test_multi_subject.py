"""One model of many people beside its rivals: trained alike, scored as each would be alone, kept, taken up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linear_study import linear_study

from phosphene import evaluation, virtual
from phosphene.decoders import Decoder
from phosphene.encoders import Targets, encode
from phosphene.errors import InputError
from phosphene.evaluation import Scorecard, multi_subject
from phosphene.evaluation.multi_subject import ARMS, SINGLE, STAGE1, WILLS, Setup, first_stage
from phosphene.files import read_json
from phosphene.recordings import Recording, Study

BRIEF: dict[str, Any] = {"epochs": 2, "batch_size": 32}
SMALL: dict[str, Any] = {"width": 16, "blocks": 1, "linear_rank": 4, "experts": 2, "rank": 2, "projector": 8}
BACKBONE = {"decoder": {"width": 16, "blocks": 1}, "training": BRIEF, "adapting": BRIEF, "adapter": {"rank": 2}}
Made = tuple[Study, Targets]


@pytest.fixture(scope="module")
def made() -> Made:
    sizes: dict[str, Any] = {"subjects": 3, "sessions": 2, "repeats": 2, "person": {"voxels": 60}}
    stimuli = {"test": 20, "common": 0, "own": 60, "size": 32, "captions": 1}
    study = virtual.simulate(virtual.make_settings(None, stimuli=stimuli, **sizes), 4, progress=False).study
    train = study.split("train").stimulus_ids
    return study, encode(study.stimuli, "z:gabor", fit_on=train, cache=False, progress=False)


def _run(made: Made, out: Path, **words: Any) -> Any:
    options = {"training": BRIEF, "mindtuner": BACKBONE, "n_boot": 50, "n_perm": 0, "progress": False, **SMALL, **words}
    return multi_subject(*made, out, **options)


@pytest.fixture(scope="module")
def all_of_them(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("many")
    return out, _run(made, out, classes=["shape_*"])


def test_every_arm_stands_in_the_table(all_of_them: tuple[Path, Any]) -> None:
    out, found = all_of_them
    assert list(found.arms) == list(ARMS)
    assert found.models[0] == WILLS
    assert len(found.models) == len(ARMS) + 1  # both stages, and the first alone
    assert not found.left_out
    rows = {(row["model"], row["metric"], row["direction"]): row for row in found.rows()}
    said = found.table()
    for model in found.models:
        assert said.count(model + " ") == (1 if model == WILLS else 2) + (model == WILLS)
        classes = (model, "mAP", "") in rows
        assert classes == (model.startswith(("wills", "single", "naive", "MindBridge", "subject", "per-person LoRA")))
    kept = read_json(out / "multi_subject.json")
    assert [row["model"] for row in kept["rows"]] == [row["model"] for row in found.rows()]
    assert (out / "multi_subject.txt").read_text() == said + "\n"


def test_differences_are_those_of_the_values(all_of_them: tuple[Path, Any]) -> None:
    found = all_of_them[1]
    ours = {(row["metric"], row["direction"]): row["values"][0] for row in found.rows() if row["model"] == WILLS}
    others = [row for row in found.rows() if row["model"] != WILLS]
    assert len(others) > 30
    for row in others:
        difference = ours[row["metric"], row["direction"]] - row["values"][0]
        assert row["differences"][0] == pytest.approx(difference, abs=1e-9)
        low, high = row["intervals"][0]
        assert low <= high
    assert any(abs(row["differences"][0]) > 1e-6 for row in others if row["model"] == STAGE1)


def test_scores_are_those_of_each_decoder_by_itself(made: Made, all_of_them: tuple[Path, Any]) -> None:
    out, found = all_of_them
    study, targets = made
    rows = {(row["model"], row["metric"], row["direction"]): row["values"][0] for row in found.rows()}
    quiet: dict[str, Any] = {"rivals": (), "n_boot": 0, "n_perm": 0, "progress": False}
    both = Decoder.load(out / "seed-0" / "wills-aligner" / "decoder")
    for model, decoder in ((WILLS, both), (STAGE1, first_stage(both))):  # type: ignore[arg-type]
        alone = evaluation.evaluate(decoder, study, targets, **quiet)
        for metric in ("top-1", "two-way"):
            for way in ("brain_to_image", "image_to_brain"):
                assert rows[model, metric, way] == pytest.approx(alone.get(metric, way).value, abs=1e-9)
    with both.commonality():  # type: ignore[attr-defined]
        labels = evaluation.evaluate_labels(both, study, n_boot=0)
    assert rows[STAGE1, "mAP", ""] == pytest.approx(labels.get("mAP").value, abs=1e-9)
    each = []
    for person in study.subjects:
        one = Decoder.load(out / "seed-0" / "single" / person / "decoder")
        assert list(one.subjects) == [person]
        each.append(evaluation.evaluate(one, study, targets, subjects=[person], **quiet).get("two-way").value)
    assert rows[SINGLE, "two-way", "brain_to_image"] == pytest.approx(np.mean(each), abs=1e-9)


def test_newcomers_come_from_models_of_the_others(made: Made, all_of_them: tuple[Path, Any]) -> None:
    out, people = all_of_them[0], list(made[0].subjects)
    for person in people:
        others = [each for each in people if each != person]
        assert list(Decoder.load(out / "seed-0" / "without" / person / "decoder").subjects) == others
        assert list(Decoder.load(out / "seed-0" / "newcomers-full" / person / "decoder").subjects) == [person]
        assert person in Decoder.load(out / "seed-0" / "newcomers-both" / person / "decoder").subjects


def test_what_is_finished_is_not_trained_again(made: Made, all_of_them: tuple[Path, Any]) -> None:
    out, found = all_of_them
    weights = sorted(out.rglob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert len(before) > len(ARMS)
    again = _run(made, out, classes=["shape_*"])
    assert again.table() == found.table()
    assert [path.stat().st_mtime_ns for path in weights] == before
    with pytest.raises(InputError, match=r"training\.epochs was 2, is now 3"):
        _run(made, out, classes=["shape_*"], training={**BRIEF, "epochs": 3})


def test_several_seeds(made: Made, tmp_path: Path) -> None:
    found = _run(made, tmp_path, arms=["naive"], seeds=[0, 1], mindtuner=None)
    assert found.models == [WILLS, STAGE1, "naive pooling"]
    assert not found.labels
    row = next(row for row in found.rows() if (row["model"], row["metric"]) == ("naive pooling", "two-way"))
    assert len(row["values"]) == len(row["differences"]) == len(row["intervals"]) == 2
    assert row["values"][0] != row["values"][1]
    low, high = sorted(row["values"])
    assert f"{np.mean(row['values']):.3f} ({low:.3f} to {high:.3f})" in found.table()
    above = sum(low > 0 for low, _ in row["intervals"])
    below = sum(high < 0 for _, high in row["intervals"])
    assert f"{np.mean(row['differences']):+.3f} ({above} above, {below} below)" in found.table()
    assert Scorecard.load(tmp_path / "seed-1" / "scores.json").method == WILLS


def test_what_a_study_does_not_allow_is_left_out_and_said(tmp_path: Path) -> None:
    study, targets = linear_study()
    first, second = study.recordings.values()
    some = np.arange(20)
    fewer = Recording(second.subject, second.responses[:, some], second.trials, second.voxels.take(some))
    parts = {role: study.split(role).stimulus_ids for role in ("train", "test")}
    uneven = Study(study.stimuli, [first, fewer], {"default": parts}, name="uneven", scaling="none")
    told = "it takes voxels by number, and people have 30 (sub-01), 20 (sub-02)"
    with pytest.raises(InputError, match="arm 'naive' cannot be trained: it takes voxels by number"):
        _run((uneven, targets), tmp_path, arms=["naive"], aligner="ridge", mindtuner=None)
    assert not list(tmp_path.iterdir())
    found = _run((uneven, targets), tmp_path, aligner="ridge")
    assert found.left_out == {"naive": told}
    assert "naive pooling" not in found.models
    assert f"naive left out: {told}" in found.table()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"arms": ["naiv"]}, "unknown arm 'naiv'"),
        ({"subjects": ["sub-01"]}, "two people and a seed are needed, found 1"),
        ({"subjects": ["sub-01", "sub-01"]}, "sub-01"),
        ({"seeds": []}, "a seed are needed, found 3 and 0"),
        ({"seeds": [1, 1]}, "seed"),
        ({"stage2": "none"}, "without its second stage"),
        ({"seeds": [0, -1]}, "seed must be an integer from 0 to 4294967295, found -1"),
        ({"mindtuner": {"decoders": {}}}, "unknown table of mindtuner's settings 'decoders'"),
        ({"mindtuner": {"decoder": {"widht": 8}}}, "unknown setting of MindTunerConfig: 'widht'"),
        ({"mindtuner": {"training": {"epoch": 8}}}, "unknown setting of TrainingConfig: 'epoch'"),
        ({"mindtuner": {"adapting": {"epoch": 8}}}, "unknown setting of TrainingConfig: 'epoch'"),
        ({"mindtuner": {"adapter": {"ranks": 8}}}, "unknown setting of AdapterConfig: 'ranks'"),
        ({"arms": ["single"]}, "mindtuner.decoder has no use: none of the arms wills-aligner, single has"),
        ({"arms": ["ridge"]}, "mindtuner.adapting has no use"),
        ({"arms": ["fine-tuning"]}, "rank = 2 is a setting of the arms"),
    ],
)
def test_refused(made: Made, tmp_path: Path, words: dict[str, Any], said: str) -> None:
    """Before anything is trained."""
    with pytest.raises(InputError, match=said):
        _run(made, tmp_path, **words)
    assert not list(tmp_path.iterdir())


def test_both_kinds_of_newcomers_get_what_they_have_a_use_for(made: Made, all_of_them: tuple[Path, Any]) -> None:
    setup = Setup(*made, all_of_them[0], tuple(made[0].subjects), None)  # type: ignore[arg-type]
    adapter = {"rank": 2, "voxel_dropout": 0.25, "full": {"voxel_dropout": 0.5}}
    setup = replace(setup, mindtuner={**BACKBONE, "adapter": adapter}, seed=0, folder=all_of_them[0] / "others")
    full, both = (setup.newcomer("sub-01", arm) for arm in ("full", "both"))
    assert full.provenance["adapter"]["voxel_dropout"] == 0.5
    assert (both.apart["sub-01"]["adapter"]["rank"], both.apart["sub-01"]["adapter"]["voxel_dropout"]) == (2, 0.25)
