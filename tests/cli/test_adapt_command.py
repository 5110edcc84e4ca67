"""`phosphene adapt`: a lab's one line, what it prints, where it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from phosphene.cli import app
from phosphene.cli.adapting import person_named
from phosphene.decoders import Decoder
from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.virtual import make_settings, simulate

SHORT = ["--set", "training.epochs=2", "--set", "training.batch_size=16", "--set", "adapter.rank=2"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = make_settings(
        None,
        subjects=3,
        sessions=3,
        repeats=2,
        runs=2,
        stimuli={"test": 8, "common": 0, "own": 28, "size": 32, "captions": 1},
        person={"voxels": 60},
    )
    return simulate(settings, 0).study.save(tmp_path_factory.mktemp("adapt") / "study.h5")


@pytest.fixture(scope="module")
def trained(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    words = ["--subject", "sub-01", "--subject", "sub-02", "--set", "decoder.width=16", "--set", "decoder.projector=8"]
    words += ["--set", "decoder.start_rank=8", "--set", "training.batch_size=32", "--set", "training.epochs=2"]
    done = CliRunner().invoke(
        app, ["fit", "mindtuner", str(study), "--targets", "gabor", "--out", str(run), *words], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return run


def _run(*words: object) -> str:
    done = CliRunner().invoke(app, ["adapt", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_person_is_added_to_the_decoder(study: Path, trained: Path, tmp_path: Path) -> None:
    before = Decoder.load(trained / "decoder")
    said = _run(trained, study, "--subject", 3, "--sessions", 1, *SHORT, "--json", tmp_path / "told.json")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["sessions"] == [1]
    assert told["subjects"] == ["sub-01", "sub-02", "sub-03"]
    assert "mindtuner adapted to sub-03 (both)" in said
    for kind in ("adapters", "own"):
        assert f"{told['trained'][kind]:,}" in said
    assert f"{told['trained']['share']:.2%} of" in said
    assert str(trained / "decoder" / "people" / "sub-03" / "adapter") in said.replace("\n", "")
    everybody = Decoder.load(trained / "decoder")
    assert list(everybody.subjects) == ["sub-01", "sub-02", "sub-03"]
    with Study.open(study) as opened:
        x = opened.split("test").responses("sub-01")
        np.testing.assert_array_equal(everybody.predict(x, "sub-01"), before.predict(x, "sub-01"))
    scored = CliRunner().invoke(app, ["evaluate", str(trained), str(study), "--rivals", "none"], catch_exceptions=False)
    assert scored.exit_code == 0, scored.output


def test_the_whole_arms_want_a_folder(study: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a run folder"):
        _run(trained, study, "--subject", 3, "--arm", "full")
    said = _run(
        trained / "decoder", study, "--subject", "sub-03", "--arm", "full", "--out", tmp_path / "run", *SHORT[:4]
    )
    assert "sub-03 of this person alone" in said
    assert list(Decoder.load(tmp_path / "run" / "decoder").subjects) == ["sub-03"]
    # and a report of it, in a study of others too
    words = ["report", str(tmp_path / "run"), str(study), "--out", str(tmp_path / "page.html"), "--rivals", "none"]
    with pytest.raises(InputError, match=r"takes nobody else.*--subject of phosphene evaluate and report"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    done = CliRunner().invoke(app, [*words, "--subject", "sub-03"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "sub-03" in (tmp_path / "page.html").read_text()
    with pytest.raises(InputError, match="--subject says who is scored now, found --scores"):
        CliRunner().invoke(app, [*words, "--subject", "sub-03", "--scores", "x.json"], catch_exceptions=False)


def test_a_decoder_of_another_run_is_not_replaced(study: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "decoder", tmp_path / "three" / "decoder")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with pytest.raises(InputError, match="files that would be lost"):
        _run(trained, study, "--subject", 3, "--sessions", 1, "--arm", "ridge-only", "--out", tmp_path / "three")
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before


def test_what_is_refused(study: Path, trained: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--subject", 7], "unknown subject '7'. Known: sub-01, sub-02, sub-03"),
        (["--subject", 1], "'sub-01' is in this mindtuner decoder already"),
        (["--subject", 3, "--sessions", 4], "sub-03 has 3 sessions; asked for the first 4"),
        (["--subject", 3, "--set", "decoder.width=3"], "unknown table of settings 'decoder'. Known: adapter, training"),
    ):
        with pytest.raises(InputError, match=message):
            _run(trained, study, *words)
    with pytest.raises(InputError, match="holds no fitted decoder"):
        _run(tmp_path, study, "--subject", 3)


def test_people_by_number() -> None:
    people = ["sub-01", "sub-09", "sub-10", "sub-19"]
    for word in ("9", "09", "sub-09", "subj09", "sub-9", "subject 9", "SUB09"):
        assert person_named(word, people) == "sub-09"
    assert person_named("10", people) == "sub-10"
    assert person_named("alice", ["alice", "bob"]) == "alice"
    for word in ("0", "ninety", "1st", ""):
        with pytest.raises(InputError, match="unknown subject"):
            person_named(word, people)
    with pytest.raises(InputError, match="unknown subject"):
        person_named("1", ["a-1", "b-1"])


def test_a_wills_aligner_gets_a_person_by_the_same_line(study: Path, tmp_path: Path) -> None:
    short = ["training.epochs=1", "training.batch_size=32", "training.stage2.epochs=1", "training.stage2.batch_size=32"]
    small = [
        "decoder.width=16",
        "decoder.blocks=1",
        "decoder.projector=0",
        "decoder.linear_rank=4",
        "decoder.experts=2",
    ]
    words = ["--targets", "gabor", "--align", "anatomical", "--subject", "sub-01", "--subject", "sub-02"]
    line = ["fit", "wills-aligner", study, *words, "--out", tmp_path / "run"]
    line += [word for each in [*short, *small] for word in ("--set", each)]
    done = CliRunner().invoke(app, [str(word) for word in line], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with pytest.raises(InputError, match="name a run folder"):
        _run(tmp_path / "run", study, "--subject", 3)
    for words in (["--arm", "lora"], ["--set", "adapter.rank=2"], ["--preset", "small"]):
        with pytest.raises(InputError, match="no arms, no adapter settings, no presets"):
            _run(tmp_path / "run", study, "--subject", 3, *words, "--out", tmp_path / "three")
    said = _run(tmp_path / "run", study, "--subject", 3, "--sessions", 1, "--out", tmp_path / "three")
    assert "parameters of their own trained" in said
    assert "sub-03 with sub-01, sub-02" in said
    assert list(Decoder.load(tmp_path / "three" / "decoder").subjects) == ["sub-01", "sub-02", "sub-03"]


def test_others_lend_through_an_aligner(study: Path, trained: Path, tmp_path: Path) -> None:
    words = [trained, study, "--subject", 3, "--sessions", 1, *SHORT, "--align", "anatomical"]
    _run(*words, "--out", tmp_path / "run", "--json", tmp_path / "told.json")
    borrowed = json.loads((tmp_path / "told.json").read_text())["borrowed"]
    assert borrowed["people"] == ["sub-01", "sub-02"]
    assert borrowed["added"]  # the aligner was fitted to the others, and knows sub-03 from one session
    words = [*words[:6], "--align", "anatomical", "--arm", "from-scratch", "--out", tmp_path / "alone"]
    with pytest.raises(InputError, match="knows nothing of other people"):
        _run(*words)
