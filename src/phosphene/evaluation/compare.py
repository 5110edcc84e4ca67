"""Scorecards side by side: paired where the protocol is the same, refused where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.errors import InputError
from phosphene.evaluation.assemble import unit_sums
from phosphene.evaluation.metrics import DIRECTIONS, Counts, metric
from phosphene.evaluation.scorecard import FORMAT, Scorecard, plain
from phosphene.evaluation.statistics import (
    Resampler,
    bootstrap_people,
    percentile_interval,
    sign_flip_p,
    weighted_summary,
)
from phosphene.files import write_json

__all__ = ["Comparison", "compare"]

_METRICS = ("top-1", "top-5", "median-rank", "two-way")
# what must agree for two numbers to mean the same
_MUST_AGREE = {
    "study": lambda facts: facts["study"]["digest"],
    "splits": lambda facts: facts["splits"],
    "role": lambda facts: facts["role"],
    "target encoder": lambda facts: facts["target"]["identity"],
    "kind of target": lambda facts: facts["target"]["kind"],
    "repeats averaged": lambda facts: facts["repeats"],
    "unit": lambda facts: facts["unit"],
}


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes
    ----------
    names : list of str
        One a run; the first is the reference.
    subjects : list of str
        People all runs scored; means are over them alone.
    protocol : dict
        What the runs agree on.
    rows : list of dict
        ``run, metric, direction, value`` and, but for the reference, ``difference`` to it (run minus reference),
        ``interval`` and ``p``; cosine, full gallery of each split, and accuracy where all runs classified.
    """

    names: list[str]
    subjects: list[str]
    protocol: dict[str, Any]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "format": FORMAT.replace("scorecard", "comparison"),
            "runs": self.names,
            "reference": self.names[0],
            "subjects": self.subjects,
            "protocol": plain(self.protocol),
            "rows": plain(self.rows),
        }

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        write_json(path, self.to_dict())
        return Path(path)

    def table(self) -> str:
        """Aligned text, one line a run and score."""
        lines = [["score", "direction", "run", "value", f"minus {self.names[0]}", "95 % interval", "p"]]
        for row in self.rows:
            digits = 1 if row["metric"] == "median-rank" else 3
            paired = ["", "", ""]
            if row["difference"] is not None:
                low, high = row["interval"]
                p = "" if row["p"] is None else f"{row['p']:.4f}"
                paired = [f"{row['difference']:+.{digits}f}", f"{low:+.{digits}f} to {high:+.{digits}f}", p]
            lines.append([row["metric"], row["direction"], row["run"], f"{row['value']:.{digits}f}", *paired])
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def compare(
    runs: Mapping[str, Scorecard | str | Path] | Sequence[Scorecard | str | Path],
    *,
    n_boot: int = 1000,
    n_perm: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Put runs side by side and pair them stimulus by stimulus with the first one.

    Parameters
    ----------
    runs : mapping of name to scorecard or file, or sequence
        At least two. Names of a sequence: the methods, numbered where they repeat.
    n_boot, n_perm, seed : int
        Of the paired bootstrap over units and people, and of the sign-flip test over units.

    Raises
    ------
    InputError
        When the runs differ in study, splits, role, targets, repeats averaged or unit, or in the stimuli a common
        person was scored on: numbers of different protocols do not belong side by side.
    """
    cards = _named(runs)
    if len(cards) < 2:
        raise InputError(f"compare needs at least 2 scorecards, found {len(cards)}")
    reference, *others = cards
    for name in others:
        _check_same(reference, cards[reference], name, cards[name])
    subjects = [
        s for s in cards[reference].protocol["subjects"] if all(s in c.protocol["subjects"] for c in cards.values())
    ]
    if not subjects:
        raise InputError("the runs have no person in common")
    records = {name: _records(name, card, subjects) for name, card in cards.items()}
    for name in others:
        for subject in subjects:
            if not _same_stimuli(records[reference][subject], records[name][subject]):
                raise InputError(f"{reference} and {name} were scored on different stimuli of {subject}")
    rows = _rows(records, subjects, n_boot, n_perm, seed)
    shared = {key: pick(cards[reference].protocol) for key, pick in _MUST_AGREE.items()}
    return Comparison(list(cards), subjects, shared, rows)


def _named(runs: Mapping[str, Scorecard | str | Path] | Sequence[Scorecard | str | Path]) -> dict[str, Scorecard]:
    if isinstance(runs, Mapping):
        return {name: _opened(run) for name, run in runs.items()}
    named: dict[str, Scorecard] = {}
    for run in runs:
        card = _opened(run)
        name, number = card.method, 2
        while name in named:
            name, number = f"{card.method} ({number})", number + 1
        named[name] = card
    return named


def _opened(run: Scorecard | str | Path) -> Scorecard:
    return run if isinstance(run, Scorecard) else Scorecard.load(run)


def _check_same(first: str, ours: Scorecard, second: str, theirs: Scorecard) -> None:
    try:
        differing = [
            f"{what} ({pick(ours.protocol)} and {pick(theirs.protocol)})"
            for what, pick in _MUST_AGREE.items()
            if pick(ours.protocol) != pick(theirs.protocol)
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"a scorecard lacks the protocol fact {error}") from error
    if differing:
        raise InputError(
            f"{first} and {second} were not scored under the same protocol; they differ in " + "; ".join(differing)
        )


def _records(name: str, card: Scorecard, subjects: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {r["subject"]: r for r in card.stimuli if r["method"] == card.method and r["subject"] in subjects}
    if missing := [subject for subject in subjects if subject not in found]:
        raise InputError(f"the scorecard of {name} keeps no ranks of {missing[0]}, so it cannot be paired")
    return {subject: _sorted(found[subject]) for subject in subjects}


def _sorted(record: dict[str, Any]) -> dict[str, Any]:
    order = np.lexsort((record["ids"], record["split"]))
    pick = {key: np.asarray(record[key])[order] for key in ("ids", "split", "unit", "candidates")}
    return {
        **pick,
        "rank": {d: np.asarray(record["rank"][d], dtype=float)[order] for d in DIRECTIONS},
        "ties": {d: np.asarray(record["ties"][d], dtype=float)[order] for d in DIRECTIONS},
        "accuracy": {task: np.asarray(values)[order] for task, values in record.get("accuracy", {}).items()},
    }


def _same_stimuli(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return all(np.array_equal(ours[key], theirs[key]) for key in ("ids", "split", "candidates"))


def _values(record: dict[str, Any], direction: str, name: str) -> np.ndarray:
    """Per query, recomputed from rank and ties; accuracy as it was stored, its task standing for the direction."""
    if name == "accuracy":
        values: np.ndarray = record["accuracy"][direction]
        return values
    ties = record["ties"][direction]
    greater = record["rank"][direction] - 1 - ties / 2
    values = np.empty(len(ties))
    for size in np.unique(record["candidates"]):
        here = record["candidates"] == size
        values[here] = metric(name).values(Counts(greater[here], ties[here], int(size)))
    return values


def _rows(
    records: dict[str, dict[str, dict[str, Any]]], subjects: Sequence[str], n_boot: int, n_perm: int, seed: int
) -> list[dict[str, Any]]:
    reference, *others = records
    weights = _weights(records[reference], subjects, n_boot, seed)
    units = [records[reference][s]["unit"] for s in subjects]
    everyone = [records[run][subject] for run in records for subject in subjects]
    tasks = sorted(set.intersection(*(set(record["accuracy"]) for record in everyone)))
    kinds = [(name, direction) for name in _METRICS for direction in DIRECTIONS]
    rows: list[dict[str, Any]] = []
    for name, direction in kinds + [("accuracy", task) for task in tasks]:
        chosen = metric(name)
        values = {run: [_values(records[run][s], direction, name) for s in subjects] for run in records}
        summary = np.median if chosen.summary == "median" else np.mean
        base: dict[str, Any] = {"metric": name, "direction": direction}
        for run in records:
            value = float(np.mean([summary(v) for v in values[run]]))
            row = {**base, "run": run, "value": value, "difference": None, "interval": None, "p": None}
            if run in others:
                row["difference"] = value - float(np.mean([summary(v) for v in values[reference]]))
                boots = [
                    weighted_summary(a, w, chosen.summary) - weighted_summary(b, w, chosen.summary)
                    for a, b, w in zip(values[run], values[reference], weights[0], strict=True)
                ]
                people = weights[1] if len(subjects) > 1 else None
                row["interval"] = percentile_interval(bootstrap_people(np.stack(boots), people))
                if chosen.summary == "mean":
                    differences = [a - b for a, b in zip(values[run], values[reference], strict=True)]
                    row["p"] = sign_flip_p(unit_sums(differences, units), n_perm, seed)
            rows.append(row)
    return rows


def _weights(
    records: dict[str, dict[str, Any]], subjects: Sequence[str], n_boot: int, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Weights of each person's queries, and of people, in every resample."""
    splits = np.unique(np.concatenate([records[s]["split"] for s in subjects]))
    resampler = Resampler(
        {
            str(split): np.concatenate([records[s]["unit"][records[s]["split"] == split] for s in subjects])
            for split in splits
        },
        n_boot,
        seed,
    )
    weights = []
    for subject in subjects:
        record = records[subject]
        drawn = np.zeros((n_boot, len(record["ids"])))
        for split in splits:
            here = record["split"] == split
            if here.any():
                drawn[:, here] = resampler.weights(str(split), record["unit"][here])
        weights.append(drawn)
    return weights, resampler.people(len(subjects))
