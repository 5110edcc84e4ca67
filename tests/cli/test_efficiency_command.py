"""`phosphene efficiency`: a table and a figure from one line; numbers that are none are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phosphene import virtual
from phosphene.cli import app
from phosphene.errors import InputError
from phosphene.files import read_json


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"subjects": 2, "sessions": 2, "repeats": 2, "person": {"voxels": 60}}
    study = virtual.study(seed=4, stimuli={"test": 15, "common": 0, "own": 60, "size": 32}, **sizes)
    return study.save(tmp_path_factory.mktemp("efficiency") / "study.h5")


def _run(*words: object) -> str:
    line = ["efficiency", *map(str, words)]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_table_and_a_figure(file: Path, tmp_path: Path) -> None:
    brief = ["--set", "training.epochs=1", "--set", "adapting.epochs=1", "--arms", "ridge-only"]
    words = ["--subject", 2, "--targets", "gabor", "--sessions", "1,40", "--people", 1, "--out", tmp_path / "curves"]
    said = _run(file, *words, *brief)
    assert "ridge-only, 1 people before, 1 sessions, seed 0: top-1" in said
    assert "± is the deviation" in said
    assert (tmp_path / "curves" / "efficiency.png").exists()


def test_an_aligner_a_split_and_figures_as_json(file: Path, tmp_path: Path) -> None:
    brief = ["--set", "training.epochs=1", "--set", "adapting.epochs=1", "--arms", "ridge-only"]
    words = ["--subject", 2, "--targets", "gabor", "--sessions", 1, "--people", 1, "--out", tmp_path / "curves"]
    _run(file, *words, *brief, "--align", "anatomical", "--split", "default", "--json", tmp_path / "same.json")
    assert read_json(tmp_path / "same.json") == read_json(tmp_path / "curves" / "efficiency.json")
    assert read_json(tmp_path / "same.json")["facts"]["aligner"] == "anatomical"
    with pytest.raises(InputError, match="unknown split 'nowhere'"):
        _run(file, *words, *brief, "--split", "nowhere")


def test_numbers_that_are_none(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--people takes numbers with commas between them, found 'few'"):
        _run(file, "--subject", "sub-02", "--targets", "gabor", "--out", tmp_path, "--people", "few")
