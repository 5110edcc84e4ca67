"""`phosphene fit --align`: by method or from a folder; the decoder takes recordings as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phosphene import virtual
from phosphene.cli import app
from phosphene.decoders import Decoder
from phosphene.errors import InputError


def _run(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"subjects": 2, "sessions": 2, "repeats": 2, "person": {"voxels": 90}}
    study = virtual.study(seed=1, stimuli={"test": 15, "common": 50, "own": 0, "size": 32}, **sizes)
    return study.save(tmp_path_factory.mktemp("aligned") / "study.h5")


def test_by_method_or_from_a_folder(file: Path, tmp_path: Path) -> None:
    _run("align", file, "--method", "ridge", "--out", tmp_path / "aligner", "--measure", "none")
    for number, align in enumerate(("ridge", tmp_path / "aligner")):
        words = ["--targets", "gabor", "--out", tmp_path / str(number), "--align", align]
        _run("fit", "ridge", file, *words)
        decoder = Decoder.load(tmp_path / str(number) / "decoder")
        assert decoder.aligner is not None
        assert decoder.aligner.name == "ridge"
        assert decoder.subject_free


def test_an_unknown_method_lists_the_known_ones(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="procrustes"):
        _run("fit", "ridge", file, "--targets", "gabor", "--out", tmp_path / "run", "--align", "procrust")
