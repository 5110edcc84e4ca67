"""Onto the fsaverage surfaces: from another density, from a person's own surface, or from a volume through it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from phosphene.alignment.base import Template
from phosphene.alignment.resampling import normalised
from phosphene.errors import InputError, unknown
from phosphene.recordings.surfaces import (
    MESHES,
    Sphere,
    find_sphere,
    freesurfer_tree,
    mesh_of_count,
    nearest_vertex,
    neighbourhood_average,
    read_sphere,
    vertex_fault,
)
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.alignment.resampling import AnatomicalSettings
    from phosphene.recordings import StudyView

__all__ = ["build", "on_surface", "place"]


def on_surface(voxels: Table) -> bool:
    """Whether a voxel table lists vertices of a surface; else it is a volume."""
    return "vertex" in voxels and "hemisphere" in voxels


def build(view: StudyView, config: AnatomicalSettings) -> Template:
    """All vertices of both hemispheres of the mesh that was named."""
    mesh = str(config.template)
    if mesh not in MESHES:
        raise unknown("surface template", mesh, MESHES)
    n = MESHES[mesh]
    table = Table({"hemisphere": np.repeat(["L", "R"], n), "vertex": np.tile(np.arange(n), 2)})
    return Template(mesh, table, (n, n))


def place(view: StudyView, subject: str, template: Template, config: AnatomicalSettings) -> sparse.csr_array:
    """Weights ``(V_s, V)``: a mean over neighbours on the sphere, or the nearest vertex.

    A voxel table with ``vertex`` and ``hemisphere`` lies on the fsaverage mesh with as many vertices, else on the
    person's own surface, whose ``sphere.reg`` is looked for under the person's name in the FreeSurfer tree. A volume
    table (``x, y, z`` in mm of the person's anatomy) goes through that surface.
    """
    voxels = view.voxels(subject)
    weights = sparse.csr_array((len(voxels), template.size))
    for side in "LR":
        places = np.flatnonzero(template.voxels["hemisphere"] == side)
        if not len(places):
            continue
        target = find_sphere(template.name, side, config.freesurfer).points[template.voxels["vertex"][places]]
        if on_surface(voxels):
            block = _from_surface(view, subject, side, target, config)
        else:
            block = _from_volume(view, subject, side, target, config)
        chosen = sparse.csr_array(
            (np.ones(len(places)), (np.arange(len(places)), places)), shape=(len(places), template.size)
        )
        weights = weights + block @ chosen
    return sparse.csr_array(weights)


def _onto(source: Sphere, target: np.ndarray, present: np.ndarray, config: AnatomicalSettings) -> sparse.csr_array:
    return (neighbourhood_average if config.method == "area" else nearest_vertex)(source, target, present)


def _from_surface(
    view: StudyView, subject: str, side: str, target: np.ndarray, config: AnatomicalSettings
) -> sparse.csr_array:
    voxels, counts = view.voxels(subject), view.space(subject)["n_vertices"]
    if counts is None:
        raise InputError(f"{subject}: the recording does not say how many vertices its mesh has (n_vertices)")
    if fault := vertex_fault(voxels, counts):
        raise InputError(f"{subject}: voxel table, {fault}")
    n = int(counts["LR".index(side)])
    name = str(view.space(subject)["space"])
    mesh = mesh_of_count(n) if name not in MESHES else name
    if mesh is not None and MESHES[mesh] != n:
        raise InputError(f"{subject}: {mesh} has {MESHES[mesh]} vertices a hemisphere, the recording says {n}")
    source = _own_sphere(subject, side, n, config) if mesh is None else find_sphere(mesh, side, config.freesurfer)
    rows = np.flatnonzero(voxels["hemisphere"] == side)
    vertex = voxels["vertex"][rows].astype(np.int64)
    present = np.zeros(n, dtype=bool)
    present[vertex] = True
    order = rows[np.argsort(vertex)]  # rows of the person's table in the order of the mesh
    spread = sparse.csr_array((np.ones(len(order)), (order, np.arange(len(order)))), shape=(len(voxels), len(order)))
    return spread @ _onto(source, target, present, config)


def _surf(subject: str, config: AnatomicalSettings) -> Path:
    tree = freesurfer_tree(config.freesurfer)
    if tree is None or not (tree / subject / "surf").is_dir():
        raise InputError(
            f"{subject}: surfaces of the person are needed ({subject}/surf in the FreeSurfer folder), "
            + ("no FreeSurfer folder was named" if tree is None else f"not found in {tree}")
        )
    return tree / subject / "surf"


def _own_sphere(subject: str, side: str, n_vertices: int, config: AnatomicalSettings) -> Sphere:
    path = _surf(subject, config) / f"{'lh' if side == 'L' else 'rh'}.sphere.reg"
    if not path.is_file():
        raise InputError(f"{path} does not exist: the person's surface cannot be registered")
    return read_sphere(path, n_vertices)


def _from_volume(
    view: StudyView, subject: str, side: str, target: np.ndarray, config: AnatomicalSettings
) -> sparse.csr_array:
    """Each vertex, half way from white to pial, takes its nearest voxel within the radius; then as from a surface."""
    voxels = view.voxels(subject)
    if any(axis not in voxels for axis in "xyz"):
        raise InputError(f"{subject}: a volume needs x, y, z (mm) in its voxel table to go onto a surface")
    middle = (_scanner_points(subject, side, "white", config) + _scanner_points(subject, side, "pial", config)) / 2
    points = np.stack([voxels[axis].astype(np.float64) for axis in "xyz"], axis=1)
    distance, voxel = cKDTree(points).query(middle)
    present = distance <= config.radius
    picked = sparse.csr_array(
        (np.ones(present.sum()), (voxel[present], np.arange(present.sum()))), shape=(len(points), int(present.sum()))
    )
    source = _own_sphere(subject, side, len(middle), config)
    return normalised(sparse.csr_array(picked @ _onto(source, target, present, config)))


def _scanner_points(subject: str, side: str, surface: str, config: AnatomicalSettings) -> np.ndarray:
    """Vertices of a FreeSurfer surface in mm of the scanner: surface mm plus the centre of the volume."""
    import nibabel

    path = _surf(subject, config) / f"{'lh' if side == 'L' else 'rh'}.{surface}"
    try:
        points, _, facts = nibabel.freesurfer.read_geometry(str(path), read_metadata=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: a volume cannot be brought to the surface") from error
    except Exception as error:  # nibabel reports damage in many ways
        raise InputError(f"{path} is not a readable FreeSurfer surface: {error}") from error
    centre: Any = facts.get("cras", np.zeros(3))
    return points + np.asarray(centre, dtype=np.float64)
