"""Targets from one word: also of an encoder for which there is nothing to encode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phosphene.encoders import Targets, make_encoder, targets_named, targets_of_nothing
from phosphene.encoders.pixels import PixelGridEncoder
from phosphene.errors import InputError
from phosphene.recordings import Study


@pytest.mark.parametrize("name", ["pixels", "gabor", "pocket", "pocket-text"])
def test_an_encoder_without_stimuli_has_the_width_and_identity_of_one_with(
    name: str, made_study: Study, own_cache: None
) -> None:
    nothing, targets = targets_of_nothing(name), targets_named(name, made_study, progress=False)
    assert len(nothing) == 0
    assert nothing.shape("pooled") == targets.shape("pooled")
    assert nothing.identity == targets.identity == make_encoder(name).identity


def test_a_folder_of_targets_tells_as_much_of_an_encoder_that_learns(tmp_path: Path) -> None:
    made = Targets(["a", "b"], None, np.eye(2, 5, dtype=np.float32), PixelGridEncoder())
    made.save(tmp_path / "targets")
    nothing = targets_of_nothing(tmp_path / "targets")
    assert (len(nothing), nothing.shape("pooled"), nothing.identity) == (0, (5,), made.identity)
    with pytest.raises(InputError, match="encoder 'tfidf-svd30' learns from stimuli, and there are none here"):
        targets_of_nothing("tfidf")
