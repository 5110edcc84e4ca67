"""The command line: the whole way on a made study folder, and one clear message for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phosphene.cli import main
from phosphene.table import Table

N = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two people whose responses are linear in the brightness of four quarters of a picture."""
    root = tmp_path_factory.mktemp("cli") / "study"
    rng = np.random.default_rng(0)
    quarters = rng.integers(20, 236, (N, 2, 2, 3))
    ids = [f"s{i:02d}" for i in range(N)]
    (root / "stimuli").mkdir(parents=True)
    for name, colours in zip(ids, quarters, strict=True):
        pixels = colours.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
        Image.fromarray(pixels).save(root / "stimuli" / f"{name}.png")
    words = ["dark", "bright"]
    captions = [f"a {words[int(q[..., 0].mean() > 128)]} picture, number {i}" for i, q in enumerate(quarters)]
    Table({"stimulus_id": ids, "caption": captions}).write_tsv(root / "captions.tsv")
    roles = np.where(np.arange(N) % 3 == 0, "test", "train")
    Table({"stimulus_id": ids, "one": roles, "two": np.roll(roles, 1)}).write_tsv(root / "splits.tsv")
    for person in ("sub-01", "sub-02"):
        (root / person).mkdir()
        code = quarters.reshape(N, 12) @ rng.normal(size=(12, 40))
        np.save(root / person / "responses.npy", code + 20 * rng.normal(size=code.shape))
        Table({"stimulus_id": ids}).write_tsv(root / person / "trials.tsv")
        axis = np.arange(40)
        Table({"i": axis, "j": axis % 4, "k": axis % 2, "roi_V1": axis < 20}).write_tsv(root / person / "voxels.tsv")
    return root


def run(monkeypatch, capsys, *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    monkeypatch.setattr(sys, "argv", ["phosphene", *map(str, words)])
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_whole_way(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path / "cache"))

    def ok(*words: object) -> str:
        status, out, err = run(monkeypatch, capsys, *words)
        assert status == 0, err
        return out

    study = tmp_path / "study.h5"
    assert "30 stimuli, 2 people" in ok("import", "folder", folder, "--out", study)
    ok("check", study, "--json", tmp_path / "check.json")
    assert "sub-02" in (tmp_path / "check.json").read_text()
    ok("encode", study, "--encoder", "z:pixels", "--split", "one", "--out", tmp_path / "targets")
    ok("fit", "ridge", study, "--targets", tmp_path / "targets", "--split", "one", "--out", tmp_path / "given")
    ok(
        "fit",
        "ridge",
        study,
        "--targets",
        "z:pixels",
        "--split",
        "*",
        "--out",
        tmp_path / "runs",
        "--set",
        "decoder.folds=3",
    )
    table = ok("evaluate", tmp_path / "runs", study, "--rivals", "mean", "--json", tmp_path / "scores.json")
    assert "brain_to_image" in table
    card = json.loads((tmp_path / "scores.json").read_text())
    two_way = [
        s for s in card["scores"] if s["metric"] == "two-way" and s["method"] == "ridge" and s["subject"] == "mean"
    ]
    assert two_way[0]["value"] > 0.8
    assert two_way[0]["chance"] == 0.5
    ok("evaluate", tmp_path / "given", study, "--rivals", "none", "--json", tmp_path / "a.json")
    ok(
        "fit",
        "ridge",
        study,
        "--targets",
        "z:pixels",
        "--split",
        "one",
        "--out",
        tmp_path / "b",
        "--set",
        "decoder.folds=2",
    )
    ok("evaluate", tmp_path / "b", study, "--rivals", "none", "--json", tmp_path / "b.json")
    ok("compare", tmp_path / "a.json", tmp_path / "b.json")
    ok("evaluate", tmp_path / "given", study, "--rivals", f"mean,{tmp_path / 'b'}", "--json", tmp_path / "c.json")
    methods = {score["method"] for score in json.loads((tmp_path / "c.json").read_text())["scores"]}
    assert methods == {"ridge", "mean", f"ridge ({tmp_path / 'b'})"}
    page = tmp_path / "report.html"
    assert str(page) in ok("report", tmp_path / "runs", study, "--scores", tmp_path / "scores.json", "--out", page)
    assert "<html" in page.read_text()
    np.save(tmp_path / "new.npy", np.load(folder / "sub-01" / "responses.npy")[:2])
    gallery = folder / "stimuli"
    words = (
        "decode",
        tmp_path / "given",
        tmp_path / "new.npy",
        "--gallery",
        gallery,
        "--subject",
        "sub-01",
        "--top",
        3,
    )
    ok(*words, "--out", tmp_path / "decoded")
    assert len(Table.read_tsv(tmp_path / "decoded" / "matches.tsv")) == 6
    ok("decode", tmp_path / "given", study, "--gallery", study, "--out", tmp_path / "decoded2", "--average")
    pages = ok(*words, "--out", tmp_path / "decoded3", "--report", "--image-size", 8)
    assert str(tmp_path / "decoded3" / "report.html") in pages
    assert (tmp_path / "decoded3" / "report.html").read_text().count("data:image/webp") == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["fit", "rigde", "STUDY", "--targets", "pixels", "--out", "x"],
            "unknown decoder 'rigde'; did you mean 'ridge'",
        ),
        (["fit", "ridge", "STUDY", "--targets", "gabr", "--out", "x"], "unknown encoder 'gabr'; did you mean 'gabor'"),
        (["fit", "ridge", "STUDY", "--targets", "pixels", "--out", "x", "--split", "three"], "unknown split 'three'"),
        (["fit", "ridge", "STUDY", "--targets", "pixels", "--out", "x", "--preset", "huge"], "unknown preset of ridge"),
        (["fit", "ridge", "STUDY", "--targets", "pixels", "--out", "x", "--set", "decoder.fold=3"], "'fold'"),
        (
            ["fit", "ridge", "STUDY", "--targets", "pixels", "--out", "x", "--set", "fold=3"],
            "unknown table of settings",
        ),
        (["evaluate", "nowhere", "STUDY"], "nowhere does not exist"),
        (["import", "folder", "nowhere", "--out", "x.h5"], "nowhere is not a folder"),
        (["check", "nowhere.h5"], "nowhere.h5 does not exist"),
    ],
)
def test_mistakes_get_one_message_and_status_two(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "study.h5"
    run(monkeypatch, capsys, "import", "folder", folder, "--out", study)
    status, _, err = run(monkeypatch, capsys, *[str(study) if word == "STUDY" else word for word in words])
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.h5"]


def test_usage_errors_exit_with_two(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "fit")[0] == 2
    assert run(monkeypatch, capsys, "frobnicate")[0] == 2


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["phosphene", "check", "nowhere.h5", "--debug"])
    with pytest.raises(ValueError, match="nowhere"):
        main()


@pytest.mark.parametrize(
    ("words", "said"), [((), "nothing was left half-written"), (("go on with it",), "go on with it")]
)
def test_an_interruption_is_told_in_one_line(monkeypatch, capsys, words, said):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt(*words)

    monkeypatch.setattr("phosphene.recordings.Study.open", interrupted)
    status, _, err = run(monkeypatch, capsys, "evaluate", ".", "study.h5")
    assert (status, err.count("\n")) == (130, 1)
    assert said in err


def test_help_needs_no_torch():
    code = "import sys, phosphene.cli; sys.exit(bool({'torch', 'numpy', 'h5py', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_doctor_names_versions_devices_and_folders(monkeypatch, capsys, tmp_path):
    status, out, _ = run(monkeypatch, capsys, "doctor", "--json", tmp_path / "doctor.json")
    assert status == 0
    for word in ("torch", "python", "cpu", "transformers", "PHOSPHENE_DATA"):
        assert word in out
    assert set(json.loads((tmp_path / "doctor.json").read_text())) >= {"packages", "devices", "optional", "folders"}
