"""Stimulus sets: what is refused, what is read, and hashes that follow content."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet


class Watched:
    """A pixel source that remembers which rows were read."""

    dtype = np.dtype(np.uint8)

    def __init__(self, n: int) -> None:
        self.shape = (n, 2, 2, 3)
        self.read: list[int] = []

    def __getitem__(self, rows):
        chosen = np.arange(self.shape[0])[rows]
        assert np.all(np.diff(chosen) > 0), "sources are read in increasing order"
        self.read += chosen.tolist()
        return np.broadcast_to(chosen[:, None, None, None], (len(chosen), 2, 2, 3)).astype(np.uint8)


def test_only_wanted_pixels_are_read_and_order_is_kept():
    source = Watched(100)
    s = StimulusSet([str(i) for i in range(100)], pixels=source)
    assert s.pixels([7, 3, 7])[:, 0, 0, 0].tolist() == [7, 3, 7]
    chosen = s.select(["50", "4"])
    assert source.read == [3, 7]
    assert chosen.pixels()[:, 0, 0, 0].tolist() == [50, 4]
    assert sorted(set(source.read)) == [3, 4, 7, 50]


def test_hashes_follow_pixels_captions_and_labels_not_ids():
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    pixels[2, 0, 0, 0] = 1
    s = StimulusSet(["a", "b", "c"], pixels=pixels)
    assert s.hashes[0] == s.hashes[1] != s.hashes[2]
    captioned = StimulusSet(["a", "b", "c"], pixels=pixels, captions=[["x"], ["y"], ["x"]])
    assert len(set(captioned.hashes.tolist())) == 3
    labelled = StimulusSet(["a", "b", "c"], pixels=pixels, labels={"l": ["1", "2", "1"]})
    assert labelled.hashes[0] != labelled.hashes[1]
    assert len(set(StimulusSet(["a", "b"]).hashes.tolist())) == 2, "without content, the name tells stimuli apart"
    assert s.select(["c", "a"]).hashes.tolist() == s.hashes[[2, 0]].tolist()


def test_clips_show_their_middle_frame():
    clips = np.arange(2 * 5).reshape(2, 5, 1, 1, 1).repeat(3, axis=-1).astype(np.uint8)
    s = StimulusSet(["a", "b"], pixels=clips, fps=10.0)
    assert s.is_clips
    assert s.frames()[:, 0, 0, 0].tolist() == [2, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": ["a", "b", "a"]}, "1 stimulus ids occur more than once, such as a"),
        ({"ids": ["a", ""]}, "stimulus id in row 1 is empty"),
        ({"ids": ["a"], "captions": [["x"], ["y"]]}, "captions must have one row a stimulus: 1 ids, 2 rows"),
        ({"ids": ["a"], "pixels": np.zeros((2, 4, 4, 3), np.uint8)}, "n = 1, found shape"),
        ({"ids": ["a"], "pixels": np.zeros((1, 4, 4, 3))}, "must be uint8"),
        ({"ids": ["a"], "labels": {"l": [1, 2]}}, "column 'l' has 2 rows"),
    ],
)
def test_wrong_sets_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        StimulusSet(**arguments)


def test_unknown_ids_and_missing_pixels_are_named():
    s = StimulusSet(["a", "b"])
    with pytest.raises(InputError, match="1 stimulus ids are not in the set, such as z"):
        s.select(["a", "z"])
    with pytest.raises(InputError, match="no pixels"):
        s.pixels()
