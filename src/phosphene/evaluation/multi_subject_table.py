"""The table of `multi_subject`: means over people, and what wills-aligner is ahead or behind, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.evaluation.metrics import DIRECTIONS
from phosphene.evaluation.multilabel import LabelCard
from phosphene.evaluation.scorecard import MEAN, Scorecard, aligned, plain
from phosphene.files import write_json, write_text

__all__ = ["Comparison"]

_PRECISION = "mAP"
_COLUMNS = (*((metric, way) for metric in ("top-1", "two-way") for way in DIRECTIONS), (_PRECISION, ""))
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Scores of every model of many people, on the same test stimuli.

    Attributes
    ----------
    reference : str
        The model that differences are told of: reference minus model.
    arms : dict of str to str
        What was trained, in words.
    cards : dict of int to Scorecard
        By seed; rivals are the other models. Values of every person are in them.
    labels : dict of int to LabelCard
        Of models with a head for classes; empty without classes.
    left_out : dict of str to str
        Arms that the study does not allow, and why.
    """

    reference: str
    arms: Mapping[str, str]
    cards: Mapping[int, Scorecard]
    labels: Mapping[int, LabelCard]
    left_out: Mapping[str, str]

    @property
    def models(self) -> list[str]:
        """In the order of the table; the reference first."""
        first = next(iter(self.cards.values()))
        return list(dict.fromkeys(score.method for score in first.scores))

    def rows(self) -> list[Row]:
        """One for every model and score.

        ``model, metric, direction, chance, values`` (of each seed, means over people) and, but for the reference,
        ``differences`` and ``intervals`` (95 %, of each seed; of mAP over stimuli, else over people too).
        """
        found = []
        for model in self.models:
            for metric, way in _COLUMNS:
                each = [self._one(seed, model, metric, way) for seed in self.cards]
                told = [one for one in each if one is not None]
                if told:
                    row: Row = {"model": model, "metric": metric, "direction": way, "chance": told[0]["chance"]}
                    row["values"] = [one["value"] for one in told]
                    if model != self.reference:
                        row["differences"] = [one["difference"] for one in told]
                        row["intervals"] = [one["interval"] for one in told]
                    found.append(row)
        return found

    def _one(self, seed: int, model: str, metric: str, way: str) -> Row | None:
        if metric == _PRECISION:
            return self._precision(seed, model)
        card = self.cards[seed]
        score = card.get(metric, way, method=model)
        row: Row = {"value": score.value, "chance": score.chance, "difference": None, "interval": None}
        wanted = {"rival": model, "subject": MEAN, "metric": metric, "direction": way, "task": score.task}
        for paired in card.comparisons:
            if all(paired[key] == value for key, value in wanted.items()):
                row |= {"difference": paired["difference"], "interval": paired["interval"]}
        return row

    def _precision(self, seed: int, model: str) -> Row | None:
        card = self.labels.get(seed)
        if card is None or model not in {score.method for score in card.scores}:
            return None
        score = card.get(_PRECISION, method=model)
        row: Row = {"value": score.value, "chance": score.chance, "difference": None, "interval": None}
        for paired in card.differences:
            if (paired.method, paired.metric) == (model, _PRECISION):
                held = not np.isnan(paired.low)
                row |= {"difference": paired.value, "interval": (paired.low, paired.high) if held else None}
        return row

    def table(self) -> str:
        """Values, and differences of the reference, as aligned text."""
        rows = self.rows()
        columns = [column for column in _COLUMNS if any((row["metric"], row["direction"]) == column for row in rows)]
        cells = {(row["model"], row["metric"], row["direction"]): row for row in rows}
        chance = {(row["metric"], row["direction"]): row["chance"] for row in rows}
        names = {column: " ".join(column).replace("_", " ").strip() for column in columns}
        scores = [{"model": "chance", **{names[column]: f"{chance[column]:.3f}" for column in columns}}]
        paired = []
        for model in self.models:
            here = {column: cells.get((model, *column)) for column in columns}
            scores.append({"model": model, **{names[column]: _value(row) for column, row in here.items()}})
            if model != self.reference:
                paired.append({"model": model, **{names[column]: _difference(row) for column, row in here.items()}})
        seeds = list(self.cards)
        facts = self.cards[seeds[0]].protocol
        head = (
            f"{facts['study']['name']}: {facts['role']} part of {', '.join(facts['splits'])}; means over "
            f"{len(facts['subjects'])} people; {facts['target']['name']} ({facts['target']['kind']})"
        )
        foot = [f"{name} left out: {reason}" for name, reason in self.left_out.items()]
        if len(seeds) == 1:
            foot.append("every arm was trained once: what another seed would give is not in the intervals (--seeds)")
        else:
            foot.append(
                f"{len(seeds)} seeds: mean (lowest to highest); how often the interval lies above or below zero"
            )
        below = [f"{self.reference} minus the others [95 % interval]:", *aligned(paired), ""] if paired else []
        return "\n".join([head, "", *aligned(scores), "", *below, *foot])

    def to_dict(self) -> Row:
        """What was compared, and all rows, as plain values."""
        facts = next(iter(self.cards.values())).protocol
        content: Row = {"format": "phosphene-multi-subject/1", "reference": self.reference, "arms": dict(self.arms)}
        content |= {"left_out": dict(self.left_out), "seeds": list(self.cards)}
        content |= {key: facts[key] for key in ("study", "splits", "role", "subjects", "target", "repeats", "unit")}
        found: Row = plain({**content, "rows": self.rows()})
        return found

    def save(self, folder: str | Path) -> Path:
        """Write ``multi_subject.json`` and the table, ``multi_subject.txt``."""
        folder = Path(folder)
        write_json(folder / "multi_subject.json", self.to_dict())
        write_text(folder / "multi_subject.txt", self.table() + "\n")
        return folder


def _value(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{np.mean(row['values']):.3f}" + _spread(row["values"], "{:.3f}")


def _spread(values: Sequence[float], form: str) -> str:
    return f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""


def _difference(row: Row | None) -> str:
    if row is None:
        return "-"
    mean, intervals = f"{np.mean(row['differences']):+.3f}", [one for one in row["intervals"] if one is not None]
    if len(row["differences"]) == 1:
        return mean + "".join(f" [{low:+.3f}, {high:+.3f}]" for low, high in intervals)
    above, below = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    return f"{mean} ({above} above, {below} below)"
