"""Numbers in words and line charts."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from phosphene.reporting import figures
from phosphene.reporting.page import Curve, Series


@pytest.mark.parametrize(
    ("value", "percent", "words"),
    [
        (0.41372, True, "41.4 %"),
        (1 / 300, True, "0.33 %"),
        (0.0, True, "0 %"),
        (float("nan"), True, "n/a"),
        (6.75, False, "6.75"),
        (15724.0, False, "15,724"),
        (float("inf"), False, "n/a"),
    ],
)
def test_numbers(value: float, percent: bool, words: str) -> None:
    assert figures.number(value, percent).replace("\u00a0", " ") == words


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.4), (-3, 7e5), (0, 41), (1e-9, 2e-9)])
def test_ticks_are_round_and_span_the_values(low: float, high: float) -> None:
    ticks = figures.ticks(low, high)
    assert ticks[0] <= low + 1e-9 * abs(high)
    assert ticks[-1] >= high - 1e-9 * abs(high)
    assert 3 <= len(ticks) <= 8
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_a_curve_is_well_formed_and_told_in_words() -> None:
    steps = tuple(float(k) for k in range(5))
    curve = Curve(
        "Loss <b>", "epoch", "loss", (Series("a & b", steps, (4.0, 3.0, float("nan"), 2.0, 1.0)),), ((3.0, "best"),)
    )
    svg = ElementTree.fromstring(str(figures.curve_svg(curve, "c")))
    assert svg.find("title").text == "Loss <b>"
    assert svg.find("desc").text == "loss by epoch. a & b: from 4 at 0 to 1 at 4"
    points = [tuple(map(float, point.split(","))) for point in svg.find("polyline").get("points").split()]
    assert len(points) == 4
    # down on the page is up in the view box, and x grows
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_long_runs_are_thinned_and_single_points_drawn() -> None:
    steps = tuple(float(k) for k in range(50_000))
    long = str(figures.curve_svg(Curve("t", "x", "y", (Series("s", steps, steps),)), "c"))
    assert len(re.search('points="([^"]*)"', long)[1].split()) <= 400
    assert "<circle" in figures.curve_svg(Curve("t", "x", "y", (Series("s", (1.0,), (2.0,)),)), "c")


def test_a_curve_without_values_says_so() -> None:
    nothing = Curve("Loss", "epoch", "loss", (Series("s", (1.0,), (float("nan"),)),))
    assert "was measured" in figures.curve_svg(nothing, "c")
