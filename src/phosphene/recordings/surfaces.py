"""Spheres that cortical surfaces are registered on: icospheres, the fsaverage family, and averages over neighbours.

Vertices of fsaverage5 and 6 are the first 10,242 and 40,962 of fsaverage: a coarser map could be had by slicing. That
throws away most of the signal: here a coarse vertex takes the mean over the fine vertices that lie nearest to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.spatial import ConvexHull, cKDTree

from phosphene.errors import InputError, unknown
from phosphene.table import Table

__all__ = [
    "MESHES",
    "Sphere",
    "find_sphere",
    "freesurfer_tree",
    "icosphere",
    "mesh_of_count",
    "nearest_vertex",
    "neighbourhood_average",
    "read_sphere",
    "vertex_fault",
]

MESHES = {"fsaverage3": 642, "fsaverage4": 2_562, "fsaverage5": 10_242, "fsaverage6": 40_962, "fsaverage": 163_842}
_PREFIXES = ("fsaverage5", "fsaverage6")  # meshes whose vertices are the first ones of fsaverage
_FILE = {"L": "lh", "R": "rh"}
_TIED = 3  # a new vertex of a split triangle lies half way between two old ones, or in the middle of three


def mesh_of_count(n_vertices: int) -> str | None:
    """Name of the fsaverage mesh with so many vertices a hemisphere; None where there is none.

    Examples
    --------
    >>> mesh_of_count(10242), mesh_of_count(32492)
    ('fsaverage5', None)
    """
    return next((name for name, count in MESHES.items() if count == n_vertices), None)


def vertex_fault(voxels: Table, n_vertices: Sequence[int] | None = None) -> str | None:
    """What is wrong with ``hemisphere`` and ``vertex`` of a voxel table, in words; None where nothing is.

    Examples
    --------
    >>> vertex_fault(Table({"hemisphere": ["L", "R"], "vertex": [3, 10242]}), (10242, 10242))
    'row 1: a vertex of hemisphere R is a whole number from 0 to 10241, found 10242'
    """
    side, vertex = voxels["hemisphere"], voxels["vertex"]
    if (strange := ~np.isin(side, ["L", "R"])).any():
        row = int(strange.argmax())
        return f"row {row}: a hemisphere is 'L' or 'R', found {str(side[row])!r}"
    if vertex.dtype.kind not in "iuf":
        return f"row 0: a vertex is a whole number, found {str(vertex[0])!r}"
    most = np.full(len(vertex), np.inf) if n_vertices is None else np.where(side == "L", *n_vertices)
    if not (sound := (vertex >= 0) & (vertex < most) & (vertex % 1 == 0)).all():
        row = int((~sound).argmax())
        end = "" if n_vertices is None else f" to {most[row] - 1}"
        return f"row {row}: a vertex of hemisphere {side[row]} is a whole number from 0{end}, found {vertex[row]}"
    _, first = np.unique(np.stack([side == "R", vertex], axis=1), axis=0, return_index=True)
    if len(first) < len(vertex):
        row = int(np.setdiff1d(np.arange(len(vertex)), first)[0])
        return f"row {row}: vertex {vertex[row]} of hemisphere {side[row]} is in the table already"
    return None


@dataclass(frozen=True)
class Sphere:
    """One hemisphere's registration sphere.

    Attributes
    ----------
    points : (V, 3) ndarray
        Unit vectors.
    faces : (F, 3) ndarray of int
        Triangles.
    """

    points: np.ndarray
    faces: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, faces: np.ndarray | None = None) -> Sphere:
        """Bring points to the unit sphere; without faces, they are those of the convex hull (Delaunay on a sphere)."""
        points = np.asarray(points, dtype=np.float64)
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        return cls(points, ConvexHull(points).simplices if faces is None else np.asarray(faces, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def areas(self) -> np.ndarray:
        """Area that belongs to each vertex, ``(V,)``: a third of its triangles; the sum is about 4 pi."""
        a, b, c = (self.points[self.faces[:, corner]] for corner in range(3))
        third = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6
        return np.bincount(self.faces.ravel(), weights=np.repeat(third, 3), minlength=len(self))


def icosphere(level: int) -> Sphere:
    """An icosahedron whose triangles are split into four `level` times: ``10 * 4**level + 2`` vertices.

    Coarser vertices come first, as in the fsaverage family (levels 5, 6 and 7 have its numbers of vertices).
    """
    golden = (1 + np.sqrt(5)) / 2
    pairs = [(-1, golden), (1, golden), (-1, -golden), (1, -golden)]
    corners = [(a, b, 0) for a, b in pairs] + [(0, a, b) for a, b in pairs] + [(b, 0, a) for a, b in pairs]
    sphere = Sphere.of(np.array(corners, dtype=np.float64))
    points, faces = sphere.points, sphere.faces
    for _ in range(level):
        edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]], axis=2)
        unique, middle = np.unique(edges.reshape(-1, 2), axis=0, return_inverse=True)
        ab, bc, ca = (len(points) + middle.reshape(len(faces), 3)).T
        a, b, c = faces.T
        points = np.concatenate([points, points[unique].mean(axis=1)])
        faces = np.concatenate([np.stack(f, axis=1) for f in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    return Sphere.of(points, faces)


def freesurfer_tree(folder: str | Path | None = None) -> Path | None:
    """The folder of FreeSurfer subjects: the one given, else ``SUBJECTS_DIR``, else ``FREESURFER_HOME/subjects``."""
    if folder is not None:
        if not Path(folder).is_dir():
            raise InputError(f"the FreeSurfer folder {folder} does not exist")
        return Path(folder)
    if named := os.environ.get("SUBJECTS_DIR"):
        return Path(named)
    home = os.environ.get("FREESURFER_HOME")
    return Path(home) / "subjects" if home else None


def find_sphere(mesh: str, hemisphere: str, folder: str | Path | None = None) -> Sphere:
    """The registration sphere of one of the fsaverage meshes.

    Looked for in the user's FreeSurfer tree (``<mesh>/surf/lh.sphere.reg``; fsaverage5 and 6 also as the first vertices
    of fsaverage); fsaverage5 also in nilearn, which ships it. Nothing is downloaded.

    Parameters
    ----------
    mesh : str
        A key of `MESHES`.
    hemisphere : {"L", "R"}
    folder : str or Path, optional
        See `freesurfer_tree`.

    Raises
    ------
    InputError
        When it is found nowhere, or a file has another number of vertices.
    """
    if mesh not in MESHES:
        raise unknown("mesh", mesh, MESHES)
    tree = freesurfer_tree(folder)
    if tree is not None:
        if (path := _sphere_file(tree / mesh, hemisphere)) is not None:
            return read_sphere(path, MESHES[mesh])
        if mesh in _PREFIXES and (path := _sphere_file(tree / "fsaverage", hemisphere)) is not None:
            return Sphere.of(read_sphere(path, MESHES["fsaverage"]).points[: MESHES[mesh]])
    if mesh == "fsaverage5" and (shipped := _from_nilearn(hemisphere)) is not None:
        return shipped
    hint = "; fsaverage5 also comes with nilearn (pip install 'phosphene[brain]')" if mesh == "fsaverage5" else ""
    where = "no FreeSurfer folder was named" if tree is None else f"looked in {tree}"
    raise InputError(
        f"the sphere of {mesh} ({_FILE[hemisphere]}.sphere.reg) was not found: {where}. Name the folder that holds "
        f"fsaverage, or set SUBJECTS_DIR or FREESURFER_HOME{hint}"
    )


def _sphere_file(subject: Path, hemisphere: str) -> Path | None:
    places = [subject / "surf" / f"{_FILE[hemisphere]}.{name}" for name in ("sphere.reg", "sphere")]
    return next((place for place in places if place.is_file()), None)


def read_sphere(path: Path, n_vertices: int) -> Sphere:
    """Read a FreeSurfer geometry file that must have so many vertices.

    Raises
    ------
    InputError
        For a damaged file, or another number of vertices.
    """
    import nibabel

    try:
        points, faces = nibabel.freesurfer.read_geometry(str(path))
    except Exception as error:  # nibabel reports damage in many ways
        raise InputError(f"{path} is not a readable FreeSurfer surface: {error}") from error
    if len(points) != n_vertices:
        raise InputError(f"{path} has {len(points)} vertices, expected {n_vertices}")
    return Sphere.of(points, faces)


def _from_nilearn(hemisphere: str) -> Sphere | None:
    """fsaverage5 as nilearn ships it; None where nilearn is not installed."""
    import nibabel

    try:
        from nilearn.datasets import fetch_surf_fsaverage
    except ImportError:
        return None
    side = "left" if hemisphere == "L" else "right"
    image: Any = nibabel.load(fetch_surf_fsaverage("fsaverage5")[f"sphere_{side}"])
    points, faces = (array.data for array in image.darrays[:2])
    return Sphere.of(points, faces)


def neighbourhood_average(
    source: Sphere, target: np.ndarray, present: np.ndarray | None = None, least: float = 0.5
) -> sparse.csr_array:
    """Weights of a mean over neighbours, from vertices of one sphere to points on it.

    Every source vertex belongs to the nearest target (half way between two or three, to each in equal parts); a target
    is the mean of the sources that belong to it, weighted by their areas. A target that none belongs to (a finer mesh)
    takes its nearest source.

    Parameters
    ----------
    source : Sphere
    target : (T, 3) ndarray
        Unit vectors.
    present : (V,) bool ndarray, optional
        Source vertices that have data; default all.
    least : float
        A target is covered when at least this share of the area of its neighbourhood is present.

    Returns
    -------
    (n, T) csr_array
        n: the number of present vertices. Columns sum to one, or to zero where a target is not covered.
    """
    present = np.ones(len(source), dtype=bool) if present is None else present
    owned = _owners(source, target)
    empty = np.flatnonzero(np.asarray(owned.sum(axis=0)).ravel() == 0)
    _, vertex = cKDTree(source.points).query(target[empty])
    own = sparse.csr_array((np.ones(len(empty)), (vertex, empty)), shape=owned.shape)
    weights = (owned + own).tocsr()
    whole = np.asarray(weights.sum(axis=0)).ravel()
    weights = weights[present]
    part = np.asarray(weights.sum(axis=0)).ravel()
    covered = (part > 0) & (part >= least * whole * (1 - 1e-9))
    scale = np.divide(1.0, part, out=np.zeros_like(part), where=covered)
    return _without_zeros(weights @ sparse.diags_array(scale))


def _owners(source: Sphere, target: np.ndarray) -> sparse.csr_array:
    """Area that each source vertex gives to each target, ``(V, T)``."""
    distance, owner = cKDTree(target).query(source.points, k=min(_TIED, len(target)))
    distance, owner = distance.reshape(len(source), -1), owner.reshape(len(source), -1)
    tied = distance <= distance[:, :1] * (1 + 1e-5) + 1e-9
    rows, rank = np.nonzero(tied)
    shares = (source.areas / tied.sum(axis=1))[rows]
    return sparse.csr_array((shares, (rows, owner[rows, rank])), shape=(len(source), len(target)))


def nearest_vertex(source: Sphere, target: np.ndarray, present: np.ndarray | None = None) -> sparse.csr_array:
    """Each target takes its nearest source vertex, ``(n, T)``; it is not covered where that one is not present."""
    present = np.ones(len(source), dtype=bool) if present is None else present
    _, vertex = cKDTree(source.points).query(target)
    weights = sparse.csr_array((np.ones(len(target)), (vertex, np.arange(len(target)))), (len(source), len(target)))
    return _without_zeros(weights[present])


def _without_zeros(weights: Any) -> sparse.csr_array:
    weights = sparse.csr_array(weights)
    weights.eliminate_zeros()
    return weights
