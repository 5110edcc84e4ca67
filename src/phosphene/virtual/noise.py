"""Measurement noise of a virtual recording: smooth in space, shared, independent; and the drift between sessions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phosphene.virtual.fields import Field, stream

__all__ = ["NoiseModel", "draw_noise", "noise_block", "session_state"]


@dataclass(frozen=True)
class NoiseModel:
    """How the noise of one person is distributed over voxels; all parts have unit variance.

    Attributes
    ----------
    smooth : (M, V) float32 array
        Spatially smooth patterns.
    shared : (K, V) float32 array
        Global patterns (arousal, motion, breathing).
    shares : (3,) array
        Share of variance of smooth, shared and independent noise; adds up to 1.
    """

    smooth: np.ndarray
    shared: np.ndarray
    shares: np.ndarray


def draw_noise(
    seed: int, name: str, xyz: np.ndarray, length: float, rank: int, shares: tuple[float, float, float]
) -> NoiseModel:
    """Draw a person's noise patterns.

    Parameters
    ----------
    seed, name
        Of the study and the person.
    xyz : (V, 3) array
        Voxel coordinates, mm.
    length : float
        Correlation length of the smooth part, mm.
    rank : int
        Number of shared patterns.
    shares : three floats
        Relative variances of smooth, shared and independent noise.
    """
    rng = stream(seed, name, "noise patterns")
    smooth = Field.draw(rng, length, dimensions=3, waves=128).basis(xyz).T
    # a global component of one sign, as respiration and arousal have, on top of scattered loadings
    shared = rng.standard_normal((rank, len(xyz))) + 0.7 * rng.standard_normal((rank, 1))
    share = np.asarray(shares, dtype=float)
    return NoiseModel(_unit_columns(smooth), _unit_columns(shared), share / share.sum())


def _unit_columns(patterns: np.ndarray) -> np.ndarray:
    return (patterns / np.maximum(np.linalg.norm(patterns, axis=0), 1e-12)).astype(np.float32)


def noise_block(model: NoiseModel, rng: np.random.Generator, trials: int) -> np.ndarray:
    """Noise of unit variance for a block of trials: (trials, V) float32."""
    voxels = model.smooth.shape[1]
    smooth, shared, own = np.sqrt(model.shares).astype(np.float32)
    block = rng.standard_normal((trials, voxels), dtype=np.float32)
    block *= own
    block += (smooth * rng.standard_normal((trials, len(model.smooth)), dtype=np.float32)) @ model.smooth
    block += (shared * rng.standard_normal((trials, len(model.shared)), dtype=np.float32)) @ model.shared
    return block


def session_state(
    model: NoiseModel, seed: int, name: str, session: int, drift: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """What a session adds for one person: baseline, slope and gain.

    The baseline is a random walk over sessions (each step of deviation `drift` a voxel, smooth in space, plus a step
    common to all voxels); the slope runs linearly through the session; the gain multiplies signal and noise.

    Returns
    -------
    baseline, slope : (V,) float32 arrays
        In units of the noise deviation.
    gain : float
    """
    patterns = np.concatenate([model.smooth, np.ones((1, model.smooth.shape[1]), dtype=np.float32)])
    steps = [stream(seed, name, "drift", past).standard_normal(len(patterns)) for past in range(session + 1)]
    rng = stream(seed, name, "slope", session)
    baseline = drift * np.sum(steps, axis=0) @ patterns / np.sqrt(2)
    slope = drift * rng.standard_normal(len(patterns)) @ patterns / np.sqrt(2)
    gain = float(np.exp(0.2 * drift * rng.standard_normal()))
    return baseline.astype(np.float32), slope.astype(np.float32), gain
