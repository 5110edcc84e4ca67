"""From one value a voxel back to a NIfTI volume or GIFTI surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.errors import InputError
from phosphene.table import Table

if TYPE_CHECKING:
    import nibabel

__all__ = ["to_gifti", "to_nifti"]


def _one_a_voxel(vector: Any, voxels: Table) -> np.ndarray:
    values = np.asarray(vector, dtype=np.float32)
    if values.shape != (len(voxels),):
        raise InputError(f"a map needs one value a voxel: shape ({len(voxels)},), found {values.shape}")
    return values


def to_nifti(vector: Any, voxels: Table, affine: np.ndarray | None, shape: Sequence[int] | None) -> nibabel.Nifti1Image:
    """Place values at the voxels' ``i, j, k``.

    Parameters
    ----------
    vector : array_like
        ``(voxels,)``.
    voxels : Table
        With columns ``i, j, k``.
    affine : (4, 4) ndarray or None
        Voxel indices to mm; None writes the identity (1 mm, space unknown).
    shape : (3,) or None
        Volume shape; None takes the smallest that holds all voxels.

    Raises
    ------
    InputError
        Without volume indices, or with indices outside of `shape`.
    """
    import nibabel

    values = _one_a_voxel(vector, voxels)
    if any(name not in voxels for name in "ijk"):
        raise InputError("this recording has no volume indices (columns i, j, k); surface maps go through to_gifti")
    index = np.stack([voxels[name] for name in "ijk"]).astype(np.int64)
    size = tuple(int(n) for n in (index.max(axis=1) + 1 if shape is None else shape))
    if index.min() < 0 or np.any(index.max(axis=1) >= size):
        raise InputError(f"voxel indices reach {tuple(index.max(axis=1))}, outside of the volume {size}")
    volume = np.zeros(size, dtype=np.float32)
    volume[tuple(index)] = values
    return nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine)


def to_gifti(vector: Any, voxels: Table, n_vertices: Sequence[int] | None) -> dict[str, nibabel.GiftiImage]:
    """Place values at the voxels' ``vertex`` of each ``hemisphere``; vertices outside the mask are NaN.

    Parameters
    ----------
    vector : array_like
        ``(voxels,)``.
    voxels : Table
        With columns ``vertex`` and ``hemisphere`` ("L" or "R").
    n_vertices : (2,) or None
        Vertices of the left and right mesh; None takes the smallest that holds all.
    """
    import nibabel

    values = _one_a_voxel(vector, voxels)
    if "vertex" not in voxels or "hemisphere" not in voxels:
        raise InputError("this recording has no surface (columns vertex, hemisphere); volumes go through to_nifti")
    strange = set(voxels["hemisphere"].tolist()) - {"L", "R"}
    if strange:
        raise InputError(f"hemisphere must be 'L' or 'R', found {', '.join(sorted(map(repr, strange)))}")
    images = {}
    for side, name in enumerate("LR"):
        here = voxels["hemisphere"] == name
        vertex = voxels["vertex"][here].astype(np.int64)
        needed = int(vertex.max()) + 1 if len(vertex) else 0
        size = needed if n_vertices is None else int(n_vertices[side])
        if needed > size:
            raise InputError(f"hemisphere {name}: vertex {needed - 1} is outside of the mesh of {size} vertices")
        surface = np.full(size, np.nan, dtype=np.float32)
        surface[vertex] = values[here]
        structure = "CortexLeft" if name == "L" else "CortexRight"
        array = nibabel.gifti.GiftiDataArray(surface, intent="NIFTI_INTENT_SHAPE", datatype="NIFTI_TYPE_FLOAT32")
        images[name] = nibabel.gifti.GiftiImage(
            darrays=[array], meta=nibabel.gifti.GiftiMetaData({"AnatomicalStructurePrimary": structure})
        )
    return images
