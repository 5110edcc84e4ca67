"""`phosphene multi-subject`: the table of rivals on a study of one's own, from one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phosphene import virtual
from phosphene.cli import app
from phosphene.errors import InputError
from phosphene.files import read_json

BRIEF = {
    "decoder.width": 16,
    "decoder.blocks": 1,
    "decoder.linear_rank": 4,
    "decoder.experts": 2,
    "training.epochs": 1,
    "training.batch_size": 32,
    "mindtuner.training.epochs": 1,
    "mindtuner.adapting.epochs": 1,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"subjects": 2, "sessions": 1, "repeats": 1, "person": {"voxels": 60}}
    study = virtual.study(seed=5, stimuli={"test": 24, "common": 40, "own": 0, "size": 32}, **sizes)
    return study.save(tmp_path_factory.mktemp("many") / "study.h5")


def _run(*words: object, **settings: object) -> str:
    assigned = [word for key, value in {**BRIEF, **settings}.items() for word in ("--set", f"{key}={value}")]
    line = ["multi-subject", *map(str, words), *assigned]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_table_from_one_line(file: Path, tmp_path: Path) -> None:
    words = ["--targets", "gabor", "--classes", "shape_*", "--arms", "single,mindtuner", "--out", tmp_path / "many"]
    said = _run(file, *words, "--bootstrap", 20, "--json", tmp_path / "table.json")
    assert "wills-aligner, stages 1 + 2 minus the others [95 % interval]:" in said
    assert "mindtuner (LoRA and Skip-LoRA)" in said
    assert "mAP" in said
    assert "what another seed would give is not in the intervals" in said
    assert read_json(tmp_path / "table.json") == read_json(tmp_path / "many" / "multi_subject.json")
    assert (tmp_path / "many" / "seed-0" / "labels.json").exists()


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["--arms", ","], {}, "a list with commas is needed"),
        (["--arms", "others"], {}, "unknown arm 'others'"),
        (["--seeds", "one"], {}, "--seeds takes numbers with commas between them, found 'one'"),
        (["--align", "anatomicol"], {}, "anatomicol"),
        (["--split", "fold-9"], {}, "fold-9"),
        ([], {"model.width": 3}, "unknown table of settings 'model'"),
    ],
)
def test_refused(file: Path, tmp_path: Path, words: list[str], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        _run(file, "--targets", "gabor", "--out", tmp_path / "many", *words, **settings)
    assert not (tmp_path / "many").exists()
