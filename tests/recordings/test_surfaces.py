"""Spheres, and means over neighbours on them, against slow loops and closed forms."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.recordings import surfaces
from phosphene.recordings.surfaces import Sphere, icosphere, nearest_vertex, neighbourhood_average, vertex_fault
from phosphene.table import Table


@pytest.mark.parametrize("level", [0, 1, 2, 4])
def test_an_icosphere_covers_the_sphere_evenly(level: int) -> None:
    sphere = icosphere(level)
    assert len(sphere) == 10 * 4**level + 2
    assert len(sphere.faces) == 20 * 4**level
    np.testing.assert_allclose(np.linalg.norm(sphere.points, axis=1), 1)
    assert np.all(sphere.areas > 0)
    if level:
        assert sphere.areas.sum() == pytest.approx(4 * np.pi, rel=0.2 / 4 ** (level - 1))
        assert sphere.areas.max() < 2.5 * sphere.areas.min()
        # coarser vertices come first, as in the fsaverage family
        np.testing.assert_allclose(sphere.points[: 10 * 4 ** (level - 1) + 2], icosphere(level - 1).points)


def test_faces_of_the_convex_hull_are_those_of_the_mesh() -> None:
    sphere = icosphere(2)
    np.testing.assert_allclose(Sphere.of(sphere.points).areas, sphere.areas, rtol=1e-9)


def test_a_mean_over_neighbours_is_what_a_loop_says() -> None:
    fine, coarse = icosphere(4), icosphere(2).points
    present = np.random.default_rng(0).random(len(fine)) < 0.6
    weights = neighbourhood_average(fine, coarse, present)
    likeness = fine.points @ coarse.T
    owners = likeness > likeness.max(axis=1, keepdims=True) - 1e-7  # half way between two: shared
    expected = np.zeros((len(fine), len(coarse)))
    for place in range(len(coarse)):
        area = fine.areas * owners[:, place] / owners.sum(axis=1)
        if (area * present).sum() >= 0.5 * area.sum():
            expected[:, place] = area * present / (area * present).sum()
    assert weights.shape == (present.sum(), len(coarse))
    np.testing.assert_allclose(weights.toarray(), expected[present], atol=1e-12)
    # fewer than half of the neighbourhood: not covered, rather than guessed
    covered = np.asarray(weights.sum(axis=0)).ravel()
    assert set(np.round(np.unique(covered), 9)) == {0.0, 1.0}


def test_a_smooth_map_survives_and_noise_shrinks() -> None:
    fine, coarse = icosphere(5), icosphere(3)
    weights = neighbourhood_average(fine, coarse.points)
    smooth = fine.points @ np.array([0.3, -0.5, 0.8])
    expected = coarse.points @ np.array([0.3, -0.5, 0.8])
    np.testing.assert_allclose(smooth @ weights, expected, atol=0.015)  # a tenth of the coarse spacing
    noise = np.random.default_rng(1).normal(size=(50, len(fine)))
    # about 16 vertices are averaged; slicing would leave the deviation at one
    assert (noise @ weights).std() == pytest.approx(0.25, abs=0.03)


def test_a_finer_mesh_takes_the_nearest_vertex() -> None:
    coarse, fine = icosphere(2), icosphere(4)
    weights = neighbourhood_average(coarse, fine.points)
    near = (fine.points @ coarse.points.T).argmax(axis=1)
    filled = np.asarray(weights.argmax(axis=0)).ravel()
    own = np.zeros(len(fine), dtype=bool)
    own[: len(coarse)] = True
    np.testing.assert_array_equal(filled[own], np.arange(len(coarse)))
    distance = np.linalg.norm(fine.points - coarse.points[filled], axis=1)
    np.testing.assert_allclose(distance, np.linalg.norm(fine.points - coarse.points[near], axis=1), atol=1e-9)
    np.testing.assert_allclose(np.asarray(weights.sum(axis=0)).ravel(), 1)


def test_nearest_misses_what_is_not_there() -> None:
    fine, coarse = icosphere(3), icosphere(2)
    present = np.ones(len(fine), dtype=bool)
    present[5] = False  # vertex 5 is in both meshes
    weights = nearest_vertex(fine, coarse.points, present).toarray()
    assert weights[:, 5].sum() == 0
    assert (weights.sum(axis=0) == 1).sum() == len(coarse) - 1


def test_meshes_of_the_tree_by_name_and_by_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(surfaces.MESHES, "fsaverage", len(icosphere(3)))
    monkeypatch.setitem(surfaces.MESHES, "fsaverage5", len(icosphere(1)))
    monkeypatch.setitem(surfaces.MESHES, "fsaverage6", len(icosphere(2)))
    _write(tmp_path / "fsaverage/surf/lh.sphere.reg", icosphere(3))
    np.testing.assert_allclose(surfaces.find_sphere("fsaverage", "L", tmp_path).points, icosphere(3).points, atol=1e-6)
    # fsaverage6 is not in the tree: its vertices are the first ones of fsaverage
    np.testing.assert_allclose(surfaces.find_sphere("fsaverage6", "L", tmp_path).points, icosphere(2).points, atol=1e-6)
    _write(tmp_path / "fsaverage5/surf/lh.sphere.reg", icosphere(2))
    with pytest.raises(InputError, match=r"sphere\.reg has 162 vertices, expected 42"):
        surfaces.find_sphere("fsaverage5", "L", tmp_path)
    monkeypatch.setenv("SUBJECTS_DIR", str(tmp_path))
    assert len(surfaces.find_sphere("fsaverage", "L")) == len(icosphere(3))
    with pytest.raises(InputError, match=r"sphere of fsaverage \(rh.sphere.reg\) was not found: looked in"):
        surfaces.find_sphere("fsaverage", "R")
    (tmp_path / "fsaverage/surf/rh.sphere.reg").write_bytes(b"no surface")
    with pytest.raises(InputError, match="not a readable FreeSurfer surface"):
        surfaces.find_sphere("fsaverage", "R")
    with pytest.raises(InputError, match="unknown mesh 'fsaverage9'"):
        surfaces.find_sphere("fsaverage9", "L")
    with pytest.raises(InputError, match="does not exist"):
        surfaces.find_sphere("fsaverage", "L", tmp_path / "nowhere")


def test_fsaverage5_as_nilearn_ships_it() -> None:
    pytest.importorskip("nilearn", reason="fsaverage5 comes with nilearn: not installed")
    for side in "LR":
        sphere = surfaces.find_sphere("fsaverage5", side)
        assert len(sphere) == 10_242
        np.testing.assert_allclose(np.linalg.norm(sphere.points, axis=1), 1)
        assert sphere.areas.sum() == pytest.approx(4 * np.pi, rel=0.01)


def _write(path: Path, sphere: Sphere) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.freesurfer.write_geometry(str(path), 100 * sphere.points, sphere.faces)


@pytest.mark.parametrize(
    ("sides", "vertices", "fault"),
    [
        (["L", "left"], [0, 1], "row 1: a hemisphere is 'L' or 'R', found 'left'"),
        (["L", "R"], [9, 10], "row 1: a vertex of hemisphere R is a whole number from 0 to 9, found 10"),
        (["L", "R"], [-1, 0], "row 0: a vertex of hemisphere L is a whole number from 0 to 11, found -1"),
        (["L", "L"], [1.0, np.nan], "row 1: a vertex of hemisphere L is a whole number from 0 to 11, found nan"),
        (["L", "R"], ["a", "b"], "row 0: a vertex is a whole number, found 'a'"),
        (["L", "R", "L"], [3, 3, 3], "row 2: vertex 3 of hemisphere L is in the table already"),
        (["L", "R", "L"], [11, 9, 0], None),
    ],
)
def test_vertices_that_are_none_are_named(sides: list[str], vertices: list, fault: str | None) -> None:
    assert vertex_fault(Table({"hemisphere": sides, "vertex": vertices}), (12, 10)) == fault
