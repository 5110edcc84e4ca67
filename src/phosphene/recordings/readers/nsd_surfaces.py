"""NSD betas on fsaverage brought to fsaverage6 or fsaverage5 while they are read: means over neighbours on the sphere.

A coarse vertex is the mean of the fine vertices nearest to it that are within the mask, weighted by area; it is in the
mask when at least half of their area is. Regions and ``ncsnr`` follow in the same way. The ``ncsnr`` of a mean is
greater than the mean of ``ncsnr``: the column is a lower bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from phosphene.errors import InputError
from phosphene.recordings.readers.nsd_betas import Grid
from phosphene.recordings.recording import ROI_PREFIX
from phosphene.recordings.surfaces import MESHES, Sphere, find_sphere, neighbourhood_average
from phosphene.table import Table

__all__ = ["COARSER", "Spheres", "coarser_grid", "find_spheres"]

COARSER = ("fsaverage6", "fsaverage5")
_TREE = "nsddata/freesurfer"

Spheres = dict[str, tuple[Sphere, Sphere]]


def find_spheres(root: Path, space: str, freesurfer: str | Path | None) -> Spheres:
    """Fine and coarse sphere of each hemisphere: of the folder named, of NSD's own FreeSurfer folder, or as usual.

    Raises
    ------
    InputError
        When a sphere is found nowhere.
    """
    own = root / _TREE
    shipped = all((own / f"fsaverage/surf/{side}.sphere.reg").is_file() for side in ("lh", "rh"))
    folder = own if freesurfer is None and shipped else freesurfer
    return {side: (find_sphere("fsaverage", side, folder), find_sphere(space, side, folder)) for side in "LR"}


def coarser_grid(grid: Grid, space: str, spheres: Spheres) -> tuple[Grid, sparse.csr_array]:
    """The coarse vertices that a mask on fsaverage holds, and how they are made.

    Parameters
    ----------
    grid : Grid
        On fsaverage; its masks go on choosing what is read from the files.
    space : {"fsaverage6", "fsaverage5"}
    spheres : dict
        From `find_spheres`.

    Returns
    -------
    Grid, (fine voxels, coarse voxels) csr_array of float32
        Columns sum to one.
    """
    parts, vertices, sides = [], [], []
    for mask, (side, (fine, coarse)) in zip(grid.masks, spheres.items(), strict=True):
        if len(mask) != len(fine):
            raise InputError(f"fsaverage has {len(fine)} vertices a hemisphere, the files of {side} hold {len(mask)}")
        weights = neighbourhood_average(fine, coarse.points, mask)
        kept = np.flatnonzero(np.asarray(weights.sum(axis=0)).ravel() > 0)
        parts.append(weights[:, kept])
        vertices.append(kept)
        sides += [side] * len(kept)
    whole = sparse.csr_array(sparse.block_diag(parts, format="csr")).astype(np.float32)
    if whole.shape[1] == 0:
        raise InputError(f"the mask holds no vertex of {space}: it never covers half of a neighbourhood")
    columns: dict[str, Any] = {"vertex": np.concatenate(vertices), "hemisphere": np.array(sides)}
    columns["ncsnr"] = grid.voxels["ncsnr"] @ whole
    for name in grid.voxels.columns:
        if name.startswith(ROI_PREFIX):
            columns[name] = grid.voxels[name].astype(np.float32) @ whole > 0.5
    meta = {"space": space, "n_vertices": [MESHES[space]] * 2}
    return Grid(grid.masks, Table(columns), meta), whole
