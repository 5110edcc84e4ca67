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
from phosphene.alignment.anatomical import Anatomical
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


def test_what_cannot_be_measured_is_said_before_the_work_and_with_the_way_out(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "few.h5"
    shared_study((20, 20), n=24).save(few)
    monkeypatch.setattr(Anatomical, "fit", lambda *words: pytest.fail("it has begun"))
    way_out = "--measure none"
    with pytest.raises(InputError, match=r"8 stimuli of the test part.*Inter-subject correlation compares") as caught:
        _run(few, "--method", "anatomical", "--out", tmp_path / "out")
    assert way_out in str(caught.value)
    assert "Functional" not in str(caught.value)
    with pytest.raises(InputError, match="at least two people, found sub-01") as caught:
        _run(file, "--method", "anatomical", "--out", tmp_path / "out", "--subject", "sub-01")
    assert way_out in str(caught.value)
    monkeypatch.undo()
    _run(few, "--method", "anatomical", "--out", tmp_path / "out", "--measure", "none")
    assert (tmp_path / "out" / "config.json").exists()


def test_files_of_others_are_refused_before_the_work(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--method", "anatomical", "--out", tmp_path / "out", "--bootstrap", "0")
    _run(file, *words)
    _run(file, *words)
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    monkeypatch.setattr(Anatomical, "fit", lambda *words: pytest.fail("it has begun"))
    with pytest.raises(InputError, match=r"lost \(thesis.txt\) beside those of an aligner"):
        _run(file, *words)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the folder this runs in"):
        _run(file, "--method", "anatomical", "--out", ".")
