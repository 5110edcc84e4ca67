"""Pictures on their way into encoders: resizing in batches, anti-aliased."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phosphene.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["resize"]

# pictures are turned into floats in blocks of this many pixels: a large batch of large photographs would fill memory
_BLOCK_PIXELS = 2**21


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
    if frames.shape[1:3] == (size, size):
        return _as_float(frames, device)
    small = torch.empty(len(frames), 3, size, size, device=device)
    block = max(1, _BLOCK_PIXELS // (frames.shape[1] * frames.shape[2]))
    for start in range(0, len(frames), block):
        large = _as_float(frames[start : start + block], device)
        small[start : start + block] = torch.nn.functional.interpolate(
            large, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
    return small.clamp_(0, 1)


def _as_float(frames: np.ndarray, device: str) -> torch.Tensor:
    import torch

    # the copy is for sources that hand out read-only arrays, which torch will not take
    return torch.from_numpy(np.array(frames)).to(device).permute(0, 3, 1, 2).float().div_(255)
