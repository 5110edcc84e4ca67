"""Embedded pictures: readable, small, refused when they are none."""

from __future__ import annotations

import base64
import io

import made
import numpy as np
import pytest
from PIL import Image

from phosphene.errors import InputError
from phosphene.reporting import pictures


def opened(src: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(src.split(",", 1)[1])))


def test_a_picture_comes_back_as_it_went_in() -> None:
    frame = made.frame(3)
    picture = pictures.embed(frame, "a disc", quality=95)
    back = np.asarray(opened(picture.src), dtype=float)
    assert back.shape == frame.shape == (picture.height, picture.width, 3)
    assert np.abs(back - frame).mean() < 8
    assert picture.alt == "a disc"


def test_large_pictures_shrink_and_keep_their_shape() -> None:
    picture = pictures.embed(np.zeros((600, 300, 3), np.uint8), "tall", side=192)
    assert (picture.width, picture.height) == (96, 192)
    assert opened(picture.src).size == (96, 192)


def test_grey_pictures_are_taken() -> None:
    assert opened(pictures.embed(np.full((9, 9), 77, np.uint8), "grey").src).mode == "RGB"


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8, 3)), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="must be uint8"):
        pictures.embed(wrong, "")


def test_an_album_keeps_its_budget() -> None:
    random = np.random.default_rng(0)
    noise = {f"n{k}": random.integers(0, 256, (256, 256, 3), dtype=np.uint8) for k in range(20)}
    uses = dict.fromkeys(noise, 6)

    def frames(names: list[str]) -> np.ndarray:
        return np.stack([noise[name] for name in names])

    generous = pictures.album(list(noise), frames, {}, uses, budget=10**8)
    strict = pictures.album(list(noise), frames, {}, uses, budget=600_000)
    assert generous["n0"].width == 256
    assert strict["n0"].width < 256
    assert sum(6 * len(picture.src) for picture in strict.values()) <= 600_000
    assert strict["n3"].alt == "n3"


def test_an_empty_album_asks_for_nothing() -> None:
    def refuse(names: list[str]) -> np.ndarray:
        raise AssertionError("nothing was to be read")

    assert pictures.album([], refuse, {}) == {}
