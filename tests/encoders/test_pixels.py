"""Low-resolution pixels: the layout of tokens and of the pooled picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from phosphene.encoders import make_encoder
from phosphene.encoders.images import resize
from phosphene.encoders.pixels import PixelGridEncoder
from phosphene.errors import InputError


def test_pooled_is_the_picture_and_tokens_are_its_patches() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    batch = PixelGridEncoder().encode_pixels(frames)
    np.testing.assert_allclose(batch.pooled.reshape(3, 16, 16, 3), frames / 255, atol=1e-6)
    assert batch.tokens is not None
    for cell in range(16):
        row, column = divmod(cell, 4)
        patch = frames[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] / 255
        np.testing.assert_allclose(batch.tokens[:, cell], patch.reshape(3, -1), atol=1e-6)


def test_one_token_a_pixel() -> None:
    encoder = make_encoder("pixels", size=8, grid=8)
    with pytest.raises(InputError, match="grid = 3 does not divide size = 16"):
        make_encoder("pixels", grid=3)
    batch = encoder.encode_pixels(np.zeros((1, 20, 30, 3), np.uint8))
    assert batch.tokens.shape == (1, 64, 3)
    assert batch.pooled.shape == (1, 192)


@pytest.mark.parametrize("side", [(64, 64), (75, 50), (8, 8)])
def test_resizing_agrees_with_pillow(side: tuple[int, int]) -> None:
    smooth = np.random.default_rng(0).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    frame = np.asarray(Image.fromarray(smooth).resize(side[::-1], Image.Resampling.BICUBIC))
    ours = resize(frame[None], 16)[0].permute(1, 2, 0).numpy() * 255
    theirs = np.asarray(Image.fromarray(frame).resize((16, 16), Image.Resampling.BILINEAR), dtype=float)
    assert np.abs(ours - theirs).max() < 1.5


def test_other_arrays_are_refused() -> None:
    for wrong in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(InputError, match=r"uint8 \(n, height, width, 3\)"):
            PixelGridEncoder().encode_pixels(wrong)
