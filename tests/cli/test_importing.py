"""Importers and `check` at the command line: options reach the readers, the exit status says if the work was done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import typer

from phosphene.cli import main
from phosphene.cli.importing import parse_sessions
from phosphene.recordings import Study
from phosphene.table import Table


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["phosphene", *map(str, words)])
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def fits(tmp_path: Path) -> Path:
    """One person's flat betas, 12 trials of 6 stimuli."""
    folder = tmp_path / "fits/sub-01"
    folder.mkdir(parents=True)
    with h5py.File(folder / "TYPEB_FITHRF.hdf5", "w") as file:
        file["betasmd"] = np.random.default_rng(0).normal(size=(5, 1, 1, 12))
    stimuli = [f"s{n % 6}" for n in range(12)]
    Table({"stimulus_id": stimuli, "label": [f"c{n % 3}" for n in range(12)]}).write_tsv(folder / "trials.tsv")
    return tmp_path / "fits"


def test_import_and_check(fits, tmp_path, monkeypatch, capsys):
    out, figures = tmp_path / "s.h5", tmp_path / "check.json"
    words = ["import", "glmsingle", fits, "--out", out, "--model", "TYPEB_FITHRF", "--folds-by", "label"]
    status, printed, _ = run(monkeypatch, capsys, *words)
    assert status == 0
    assert "sub-01: 12 trials x 5 voxels" in printed
    status, printed, _ = run(monkeypatch, capsys, "check", out, "--json", figures)
    assert status == 0
    assert "no problem found" in printed
    assert "6 shown 2x" in printed
    assert json.loads(figures.read_text())["people"]["sub-01"]["repeats"] == {"2": 6}
    with Study.open(out) as study:
        assert study.split_names == ["label-c0", "label-c1", "label-c2"]


def test_check_ends_with_2_where_there_is_a_problem(fits, tmp_path, monkeypatch, capsys):
    out = tmp_path / "s.h5"
    run(monkeypatch, capsys, "import", "glmsingle", fits, "--out", out, "--model", "TYPEB_FITHRF")
    with h5py.File(out, "r+") as file:
        file["recordings/sub-01/responses"][0, 0] += 1
    status, printed, _ = run(monkeypatch, capsys, "check", out)
    assert status == 2
    assert "sub-01: responses differ from their checksum" in printed
    assert "1 problem found" in printed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nsd", "--sessions", "1-2", "--subject", "1"], "betas_session02.hdf5"),
        (["nsd", "--space", "fsaverage", "--subject", "subj03", "--sessions", "1"], "rh.betas_session01.mgh"),
        (["mindeye2", "--subject", "2"], "wds/subj02/train/39.tar"),
        (["god", "--subject", "4"], "Subject4.h5"),
        (["glmsingle"], "sub-01/"),
        (["fmriprep"], "holds no *_betas.nii.gz"),
    ],
)
def test_an_empty_tree_ends_with_2_and_a_list(tmp_path, monkeypatch, capsys, words, told):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "s.h5"
    status, _, error = run(monkeypatch, capsys, "import", words[0], tmp_path / "empty", "--out", out, *words[1:])
    assert status == 2
    assert told in error
    assert "Traceback" not in error
    assert list(tmp_path.glob("*")) == [tmp_path / "empty"]


def test_import_fmriprep(tmp_path, monkeypatch, capsys):
    stem = tmp_path / "d/sub-01/sub-01_task-see_run-1"
    stem.parent.mkdir(parents=True)
    for desc in ("a", "b"):
        values = np.random.default_rng(0).normal(size=(2, 2, 2, 4)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), f"{stem}_space-T1w_desc-{desc}_betas.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), f"{stem}_space-T1w_desc-brain_mask.nii.gz"
    )
    Table({"stimulus_id": list("abcd")}).write_tsv(f"{stem}_trials.tsv")
    words = ["import", "fmriprep", tmp_path / "d", "--out", tmp_path / "s.h5", "--space", "T1w"]
    status, _, error = run(monkeypatch, capsys, *words)
    assert status == 2
    assert "choose with --desc" in error
    status, printed, _ = run(monkeypatch, capsys, *words, "--desc", "a")
    assert status == 0
    assert "4 trials x 8 voxels" in printed


def test_sessions_in_words():
    assert parse_sessions(None) is None
    assert parse_sessions("37") == 37
    assert parse_sessions("1-3,7") == [1, 2, 3, 7]
    with pytest.raises(typer.BadParameter, match="1-3,7"):
        parse_sessions("all")
