"""Two ways from brain to text side by side, paired query by query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phosphene.errors import InputError
from phosphene.evaluation.assemble import unit_sums
from phosphene.evaluation.statistics import (
    Resampler,
    bootstrap_people,
    percentile_interval,
    sign_flip_p,
    weighted_summary,
)
from phosphene.evaluation.text_retrieval import DIRECTIONS, TextCard, TextQueries, rules_for

__all__ = ["TextComparison", "compare_text"]

_MUST_AGREE = {"role": "the role", "split": "the split", "texts": "the text encoder", "text_identity": "its identity"}


@dataclass(frozen=True)
class TextComparison:
    """Differences between two methods, on the same queries.

    Attributes
    ----------
    first, second : str
        Names of the methods.
    subjects : list of str
        People both were scored on; means are over them.
    rows : list of dict
        ``metric, direction, first, second`` (values), ``difference`` (first minus second), ``interval`` (95 %, None
        without resamples) and ``p`` (two-sided, None for medians).
    """

    first: str
    second: str
    subjects: list[str]
    rows: list[dict[str, Any]]

    def row(self, metric: str, direction: str) -> dict[str, Any]:
        """The row of a metric and direction; an unknown one is an error that lists the known."""
        for row in self.rows:
            if (row["metric"], row["direction"]) == (metric, direction):
                return row
        known = ", ".join(f"{row['metric']} {row['direction']}" for row in self.rows)
        raise InputError(f"no comparison of {metric} {direction}; there are: {known}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))

    def table(self) -> str:
        """One line a metric and direction."""
        lines = [f"{self.first} minus {self.second}, paired on the same captions, {len(self.subjects)} people"]
        for row in self.rows:
            interval = "" if row["interval"] is None else f" [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]"
            p = "" if row["p"] is None else f"  p {row['p']:.4f}"
            lines.append(f"  {row['direction']:<14} {row['metric']:<12} {row['difference']:+.3f}{interval}{p}")
        return "\n".join(lines)


def compare_text(
    first: TextCard, second: TextCard, *, n_boot: int = 1000, n_perm: int = 1000, seed: int = 0
) -> TextComparison:
    """Pair two methods query by query.

    Parameters
    ----------
    first, second : TextCard
        Of the same role, split and text encoder.
    n_boot, n_perm, seed : int
        Resamples for the intervals and random signs for p, over captions (over units, where the study names one);
        people are fixed. 0 leaves either out.

    Raises
    ------
    InputError
        For methods of one name, another protocol, nobody in common, or other captions of a common person.

    Examples
    --------
    >>> from phosphene.evaluation.metrics import Counts
    >>> def card(name, greater):
    ...     counts, rows = Counts(np.array(greater), np.zeros(2, int), 2), np.arange(2)
    ...     return TextCard(name, [], {}, [TextQueries("sub-01", way, rows, rows, counts) for way in DIRECTIONS])
    >>> found = compare_text(card("pivot", [0, 0]), card("direct", [0, 1]), n_boot=0, n_perm=0)
    >>> found.row("top-1", "brain_to_text")["difference"]
    0.5
    """
    if first.method == second.method:
        raise InputError(f"both methods are called {first.method!r}: give one of them another name")
    for key, words in _MUST_AGREE.items():
        if first.facts.get(key) != second.facts.get(key):
            raise InputError(
                f"{first.method} and {second.method} were not scored under the same protocol; they differ in {words}: "
                f"{first.facts.get(key)!r} and {second.facts.get(key)!r}"
            )
    ours, theirs = ({(q.subject, q.direction): q for q in card.queries} for card in (first, second))
    people = [subject for subject, direction in ours if direction == DIRECTIONS[0] and (subject, direction) in theirs]
    if not people:
        raise InputError(f"{first.method} and {second.method} have no person in common")
    for subject in people:
        if any(not np.array_equal(ours[subject, way].names, theirs[subject, way].names) for way in DIRECTIONS):
            raise InputError(f"{first.method} and {second.method} were scored on different captions of {subject}")
    rows = []
    for way in DIRECTIONS:
        pairs = [(ours[subject, way], theirs[subject, way]) for subject in people]
        rows += _rows(way, pairs, n_boot, n_perm, seed)
    return TextComparison(first.method, second.method, people, rows)


def _rows(
    direction: str, pairs: Sequence[tuple[TextQueries, TextQueries]], n_boot: int, n_perm: int, seed: int
) -> list[dict[str, Any]]:
    units = [one.units for one, _ in pairs]
    resampler = Resampler({direction: np.concatenate(units)}, n_boot, seed)
    weights = [resampler.weights(direction, each) for each in units]
    rows = []
    for name, rule in rules_for([one for one, _ in pairs]).items():
        values = [(rule.values(one.counts), rule.values(two.counts)) for one, two in pairs]
        summary = np.median if rule.summary == "median" else np.mean
        both = [float(np.mean([summary(pair[side]) for pair in values])) for side in (0, 1)]
        row: dict[str, Any] = {"metric": name, "direction": direction, "first": both[0], "second": both[1]}
        row |= {"difference": both[0] - both[1], "interval": None, "p": None}
        if n_boot:
            boots = [
                weighted_summary(a, w, rule.summary) - weighted_summary(b, w, rule.summary)
                for (a, b), w in zip(values, weights, strict=True)
            ]
            row["interval"] = percentile_interval(bootstrap_people(np.stack(boots)))
        if n_perm and rule.summary == "mean":
            row["p"] = sign_flip_p(unit_sums([a - b for a, b in values], units), n_perm, seed)
        rows.append(row)
    return rows
