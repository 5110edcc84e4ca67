"""Periodic patterns and natural noise from operations whose results IEEE 754 fixes."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from phosphene.stimuli.scenes.randoms import lattice_bits

__all__ = ["natural_noise", "to_device", "wave"]

_NODE_STD = math.sqrt(2 * (16**2 - 1) / 12)  # of a lattice node: the sum of two uniform numbers 0 to 15, less 15
_WEIGHT = 256.0  # spline weights are counted in 1/256


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Numbers prepared on the CPU as a tensor: float64 becomes float32, integers stay."""
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def wave(turns: Tensor) -> Tensor:
    """Sine-like wave of period 1 and range [-1, 1]: a parabola refined once, within 0.0011 of the sine."""
    phase = turns - torch.floor(turns) - 0.5
    arc = phase * (16.0 * phase.abs() - 8.0)
    return arc * (0.225 * arc.abs() + 0.775)


@lru_cache(maxsize=32)
def _spline(size: int, nodes: int) -> np.ndarray:
    """Cubic B-spline weights (size, nodes + 3) of pixels on a lattice with `nodes` cells, as whole 256ths."""
    position = (np.arange(size) + 0.5) / size * nodes
    cell = np.floor(position).astype(int)
    t = position - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    matrix = np.zeros((size, nodes + 3))
    matrix[np.arange(size)[:, None], cell[:, None] + np.arange(4)] = weights
    return np.round(matrix * _WEIGHT)


def _node_values(bits: Tensor) -> Tensor:
    """Sum of two uniform numbers 0 to 15, less 15, from hashed bits (which are used up)."""
    second = (bits >> 8).bitwise_and_(15)
    return bits.bitwise_and_(15).add_(second).sub_(15)


def natural_noise(
    keys: Tensor, size: int, *, finest: int | None = None, rise: float = 1.0, grain: float = 0.5
) -> Tensor:
    """Noise with a natural spectrum: octaves of spline noise of equal energy, so that power falls as 1/f^2.

    The sums run over small whole numbers, which floating point adds exactly in any order; so the matrix products give
    the same bits on every device.

    Parameters
    ----------
    keys : (n,) int64 tensor
        One key a field.
    size : int
        Pixels a side.
    finest : int, optional
        Cells of the finest lattice; if None, all octaves up to one cell a pixel, and pixel noise.
    rise : float
        Amplitude of an octave relative to the one before: above 1 for a shallower spectrum, below for a steeper one.
    grain : float
        Amplitude of the pixel noise relative to the last octave.

    Returns
    -------
    (n, size, size) float32 tensor, zero mean and about unit variance
    """
    limit = finest or size
    octaves = [2**k for k in range(1, 10) if 2**k <= limit]
    # On CPU float32 is exact here (sums stay below 2**24); on a GPU float32 products may be shortened, float64 are not.
    dtype = torch.float32 if keys.device.type == "cpu" else torch.float64
    rows, amplitudes, left = [], [], []
    for level, nodes in enumerate(octaves):
        bits = lattice_bits(keys, level, nodes + 3, nodes + 3)
        values = _node_values(bits).to(dtype)
        weights = _spline(size, nodes)
        amplitudes.append(rise**level)
        rows.append(values @ to_device(weights.T, keys.device).to(dtype))
        left.append(np.round(weights * amplitudes[-1]))
    total = to_device(np.concatenate(left, axis=1), keys.device).to(dtype) @ torch.cat(rows, dim=1)
    spread = 151 / 315  # mean of the sum of squared weights of a cubic B-spline
    variance = sum(amplitude**2 for amplitude in amplitudes) * spread**2
    scale = 1.0 / (_NODE_STD * _WEIGHT * _WEIGHT * math.sqrt(variance))
    field = total.to(torch.float32).mul_(scale)
    if finest is None and grain > 0:
        bits = lattice_bits(keys, 15, size, size)
        speckle = _node_values(bits).to(torch.float32)
        field = field.add_(speckle.mul_(grain * amplitudes[-1] * spread / (_NODE_STD * math.sqrt(variance))))
    return field
