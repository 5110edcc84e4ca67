"""Onto surface templates: other densities, people's own surfaces, and volumes through them, on small icospheres."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from people_who_share import shared_study
from scipy import sparse

from phosphene.alignment import Aligner, make_aligner
from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.recordings.surfaces import MESHES, Sphere, icosphere, nearest_vertex, neighbourhood_average
from phosphene.table import Table

FINE, COARSE = icosphere(3), icosphere(1)


def _write(path: Path, points: np.ndarray, faces: np.ndarray, centre: Any = (0.0, 0.0, 0.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"head": [2, 0, 20], "valid": "1  # volume info valid", "filename": "orig.mgz", "volume": [256] * 3}
    facts |= {"voxelsize": [1.0] * 3, "xras": [-1.0, 0, 0], "yras": [0, 0, -1.0], "zras": [0, 1.0, 0], "cras": centre}
    nibabel.freesurfer.write_geometry(str(path), points, faces, volume_info=facts)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FreeSurfer tree whose fsaverage has 642 vertices and whose fsaverage5 has 42."""
    monkeypatch.setitem(MESHES, "fsaverage", len(FINE))
    monkeypatch.setitem(MESHES, "fsaverage5", len(COARSE))
    for side in ("lh", "rh"):
        _write(tmp_path / f"fsaverage/surf/{side}.sphere.reg", 100 * FINE.points, FINE.faces)
    return tmp_path


def _vertices(present: np.ndarray) -> Table:
    """A voxel table of these vertices on both hemispheres, the right ones first and backwards."""
    vertex = np.flatnonzero(present)[::-1]
    return Table(
        {
            "hemisphere": np.repeat(["R", "L"], len(vertex)),
            "vertex": np.tile(vertex, 2),
            "roi_V1": np.tile(FINE.points[vertex, 2] > 0, 2),
        }
    )


def _study(masks: list[np.ndarray], space: str = "fsaverage", n: int = len(FINE)) -> Study:
    tables = [_vertices(mask) for mask in masks]
    return shared_study([len(t) for t in tables], tables=tables, space={"space": space, "n_vertices": (n, n)}, n=30)


@pytest.mark.parametrize("method", ["area", "nearest"])
def test_a_coarser_mesh_by_neighbours_and_not_by_slicing(method: str, tree: Path) -> None:
    rng = np.random.default_rng(0)
    masks = [np.ones(len(FINE), dtype=bool), rng.random(len(FINE)) < 0.8]
    view = _study(masks).split("train")
    aligner = make_aligner("anatomical", template="fsaverage5", method=method, freesurfer=str(tree)).fit(view)
    assert (aligner.template.name, aligner.template.n_vertices) == ("fsaverage5", (42, 42))
    for subject, mask in zip(view.subjects, masks, strict=True):
        way = neighbourhood_average if method == "area" else nearest_vertex
        weights = way(FINE, COARSE.points, mask).toarray()
        covered = weights.sum(axis=0) > 0
        responses, voxels = view.responses(subject), view.voxels(subject)
        aligned = aligner.transform(subject, responses)
        for side in "LR":
            whole = np.zeros((len(responses), len(FINE)), dtype=np.float32)
            mine = voxels["hemisphere"] == side
            whole[:, voxels["vertex"][mine]] = responses[:, mine]
            expected = np.where(covered, whole[:, mask] @ weights, np.nan)
            at = aligner.template.voxels["hemisphere"] == side
            vertex = aligner.template.voxels["vertex"][at]
            np.testing.assert_allclose(aligned[:, at], expected[:, vertex], atol=1e-5)
    north = aligner.template.voxels["vertex"][aligner.template.rois["V1"]]
    assert (COARSE.points[north, 2] > -0.1).all()


def test_maps_find_back_and_the_disk_keeps_them_sparse(tree: Path, tmp_path: Path) -> None:
    view = _study([np.ones(len(FINE), dtype=bool)]).split("train")
    aligner = make_aligner("anatomical", template="fsaverage5", roi=("V1",), freesurfer=str(tree)).fit(view)
    with pytest.raises(InputError, match=r"radius = 2.0 has no use where people go onto a mesh from surfaces"):
        make_aligner("anatomical", template="fsaverage5", radius=2.0, freesurfer=str(tree)).fit(view)
    native = aligner.inverse("sub-01", np.ones(aligner.template.size))
    known = np.isfinite(native)
    np.testing.assert_allclose(native[known], 1, atol=1e-6)
    assert 0.3 < known.mean() < 0.7
    loaded = Aligner.load(aligner.save(tmp_path / "aligner"))
    assert sparse.issparse(loaded.matrix("sub-01"))
    assert loaded.template.n_vertices == (42, 42)


def test_a_persons_own_surface_goes_through_its_registration(tree: Path) -> None:
    rng = np.random.default_rng(1)
    own = Sphere.of(rng.normal(size=(300, 3)))
    view = _own_study(300).split("train")
    with pytest.raises(InputError, match=r"sub-01: surfaces of the person are needed \(sub-01/surf"):
        make_aligner("anatomical", template="fsaverage5", freesurfer=str(tree)).fit(view)
    for side in ("lh", "rh"):
        _write(tree / f"sub-01/surf/{side}.sphere.reg", 100 * own.points, own.faces)
    aligner = make_aligner("anatomical", template="fsaverage5", freesurfer=str(tree)).fit(view)
    smooth = np.tile(own.points[:, 2], 2)
    aligned = aligner.transform("sub-01", smooth[None])[0]
    assert np.corrcoef(aligned, np.tile(COARSE.points[:, 2], 2))[0, 1] > 0.95
    with pytest.raises(InputError, match=r"lh.sphere.reg has 300 vertices, expected 299"):
        make_aligner("anatomical", template="fsaverage5", freesurfer=str(tree)).fit(_own_study(299).split("train"))


def _own_study(n: int) -> Study:
    table = Table({"hemisphere": np.repeat(["L", "R"], n), "vertex": np.tile(np.arange(n), 2)})
    return shared_study([2 * n], tables=[table], space={"space": "fsnative", "n_vertices": (n, n)}, n=30)


def test_a_volume_goes_through_the_persons_surface(tree: Path) -> None:
    centre = np.array([3.0, -17.0, 20.0])
    for side, shift in (("lh", -40.0), ("rh", 40.0)):
        _write(tree / f"sub-01/surf/{side}.sphere.reg", 100 * FINE.points, FINE.faces)
        for surface, radius in (("white", 28.0), ("pial", 32.0)):
            points = radius * FINE.points + [shift, 0, 0]
            _write(tree / f"sub-01/surf/{side}.{surface}", points, FINE.faces, centre)
    # one voxel 1 mm beside the middle of the grey matter of every vertex of the left hemisphere
    xyz = 30 * FINE.points + [-40, 0, 0] + centre + 0.5
    table = Table({axis: xyz[:, n] for n, axis in enumerate("xyz")})
    view = shared_study([len(FINE)], tables=[table], space={"space": "T1w"}, n=30).split("train")
    aligner = make_aligner("anatomical", template="fsaverage5", radius=2.0, share=0.0, freesurfer=str(tree)).fit(view)
    expected = neighbourhood_average(FINE, COARSE.points)
    assert set(aligner.template.voxels["hemisphere"].tolist()) == {"L"}
    assert abs(aligner.matrix("sub-01") - expected).max() < 1e-6
    bare = shared_study([10], tables=[Table({"i": np.arange(10)})], n=30).split("train")
    with pytest.raises(InputError, match="sub-01: a volume needs x, y, z"):
        make_aligner("anatomical", template="fsaverage5", freesurfer=str(tree)).fit(bare)


def test_what_cannot_be_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.ones(len(FINE), dtype=bool)
    view = _study([whole]).split("train")
    with pytest.raises(InputError, match="unknown surface template 'fsaverage7'"):
        make_aligner("anatomical", template="fsaverage7").fit(view)
    with pytest.raises(InputError, match="fsaverage has 642 vertices a hemisphere, the recording says 700"):
        make_aligner("anatomical", template="fsaverage5", freesurfer=str(tree)).fit(
            _study([whole], n=700).split("train")
        )
    for name in ("SUBJECTS_DIR", "FREESURFER_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="no FreeSurfer folder was named"):
        make_aligner("anatomical", template="fsaverage6").fit(view)
    untold = shared_study([2 * len(FINE)], tables=[_vertices(whole)], space={"space": "fsaverage"}, n=30)
    with pytest.raises(InputError, match=r"does not say how many vertices its mesh has \(n_vertices\)"):
        make_aligner("anatomical", template="fsaverage5", freesurfer=str(tree)).fit(untold.split("train"))


def test_vertices_that_the_mesh_does_not_have_are_named(tree: Path) -> None:
    vertices = {"hemisphere": ["L", "R", "R"], "vertex": [0, 1, len(FINE)]}
    view = shared_study([3], tables=[Table(vertices)], space={"space": "fsaverage", "n_vertices": (len(FINE),) * 2})
    with pytest.raises(InputError, match=r"sub-01: voxel table, row 2: .* from 0 to 641, found 642"):
        make_aligner("anatomical", template="fsaverage5", freesurfer=str(tree)).fit(view.split("train"))
