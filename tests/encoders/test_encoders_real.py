"""The encoders on real key frames and descriptions (skipped, with one line, where the data are absent)."""

from __future__ import annotations

import csv
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from phosphene.encoders import encode
from phosphene.files import data_root
from phosphene.stimuli import StimulusSet

_ROOT = data_root()
_FOLDER = _ROOT / "actions96" if _ROOT is not None else None
pytestmark = pytest.mark.skipif(
    _FOLDER is None or not (_FOLDER / "descriptions.csv").is_file(),
    reason="REAL DATA ABSENT: set PHOSPHENE_DATA to the folder that holds actions96",
)


@pytest.fixture(scope="module")
def videos() -> StimulusSet:
    assert _FOLDER is not None
    said = defaultdict(list)
    with (_FOLDER / "descriptions.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            said[row["video"]].append(row["description"])
    names = sorted(said)
    frames = np.stack([np.asarray(Image.open(_FOLDER / "keyframes" / f"{n}.png").convert("RGB")) for n in names])
    return StimulusSet(names, pixels=frames, captions=[said[n] for n in names])


@pytest.mark.parametrize(("name", "shapes"), [("gabor", [(16, 24), (384,)]), ("pixels", [(16, 48), (768,)])])
def test_key_frames(name: str, shapes: list[tuple[int, ...]], videos: StimulusSet) -> None:
    targets = encode(videos, name)
    assert [targets.shape("tokens"), targets.shape("pooled")] == shapes
    assert np.linalg.matrix_rank(targets.of(videos.ids)) == len(videos)


def test_descriptions(videos: StimulusSet) -> None:
    train = videos.ids[::2]
    assert _FOLDER is not None
    targets = encode(videos, "tfidf-svd30", fit_on=train)
    vectors = targets.of(videos.ids)
    assert vectors.shape == (96, 30)
    actions = dict(zip(*(np.load(_FOLDER / "betas.npz")[key].tolist() for key in ("videos", "actions")), strict=True))
    of = np.array([actions[name] for name in videos.ids.tolist()])
    # the two exemplars of an action are described alike: one finds the other far above chance (1 in 95)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = (unit @ unit.T - 2 * np.eye(96)).argmax(axis=1)
    assert np.mean(of[nearest] == of) > 0.4
