"""`phosphene evaluate` of decoders with classes: scores of labels beside the others, rivals in pairs, units."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phosphene import virtual
from phosphene.cli import app
from phosphene.errors import InputError

SMALL = {
    "decoder.stage2": "none",
    "decoder.width": 16,
    "decoder.blocks": 1,
    "decoder.linear_rank": 4,
    "training.epochs": 1,
    "training.batch_size": 32,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"subjects": 2, "sessions": 1, "repeats": 1, "person": {"voxels": 60}}
    study = virtual.study(seed=5, stimuli={"test": 24, "common": 40, "own": 0, "size": 32}, **sizes)
    return study.save(tmp_path_factory.mktemp("labels") / "study.h5")


@pytest.fixture(scope="module")
def runs(file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, columns, seed in (("one", "shape_*", 0), ("two", "shape_*", 1), ("other", "background", 0)):
        words = [f"{key}={value}" for key, value in SMALL.items()] + [f'decoder.class_columns=["{columns}"]']
        line = ["fit", "wills-aligner", file, "--targets", "gabor", "--align", "anatomical", "--seed", seed]
        _invoke(*line, "--out", folder / name, *(word for each in words for word in ("--set", each)))
        found[name] = folder / name
    return found


def _invoke(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_rival_with_the_same_classes_stands_beside(file: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["--rivals", f"mean,{runs['two']}", "--protocols", "retrieval", "--json", tmp_path / "scores.json"]
    said = _invoke("evaluate", runs["one"], file, *words)
    told = json.loads((tmp_path / "scores_labels.json").read_text())
    rival = "wills-aligner (rival)"
    assert {row["method"] for row in told["differences"]} == {rival}
    assert f"wills-aligner - {rival}: mAP" in said
    first, second = (
        next(s["value"] for s in told["scores"] if (s["method"], s["subject"], s["metric"]) == (name, "mean", "mAP"))
        for name in ("wills-aligner", rival)
    )
    gain = next(row for row in told["differences"] if row["metric"] == "mAP")
    assert gain["value"] == pytest.approx(first - second)
    assert gain["low"] < gain["value"] < gain["high"]


def test_other_classes_are_said_and_units_are_heard(file: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["--rivals", runs["other"], "--protocols", "retrieval", "--unit", "background"]
    said = _invoke("evaluate", runs["one"], file, *words, "--json", tmp_path / "scores.json")
    assert "other classes than wills-aligner, not compared on labels" in said
    told = json.loads((tmp_path / "scores_labels.json").read_text())
    assert told["differences"] == []
    assert told["facts"]["unit"] == "background"
    with pytest.raises(InputError, match="unknown unit"):
        _invoke("evaluate", runs["one"], file, "--rivals", "none", "--unit", "backgrounds")


def test_a_folder_with_two_decoders_of_one_split_is_no_set_of_folds(file: Path, runs: dict[str, Path]) -> None:
    """The last one used to stand for both: one person's model, say, for everybody's."""
    with pytest.raises(InputError, match="holds two decoders of split 'default': one and other; name one of them"):
        _invoke("evaluate", runs["one"].parent, file, "--rivals", "none")


def test_a_run_a_person_is_a_rival_of_one_model_of_all(file: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    for person in ("sub-01", "sub-02"):
        _invoke("fit", "ridge", file, "--targets", "gabor", "--subject", person, "--out", tmp_path / "single" / person)
    words = ["--rivals", tmp_path / "single", "--protocols", "retrieval", "--json", tmp_path / "scores.json"]
    _invoke("evaluate", runs["one"], file, *words)
    told = json.loads((tmp_path / "scores.json").read_text())
    assert {row["rival"] for row in told["comparisons"]} == {"ridge, one a person"}
    assert {s["subject"] for s in told["scores"] if s["method"] == "ridge, one a person"} == {
        "sub-01",
        "sub-02",
        "mean",
    }
