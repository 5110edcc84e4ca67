"""Targets: lookups by id, the folder on disk, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from phosphene.encoders import Targets, encode, make_encoder
from phosphene.encoders import targets as targets_module
from phosphene.encoders.targets import RowView
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet


@pytest.fixture
def gabor(stimuli: StimulusSet) -> Targets:
    return encode(stimuli, "gabor", cache=False)


def test_lookup_by_id_in_any_order(gabor: Targets) -> None:
    ids = ["s05", "s00", "s05"]
    np.testing.assert_array_equal(gabor.of(ids, "tokens"), gabor.tokens[[5, 0, 5]])
    np.testing.assert_array_equal(gabor.of(ids), gabor.pooled[[5, 0, 5]])
    assert gabor.of(np.array(ids), "pooled").dtype == np.float32
    assert gabor.shape("tokens") == (16, 24)
    assert gabor.shape() == gabor.shape("pooled") == (384,)
    assert gabor.kinds == ("tokens", "pooled")
    assert len(gabor) == 24


def test_unknown_ids_and_kinds_are_named(gabor: Targets, stimuli: StimulusSet) -> None:
    with pytest.raises(InputError, match=r"2 stimuli have no targets of encoder 'gabor', such as x, y"):
        gabor.of(["s01", "x", "y"])
    with pytest.raises(InputError, match=r"unknown kind of target \(encoder 'gabor'\) 'token'; did you mean 'tokens'"):
        gabor.of(["s01"], "token")
    words = encode(stimuli, "tfidf-svd3", fit_on=stimuli.ids, cache=False)
    assert words.tokens is None
    with pytest.raises(InputError, match="Known: pooled"):
        words.of(["s01"], "tokens")


def test_wrong_arrays_are_refused() -> None:
    encoder = make_encoder("gabor")
    with pytest.raises(InputError, match="unique"):
        Targets(["a", "a"], None, np.zeros((2, 3)), encoder)
    with pytest.raises(InputError, match="pooled must have 2 axes and 2 rows"):
        Targets(["a", "b"], None, np.zeros((3, 3)), encoder)
    with pytest.raises(InputError, match="tokens must have 3 axes"):
        Targets(["a", "b"], np.zeros((2, 3)), np.zeros((2, 3)), encoder)


@pytest.mark.parametrize("name", ["gabor", "tfidf-svd4"])
def test_a_folder_that_needs_nothing_else(name: str, stimuli: StimulusSet, tmp_path: Path) -> None:
    targets = encode(stimuli, name, fit_on=stimuli.ids[:16])
    targets.save(tmp_path / "here" / "targets")
    shutil.move(tmp_path / "here" / "targets", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "cache")
    again = Targets.open(tmp_path / "elsewhere")
    assert again.identity == targets.identity
    assert again.fitted_on == targets.fitted_on
    assert again.ids.tolist() == stimuli.ids.tolist()
    for kind in targets.kinds:
        np.testing.assert_array_equal(again.of(stimuli.ids, kind), targets.of(stimuli.ids, kind))
    assert isinstance(again.pooled, np.memmap)
    np.testing.assert_allclose(again.encoder.encode(stimuli).pooled, targets.of(stimuli.ids), atol=1e-5)
    assert str(tmp_path) not in (tmp_path / "elsewhere" / "targets.json").read_text()


def test_selection_reads_nothing_and_saves(gabor: Targets, tmp_path: Path) -> None:
    chosen = gabor.select(["s09", "s02"])
    assert isinstance(chosen.tokens, RowView)
    again = chosen.select(["s02"])
    np.testing.assert_array_equal(again.of(["s02"]), gabor.of(["s02"]))
    chosen.save(tmp_path / "t")
    chosen.save(tmp_path / "t")
    np.testing.assert_array_equal(Targets.open(tmp_path / "t").pooled, gabor.pooled[[9, 2]])
    with pytest.raises(InputError, match="s00"):
        chosen.of(["s00"])


def test_views_behave_as_arrays() -> None:
    one, two = np.arange(12.0).reshape(3, 4), 100 + np.arange(8.0).reshape(2, 4)
    view = RowView([one, two], np.array([1, 0, 0, 1]), np.array([1, 2, 0, 0]))
    whole = np.stack([two[1], one[2], one[0], two[0]])
    assert view.shape == whole.shape
    assert view.ndim == 2
    assert view.nbytes == whole.nbytes
    for index in (slice(None), [2, 0], 1, -1, np.array([True, False, True, False]), (slice(1, 3), 2), (0, slice(1))):
        np.testing.assert_array_equal(view[index], whole[index])
    np.testing.assert_array_equal(np.asarray(view), whole)
    assert np.asarray(view, dtype=np.float16).dtype == np.float16
    with pytest.raises(IndexError):
        view[4]


def test_targets_of_another_encoder_are_refused(gabor: Targets) -> None:
    gabor.require(make_encoder("gabor"))
    with pytest.raises(InputError, match=r"this decoder was made for encoder 'gabor' .* these targets are of 'gabor'"):
        gabor.require(make_encoder("gabor", grid=8), "this decoder")
    with pytest.raises(InputError, match="another encoder"):
        gabor.require("0" * 32)


def test_a_checkpoint_of_another_encoder_is_refused(gabor: Targets, tmp_path: Path) -> None:
    gabor.save(tmp_path / "t")
    shutil.rmtree(tmp_path / "t" / "encoder")
    make_encoder("gabor", grid=8).save(tmp_path / "t" / "encoder")
    with pytest.raises(InputError, match="checkpoint of another encoder"):
        Targets.open(tmp_path / "t")


def test_damage_is_refused(gabor: Targets, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder of targets"):
        Targets.open(tmp_path / "none")
    gabor.save(tmp_path / "t")

    def fresh() -> Path:
        shutil.rmtree(tmp_path / "u", ignore_errors=True)
        return Path(shutil.copytree(tmp_path / "t", tmp_path / "u"))

    pooled = fresh() / "pooled.npy"
    raw = bytearray(pooled.read_bytes())
    raw[-3] ^= 64
    pooled.write_bytes(raw)
    with pytest.raises(InputError, match="do not match their checksums"):
        Targets.open(tmp_path / "u")

    pooled = fresh() / "tokens.npy"
    os.truncate(pooled, pooled.stat().st_size - 10)
    with pytest.raises(InputError, match=r"tokens\.npy is missing or damaged"):
        Targets.open(tmp_path / "u")

    content = fresh() / "targets.json"
    facts = json.loads(content.read_text())
    facts["ids"][0], facts["ids"][1] = facts["ids"][1], facts["ids"][0]
    content.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="checksums"):
        Targets.open(tmp_path / "u")

    np.save(fresh() / "pooled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"pooled\.npy is missing or damaged.*Python objects"):
        Targets.open(tmp_path / "u")

    facts = json.loads((fresh() / "targets.json").read_text())
    (tmp_path / "u" / "targets.json").write_text(json.dumps({**facts, "kinds": ["../../secret"]}))
    with pytest.raises(InputError, match="kinds must be"):
        Targets.open(tmp_path / "u")


def test_a_failed_save_leaves_the_old_folder(gabor: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gabor.save(tmp_path / "t")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(targets_module, "store_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gabor.select(["s01"]).save(tmp_path / "t")
    assert len(Targets.open(tmp_path / "t")) == 24
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_no_room_is_said_before_writing(gabor: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(InputError, match="GiB are free"):
        gabor.save(tmp_path / "t")
    assert not (tmp_path / "t").exists()
