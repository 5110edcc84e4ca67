"""Where noise comes from: the system's cryptographic source, or a seed for studies that must come out the same."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from phosphene.errors import InputError
from phosphene.federation.randomness import seed_of

__all__ = ["NoiseSource"]

_BLOCK = 2**20  # numbers drawn from the system at a time


class NoiseSource:
    """Gaussian numbers in float64.

    Without a seed every number is made of 53 bits of the operating system's cryptographic generator: nobody can find
    them again, nor can a resumed run, which need not. With a seed the numbers are those of PCG64 and can be had again
    by everyone who knows or guesses the seed: fit for a study, not for data that must be protected.

    Parameters
    ----------
    seed : int, optional
        Not negative.
    names : str or int
        What else the start depends on, such as site and round: then no state need be kept.

    Examples
    --------
    >>> one, other = NoiseSource(0, "site-1", 3), NoiseSource(0, "site-1", 3)
    >>> torch.equal(one.normal((2, 3), 1.0), other.normal((2, 3), 1.0))
    True
    """

    def __init__(self, seed: int | None = None, *names: str | int) -> None:
        if seed is not None and seed < 0:
            raise InputError(f"a seed of noise is not negative, found {seed}")
        self._generator = None if seed is None else np.random.Generator(np.random.PCG64(seed_of(seed, "noise", *names)))

    def normal(self, shape: Sequence[int], deviation: float) -> Tensor:
        """Independent numbers from a normal distribution around 0: float64, on the CPU.

        Parameters
        ----------
        shape : sequence of int
        deviation : float
            Standard deviation, at least 0.

        Raises
        ------
        InputError
            For a deviation that is negative or not finite.
        """
        if not (math.isfinite(deviation) and deviation >= 0):
            raise InputError(f"a standard deviation is a number of at least 0, found {deviation}")
        count = math.prod(shape)
        drawn = self._generator.standard_normal(count) if self._generator is not None else _of_system(count)
        return torch.from_numpy(drawn * deviation).reshape(tuple(shape))


def _of_system(count: int) -> np.ndarray:
    """Normal numbers by inversion of uniform ones, which lie at the middles of 2^53 equal cells of (0, 1)."""
    drawn = np.empty(count)
    for start in range(0, count, _BLOCK):
        piece = drawn[start : start + _BLOCK]
        bits = np.frombuffer(secrets.token_bytes(8 * len(piece)), dtype=np.uint64) >> np.uint64(11)
        low = np.minimum(bits, np.uint64(2**53 - 1) - bits)  # both tails as fine as each other
        piece[:] = np.where(low == bits, 1.0, -1.0) * ndtri((low.astype(np.float64) + 0.5) * 2.0**-53)
    return drawn
