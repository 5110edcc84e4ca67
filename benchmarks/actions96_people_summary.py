"""Tables of `actions96_people.py`: means over people, intervals over actions and people, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["METRICS", "show", "summarise"]

DIRECTIONS = ("brain to video", "video to brain")
METRICS = tuple(f"{name}, {direction}" for direction in DIRECTIONS for name in ("two-way", "top-1", "top-5"))
N_BOOT = 2000
WILLS, TUNER = "wills-aligner, add_subject", "mindtuner, adapt, both"
BORROWING = f"{TUNER}, borrowing"


def pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Which methods are compared."""
    of_nine = "wills-aligner, stages 1 + 2"
    found = [(of_nine, other) for other in ("ridge, pooled", "ridge, one person", "wills-aligner, stage 1")]
    mixed = f"permuted: srm, {of_nine}"
    found += [(mixed, f"permuted: {other}") for other in ("ridge, naively pooled", "ridge, one person")]
    found.append((mixed, "permuted: srm, ridge, pooled"))
    for size in sorted({name.split(":")[0] for name in methods if name[0].isdigit()}, key=int):
        ridges = [name for name in methods if name.startswith(f"{size}: ridge")]
        for ours in (f"{size}: {name}" for name in (WILLS, TUNER, BORROWING)):
            found += [(ours, other) for other in ("zero-shot: ridge of eight", *ridges)]
        found.append((f"{size}: {BORROWING}", f"{size}: {TUNER}"))
        srm = f"{size}: permuted: srm, {WILLS}"
        found += [(srm, f"{size}: {name}") for name in ("permuted: ridge, naively pooled", "ridge from scratch")]
        found.append((srm, f"{size}: permuted: srm, ridge, pooled with the new person"))
    return [(a, b) for a, b in found if a in methods and b in methods]


def summarise(records: Mapping[str, Mapping[str, Any]], units: Mapping[str, str]) -> dict[str, Any]:
    """Values of all methods, their intervals and paired differences.

    Parameters
    ----------
    records : mapping of key to record
        Keys are ``partition/fold/question/subject``.
    units : mapping of stimulus id to action
    """
    ids, partitions = sorted(units), list(dict.fromkeys(key.split("/")[0] for key in records))
    people = sorted({s for line in records.values() for scores in line["scores"].values() for s in scores})
    place = {name: at for at, name in enumerate(ids)}
    shape = (len(METRICS), len(partitions), len(people), len(ids))
    values: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {}
    for key, line in records.items():
        at = [place[name] for name in line["ids"]]
        for method, scores in line["scores"].items():
            table = values.setdefault(method, np.full(shape, np.nan))
            for subject, found in scores.items():
                for row, metric in enumerate(METRICS):
                    table[row, partitions.index(key.split("/")[0]), people.index(subject), at] = found[metric]
        for method, spent in line["seconds"].items():
            seconds.setdefault(method, []).append(spent)
    sizes = np.array([len(line["ids"]) for line in records.values() for _ in line["ids"]])
    chances = {"two-way": 0.5, "top-1": float((1 / sizes).mean()), "top-5": float((5 / sizes).mean())}
    draws = _draws([units[name] for name in ids], len(people))
    rows = {method: _row(table, partitions, draws) for method, table in values.items()}
    for method, row in rows.items():
        if method in seconds:
            row["cpu_seconds"] = round(float(np.mean(seconds[method])), 2)
    differences = [{"of": a, "to": b, **_row(values[a] - values[b], partitions, draws)} for a, b in pairs(list(values))]
    return {
        "partitions": partitions,
        "folds": _folds(records),
        "people": len(people),
        "chance": chances,
        "methods": rows,
        "differences": differences,
    }


def _folds(records: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many folds of each partition were scored, by question."""
    found: dict[str, dict[str, set[str]]] = {}
    for key in records:
        partition, fold, question, _ = key.split("/")
        found.setdefault(question, {}).setdefault(partition, set()).add(fold)
    return {question: {name: len(folds) for name, folds in by.items()} for question, by in found.items()}


def _draws(actions: Sequence[str], n_people: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each stimulus and each person counts in every resample; whole actions, the same for all methods."""
    names, codes = np.unique(actions, return_inverse=True)
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=N_BOOT)
    return drawn[:, codes], random.multinomial(n_people, np.full(n_people, 1 / n_people), size=N_BOOT)


def _row(table: np.ndarray, partitions: Sequence[str], draws: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """By metric: the mean over people, an interval, and the values of partitions and people."""
    row: dict[str, Any] = {}
    for metric, values in zip(METRICS, table, strict=True):
        by_partition = {
            name: float(np.nanmean(part)) for name, part in zip(partitions, values, strict=True) if _any(part)
        }
        mean = _mean(values, axis=0)  # (people, stimuli)
        there = ~np.isnan(mean)
        sums, counts = draws[0] @ np.where(there, mean, 0).T, draws[0] @ there.T
        of_people = np.divide(sums, counts, out=np.zeros_like(sums, dtype=float), where=counts > 0)
        weights = draws[1] * (counts > 0)
        resampled = (weights * of_people).sum(axis=1) / weights.sum(axis=1).clip(1)
        people = _mean(mean, axis=1)
        row[metric] = {
            "value": float(np.nanmean(people)),
            "interval": np.quantile(resampled, [0.025, 0.975]).tolist(),
            "by_partition": by_partition,
            "people": [float(np.nanmin(people)), float(np.nanmax(people))],
        }
    return row


def _any(values: np.ndarray) -> bool:
    return bool((~np.isnan(values)).any())


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0).sum(axis=axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def show(summary: Mapping[str, Any]) -> str:
    """Both tables as text."""
    chance = summary["chance"]
    lines = [f"folds {summary['folds']}; chance " + ", ".join(f"{n} {v:.3f}" for n, v in chance.items())]
    heads = "  ".join(f"{metric.split(',')[0]} {'b>v' if 'brain to' in metric else 'v>b'}" for metric in METRICS)
    lines.append(f"{'':62} {heads}  interval of two-way b>v")
    for title, row in summary["methods"].items():
        lines.append(f"{title:62} {_cells(row, '.3f')}")
    for one in summary["differences"]:
        lines.append(f"{one['of']} - {one['to']:40} {_cells(one, '+.3f')}")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], form: str) -> str:
    first = row[METRICS[0]]
    low, high = first["interval"]
    values = "       ".join(f"{row[metric]['value']:{form}}" for metric in METRICS)
    spread = " ".join(f"{value:{form}}" for value in first["by_partition"].values())
    return f"{values}  [{low:{form}}, {high:{form}}] by partition {spread}"
