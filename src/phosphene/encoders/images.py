"""Pictures on their way into encoders: resizing in batches, anti-aliased."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phosphene.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["resize"]


def resize(frames: np.ndarray, size: int, device: str = "cpu") -> torch.Tensor:
    """Reduce or enlarge pictures to size x size, bilinear with anti-aliasing.

    Parameters
    ----------
    frames : uint8 array of shape (n, height, width, 3)
    size : int
        Side in pixels; the aspect is not kept.

    Returns
    -------
    float32 tensor of shape (n, 3, size, size)
        Values in [0, 1].

    Raises
    ------
    InputError
        For another shape or type of array.
    """
    import torch

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise InputError(f"pictures must be uint8 (n, height, width, 3), found {frames.dtype} {frames.shape}")
    pictures = torch.from_numpy(np.array(frames, copy=True)).to(device).permute(0, 3, 1, 2).float() / 255
    if pictures.shape[-2:] == (size, size) or len(frames) == 0:
        return pictures.new_zeros(0, 3, size, size) if len(frames) == 0 else pictures
    return torch.nn.functional.interpolate(
        pictures, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    ).clamp(0, 1)
