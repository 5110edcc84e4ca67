"""Alignment by place: grids that people share, template positions, what is not covered, regions."""

from __future__ import annotations

import numpy as np
import pytest
from people_who_share import line_of_voxels, one_grid, shared_study

from phosphene.alignment import make_aligner
from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.table import Table


def test_people_on_one_grid_stay_there() -> None:
    study = shared_study((40, 40, 40), space=one_grid())
    view = study.split("train")
    aligner = make_aligner("anatomical").fit(view)
    assert (aligner.template.name, aligner.template.size) == ("MNI152", 40)
    for subject in view.subjects:
        np.testing.assert_array_equal(aligner.transform(subject, view.responses(subject)), view.responses(subject))


def test_a_voxel_that_one_person_lacks_is_missing_and_not_zero() -> None:
    tables = [line_of_voxels(40), line_of_voxels(40).take(np.arange(5, 40)), line_of_voxels(40)]
    study = shared_study((40, 35, 40), tables=tables, space=one_grid())
    view = study.split("train")
    aligner = make_aligner("anatomical").fit(view)
    assert aligner.template.size == 40
    aligned = aligner.transform("sub-02", view.responses("sub-02"))
    assert np.isnan(aligned[:, :5]).all()
    np.testing.assert_array_equal(aligned[:, 5:], view.responses("sub-02"))
    native = aligner.inverse("sub-02", np.arange(40.0))
    np.testing.assert_array_equal(native, np.arange(5.0, 40.0))
    # places that too few people cover are not in the template
    assert make_aligner("anatomical", share=1.0).fit(view).template.size == 35


@pytest.mark.parametrize("space", ["T1w", "t1w", "T2w", "boldref", "orig", "custom", "EPI", "anat", "Native"])
def test_own_spaces_are_not_one_grid(space: str) -> None:
    bare = [Table({"i": np.arange(n), "j": np.zeros(n, int), "k": np.zeros(n, int)}) for n in (40, 39)]
    study = shared_study((40, 39), tables=bare, space={**one_grid(), "space": space})
    with pytest.raises(
        InputError, match=f"sub-01, sub-02 cannot be aligned anatomically: '{space}' is everybody's own"
    ):
        make_aligner("anatomical").fit(study.split("train"))


@pytest.mark.parametrize(
    ("space", "counts", "words"),
    [
        ("unknown", None, "the name of their meshes is unknown"),
        ("unknown", (50, 50), "the name of their meshes is unknown"),
        ("fsnative", (50, 50), "'fsnative' is everybody's own space"),
        ("somewhere", None, "'somewhere' is no mesh that is known, and not all recordings say how many vertices"),
        ("somewhere", (50, 50), None),
        ("fsaverage5", None, None),
    ],
)
def test_vertices_of_meshes_nobody_knows_are_not_one_mesh(space, counts, words) -> None:
    tables = [Table({"hemisphere": np.full(n, "L"), "vertex": np.arange(n)}) for n in (40, 39)]
    view = shared_study((40, 39), tables=tables, space={"space": space, "n_vertices": counts}).split("train")
    if words is None:
        assert make_aligner("anatomical").fit(view).template.size == 40
        return
    with pytest.raises(InputError, match=words):
        make_aligner("anatomical").fit(view)


@pytest.mark.parametrize(
    ("columns", "space", "said"),
    [
        (
            {"hemisphere": ["left", "right"], "vertex": [4, 4]},
            {"space": "fsaverage5", "n_vertices": (10242, 10242)},
            "row 0: a hemisphere is 'L' or 'R', found 'left'",
        ),
        ({"i": [0, 0], "j": [1, 1], "k": [2, 2]}, one_grid(), "row 1: i 0, j 1, k 2 is in the table already"),
    ],
)
def test_places_that_would_be_taken_for_one_are_refused(columns: dict, space: dict, said: str) -> None:
    view = shared_study([2, 2], tables=[Table(columns)] * 2, space=space).split("train")
    with pytest.raises(InputError, match=f"sub-01: voxel table, {said}"):
        make_aligner("anatomical").fit(view)


def test_positions_on_a_line_are_averaged_by_distance() -> None:
    study = shared_study((101, 51))
    view = study.split("train")
    aligner = make_aligner("anatomical", spacing=5.0, radius=6.0).fit(view)
    u = aligner.template.voxels["template_u"]
    for subject in view.subjects:
        matrix, place = aligner.matrix(subject).toarray(), view.voxels(subject)["template_u"]
        expected = np.exp(-2 * np.square(np.abs(place[:, None] - u) / 6)) * (np.abs(place[:, None] - u) <= 6)
        on_the_line = aligner.template.voxels["template_v"] == 0
        expected = expected[:, on_the_line] / expected[:, on_the_line].sum(axis=0)
        np.testing.assert_allclose(matrix[:, on_the_line], expected, atol=1e-6)
        # a smooth map over the sheet arrives at its place, and finds its way back
        aligned = aligner.transform(subject, np.sin(place / 20)[None])[0]
        inner = (u > 6) & (u < 94)
        np.testing.assert_allclose(aligned[inner], np.sin(u[inner] / 20), atol=0.03)
        native = aligner.inverse(subject, np.sin(u / 20))
        inner = (place > 12) & (place < 88)
        np.testing.assert_allclose(native[inner], np.sin(place[inner] / 20), atol=0.06)


def test_nearest_takes_one_voxel_within_the_radius() -> None:
    aligner = make_aligner("anatomical", method="nearest", spacing=5.0, radius=1.0)
    aligner.fit(shared_study((101, 101)).split("train"))
    matrix = aligner.matrix("sub-01").toarray()
    assert set(np.unique(matrix)) == {0.0, 1.0}
    np.testing.assert_array_equal(matrix.argmax(axis=0), aligner.template.voxels["template_u"])


def test_invalid_positions_give_nothing() -> None:
    table = line_of_voxels(40)
    u = table["template_u"].copy()
    u[:20], u[20] = 9999.0, np.nan
    study = shared_study((40, 40), tables=[table, table.with_columns(template_u=u)])
    aligner = make_aligner("anatomical").fit(study.split("train"))
    native = aligner.inverse("sub-02", np.ones(aligner.template.size))
    assert np.isnan(native[:21]).all()
    assert np.isfinite(native[21:]).all()
    covered, place = aligner.covered("sub-02"), aligner.template.voxels["template_u"]
    assert not covered[place < 40].any()
    assert covered[(place > 60) & (place < 100)].all()


def test_nobody_without_a_place_goes_through() -> None:
    table = line_of_voxels(40)
    lost = table.with_columns(template_u=np.full(40, 9999.0))
    study = shared_study((40, 40), tables=[table, lost])
    with pytest.raises(InputError, match="sub-02 covers no place"):
        make_aligner("anatomical").fit(study.split("train"))
    far = shared_study((40, 40), tables=[table, table.with_columns(template_u=table["template_u"] + 1000)])
    fitted = make_aligner("anatomical").fit(far.split("train").subset(["sub-01"]))
    with pytest.raises(InputError, match="sub-02 covers no place"):
        fitted.add("sub-02", far.split("train"))


def test_hemispheres_are_kept_apart() -> None:
    def both(size: int) -> Table:
        one = line_of_voxels(size)
        side = np.where(np.arange(size) % 2, "L", "R")
        return one.with_columns(hemisphere=side)

    aligner = make_aligner("anatomical").fit(shared_study((80, 80), tables=[both(80), both(80)]).split("train"))
    matrix = aligner.matrix("sub-01").toarray()
    side = both(80)["hemisphere"]
    crossing = matrix[side == "L"][:, aligner.template.voxels["hemisphere"] == "R"]
    assert crossing.size > 0
    assert crossing.sum() == 0


def test_three_dimensions_after_an_affine(caplog: pytest.LogCaptureFixture) -> None:
    def cube(shift: float) -> Table:
        points = np.stack(np.meshgrid(*[np.arange(0.0, 12.0, 2.0)] * 3), axis=-1).reshape(-1, 3) + shift
        return Table({axis: points[:, n] for n, axis in enumerate("xyz")})

    study = shared_study((216, 216), tables=[cube(0), cube(50)])
    back = np.eye(4)
    back[:3, 3] = -50
    words = {"columns": ("x", "y", "z"), "affines": {"sub-02": back.tolist()}, "spacing": 2.0, "radius": 1.0}
    aligner = make_aligner("anatomical", **words).fit(study.split("train"))
    assert aligner.template.size == 216
    assert abs(aligner.matrix("sub-01") - aligner.matrix("sub-02")).max() == 0
    with pytest.raises(InputError, match="4 x 4"):
        make_aligner("anatomical", **{**words, "affines": {"sub-02": [[1.0]]}}).fit(study.split("train"))
    with caplog.at_level("WARNING"):
        make_aligner("anatomical", **{**words, "affines": {"sub-2": np.eye(4).tolist()}}).fit(study.split("train"))
    assert "affines of sub-2: not among sub-01, sub-02" in caplog.text
    with pytest.raises(InputError, match=r"sub-01, sub-02 lack positions \(mni_x\)"):
        make_aligner("anatomical", columns=("mni_x",)).fit(study.split("train"))


def test_regions_by_vote_and_by_name() -> None:
    view = shared_study((80, 90, 100)).split("train")
    whole = make_aligner("anatomical").fit(view)
    u = whole.template.voxels["template_u"]
    rois = whole.template.rois
    assert set(rois) == {"V1", "V2"}
    assert rois["V1"][u < 45].all()
    assert not rois["V1"][u > 55].any()
    part = make_aligner("anatomical", roi=("V1",)).fit(view)
    np.testing.assert_array_equal(part.template.voxels["template_u"], u[rois["V1"]])
    with pytest.raises(InputError, match=r"unknown region 'V9'.*V1, V2"):
        make_aligner("anatomical", roi=("V9",)).fit(view)


def test_a_mesh_has_one_number_of_vertices() -> None:
    def mesh(n: int) -> Table:
        return Table({"hemisphere": np.repeat(["L", "R"], n), "vertex": np.tile(np.arange(n), 2)})

    def person(n: int, claimed: int, space: str) -> Study:
        return shared_study((2 * n,), tables=[mesh(n)], space={"space": space, "n_vertices": (claimed, claimed)})

    with pytest.raises(InputError, match=r"fsaverage5 has 10242 vertices a hemisphere, found \(2562, 2562\)"):
        make_aligner("anatomical").fit(person(20, 2562, "fsaverage5").split("train"))
    study = person(20, 32492, "fsLR")
    aligner = make_aligner("anatomical").fit(study.split("train"))
    assert aligner.template.n_vertices == (32492, 32492)
    other = person(20, 59292, "fsLR")
    renamed = Study(other.stimuli, [_renamed(other, "sub-02")], {"default": other.roles()})
    with pytest.raises(InputError, match=r"sub-02 lies on a mesh of \(59292, 59292\) vertices, the template fsLR has"):
        aligner.add("sub-02", renamed.split("train"))
    both = Study(study.stimuli, [study.recordings["sub-01"], _renamed(other, "sub-02")], {"default": study.roles()})
    with pytest.raises(InputError, match="people on fsLR must have one mesh, found different numbers of vertices"):
        make_aligner("anatomical").fit(both.split("train"))


def _renamed(study: Study, name: str):  # type: ignore[no-untyped-def]
    person = study.recordings["sub-01"]
    person.subject = name
    return person


def test_positions_that_are_none_and_grids_that_miss_everybody() -> None:
    view = shared_study((40, 40)).split("train")
    with pytest.raises(InputError, match=r"sub-01: positions are numbers, found \['L'\] in column 'hemisphere'"):
        make_aligner("anatomical", columns=("hemisphere", "template_u")).fit(view)
    tables = [line_of_voxels(40).with_columns(template_u=np.linspace(20, 80, 40))] * 2
    far = shared_study((40, 40), tables=tables).split("train")
    with pytest.raises(InputError, match=r"no point of a grid of 500 mm lies within 0\.1 mm of a voxel"):
        make_aligner("anatomical", spacing=500, radius=0.1).fit(far)
