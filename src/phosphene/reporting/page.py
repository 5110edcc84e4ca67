"""The report as plain values: what the page says, before any of it is HTML.

Nothing here knows a study, a decoder or a scorecard; whoever fills a `Page` decides what is said, and
:mod:`phosphene.reporting.render` only lays it out. A part that does not exist is stated in words: each part that can
be absent has an ``absent`` sentence, printed in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ALL",
    "GROUPS",
    "AlignmentBar",
    "Audit",
    "Bar",
    "BrainMap",
    "Candidate",
    "Case",
    "Chart",
    "Curve",
    "Dot",
    "Fact",
    "Group",
    "Label",
    "Page",
    "Person",
    "Picture",
    "RegionBar",
    "Row",
    "Series",
    "View",
]

ALL = "mean"
"""Name of the mean over people, wherever a person is expected."""

Group = Literal["best", "median", "worst"]
GROUPS: tuple[Group, ...] = ("best", "median", "worst")


@dataclass(frozen=True)
class Fact:
    """One figure in the strip of facts: a label, the value in words, what it means."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An embedded picture: a ``data:`` URI, its alternative text and its size in pixels."""

    src: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Person:
    """What was recorded from one person."""

    name: str
    voxels: int
    train_trials: int
    test_trials: int
    repeats: str
    regions: str = ""


@dataclass(frozen=True)
class Dot:
    """The value of one person, drawn upon the bar of the mean."""

    person: str
    value: float


@dataclass(frozen=True)
class Bar:
    """One method in a chart. `tone` is the method's colour number, the same on the whole page."""

    method: str
    tone: int
    value: float
    low: float | None = None
    high: float | None = None
    dots: tuple[Dot, ...] = ()


@dataclass(frozen=True)
class Chart:
    """One metric under one protocol: methods beside each other and beside chance.

    `percent` tells whether values are fractions shown as percentages; `top` is the value at the right end.
    """

    title: str
    metric: str
    person: str
    direction: str
    bars: tuple[Bar, ...]
    chance: float | None
    top: float
    percent: bool = True
    lower_is_better: bool = False
    note: str = ""

    def share(self, value: float) -> float:
        """Position of a value along the axis, in percent of its length, kept inside."""
        return round(100 * min(max(value / self.top, 0.0), 1.0), 2) if self.top > 0 else 0.0


@dataclass(frozen=True)
class Row:
    """One line of the scorecard. Values are as stored; `percent` says how they are shown."""

    method: str
    tone: int
    person: str
    direction: str
    metric: str
    protocol: str
    value: float
    chance: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    n: int | None = None
    percent: bool = True


@dataclass(frozen=True)
class Candidate:
    """One retrieved item of a case."""

    identifier: str
    caption: str
    similarity: float | None
    correct: bool
    picture: Picture | None = None


@dataclass(frozen=True)
class Case:
    """One test stimulus of one person with what was retrieved for it.

    `people` are the persons' views in which the case is shown (a case can be among the best of its person and of all).
    """

    person: str
    people: tuple[str, ...]
    group: Group
    identifier: str
    caption: str
    rank: float
    pool: int
    retrieved: tuple[Candidate, ...]
    picture: Picture | None = None


@dataclass(frozen=True)
class Series:
    """One line of a curve: y over x. A step that was not measured is left out."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A line chart of training: some series over the same x."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    marks: tuple[tuple[float, str], ...] = ()
    percent: bool = False


@dataclass(frozen=True)
class Label:
    """Words upon a view of the brain, at a place in percent of its width and height."""

    text: str
    left: float
    top: float


@dataclass(frozen=True)
class View:
    """One projection of one brain."""

    title: str
    picture: Picture
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True)
class RegionBar:
    """Importance of one region: length of its bar (0 to 1), its value in words, its voxel count."""

    name: str
    value: float
    words: str
    voxels: int


@dataclass(frozen=True)
class AlignmentBar:
    """Inter-subject correlation of one region: before and after alignment, and its share of what noise leaves."""

    region: str
    places: int
    before: float | None
    after: float
    interval: tuple[float, float] | None = None
    reachable: float | None = None


@dataclass(frozen=True)
class BrainMap:
    """Where the answer comes from in one person's brain."""

    person: str
    views: tuple[View, ...]
    regions: tuple[RegionBar, ...]
    regions_note: str = ""
    note: str = ""
    absent: str = ""


@dataclass(frozen=True)
class Audit:
    """One honesty check: ``good``, ``warn``, ``bad`` or ``unknown`` (could not be measured), with the finding."""

    name: str
    verdict: Literal["good", "warn", "bad", "unknown"]
    finding: str
    meaning: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Parameters
    ----------
    title : str
        Name of the page, e.g. ``"lite-mind on demo"``.
    headline, standfirst : str
        The result in one plain sentence, and what must be known to read it.
    method : str
        The decoder reported on: the method whose colour number is 0.
    people : sequence of str
        Names for the filter, the mean over people (:data:`ALL`) first where there is one.
    directions : sequence of (name, words)
        Retrieval directions, e.g. ``("brain_to_image", "brain → image")``.
    hero : sequence of Chart
        The first chart on the page: one for every person and direction.
    """

    title: str
    headline: str
    standfirst: str
    method: str
    people: tuple[str, ...]
    directions: tuple[tuple[str, str], ...]
    hero: tuple[Chart, ...]
    facts: tuple[Fact, ...] = ()
    recorded: tuple[Person, ...] = ()
    recorded_note: str = ""
    charts: tuple[Chart, ...] = ()
    rows: tuple[Row, ...] = ()
    cases: tuple[Case, ...] = ()
    cases_note: str = ""
    cases_absent: str = ""
    curves: tuple[Curve, ...] = ()
    curves_note: str = ""
    curves_absent: str = ""
    brains: tuple[BrainMap, ...] = ()
    brain_note: str = ""
    brain_absent: str = ""
    brain_ramp: str = ""
    alignment: tuple[AlignmentBar, ...] = ()
    alignment_note: str = ""
    audits: tuple[Audit, ...] = ()
    audits_absent: str = ""
    command: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    protocol: tuple[tuple[str, str], ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    created: str = ""

    def typical(self) -> Case | None:
        """The median case to stand beside the headline: the first one of the first view that has one."""
        medians = [case for case in self.cases if case.group == "median"]
        first: Sequence[Case] = [case for case in medians if self.people and self.people[0] in case.people]
        return next(iter(first or medians), None)
