"""Pictures on their way into encoders: resizing in batches, anti-aliased."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet

if TYPE_CHECKING:
    import torch

__all__ = ["at_size", "resize"]

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


class _Square:
    """Pixels of another set, resized when they are read; of clips the middle frame."""

    dtype = np.dtype(np.uint8)

    def __init__(self, stimuli: StimulusSet, size: int) -> None:
        self._stimuli, self.shape = stimuli, (len(stimuli), size, size, 3)

    def __getitem__(self, rows: Any) -> np.ndarray:
        frames, size = self._stimuli.frames(rows), self.shape[1]
        if frames.shape[1:3] == (size, size):
            return frames
        small: np.ndarray = resize(frames, size).mul_(255).round_().byte().permute(0, 2, 3, 1).contiguous().numpy()
        return small


def at_size(stimuli: StimulusSet, size: int, memory_gb: float) -> StimulusSet:
    """Stimuli as square pictures of `size` pixels a side, kept in memory where there is room; the aspect is not kept.

    Raises
    ------
    InputError
        For stimuli without pixels.
    """
    if not stimuli.has_pixels:
        raise InputError("pictures are needed, and these stimuli have no pixels")
    square = _Square(stimuli, size)
    lazy = StimulusSet(stimuli.ids, square, stimuli.captions, stimuli.labels)
    if int(np.prod(square.shape)) > memory_gb * 1e9:
        return lazy
    held = np.empty(square.shape, dtype=np.uint8)
    for rows, pixels in lazy.blocks():
        held[rows] = pixels
    return StimulusSet(stimuli.ids, held, stimuli.captions, stimuli.labels)
