"""Targets that come as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phosphene.encoders import Targets, given_targets
from phosphene.encoders.given import read_npz
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet

_TOKENS = np.arange(24.0).reshape(2, 3, 4)


def test_arrays_become_targets() -> None:
    targets = given_targets(["a", "b"], tokens=_TOKENS, label="dino")
    assert targets.kinds == ("tokens", "pooled")
    np.testing.assert_array_equal(targets.of(["b"]), _TOKENS[1:].mean(1))
    np.testing.assert_array_equal(targets.of(["b", "a"], "tokens"), _TOKENS[::-1])
    both = given_targets(["a", "b"], np.eye(2), _TOKENS)
    np.testing.assert_array_equal(both.of(["a", "b"]), np.eye(2))
    with pytest.raises(InputError, match="'dino' were given as arrays"):
        targets.encoder.encode(StimulusSet(["c"]))


def test_identity_follows_values_and_ids(tmp_path: Path) -> None:
    one = given_targets(["a", "b"], np.eye(2))
    assert one.identity == given_targets(["a", "b"], np.eye(2)).identity
    assert one.identity != given_targets(["b", "a"], np.eye(2)).identity
    assert one.identity != given_targets(["a", "b"], 2 * np.eye(2)).identity
    one.save(tmp_path / "t")
    again = Targets.open(tmp_path / "t")
    assert again.identity == one.identity
    np.testing.assert_array_equal(again.of(["b"]), [[0, 1]])


def test_a_file_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "clip.npz", ids=np.array(["a", "b"]), pooled=np.eye(2))
    read = read_npz(tmp_path / "clip.npz")
    assert read.encoder.label == "clip"
    np.testing.assert_array_equal(read.of(["b"]), [[0, 1]])


def test_bad_arrays_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pooled embeddings, tokens, or both"):
        given_targets(["a"])
    with pytest.raises(InputError, match="NaN or infinite"):
        given_targets(["a"], [[np.nan]])
    with pytest.raises(InputError, match="pooled must have 2 axes and 2 rows"):
        given_targets(["a", "b"], [[1.0]])
    with pytest.raises(InputError, match="does not exist"):
        read_npz(tmp_path / "none.npz")
    np.savez(tmp_path / "x.npz", ids=np.array(["a"]), embedding=np.eye(1))
    with pytest.raises(InputError, match="must hold ids and pooled and/or tokens; found embedding, ids"):
        read_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", ids=np.array(["a"], dtype=object), pooled=np.eye(1))
    with pytest.raises(InputError, match="not a readable"):
        read_npz(tmp_path / "y.npz")
    (tmp_path / "z.npz").write_bytes(b"PK broken")
    with pytest.raises(InputError, match="not a readable"):
        read_npz(tmp_path / "z.npz")
