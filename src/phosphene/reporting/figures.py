"""Numbers in words and small line charts as inline SVG: crisp, light, readable by a screen reader."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from phosphene.reporting.page import Chart, Curve

__all__ = ["curve_svg", "number", "p_value", "percentage", "share", "spoken", "ticks"]

_NBSP = "\u00a0"
# plot area of a curve, in the units of its view box
_WIDTH, _HEIGHT = 350.0, 215.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 22.0, 38.0


def percentage(fraction: float) -> str:
    """A fraction as a percentage with as many digits as carry meaning.

    Examples
    --------
    >>> percentage(0.4137), percentage(0.0033), percentage(1.0)
    ('41.4\\xa0%', '0.33\\xa0%', '100\\xa0%')
    """
    if not math.isfinite(fraction):
        return "n/a"
    value = 100 * fraction
    digits = 0 if value in (0, 100) else 2 if abs(value) < 1 else 1
    return f"{value:.{digits}f}{_NBSP}%"


def number(value: float, percent: bool = False) -> str:
    """A value as the page prints it: a percentage, or three significant digits with thousands set apart.

    Examples
    --------
    >>> number(12.0), number(1234.0), number(0.00123), number(0.5, percent=True)
    ('12', '1,234', '0.00123', '50.0\\xa0%')
    """
    if percent:
        return percentage(value)
    if not math.isfinite(value):
        return "n/a"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def p_value(p: float) -> str:
    """A p value with three digits after the point.

    Examples
    --------
    >>> p_value(0.0332), p_value(0.0002)
    ('0.033', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def share(value: float) -> float:
    """Position of a correlation along its bar, in percent; below zero is drawn as zero.

    Examples
    --------
    >>> share(0.4137), share(-0.1)
    (41.4, 0.0)
    """
    return round(100 * min(max(value, 0.0), 1.0), 1)


def spoken(chart: Chart, index: int) -> str:
    """One bar of a chart as a sentence: its alternative text."""
    bar = chart.bars[index]
    words = f"{bar.method}: {number(bar.value, chart.percent)}"
    if bar.low is not None and bar.high is not None:
        words += f", 95{_NBSP}% interval {number(bar.low, chart.percent)} to {number(bar.high, chart.percent)}"
    if chart.chance is not None:
        words += f", chance {number(chart.chance, chart.percent)}"
    return words


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values spanning `low` to `high`: steps of 1, 2, 2.5 or 5 times a power of ten.

    Examples
    --------
    >>> ticks(0, 97)
    [0.0, 25.0, 50.0, 75.0, 100.0]
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = min((power * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda s: abs(span / s - count))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def curve_svg(curve: Curve, identifier: str) -> Markup:
    """A line chart as an SVG element with a title and a description in words.

    Parameters
    ----------
    curve : Curve
        Series over a common x; values that are not finite are left out.
    identifier : str
        Unique on the page; the ids of title and description begin with it.
    """
    lines = [
        [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for series in curve.series
    ]
    points = [point for line in lines for point in line]
    if not points:
        return Markup('<p class="absent">No step of “{}” was measured.</p>').format(curve.title)
    xs = ticks(min(x for x, _ in points), max(x for x, _ in points))
    ys = ticks(min(y for _, y in points), max(y for _, y in points))
    across = _scale(xs[0], xs[-1], _LEFT, _WIDTH - _RIGHT)
    up = _scale(ys[0], ys[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [*_axes(curve, xs, ys, across, up), *_marks(curve, across)]
    for index, (series, line) in enumerate(zip(curve.series, lines, strict=True)):
        parts.append(_line(series.name, line, index, across, up))
    return Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{i}-t {i}-d" class="curve">'
        '<title id="{i}-t">{title}</title><desc id="{i}-d">{words}</desc>{body}</svg>'
    ).format(
        w=f"{_WIDTH:g}", h=f"{_HEIGHT:g}", i=identifier, title=curve.title, words=_words(curve, lines),
        body=Markup("").join(parts),
    )  # fmt: skip


class _scale:
    """Linear map of values onto the drawing."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.slope = (end - start) / (high - low) if high > low else 0.0

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) * self.slope, 1)


def _axes(curve: Curve, xs: Sequence[float], ys: Sequence[float], across: _scale, up: _scale) -> list[Markup]:
    bottom = _HEIGHT - _BOTTOM
    grid = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    text = Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>')
    parts = []
    for y in ys:
        parts.append(grid.format(_LEFT, _WIDTH - _RIGHT, up(y), up(y)))
        label = f"{100 * y:.3g}{_NBSP}%" if curve.percent else f"{y:.4g}"
        parts.append(text.format(_LEFT - 7, up(y) + 4, "end", label))
    for x in xs:
        parts.append(text.format(across(x), bottom + 17, "middle", f"{x:,.6g}"))
    parts.append(Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(
        _WIDTH - _RIGHT, _HEIGHT - 6, curve.x_label
    ))  # fmt: skip
    return parts


def _marks(curve: Curve, across: _scale) -> list[Markup]:
    template = Markup(
        '<line class="mark" x1="{x}" x2="{x}" y1="{t}" y2="{b}"/>'
        '<text class="tick" x="{x}" y="{y}" text-anchor="middle">{words}</text>'
    )
    return [
        template.format(x=across(x), t=_TOP, b=_HEIGHT - _BOTTOM, y=_TOP - 8, words=words) for x, words in curve.marks
    ]


def _line(name: str, line: list[tuple[float, float]], index: int, across: _scale, up: _scale) -> Markup:
    if len(line) == 1:
        return Markup('<circle class="series s{}" r="3" cx="{}" cy="{}"><title>{}</title></circle>').format(
            index % 4, across(line[0][0]), up(line[0][1]), name
        )
    path = " ".join(f"{across(x):g},{up(y):g}" for x, y in _thinned(line))
    return Markup('<polyline class="series s{}" points="{}"><title>{}</title></polyline>').format(index % 4, path, name)


def _thinned(line: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most about `most` points: means of equal stretches, so that a long run stays a small page."""
    if len(line) <= most:
        return line
    size = math.ceil(len(line) / most)
    blocks = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in blocks]


def _words(curve: Curve, lines: list[list[tuple[float, float]]]) -> str:
    told = []
    for series, line in zip(curve.series, lines, strict=True):
        if line:
            first, last = number(line[0][1], curve.percent), number(line[-1][1], curve.percent)
            told.append(f"{series.name}: from {first} at {number(line[0][0])} to {last} at {number(line[-1][0])}")
    return f"{curve.y_label} by {curve.x_label}. " + "; ".join(told)
