"""Voxels with known positions in a common space: the template is a regular grid over them."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from phosphene.alignment.base import Template
from phosphene.alignment.resampling import normalised
from phosphene.errors import InputError
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.alignment.resampling import AnatomicalSettings
    from phosphene.recordings import StudyView

__all__ = ["build", "place", "position_columns"]

log = logging.getLogger(__name__)

_PLACES = (("template_u", "template_v"), ("template_x", "template_y", "template_z"))
_INVALID = 9999.0  # how transforms of the field mark a voxel without a place


def position_columns(view: StudyView, config: AnatomicalSettings) -> tuple[str, ...] | None:
    """Columns with positions that everybody has; None where there are none.

    Raises
    ------
    InputError
        When columns were named and somebody lacks one.
    """
    for columns in (config.columns,) if config.columns else _PLACES:
        lacking = [s for s in view.subjects if any(name not in view.voxels(s) for name in columns)]
        if not lacking:
            return columns
        if config.columns:
            raise InputError(f"the voxel tables of {', '.join(lacking)} lack positions ({', '.join(columns)})")
    return None


def _positions(
    view: StudyView, subject: str, columns: tuple[str, ...], config: AnatomicalSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Positions ``(V_s, D)`` in the common space and hemispheres ``(V_s,)``; NaN where a voxel has no place."""
    voxels = view.voxels(subject)
    if any(name not in voxels for name in columns):
        raise InputError(f"{subject}: the voxel table lacks positions in the common space ({', '.join(columns)})")
    if words := [name for name in columns if voxels[name].dtype.kind not in "iuf"]:
        raise InputError(
            f"{subject}: positions are numbers, found {voxels[words[0]][:1].tolist()} in column {words[0]!r}; name "
            "columns of coordinates (columns)"
        )
    points = np.stack([voxels[name].astype(np.float64) for name in columns], axis=1)
    valid = np.isfinite(points).all(axis=1) & (np.abs(points) < _INVALID).all(axis=1)
    if subject in config.affines:
        affine = np.asarray(config.affines[subject], dtype=np.float64)
        if affine.shape != (4, 4) or len(columns) != 3:
            raise InputError(
                f"{subject}: an affine is 4 x 4 and acts on three columns; found shape {affine.shape} and "
                f"{', '.join(columns)}"
            )
        points = points @ affine[:3, :3].T + affine[:3, 3]
    points[~valid] = np.nan
    side = voxels["hemisphere"] if "hemisphere" in voxels else np.full(len(voxels), "")
    return points, side


def build(view: StudyView, config: AnatomicalSettings) -> Template:
    """A grid of whole multiples of the spacing, over the box that everybody's voxels fill, a hemisphere at a time."""
    columns = position_columns(view, config)
    assert columns is not None
    if absent := [subject for subject in config.affines if subject not in view.subjects]:
        log.warning("affines of %s: not among %s, of use when added later", ", ".join(absent), ", ".join(view.subjects))
    parts = [_positions(view, subject, columns, config) for subject in view.subjects]
    points = np.concatenate([part for part, _ in parts])
    sides = np.concatenate([side for _, side in parts])
    valid = np.isfinite(points).all(axis=1)
    grids, names = [], []
    for side in np.unique(sides[valid]):
        here = points[valid & (sides == side)]
        low, high = np.floor(here.min(axis=0) / config.spacing), np.ceil(here.max(axis=0) / config.spacing)
        axes = [np.arange(a, b + 1) * config.spacing for a, b in zip(low, high, strict=True)]
        grid = np.array(list(itertools.product(*axes)))
        near, _ = cKDTree(here).query(grid)
        grids.append(grid[near <= config.radius])
        names += [str(side)] * len(grids[-1])
    if not names and valid.any():
        raise InputError(
            f"no point of a grid of {config.spacing:g} mm lies within {config.radius:g} mm of a voxel: take a smaller "
            "spacing, or a larger radius"
        )
    if not names:
        raise InputError(f"no voxel of {', '.join(view.subjects)} has a valid position in {', '.join(columns)}")
    place_of = np.concatenate(grids)
    table = {name: place_of[:, axis] for axis, name in enumerate(columns)}
    if set(names) != {""}:
        table = {"hemisphere": np.array(names), **table}
    return Template(f"points-{config.spacing:g}mm", Table(table))


def place(view: StudyView, subject: str, template: Template, config: AnatomicalSettings) -> sparse.csr_array:
    r"""Weights ``(V_s, V)`` of a person's voxels at each place, within the radius and the hemisphere.

    ``nearest`` takes one voxel. ``area`` takes the mean with weights :math:`\exp(-2 d^2 / r^2)` of the distance d: a
    Gaussian of half the radius r.
    """
    columns = tuple(name for name in template.voxels.columns if name != "hemisphere" and not name.startswith("roi_"))
    points, sides = _positions(view, subject, columns, config)
    target = np.stack([template.voxels[name] for name in columns], axis=1)
    target_side = template.voxels["hemisphere"] if "hemisphere" in template.voxels else np.full(template.size, "")
    valid = np.isfinite(points).all(axis=1)
    rows, places, weights = [], [], []
    for side in np.unique(target_side):
        mine, there = np.flatnonzero(valid & (sides == side)), np.flatnonzero(target_side == side)
        if not len(mine):
            continue
        row, at, weight = _pairs(points[mine], target[there], config)
        rows.append(mine[row])
        places.append(there[at])
        weights.append(weight)
    if not rows:
        return sparse.csr_array((len(points), template.size))
    index = (np.concatenate(rows), np.concatenate(places))
    return normalised(sparse.csr_array((np.concatenate(weights), index), shape=(len(points), template.size)))


def _pairs(
    points: np.ndarray, target: np.ndarray, config: AnatomicalSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxel, place and weight of every pair that counts."""
    tree = cKDTree(points)
    if config.method == "nearest":
        distance, voxel = tree.query(target)
        near = np.flatnonzero(distance <= config.radius)
        return voxel[near], near, np.ones(len(near))
    pairs = tree.sparse_distance_matrix(cKDTree(target), config.radius, output_type="ndarray")
    return pairs["i"], pairs["j"], np.exp(-2 * np.square(pairs["v"] / config.radius))
