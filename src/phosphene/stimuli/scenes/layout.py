"""Where the objects of a scene stand: positions and scales that make the sampled relations true."""

from __future__ import annotations

import numpy as np

from phosphene.stimuli.scenes.vocabulary import RELATIONS, SHAPES

__all__ = ["SLOTS", "place"]

SLOTS = 3
_FRAME = 0.96  # no object leaves this part of the picture
_GIRTHS = np.array([entry.girth for entry in SHAPES.values()])
_DIRECTIONS = np.array([vector for vector, _ in RELATIONS.values()], dtype=float)


def _scales(n_objects: np.ndarray, u: np.ndarray, wanted: tuple[float, float] | None) -> np.ndarray:
    """Half-extents of the three slots; slot 0 is the largest by at least a sixth."""
    ranges = ((0.42, 0.72), (0.36, 0.50), (0.33, 0.42)) if wanted is None else (wanted,) * SLOTS
    low, high = np.array(ranges)[n_objects - 1].T
    main = low + u[:, 0] * (high - low)
    return np.stack([main, main * (0.62 + 0.23 * u[:, 1]), main * (0.62 + 0.23 * u[:, 2])], axis=1)


def _offset(direction: np.ndarray, distance: np.ndarray, slant: np.ndarray) -> np.ndarray:
    """Step of `distance` along a direction and `slant` of it across."""
    across = direction[:, ::-1] * np.array([1.0, -1.0])
    return distance[:, None] * (direction + slant[:, None] * across)


def place(
    n_objects: np.ndarray,
    relation: np.ndarray,
    relation_2: np.ndarray,
    shape: np.ndarray,
    u: np.ndarray,
    wanted: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and scales for sampled relations.

    Parameters
    ----------
    n_objects : (n,) int array
        1 to 3.
    relation, relation_2 : (n,) int array
        What slot 0 is to slot 1 and to slot 2: index in ``RELATIONS``, -1 for none. ``relation_2`` is directional
        and differs from ``relation``.
    shape : (n, 3) int array
        Position in ``SHAPES`` of every slot; slender shapes come closer where they are to overlap.
    u : (n, 10) float array
        Uniform numbers.
    wanted : (float, float), optional
        Least and greatest half-extent of slot 0, before a group too wide for the frame is shrunk.

    Returns
    -------
    x, y, scale : (n, 3) float arrays
        Centres in [-1, 1] (x to the right, y up) and half-extents; slots that do not exist are NaN.
    """
    scale = _scales(n_objects, u, wanted)
    crowd = n_objects == 3
    first, second = _DIRECTIONS[np.maximum(relation, 0)], _DIRECTIONS[np.maximum(relation_2, 0)]
    gap = np.where(crowd, 0.02 + 0.08 * u[:, 3], 0.02 + 0.45 * u[:, 3])
    slant = (2 * u[:, 4] - 1) * np.where(crowd, 0.15, 0.55)
    beside = _offset(first, scale[:, 0] + scale[:, 1] + gap, slant)
    # An overlapping neighbour leaves room for slot 2 on the other side.
    away = np.arctan2(-second[:, 1], -second[:, 0]) + (2 * u[:, 5] - 1) * np.where(crowd, 1.3, np.pi)
    near = (0.60 + 0.2 * u[:, 3]) * (_GIRTHS[shape[:, :2]] * scale[:, :2]).sum(1)
    overlapping = near[:, None] * np.stack([np.cos(away), np.sin(away)], axis=1)
    overlaps = np.all(first == 0, axis=1)
    step_1 = np.where(overlaps[:, None], overlapping, beside)
    step_2 = _offset(second, scale[:, 0] + scale[:, 2] + 0.02 + 0.08 * u[:, 6], (2 * u[:, 7] - 1) * 0.15)
    centre = np.stack([np.zeros_like(step_1), step_1, step_2], axis=1)
    exists = np.arange(SLOTS) < n_objects[:, None]
    return _fit(centre, scale, exists, u[:, 8:10])


def _fit(
    centre: np.ndarray, scale: np.ndarray, exists: np.ndarray, u: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shrink a group that is wider than the frame, then put it anywhere inside."""
    low = np.where(exists[..., None], centre - scale[..., None], np.inf).min(1)
    high = np.where(exists[..., None], centre + scale[..., None], -np.inf).max(1)
    shrink = np.minimum(1.0, 2 * _FRAME / (high - low).max(1))
    low, high = low * shrink[:, None], high * shrink[:, None]
    shift = -_FRAME - low + (0.1 + 0.8 * u) * (2 * _FRAME - (high - low))
    centre = centre * shrink[:, None, None] + shift[:, None, :]
    scale = np.where(exists, scale * shrink[:, None], np.nan)
    centre = np.where(exists[..., None], centre, np.nan)
    return centre[..., 0].round(4), centre[..., 1].round(4), scale.round(4)
