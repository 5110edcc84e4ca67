"""Hashes of pixels alone, and a picture on two sides of a split."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.errors import InputError, LeakageError
from phosphene.stimuli import StimulusSet, check_pictures_apart, picture_hashes
from phosphene.stimuli.scenes import scene_set

PIXELS = np.random.default_rng(0).integers(0, 256, (150, 4, 4, 3), dtype=np.uint8)


def named(prefix, pixels, caption="a picture"):
    return StimulusSet(
        [f"{prefix}{i}" for i in range(len(pixels))], pixels, captions=[[f"{caption} {i}"] for i in range(len(pixels))]
    )


def test_hashes_follow_pixels_alone_and_are_read_in_blocks():
    class Watched:
        shape, dtype = PIXELS.shape, np.dtype(np.uint8)
        most = 0

        def __getitem__(self, rows):
            Watched.most = max(Watched.most, len(PIXELS[rows]))
            return PIXELS[rows]

    hashes = picture_hashes(StimulusSet([str(i) for i in range(150)], Watched()))
    assert len(set(hashes.tolist())) == 150
    assert 0 < Watched.most <= 64
    assert np.array_equal(hashes, picture_hashes(named("b", PIXELS, "another caption")))
    changed = PIXELS.copy()
    changed[149, 3, 3, 2] ^= 1
    assert np.flatnonzero(hashes != picture_hashes(named("a", changed))).tolist() == [149]
    with pytest.raises(InputError, match="no pixels"):
        picture_hashes(StimulusSet(["a"]))


def test_one_picture_with_other_captions_on_two_sides_is_a_leak():
    train, held_out = named("t", PIXELS[:100]), named("h", PIXELS[98:], "other words")
    with pytest.raises(LeakageError, match=r"2 pictures .* 'train' and 'held-out': t98 = h0, t99 = h1\. Scores"):
        check_pictures_apart({"train": train, "held-out": held_out})
    many = named("h", PIXELS[50:])
    with pytest.raises(LeakageError, match=r"50 pictures .* t54 = h4 and others"):
        check_pictures_apart({"train": train, "held-out": many})
    parts = {"train": named("t", PIXELS[:9]), "validation": named("v", PIXELS[149:]), "held-out": held_out}
    with pytest.raises(LeakageError, match="1 picture is in both 'validation' and 'held-out': v0 = h51"):
        check_pictures_apart(parts)


def test_apart_is_apart():
    twice = np.concatenate([PIXELS[:50], PIXELS[:50]])
    check_pictures_apart({"train": named("t", twice), "held-out": named("h", PIXELS[50:])})
    check_pictures_apart(
        {"train": scene_set(20, size=16, holdout="train"), "unseen": scene_set(20, size=16, holdout="unseen")}
    )
    with pytest.raises(InputError, match=r"one size only, found train \(4, 4, 3\), test \(16, 16, 3\)"):
        check_pictures_apart({"train": named("t", PIXELS), "test": scene_set(2, size=16)})
