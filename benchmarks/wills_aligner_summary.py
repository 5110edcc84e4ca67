"""Tables of `wills_aligner.py`: means, values of every seed, and paired differences with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from phosphene.evaluation.multi_subject import SINGLE, STAGE1, WILLS

__all__ = ["DIRECTIONS", "METRICS", "markdown", "summarise"]

DIRECTIONS = ("brain_to_image", "image_to_brain")
_PRECISION = "mAP"
METRICS = (*(f"{name} {way}" for name in ("top-1", "two-way") for way in DIRECTIONS), _PRECISION)
PAIRED = {name: tuple(one for one in METRICS if one.startswith(name)) for name in ("top-1", "two-way", _PRECISION)}
RESAMPLES = 4000
Row = dict[str, Any]


def summarise(lines: Iterable[Mapping[str, Any]], conditions: Sequence[str], order: Sequence[str]) -> list[Row]:
    """One row for every condition and model.

    A difference is that of means over people who saw the same stimuli, model minus reference. Its 95 % interval is a
    paired bootstrap: seeds (people, scenes and fits at once) are drawn again, and within each its test stimuli, the
    same ones for all models and people.

    Parameters
    ----------
    lines : iterable of mapping
        Records: ``seed``, ``condition``, ``arm``, ``seconds`` and, by model, ``people`` (scores of each), ``draws``
        (by metric, of means over people), ``facts``.
    conditions : sequence of str
        In this order.
    order : sequence of str
        Of arms.

    Returns
    -------
    list of dict
        ``condition``, ``model``, ``seeds``, by metric ``mean``, ``by_seed``, ``people`` (of each seed), and
        ``differences`` by reference and metric (``top-1`` and ``two-way`` alone: both directions).
    """
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: order.index(line["arm"])):
        share = round(line["seconds"] / len(line["models"]), 1)
        for name, told in line["models"].items():
            found.setdefault((line["condition"], name), {})[line["seed"]] = {**told, "seconds": share}
    rows = [_row(condition, name, seeds, found) for (condition, name), seeds in found.items()]
    return sorted(rows, key=lambda row: conditions.index(row["condition"]))


def _row(
    condition: str,
    name: str,
    seeds: Mapping[int, Mapping[str, Any]],
    found: Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]],
) -> Row:
    row: Row = {"condition": condition, "model": name, "seeds": sorted(seeds)}
    told = [seeds[seed] for seed in row["seeds"]]
    for metric in METRICS:
        people = [[scores[metric] for scores in one["people"].values()] for one in told]
        if people[0][0] is not None:
            means = [float(np.mean(each)) for each in people]
            row[metric] = {"mean": _r(np.mean(means)), "by_seed": _r(means), "people": [_r(each) for each in people]}
    for key in told[-1]["facts"]:
        row[key] = [one["facts"].get(key) for one in told]
    row["cpu_seconds"] = round(float(np.mean([one["seconds"] for one in told])), 1)
    references = [SINGLE, WILLS, *([STAGE1] if name.startswith(WILLS) else [])]
    row["differences"] = {
        reference: _differences(seeds, found[condition, reference])
        for reference in references
        if name != reference and (condition, reference) in found
    }
    return row


def _differences(ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Of metrics that both have, on the seeds that both have."""
    shared, table = sorted(set(ours) & set(theirs)), {}
    for name, metrics in [*((metric, (metric,)) for metric in METRICS), *PAIRED.items()]:
        if shared and all(metrics[0] in side[shared[0]]["draws"] for side in (ours, theirs)):
            table[name] = _difference([ours[seed] for seed in shared], [theirs[seed] for seed in shared], metrics)
    return table


def _difference(ours: Sequence[Any], theirs: Sequence[Any], metrics: Sequence[str]) -> dict[str, Any]:
    values = [
        float(np.mean([_mean(a, metric) - _mean(b, metric) for metric in metrics]))
        for a, b in zip(ours, theirs, strict=True)
    ]
    draws = np.array(
        [
            np.mean([np.subtract(a["draws"][metric], b["draws"][metric]) for metric in metrics], axis=0)
            for a, b in zip(ours, theirs, strict=True)
        ]
    )
    if metrics == (_PRECISION,):  # of a resample it is too high: see `phosphene.evaluation.multilabel`
        draws += (np.array(values) - draws.mean(axis=1))[:, None]
    random = np.random.default_rng(0)
    picked = random.integers(len(draws), size=(RESAMPLES, len(draws)))
    resampled = draws[picked, random.integers(draws.shape[1], size=picked.shape)].mean(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"mean": _r(np.mean(values)), "low": _r(low), "high": _r(high), "by_seed": _r(values)}


def _r(values: Any) -> Any:
    return np.round(values, 5).tolist()


def _mean(told: Mapping[str, Any], metric: str) -> float:
    return float(np.mean([scores[metric] for scores in told["people"].values()]))


def markdown(rows: Sequence[Row]) -> str:
    """The table of each condition; cells are means over seeds with the lowest and highest seed."""
    lines = []
    for condition in dict.fromkeys(row["condition"] for row in rows):
        here = [row for row in rows if row["condition"] == condition]
        lines += [f"### {condition[0].upper()}{condition[1:]} ({_count(here)})", "", *_table(here), ""]
        for reference in (WILLS, STAGE1):
            if compared := [row for row in here if reference in row["differences"]]:
                lines += [f"Minus *{reference}*:", "", *_against(reference, compared), ""]
    return "\n".join(lines)


def _count(rows: Sequence[Row]) -> str:
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    return f"seeds {', '.join(map(str, seeds))}"


def _table(rows: Sequence[Row]) -> list[str]:
    ways = [metric.replace("_", " ") for metric in METRICS]
    most = max(len(row["seeds"]) for row in rows)
    heads = ["model", *ways, *(f"{name} minus single" for name in PAIRED)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        name = row["model"] + (f" (seeds {', '.join(map(str, row['seeds']))})" if len(row["seeds"]) < most else "")
        told = row["differences"].get(SINGLE, {})
        cells = [_spread(row.get(metric)) for metric in METRICS] + [_interval(told.get(pair)) for pair in PAIRED]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def _against(reference: str, rows: Sequence[Row]) -> list[str]:
    lines = ["| model | " + " | ".join(PAIRED) + " |", "|---|---|---|---|"]
    for row in rows:
        told = row["differences"][reference]
        lines.append(f"| {row['model']} | " + " | ".join(_interval(told.get(pair)) for pair in PAIRED) + " |")
    return lines


def _spread(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "no class head"
    return f"{found['mean']:.3f} ({min(found['by_seed']):.3f} to {max(found['by_seed']):.3f})"


def _interval(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
