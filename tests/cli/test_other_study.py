"""A decoder fitted on one study, evaluated on another one with other people and other stimuli, by commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import run

from phosphene.decoders import Decoder
from phosphene.table import Table

COLOURS, SHADES, VOXELS = ("red", "green", "blue"), ("dark", "bright"), 48
PLACES = ("north", "east", "south", "west")


def write_study(root: Path, people: list[str], prefix: str, n: int, seed: int, roles: bool = True) -> Path:
    """A study folder in which everybody's voxels read the colours of four quarters in nearly the same way."""
    rng, code = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(12, VOXELS))
    # a quarter: one of three channels is on, bright or dark, never twice in quite the same shade
    hue, bright = rng.integers(0, 3, (n, 4)), rng.integers(0, 2, (n, 4))
    pixels = np.eye(3)[hue] * (110 + 100 * bright + rng.integers(0, 30, (n, 4)))[..., None]
    ids = [f"{prefix}{number:02d}" for number in range(n)]
    (root / "stimuli").mkdir(parents=True)
    for name, quarters in zip(ids, pixels.reshape(n, 2, 2, 3), strict=True):
        picture = quarters.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
        Image.fromarray(picture).save(root / "stimuli" / f"{name}.png")
    captions = [
        " ".join(f"{place}{COLOURS[h]} {place}{SHADES[b]}" for h, b, place in zip(*row, PLACES, strict=True))
        for row in zip(hue, bright, strict=True)
    ]
    Table({"stimulus_id": ids, "caption": captions}).write_tsv(root / "captions.tsv")
    if roles:
        role = np.where(np.arange(n) % 4 == 0, "test", "train")
        Table({"stimulus_id": ids, "default": role}).write_tsv(root / "splits.tsv")
    for person in people:
        (root / person).mkdir()
        shown = np.concatenate([rng.permutation(n), rng.permutation(n)])
        own = code + 0.2 * rng.normal(size=code.shape)
        signal = (pixels.reshape(n, 12)[shown] - 60) / 60 @ own
        session = np.repeat([1, 2], n)
        responses = signal + rng.normal(size=signal.shape) + 3 * session[:, None] * rng.normal(size=VOXELS)
        np.save(root / person / "responses.npy", responses.astype(np.float32))
        Table({"stimulus_id": np.array(ids)[shown], "session": session}).write_tsv(root / person / "trials.tsv")
        axis = np.arange(VOXELS)
        Table({"i": axis, "j": axis % 4, "k": axis % 2}).write_tsv(root / person / "voxels.tsv")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("studies")
    # both studies call their stimuli s00, s01, ...: names mean something within one study only
    return {
        "first": write_study(root / "first", ["sub-01", "sub-02", "sub-03"], "s", 60, seed=1),
        "second": write_study(root / "second", ["sub-11", "sub-12"], "s", 24, seed=2),
    }


@pytest.mark.parametrize("decoder", ["ridge", "shared-response", "lite-mind"])
def test_new_people_and_new_stimuli_without_touching_code(folders, tmp_path, monkeypatch, capsys, decoder):
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path / "cache"))

    def ok(*words: object) -> str:
        status, out, err = run(monkeypatch, capsys, *words)
        assert status == 0, err
        return out

    first, second, fitted = tmp_path / "first.h5", tmp_path / "second.h5", tmp_path / "run"
    ok("import", "folder", folders["first"], "--out", first)
    ok("import", "folder", folders["second"], "--out", second)
    short = ["--set", "training.epochs=4"] if decoder == "lite-mind" else []
    pooled = ["--set", "decoder.pool_subjects=true", *short]
    ok("fit", decoder, first, "--targets", "tfidf-svd8", "--out", fitted, *pooled)
    scores = tmp_path / "scores.json"
    for role, rivals in (("test", {"mean", "nearest", "ridge"}), ("all", set())):
        ok("evaluate", fitted, second, "--role", role, "--json", scores)
        card = json.loads(scores.read_text())
        value = next(
            s["value"]
            for s in card["scores"]
            if (s["subject"], s["task"], s["direction"]) == ("mean", "two-way-cosine", "brain_to_image")
            and s["method"] == decoder
        )
        assert value > 0.75  # chance 0.5
        assert {s["method"] for s in card["scores"]} - {decoder, f"{decoder} (rival)"} == rivals - {decoder}
        assert card["protocol"]["subjects"] == ["sub-11", "sub-12"]
        # s01 and others are training stimuli of the first study, and other pictures in the second
        assert any("other contents" in note for note in card["notes"]) == (role == "all")
        transductive = [note for note in card["notes"] if note.startswith("transductive")]
        assert len(transductive) == (role == "all")
        assert card["protocol"]["transductive_scaling"] == (["sub-11", "sub-12"] if role == "all" else [])
        assert "training_content" not in card["protocol"]["decoder"]["default"]
        assert len(Decoder.load(fitted / "decoder").provenance["training_content"]) == 45
    ok("evaluate", fitted, second, "--protocols", "retrieval", "--rivals", "none", "--json", scores)
    assert {s["task"] for s in json.loads(scores.read_text())["scores"]} == {"retrieval-full-cosine"}


def test_a_person_without_part_in_a_decoder_of_persons_is_refused_by_name(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path / "cache"))
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    run(monkeypatch, capsys, "import", "folder", folders["first"], "--out", first)
    run(monkeypatch, capsys, "import", "folder", folders["second"], "--out", second)
    run(monkeypatch, capsys, "fit", "ridge", first, "--targets", "tfidf-svd8", "--out", tmp_path / "run")
    status, _, err = run(monkeypatch, capsys, "evaluate", tmp_path / "run", second)
    assert status == 2
    assert "fitted on sub-01, sub-02, sub-03" in err
    assert "'sub-11'" in err


def test_training_pictures_under_other_names_in_another_study_are_found(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path / "cache"))
    again = write_study(tmp_path / "again", ["sub-21"], "other", 60, seed=1, roles=False)
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    run(monkeypatch, capsys, "import", "folder", folders["first"], "--out", first)
    run(monkeypatch, capsys, "import", "folder", again, "--out", second)
    words = ("fit", "ridge", first, "--targets", "gabor", "--out", tmp_path / "run")
    assert run(monkeypatch, capsys, *words, "--set", "decoder.pool_subjects=true")[0] == 0
    status, _, err = run(monkeypatch, capsys, "evaluate", tmp_path / "run", second, "--role", "all")
    assert status == 2
    assert "the training part of split 'default' of study 'first', which holds 45 of the 60 stimuli" in err
    assert "such as other0" in err


def test_unit_and_unknown_names(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path / "cache"))
    first = tmp_path / "first.h5"
    run(monkeypatch, capsys, "import", "folder", folders["first"], "--out", first)
    run(monkeypatch, capsys, "fit", "ridge", first, "--targets", "tfidf-svd8", "--out", tmp_path / "run")
    for option, value, message in (
        ("--unit", "action", "unknown unit (a label column of the stimuli) 'action'"),
        ("--protocols", "two-way", "unknown protocol 'two-way'"),
        ("--split", "fold-9", "'fold-9'"),
        ("--rivals", "luck", "unknown rival 'luck'"),
    ):
        status, _, err = run(monkeypatch, capsys, "evaluate", tmp_path / "run", first, option, value)
        assert (status, message in err) == (2, True), err
