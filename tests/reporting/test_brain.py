"""Voxel values on the brain: in place, on the right side, labelled."""

from __future__ import annotations

import base64
import io

import made
import numpy as np
import pytest
from PIL import Image

from phosphene.reporting import brain
from phosphene.reporting.page import View
from phosphene.table import Table


def image(view: View) -> np.ndarray:
    raw = base64.b64decode(view.picture.src.split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGBA"), dtype=float)


def hottest(view: View) -> tuple[float, float]:
    """Where the brightest colour stands, as fractions from left and from top."""
    pixels = image(view)
    bright = pixels[..., :3].sum(axis=-1) * (pixels[..., 3] == 255)
    rows, columns = np.nonzero(bright == bright.max())
    return float(columns.mean() + 0.5) / bright.shape[1], float(rows.mean() + 0.5) / bright.shape[0]


def box(shape: tuple[int, int, int], spot: tuple[int, int, int]) -> tuple[np.ndarray, Table]:
    """A full box of voxels with one hot spot."""
    index = np.argwhere(np.ones(shape))
    values = np.exp(-((index - spot) ** 2).sum(axis=1) / 4.0)
    return values, Table({axis: index[:, k] for k, axis in enumerate("ijk")})


def test_projections_show_the_spot_from_three_sides() -> None:
    values, voxels = box((20, 24, 16), (4, 20, 12))
    right, behind, above = brain.brain_views(values, voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
    # i runs right, j to the front, k up
    assert hottest(right) == pytest.approx((20.5 / 24, 1 - 12.5 / 16), abs=0.08)
    assert hottest(behind) == pytest.approx((4.5 / 20, 1 - 12.5 / 16), abs=0.08)
    assert hottest(above) == pytest.approx((4.5 / 20, 1 - 20.5 / 24), abs=0.08)
    assert [label.text for label in behind.labels] == ["left", "right"]


def test_left_and_right_follow_the_affine() -> None:
    values, voxels = box((20, 24, 16), (4, 20, 12))
    flipped = brain.brain_views(values, voxels, np.diag([-2.0, 2.0, 2.0, 1.0]))[1]
    assert hottest(flipped)[0] == pytest.approx(1 - 4.5 / 20, abs=0.08)
    # the first array axis runs up, the last to the right
    turned = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1.0]])
    behind = brain.brain_views(values, voxels, turned)[1]
    assert hottest(behind) == pytest.approx((12.5 / 16, 1 - 4.5 / 20), abs=0.08)


def test_without_an_affine_no_side_is_claimed() -> None:
    values, voxels = box((6, 6, 6), (1, 1, 1))
    views = brain.brain_views(values, voxels)
    assert [view.title for view in views] == [f"along axis {axis} of the volume" for axis in "ijk"]
    assert not any(view.labels for view in views)


def test_the_flat_sheet_is_preferred_and_labelled() -> None:
    table = made.sheet()
    values = np.where(table["roi_LO"] & (table["hemisphere"] == "R"), 1.0, 0.0)
    left, right = brain.brain_views(values, table)
    assert "left hemisphere" in left.picture.alt
    assert {label.text for label in right.labels} == {"V1", "V2", "LO", "PPA"}
    place = next(label for label in right.labels if label.text == "LO")
    across, down = hottest(right)
    assert 100 * across == pytest.approx(place.left, abs=6)
    assert 100 * down == pytest.approx(place.top, abs=6)
    # nothing glows in the other hemisphere: only the white outlines are bright
    glows = [((image(view)[..., 3] == 255) & (image(view)[..., 0] > 200)).sum() for view in (left, right)]
    assert glows[0] == 0
    assert glows[1] > 1000


def test_a_split_region_is_named_inside_itself() -> None:
    table = made.sheet()
    v = table["template_v"]
    outer = ((v < 0.35) | (v > 0.7)) & (table["template_u"] < 0.8)
    inner = ~outer & (table["template_u"] < 0.8)
    place = {name: table[name] for name in ("template_u", "template_v", "hemisphere")}
    view = brain.brain_views(outer + 0.0, Table({**place, "roi_outer": outer, "roi_inner": inner}))[0]
    named = {label.text: label.top for label in view.labels}
    assert 35 < named["inner"] < 65
    assert not 35 < named["outer"] < 65


def test_voxels_without_coordinates_give_no_view() -> None:
    assert brain.brain_views(np.ones(5), Table({"vertex": np.arange(5), "hemisphere": ["L"] * 5})) == ()


def test_one_wild_voxel_does_not_darken_the_rest() -> None:
    values, voxels = box((20, 20, 20), (10, 10, 10))
    wild = values.copy()
    wild[0] = 1e6
    calm, loud = (image(brain.brain_views(v, voxels)[2])[..., 0].mean() for v in (values, wild))
    assert loud == pytest.approx(calm, rel=0.05)


@pytest.mark.parametrize("values", [np.zeros(8000), np.full(8000, np.nan)])
def test_maps_of_nothing_are_drawn(values: np.ndarray) -> None:
    _, voxels = box((20, 20, 20), (1, 1, 1))
    assert len(brain.brain_views(values, voxels)) == 3


def test_regions_given_as_maps_are_ranked_against_the_strongest() -> None:
    values = np.array([4.0, 4.0, 1.0, 1.0, -3.0])
    masks = {"weak": [0, 0, 1, 1, 0], "strong": [1, 1, 0, 0, 0], "none": [0, 0, 0, 0, 0], "off": [0, 0, 0, 0, 1]}
    bars = brain.region_means(values, {name: np.array(mask, bool) for name, mask in masks.items()})
    assert [(bar.name, bar.words, bar.voxels) for bar in bars] == [
        ("strong", "1.00", 2),
        ("weak", "0.25", 2),
        ("off", "0.00", 1),
    ]


def test_silenced_regions_are_shares_of_the_whole() -> None:
    regions = {name: np.ones(size, bool) for name, size in (("V1", 9), ("LO", 4), ("none", 0), ("off", 3))}
    bars = brain.region_bars({"LO": 0.1, "V1": 0.3, "off": -0.02, "none": 0.5}, 0.4, regions)
    told = [(bar.name, round(bar.value, 2), bar.words.replace("\u00a0", " "), bar.voxels) for bar in bars]
    assert told == [("V1", 0.75, "75 %", 9), ("LO", 0.25, "25 %", 4), ("off", 0.0, "−5 %", 3)]
    assert brain.region_bars({"V1": 0.1}, -0.1, regions)[0].value == 0.0


def test_what_misleads_is_drawn_as_nothing() -> None:
    values, voxels = box((12, 12, 12), (3, 3, 3))
    mirrored = values - np.exp(-((np.argwhere(np.ones((12, 12, 12))) - 9) ** 2).sum(axis=1) / 4.0)
    assert hottest(brain.brain_views(mirrored, voxels)[2]) == pytest.approx(
        hottest(brain.brain_views(values, voxels)[2])
    )
