"""Colour at low resolution: the simplest picture of a picture."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from phosphene.encoders.base import EncodedBatch, EncoderConfig, PixelEncoder
from phosphene.encoders.images import resize

__all__ = ["PixelGridEncoder", "PixelsConfig"]


class PixelsConfig(EncoderConfig):
    """Settings of the pixel encoder.

    Attributes
    ----------
    size : int
        Side of the reduced picture in pixels.
    grid : int
        Tokens along each side; must divide `size`.
    """

    size: int = Field(16, ge=1, le=1024)
    grid: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> PixelsConfig:
        if self.size % self.grid:
            raise ValueError(f"grid = {self.grid} does not divide size = {self.size}")
        return self


class PixelGridEncoder(PixelEncoder):
    """RGB of the picture reduced to size x size, in [0, 1].

    Tokens are the cells of the grid in reading order, each the RGB values of its patch:
    (grid^2, (size / grid)^2 * 3), by default (16, 48). Pooled is the whole reduced picture, row by row, so that
    ``pooled.reshape(size, size, 3)`` is a picture again: by default 768 values. A picture that is not square is
    stretched.

    Examples
    --------
    >>> batch = PixelGridEncoder().encode_pixels(np.zeros((2, 64, 48, 3), np.uint8))
    >>> batch.tokens.shape, batch.pooled.shape
    ((2, 16, 48), (2, 768))
    """

    name: ClassVar[str] = "pixels"
    Config: ClassVar[type[EncoderConfig]] = PixelsConfig
    batch_size = 256

    def encode_pixels(self, frames: np.ndarray) -> EncodedBatch:
        size, grid = self.config.size, self.config.grid
        small = resize(frames, size, self.device).permute(0, 2, 3, 1).cpu().numpy()
        n, patch = len(small), size // grid
        patches = small.reshape(n, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        tokens = np.ascontiguousarray(patches.reshape(n, grid * grid, patch * patch * 3))
        return EncodedBatch(tokens=tokens, pooled=np.ascontiguousarray(small.reshape(n, -1)))
