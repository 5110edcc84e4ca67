"""Counter-based random numbers: a value depends on its address alone, never on what was drawn before it."""

from __future__ import annotations

import zlib

import numpy as np
import torch

__all__ = ["lattice_bits", "scene_keys", "uniforms"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_INDEX = np.uint64(0xD1B54A32D192ED03)


def _mix(values: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _keys(seed: int, index: np.ndarray, stream: str) -> np.ndarray:
    name = np.array([zlib.crc32(stream.encode())], dtype=np.uint64)
    start = _mix(np.array([seed], dtype=np.uint64) * _GOLDEN + _mix(name + _GOLDEN))
    return _mix(start ^ (index.astype(np.uint64) * _INDEX + _GOLDEN))


def uniforms(seed: int, index: np.ndarray, stream: str, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) at the address (seed, scene index, stream, position).

    Parameters
    ----------
    seed : int
        Non-negative, below 2**63.
    index : (n,) array of int
        Scene numbers.
    stream : str
        What the numbers are for; streams are independent of one another.
    count : int
        How many numbers a scene.

    Returns
    -------
    (n, count) float64 array
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(_keys(seed, index, stream)[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def scene_keys(seed: int, index: np.ndarray, stream: str) -> np.ndarray:
    """One 32-bit key a scene (as int64) from which :func:`lattice_bits` draws on any device."""
    return (_keys(seed, index, stream) >> np.uint64(32)).astype(np.int64)


def lattice_bits(keys: torch.Tensor, level: int, height: int, width: int) -> torch.Tensor:
    """Hash every node of a lattice to 32 bits.

    All products stay below 2**63, so no integer overflows and every device gives the same bits.

    Parameters
    ----------
    keys : (n,) int64 tensor
        From :func:`scene_keys`.
    level : int
        Number of the lattice; lattices of one key are independent.
    height, width : int
        Nodes of the lattice.

    Returns
    -------
    (n, height, width) int64 tensor with values in [0, 2**32)
    """
    mask = 0xFFFFFFFF
    rows = torch.arange(height, device=keys.device, dtype=torch.int64)[:, None] * 0x10001
    columns = torch.arange(width, device=keys.device, dtype=torch.int64)[None, :]
    address = ((rows + columns) * 0x2545F491) & mask
    bits = address[None] ^ (keys ^ ((level * 0x3C6EF372) & mask))[:, None, None]
    # in place, and every shift into one buffer: this is a quarter of the time of a picture
    shifted = bits >> 16
    bits.bitwise_xor_(shifted).mul_(0x7FEB352D).bitwise_and_(mask)
    torch.bitwise_right_shift(bits, 15, out=shifted)
    bits.bitwise_xor_(shifted).mul_(0x46CA6B35).bitwise_and_(mask)
    torch.bitwise_right_shift(bits, 16, out=shifted)
    return bits.bitwise_xor_(shifted)
