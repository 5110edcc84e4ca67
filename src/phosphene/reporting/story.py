"""A scorecard in words and charts: headline, rivals side by side, every number with its protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phosphene.reporting.figures import number
from phosphene.reporting.page import ALL, Bar, Chart, Dot, Row

if TYPE_CHECKING:
    from phosphene.evaluation import Score, Scorecard

__all__ = ["DIRECTIONS", "Key", "Story", "axis_end", "points", "tell"]

DIRECTIONS = {
    "brain_to_image": "brain → {noun}",
    "image_to_brain": "{noun} → brain",
    "brain_to_label": "brain → class",
}
"""Words of the page for the directions of the scorecard; ``noun`` is what was shown."""

_METRICS = ("top-1", "accuracy", "top-5", "two-way", "median-rank")
_TONES = {"ridge": 1, "nearest": 2, "mean": 3}
# right ends of the axis of fractions
_TOPS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0)
_NBSP = "\u00a0"


@dataclass(frozen=True)
class Key:
    """What makes scores comparable: the same task, direction and metric."""

    task: str
    direction: str
    metric: str
    transductive: bool

    @classmethod
    def of(cls, score: Score) -> Key:
        return cls(score.task, score.direction, score.metric, score.transductive)

    @property
    def percent(self) -> bool:
        """Whether its values are fractions."""
        return self.metric != "median-rank"


@dataclass(frozen=True)
class Story:
    """What the first screen says, and the charts and rows behind it."""

    headline: str
    standfirst: str
    people: tuple[str, ...]
    directions: tuple[tuple[str, str], ...]
    hero: tuple[Chart, ...]
    charts: tuple[Chart, ...]
    rows: tuple[Row, ...]


def tell(scorecard: Scorecard, noun: str = "picture", repeats: int = 1, virtual: bool = False) -> Story:
    """Put a scorecard into words and charts.

    Parameters
    ----------
    scorecard : Scorecard
    noun : str
        What was shown: ``"picture"``, ``"clip"`` or ``"stimulus"``.
    repeats : int
        Over how many presentations a test response was averaged.
    virtual : bool
        Whether the people are simulated: the headline must not hide it.
    """
    people = _people(scorecard)
    keys = _keys(scorecard)
    directions = [name for name in DIRECTIONS if any(key.direction == name for key in keys)]
    leading = {name: next(key for key in keys if key.direction == name) for name in directions}
    tones = _tones(scorecard)
    hero = [_chart(scorecard, leading[name], person, noun, tones) for name in directions for person in people]
    charts = [
        _chart(scorecard, key, person, noun, tones) for key in keys if key not in leading.values() for person in people
    ]
    main = leading[directions[0]] if directions else None
    return Story(
        headline=_headline(scorecard, main, noun, repeats, people, "virtual person" if virtual else "person"),
        standfirst=_standfirst(scorecard, main, people),
        people=tuple(people),
        directions=tuple((name, DIRECTIONS[name].format(noun=noun)) for name in directions),
        hero=tuple(chart for chart in hero if chart),
        charts=tuple(chart for chart in charts if chart),
        rows=tuple(_rows(scorecard, people, tones)),
    )


def points(fraction: float) -> str:
    """A fraction as a spoken percentage: whole from 10 on, else one digit.

    Examples
    --------
    >>> points(0.412), points(0.0033)
    ('41\\xa0%', '0.3\\xa0%')
    """
    value = 100 * fraction
    return f"{value:.{0 if abs(value) >= 9.95 else 1}f}{_NBSP}%"


def _people(scorecard: Scorecard) -> list[str]:
    """Views of the page: everybody first, unless there is only one person."""
    found = list(dict.fromkeys(score.subject for score in scorecard.scores))
    alone = [name for name in found if name != ALL]
    return alone if len(alone) == 1 else [name for name in (ALL, *alone) if name in found]


def _keys(scorecard: Scorecard) -> list[Key]:
    """Kinds of score of the method, the most telling one first in each direction."""
    own = [score for score in scorecard.scores if score.method == scorecard.method]
    found = {Key.of(score): (score.pool["draws"] > 1, score.similarity != "cosine") for score in own}

    def order(key: Key) -> tuple[Any, ...]:
        metric = _METRICS.index(key.metric) if key.metric in _METRICS else len(_METRICS)
        return (key.transductive, metric if metric < 2 else 2, *found[key], metric)

    return sorted(found, key=order)


def _tones(scorecard: Scorecard) -> dict[str, int]:
    """Colour number of each method: 0 is the decoder, rivals keep theirs from report to report."""
    tones, free = {scorecard.method: 0}, [4, 5]
    for score in scorecard.scores:
        if score.method not in tones:
            known = _TONES.get(_base(score.method))
            tones[score.method] = known if known is not None else free[0]
            free = free if known is not None else [*free[1:], free[0]]
    return tones


def _scores(scorecard: Scorecard, key: Key, person: str) -> list[Score]:
    """Scores of all methods of one kind, the decoder first, then from good to bad."""
    found = [score for score in scorecard.scores if Key.of(score) == key and score.subject == person]
    sign = 1 if key.metric == "median-rank" else -1
    return sorted(found, key=lambda score: (score.method != scorecard.method, sign * score.value))


def _chart(scorecard: Scorecard, key: Key, person: str, noun: str, tones: dict[str, int]) -> Chart | None:
    scores = _scores(scorecard, key, person)
    if not scores:
        return None
    bars = []
    for score in scores:
        dots: tuple[Dot, ...] = ()
        if person == ALL:
            same = scorecard.find(method=score.method, task=key.task, direction=key.direction, metric=key.metric)
            dots = tuple(Dot(one.subject, one.value) for one in same if one.subject != ALL)
        low, high = score.interval or (None, None)
        bars.append(Bar(score.method, tones[score.method], score.value, low, high, dots))
    chance = scores[0].chance
    return Chart(
        title=_title(key, noun),
        metric=key.metric,
        person=person,
        direction=key.direction,
        bars=tuple(bars),
        chance=chance,
        top=axis_end(bars, chance, key.percent),
        percent=key.percent,
        lower_is_better=key.metric == "median-rank",
        note=f"{scores[0].similarity.capitalize()} similarity, {_pool(scores[0])}.",
    )


def _title(key: Key, noun: str) -> str:
    right = f"right {noun}" if key.direction == "brain_to_image" else "right response"
    wrong = noun if key.direction == "brain_to_image" else "response"
    titles = {
        "top-1": f"The {right} is found first",
        "top-5": f"The {right} is among the first five",
        "two-way": f"The {right} beats a wrong {wrong}",
        "median-rank": f"Median rank of the {right}",
        "accuracy": "The right class is named",
    }
    return titles.get(key.metric, key.metric)


def _pool(score: Score) -> str:
    """What a query was compared with, in words."""
    pool = score.pool
    size = f"{pool['size']}" if pool["size"] == pool["smallest"] else f"{pool['smallest']} to {pool['size']}"
    draws = f" × {pool['draws']} draws" if pool["draws"] > 1 else ""
    words = f"{size} {'classes' if score.metric == 'accuracy' else 'candidates'}{draws}"
    return f"{words}; transductive, uses all test responses at once" if score.transductive else words


def axis_end(bars: Sequence[Bar], chance: float, percent: bool = True) -> float:
    """Value at the right end of an axis on which bars, intervals, dots and chance have room."""
    values = [chance, *(bar.value for bar in bars), *(bar.high for bar in bars if bar.high is not None)]
    values += [dot.value for bar in bars for dot in bar.dots]
    largest = max(value for value in values if math.isfinite(value))
    if percent:
        return next((top for top in _TOPS if top >= 1.02 * largest), 1.0)
    return float(math.ceil(1.05 * largest))


def _headline(scorecard: Scorecard, key: Key | None, noun: str, repeats: int, people: Sequence[str], who: str) -> str:
    if key is None:
        return f"{scorecard.method} was given no score."
    score = _scores(scorecard, key, people[0])[0]
    whose = f"From one {who}’s single response"
    if repeats > 1:
        whose = f"From one {who}’s response, averaged over {repeats} repeats"
    size = score.pool["size"]
    pool = str(size) if size == score.pool["smallest"] else f"{score.pool['smallest']} to {size}"
    many = "stimuli" if noun == "stimulus" else f"{noun}s"
    if key.metric == "median-rank":
        words = f"the right one of {pool} {many} stands at rank {number(score.value)}"
        against = f"chance {number(score.chance)}"
    else:
        found = {
            "top-1": f"the right one of {pool} {many} is found first",
            "top-5": f"the right one of {pool} {many} is among the first five",
            "two-way": f"the right one of two {many} is told",
            "accuracy": f"the right one of {pool} classes is named",
        }.get(key.metric, key.metric)
        words, against = f"{found} in {points(score.value)} of cases", f"chance {points(score.chance)}"
    doubt = "" if _above_chance(score) else ": not distinguishable from chance"
    return f"{whose}, {words} ({against}){doubt}."


def _above_chance(score: Score) -> bool:
    """Whether null or, without one, interval tells the score from chance."""
    if score.null is not None:
        return score.null["p"] <= 0.05
    if score.interval is None:
        return True
    return score.interval[1] < score.chance if score.metric == "median-rank" else score.interval[0] > score.chance


def _standfirst(scorecard: Scorecard, key: Key | None, people: Sequence[str]) -> str:
    if key is None:
        return ""
    own, *others = _scores(scorecard, key, people[0])
    # a decoder evaluated beside itself as a rival says nothing about either
    rivals = [score for score in others if _base(score.method) != own.method]
    say = points if key.percent else number
    words = f"This is {scorecard.method}, " + _spread(own, people, say)
    if not rivals:
        return f"{words} No rival was scored beside it."
    best = rivals[0]
    paired = _paired(scorecard, key, people[0], best.method)
    level = best.value == own.value if paired is None else paired["interval"][0] <= 0 <= paired["interval"][1]
    beaten = (best.value < own.value) == (key.metric == "median-rank")
    if level:
        words += f" The strongest rival, {best.method}, is level with it: {say(best.value)}"
    elif beaten:
        words += f" The rival {best.method} does better: {say(best.value)}"
    else:
        words += f" The strongest rival, {best.method}, reaches {say(best.value)}"
    return f"{words}{_difference(paired, key)}."


def _base(method: str) -> str:
    """Name of a method without the mark that tells a rival from the evaluated decoder."""
    return method.removesuffix(" (rival)")


def _spread(score: Score, people: Sequence[str], say: Any) -> str:
    count = len(people) - 1 if people[0] == ALL else 1
    over = f"mean over {count} people" if count > 1 else f"of {people[-1]}"
    if score.interval is None:
        return f"{over}."
    return f"{over}; 95{_NBSP}% interval {say(score.interval[0])} to {say(score.interval[1])}."


def _paired(scorecard: Scorecard, key: Key, person: str, rival: str) -> dict[str, Any] | None:
    """The paired difference to a rival, where it was measured with an interval."""
    wanted = {"rival": rival, "subject": person, "metric": key.metric, "direction": key.direction, "task": key.task}
    for found in scorecard.comparisons:
        if all(found.get(name) == value for name, value in wanted.items()) and found.get("interval"):
            return found
    return None


def _difference(paired: dict[str, Any] | None, key: Key) -> str:
    if paired is None:
        return ""
    scale, unit = (100, f"{_NBSP}points") if key.percent else (1, "")
    value, low, high = (
        f"{scale * part:+.1f}".replace("-", "−") for part in (paired["difference"], *paired["interval"])
    )
    return f" (difference {value}{unit}, interval {low} to {high})"


def _rows(scorecard: Scorecard, people: Sequence[str], tones: dict[str, int]) -> Iterable[Row]:
    order = {key: place for place, key in enumerate(_keys(scorecard))}
    place_of = {name: place for place, name in enumerate(people)}
    kept = [score for score in scorecard.scores if score.subject in place_of]
    kept.sort(
        key=lambda s: (place_of[s.subject], order.get(Key.of(s), len(order)), s.method != scorecard.method, s.method)
    )
    for score in kept:
        low, high = score.interval or (None, None)
        yield Row(
            method=score.method,
            tone=tones[score.method],
            person=score.subject,
            direction=score.direction,
            metric=score.metric,
            protocol=f"{score.task}: {_pool(score)}",
            value=score.value,
            chance=score.chance,
            low=low,
            high=high,
            p=None if score.null is None else score.null["p"],
            n=score.n,
            percent=Key.of(score).percent,
        )
