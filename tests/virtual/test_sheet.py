"""The folded sheet: scanner order, coordinates, areas, retinotopy and anatomy."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_people import tiny_settings

from phosphene.virtual.people import draw_person
from phosphene.virtual.sheet import AREAS, EARLY, Sheet, area_of, retinotopy


@pytest.fixture(scope="module")
def sheet() -> Sheet:
    return draw_person(tiny_settings(person={"voxels": 900}), 0, "sub-01").sheet


def test_voxels_are_unique_and_in_scanner_order(sheet: Sheet) -> None:
    ranks = sheet.grid @ np.array([1, 1000, 1_000_000])
    assert np.all(np.diff(ranks) > 0)
    assert sheet.grid.min() >= 0
    assert np.all(sheet.grid.max(0) < sheet.volume_shape)


def test_coordinates_follow_from_the_affine(sheet: Sheet) -> None:
    homogeneous = np.column_stack([sheet.grid, np.ones(len(sheet))])
    np.testing.assert_allclose(sheet.xyz, (homogeneous @ sheet.affine.T)[:, :3], atol=1e-9)
    assert set(sheet.hemisphere) == {"L", "R"}
    off_midline = np.abs(sheet.xyz[:, 0]) > 2 * sheet.affine[0, 0]
    assert np.all((sheet.xyz[:, 0] < 0)[off_midline] == (sheet.hemisphere == "L")[off_midline])


def test_shares_of_areas_are_kept(sheet: Sheet) -> None:
    shares = tiny_settings().shares
    for area in AREAS:
        assert abs((sheet.area == area).mean() - shares[area] / sum(shares.values())) < 0.01


@pytest.mark.parametrize("voxels", [50, 333, 6000])
def test_any_number_of_voxels_finds_its_grid(voxels: int) -> None:
    drawn = draw_person(tiny_settings(person={"voxels": voxels}), 1, "sub-02").sheet
    assert len(drawn) == voxels
    assert len(np.unique(drawn.grid, axis=0)) == voxels


def test_neighbouring_areas_share_a_meridian() -> None:
    # V1 ends ventrally at the upper vertical meridian, dorsally at the lower; V2 and V3 meet at the horizontal one
    below_above = {"V2v/V1": (40.999, 41.001, 90), "V1/V2d": (68.999, 69.001, -90), "V3v/V2v": (30.999, 31.001, 0)}
    for low, high, angle in below_above.values():
        places = retinotopy(np.array([[-20.0, low], [-20.0, high]]), extent=4.0)
        np.testing.assert_allclose(places[0], places[1], atol=1e-2)
        assert np.rad2deg(np.arctan2(places[0, 1], places[0, 0])) == pytest.approx(angle, abs=0.5)


def test_left_hemisphere_sees_the_right_half_with_a_magnified_fovea() -> None:
    forwards = np.linspace(2.1, 51.9, 50)
    line = np.column_stack([-forwards, np.full(50, 55.0)])
    places = retinotopy(line, extent=4.0)
    assert np.all(places[:, 0] > 0)
    eccentricity = np.hypot(*places.T)
    assert np.all(np.diff(eccentricity, n=2) > 0)
    np.testing.assert_allclose(retinotopy(line * [-1, 1], 4.0), places * [-1, 1])


def test_every_early_position_has_a_place_and_others_none() -> None:
    points = np.random.default_rng(0).uniform([-120, 0], [120, 110], (3000, 2))
    early = np.isin(area_of(points), EARLY)
    assert np.array_equal(np.isfinite(retinotopy(points, 4.0)).all(1), early)


def test_anatomy_is_folded_and_shared_between_people(sheet: Sheet) -> None:
    # a sulcus is curved inwards: both features are positive there
    assert np.corrcoef(sheet.curvature, sheet.sulc)[0, 1] > 0.5
    other = draw_person(tiny_settings(person={"voxels": 900}), 0, "sub-02").sheet
    distance = np.linalg.norm(sheet.template[:, None] - other.template[None], axis=2)
    nearest = distance.argmin(1)
    near = distance.min(1) < 3
    agreement = np.corrcoef(sheet.sulc[near], other.sulc[nearest[near]])[0, 1]
    assert 0.5 < agreement < 0.99
