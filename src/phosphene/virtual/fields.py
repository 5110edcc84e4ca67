"""Smooth random fields in closed form, and named random streams: the raw material of maps, warps and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phosphene.files import digest

__all__ = ["Field", "random_rotation", "stream"]


def stream(seed: int, *names: object) -> np.random.Generator:
    """A random generator of its own for every purpose.

    What is drawn for one purpose never depends on how much was drawn for another: a knob turned for one person
    leaves every other person as they were.

    Examples
    --------
    >>> stream(0, "sub-01", "noise").integers(9) == stream(0, "sub-01", "noise").integers(9)
    True
    """
    return np.random.default_rng(int(digest(str(seed), *(str(name) for name in names)), 16))


@dataclass(frozen=True)
class Field:
    r"""A stationary Gaussian random field as a finite sum of waves.

    .. math:: f_d(p) = \sqrt{2/M} \sum_m a_{md} \cos(k_m \cdot p + \varphi_m), \quad k_m \sim N(0, \ell^{-2})

    approximates a Gaussian process with unit variance and kernel :math:`\exp(-|p - q|^2 / 2\ell^2)`
    (random Fourier features, Rahimi and Recht 2007), and can be evaluated anywhere with its derivatives.

    Attributes
    ----------
    waves : (M, K) array
        Wave vectors for points of K coordinates.
    phases : (M,) array
        Phases in radians.
    weights : (M, D) array
        Amplitudes, one column for each of D independent fields.
    """

    waves: np.ndarray
    phases: np.ndarray
    weights: np.ndarray

    @classmethod
    def draw(
        cls, rng: np.random.Generator, length: float, fields: int = 1, dimensions: int = 2, waves: int = 96
    ) -> Field:
        """Draw `fields` independent fields with correlation length `length`, in the unit of the points."""
        return cls(
            waves=rng.standard_normal((waves, dimensions)) / length,
            phases=rng.uniform(0, 2 * np.pi, waves),
            weights=rng.standard_normal((waves, fields)),
        )

    def basis(self, points: np.ndarray) -> np.ndarray:
        """The waves at `points` (n, K), scaled to unit expected row norm: (n, M) float64."""
        return np.sqrt(2 / len(self.phases)) * np.cos(points @ self.waves.T + self.phases)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values (n, D) at `points` (n, K)."""
        return self.basis(points) @ self.weights

    def laplacian(self, points: np.ndarray) -> np.ndarray:
        """Sum of second derivatives (n, D) at `points` (n, K)."""
        return -(self.basis(points) * (self.waves**2).sum(1)) @ self.weights


def random_rotation(rng: np.random.Generator, size: int, rank: int, angle: float) -> np.ndarray:
    """A rotation of R^size by `angle` radians in each of ``rank // 2`` random planes: (size, size).

    It moves a subspace of `rank` dimensions (even; an odd one is rounded down) and leaves the rest as it is.
    """
    planes = min(rank, size) // 2
    rotation = np.eye(size)
    if planes == 0 or angle == 0:
        return rotation
    axes, _ = np.linalg.qr(rng.standard_normal((size, 2 * planes)))
    first, second = axes[:, :planes], axes[:, planes:]
    return (
        rotation
        + (np.cos(angle) - 1) * (first @ first.T + second @ second.T)
        + np.sin(angle) * (second @ first.T - first @ second.T)
    )
