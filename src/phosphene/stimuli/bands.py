"""Low-passed and high-passed copies of pictures."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from phosphene.errors import InputError

__all__ = ["band_limited"]

_BLOCK = 64  # pictures transformed at a time


def band_limited(frames: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Keep the spatial frequencies of pictures from `low` to `high`, in cycles per picture side.

    With the radial frequency f the amplitudes are multiplied by the Gaussian ``2^-(f / high)^2`` (low-pass) and by
    ``1 - 2^-(f / low)^2`` (high-pass): one half at the cut-off, no ringing. The mean of each colour channel stays. The
    pictures are mirrored at their borders first, so that opposite borders do not mix.

    Parameters
    ----------
    frames : (n, H, W, 3) uint8 array
    low : float, optional
        Cut-off of the high-pass; None keeps all low frequencies.
    high : float, optional
        Cut-off of the low-pass; None keeps all high frequencies.

    Returns
    -------
    (n, H, W, 3) uint8 array
        Rounded, clipped to 0 to 255.

    Raises
    ------
    InputError
        For arrays of another type or shape, cut-offs that are not positive or leave nothing between them.

    Examples
    --------
    >>> chess = (np.indices((8, 8)).sum(0)[None, :, :, None].repeat(3, axis=-1) % 2 * 200).astype(np.uint8)
    >>> [int(band_limited(chess, **cut).std()) for cut in ({"high": 1.0}, {"low": 1.0})]
    [2, 99]
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        found = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise InputError(f"frames must be a uint8 array (n, H, W, 3), found {found}")
    for name, cut in (("low", low), ("high", high)):
        if cut is not None and not (np.isfinite(cut) and cut > 0):
            raise InputError(f"{name} must be a positive number of cycles per picture, found {cut!r}")
    if low is not None and high is not None and low >= high:
        raise InputError(f"low must be below high, found {low!r} and {high!r}")
    filtered = np.empty_like(frames)
    for first in range(0, len(frames), _BLOCK):
        part = slice(first, first + _BLOCK)
        filtered[part] = _filtered(frames[part], low, high)
    return filtered


def _filtered(frames: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    planes = np.moveaxis(frames.astype(np.float32), 3, 1)
    kept = planes if high is None else _low_passed(planes, high)
    if low is not None:
        kept = kept - _low_passed(kept, low) + kept.mean((2, 3), keepdims=True)
    return np.moveaxis(np.clip(np.rint(kept), 0, 255).astype(np.uint8), 1, 3)


def _low_passed(planes: np.ndarray, cut: float) -> np.ndarray:
    """Multiply rows and columns: a radial Gaussian is the product of one along each axis."""
    return _gaussian(planes.shape[2], cut) @ planes @ _gaussian(planes.shape[3], cut).T


@lru_cache(maxsize=16)
def _gaussian(size: int, cut: float) -> np.ndarray:
    """(size, size) matrix of the low-pass on a mirrored line, by its Fourier transform; a period is two sides."""
    line = np.eye(size)
    spectrum = np.fft.rfft(np.concatenate([line, line[:, ::-1]], axis=1), axis=1)
    gain = np.exp2(-((np.fft.rfftfreq(2 * size) * size / cut) ** 2))
    return np.fft.irfft(spectrum * gain, n=2 * size, axis=1)[:, :size].T.astype(np.float32)
