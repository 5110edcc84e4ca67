"""People who lie on one grid or mesh already: the template is that grid, the maps pick voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from phosphene.alignment.base import Template
from phosphene.errors import InputError
from phosphene.recordings.surfaces import MESHES, vertex_fault
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.alignment.resampling import AnatomicalSettings
    from phosphene.recordings import StudyView

__all__ = ["build", "index_columns", "place", "why_not"]

# spaces in which equal indices of two people are different places, whatever the shape of the volume; in small letters
NATIVE = (
    *("t1w", "t2w", "anat", "boldref", "bold", "epi", "orig", "custom", "scanner", "native", "individual", "virtual"),
    *("fsnative", "func", "func1mm", "func1pt8mm"),
)


def index_columns(voxels: Table) -> tuple[str, ...] | None:
    """Columns that name a voxel of a grid, or a vertex of a mesh; None where the table has neither."""
    for columns in (("hemisphere", "vertex"), ("k", "j", "i")):
        if all(name in voxels for name in columns):
            return columns
    return None


def why_not(view: StudyView) -> str | None:
    """Why the people of the view do not share a grid, in words; None where they do.

    Raises
    ------
    InputError
        When they name one mesh with different numbers of vertices.
    """
    spaces = {subject: view.space(subject) for subject in view.subjects}
    names = {str(space["space"]) for space in spaces.values()}
    if len(names) > 1:
        return f"their spaces are {', '.join(sorted(names))}"
    space = names.pop()
    tables = [view.voxels(subject) for subject in view.subjects]
    columns = [index_columns(table) for table in tables]
    if None in columns or len(set(columns)) > 1:
        return "their voxel tables name no common index (i, j, k, or vertex and hemisphere)"
    if columns[0] == ("hemisphere", "vertex"):
        counts = {subject: space_["n_vertices"] for subject, space_ in spaces.items()}
        if len({tuple(count) for count in counts.values() if count is not None}) > 1:
            words = ", ".join(f"{subject} {count}" for subject, count in counts.items())
            if space.lower() in (*NATIVE, "unknown"):
                return f"their meshes have different numbers of vertices: {words}"
            raise InputError(f"people on {space} must have one mesh, found different numbers of vertices: {words}")
        if space == "unknown":
            return "the name of their meshes is unknown"
        if space.lower() not in NATIVE and space not in MESHES and None in counts.values():
            return f"{space!r} is no mesh that is known, and not all recordings say how many vertices theirs has"
    elif not _same_volume(list(spaces.values())):
        return "their volumes differ in affine or shape"
    elif space == "unknown" and spaces[view.subjects[0]]["affine"] is None:
        return "neither the name of their space nor its affine is known"
    if space.lower() in NATIVE:
        return f"{space!r} is everybody's own space"
    return None


def _same_volume(spaces: list[dict[str, Any]]) -> bool:
    first = spaces[0]
    for other in spaces[1:]:
        if (first["affine"] is None) != (other["affine"] is None) or first["volume_shape"] != other["volume_shape"]:
            return False
        if first["affine"] is not None and not np.allclose(first["affine"], other["affine"], atol=1e-3):
            return False
    return True


def _keys(voxels: Table, columns: tuple[str, ...]) -> np.ndarray:
    """One whole number a voxel, in the order of the grid (left before right, slice by slice)."""
    if columns[0] == "hemisphere":
        return (voxels["hemisphere"] == "R") * 2**40 + voxels["vertex"].astype(np.int64)
    k, j, i = (voxels[name].astype(np.int64) for name in columns)
    return (k * 2**20 + j) * 2**20 + i


def _sound_keys(view: StudyView, subject: str, columns: tuple[str, ...]) -> np.ndarray:
    """The keys of a person's voxels, each of which has a place of its own."""
    voxels = view.voxels(subject)
    if columns[0] == "hemisphere" and (fault := vertex_fault(voxels, view.space(subject)["n_vertices"])):
        raise InputError(f"{subject}: voxel table, {fault}")
    keys = _keys(voxels, columns)
    _, first = np.unique(keys, return_index=True)
    if len(first) < len(keys):
        row = int(np.setdiff1d(np.arange(len(keys)), first)[0])
        place = ", ".join(f"{name} {voxels[name][row]}" for name in sorted(columns))
        raise InputError(f"{subject}: voxel table, row {row}: {place} is in the table already")
    return keys


def build(view: StudyView, config: AnatomicalSettings) -> Template:
    """All voxels that anybody has."""
    tables = [view.voxels(subject) for subject in view.subjects]
    columns = index_columns(tables[0]) or ()
    keys = np.concatenate([_sound_keys(view, subject, columns) for subject in view.subjects])
    kept = [name for name in (*columns, "x", "y", "z") if all(name in table for table in tables)]
    joined = {name: np.concatenate([table[name] for table in tables]) for name in kept}
    _, first = np.unique(keys, return_index=True)
    space = view.space(view.subjects[0])
    counts = space["n_vertices"]
    voxels = Table({name: column[first] for name, column in joined.items()})
    return Template(str(space["space"]), voxels, None if counts is None else (int(counts[0]), int(counts[1])))


def place(view: StudyView, subject: str, template: Template, config: AnatomicalSettings) -> sparse.csr_array:
    """Each place takes the person's voxel of the same index, ``(V_s, V)``."""
    voxels, counts = view.voxels(subject), view.space(subject)["n_vertices"]
    columns = index_columns(template.voxels) or ()
    if index_columns(voxels) != columns:
        raise InputError(f"{subject}: the voxel table lacks {', '.join(columns)}, which name the template's places")
    if template.n_vertices is not None and counts is not None and tuple(counts) != tuple(template.n_vertices):
        raise InputError(
            f"{subject} lies on a mesh of {tuple(counts)} vertices, the template {template.name} has "
            f"{template.n_vertices}"
        )
    if (space := str(view.space(subject)["space"])) != template.name:
        raise InputError(f"{subject} lies in space {space!r}, the template is the grid of {template.name!r}")
    own = _sound_keys(view, subject, columns)
    _, rows, places = np.intersect1d(own, _keys(template.voxels, columns), return_indices=True)
    return sparse.csr_array((np.ones(len(rows)), (rows, places)), shape=(len(voxels), template.size))
