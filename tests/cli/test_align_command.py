"""`phosphene align`: the aligner on disk, figures before and after, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "alignment"))
from people_who_share import shared_study

from phosphene.alignment import Aligner
from phosphene.cli import app
from phosphene.errors import InputError, LeakageError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = shared_study((40, 44, 38), n=120, noise=1.0)
    return study.save(tmp_path_factory.mktemp("align") / "study.h5")


def _run(*words: object) -> str:
    done = CliRunner().invoke(app, ["align", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_before_and_after_by_region(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "aligner"
    said = _run(file, "--method", "hybrid", "--out", out, "--bootstrap", 50, "--json", tmp_path / "same.json")
    facts = json.loads((out / "isc.json").read_text())
    assert facts == json.loads((tmp_path / "same.json").read_text())
    assert facts["fitted_on"] == 80
    assert facts["after"]["n_stimuli"] == 40
    before, after = ({row["roi"]: row for row in facts[when]["rows"]} for when in ("before", "after"))
    assert set(before) == set(after) == {"all", "V1", "V2"}
    for roi in after:
        assert after[roi]["value"] > before[roi]["value"] + 0.2
        assert f"{after[roi]['value']:.3f}" in said
        assert f"{before[roi]['value']:.3f} {before[roi]['interval'][0]:.3f}" in said
    assert Aligner.load(out).subjects == ["sub-01", "sub-02", "sub-03"]


def test_settings_people_and_no_measurement(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "few"
    words = ["--subject", "sub-01", "--subject", "sub-03", "--measure", "none", "--set", "width=12"]
    said = _run(file, "--method", "pooled", "--out", out, *words)
    assert "sub-01, sub-03 -> pooled-12, 12 places" in said
    assert "correlation" not in said
    assert json.loads((out / "isc.json").read_text())["after"] is None


@pytest.mark.parametrize("words", [("--bootstrap", 10), ("--seed", 3)])
def test_words_of_a_measurement_that_is_left_out(file: Path, tmp_path: Path, words: tuple[str, int]) -> None:
    with pytest.raises(InputError, match="of the measurement, which --measure none leaves out"):
        _run(file, "--method", "pooled", "--out", tmp_path / "few", "--measure", "none", *words)


def test_a_template_without_regions_leaves_dashes(file: Path, tmp_path: Path) -> None:
    said = _run(file, "--method", "srm", "--out", tmp_path / "srm", "--bootstrap", 0)
    line = next(line for line in said.splitlines() if line.strip().startswith("V1"))
    assert line.split()[1] == "-"
    assert line.rstrip().endswith("-")


def test_what_is_refused_leaves_nothing(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "none"
    with pytest.raises(LeakageError, match="found 'test'"):
        _run(file, "--method", "ridge", "--out", out, "--role", "test")
    with pytest.raises(LeakageError, match="fitted on 80 of the 80"):
        _run(file, "--method", "ridge", "--out", out, "--measure", "train")
    with pytest.raises(InputError, match="unknown aligner 'hybird'; did you mean 'hybrid'"):
        _run(file, "--method", "hybird", "--out", out)
    with pytest.raises(InputError, match="unknown subject 'sub-07'"):
        _run(file, "--method", "ridge", "--out", out, "--subject", "sub-07")
    assert not out.exists()
