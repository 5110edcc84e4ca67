"""From the records of `merging_accuracy.py` to curves, paired differences with intervals, and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "CONTROL",
    "DEV",
    "OFF_THE_SHELF",
    "POOLED",
    "QUERY",
    "TASKS",
    "TRAINED",
    "difference",
    "markdown",
    "summarise",
]

OFF_THE_SHELF, TRAINED, DEV = "off the shelf", "trained with merging", "development"
CONTROL = "not merged in training"
POOLED, QUERY = "all together", "text to image, few"
TASKS = (f"{POOLED}, seen", f"{POOLED}, unseen", "image to text", "text to image")
ATTRIBUTES = ("shape", "colour", "material")
HIGH = 0.7  # rates from here on are summed up as high ones
WORSE = -0.01
Record = dict[str, Any]
BySeed = dict[int, Record]


def summarise(records: Sequence[Record], resamples: int = 2000) -> dict[str, Any]:
    """For every tower and way: accuracy with plain merging, and each guide's differences to it."""
    tests = [record for record in records if record["role"] != DEV]
    tables = []
    for tower, way in dict.fromkeys((record["tower"], record["way"]) for record in tests):
        mine = [record for record in tests if (record["tower"], record["way"]) == (tower, way)]
        tables.append({"tower": tower, "way": way, **_table(mine, resamples)})
    cells = [
        {"tower": table["tower"], "way": table["way"], "guide": row["guide"], "rate": rate, **cell}
        for table in tables
        for row in table["guides"]
        if row["guide"] != CONTROL
        for rate, cell in row["by_rate"].items()
    ]
    return {
        "tasks": list(TASKS),
        "tables": tables,
        "development": _development([record for record in records if record["role"] == DEV]),
        "verdicts": {
            "comparisons": len(cells),
            "worse_than_plain_by_a_point": [cell for cell in cells if cell["mean"] < WORSE],
            "wins": [cell for cell in cells if cell["low"] > 0],
            "losses": [cell for cell in cells if cell["high"] < 0],
        },
    }


def _table(records: Sequence[Record], resamples: int) -> dict[str, Any]:
    arms: dict[str, dict[float, BySeed]] = {}
    for record in records:
        arm = CONTROL if record["trained_guide"] == CONTROL else record["guide"]
        arms.setdefault(arm, {}).setdefault(record["rate"], {})[record["seed"]] = record
    plain = arms["none"]
    guides = []
    for name, by_rate in arms.items():
        if name == "none":
            continue
        merged = {rate: by_seed for rate, by_seed in by_rate.items() if rate and rate in plain}
        tasks = (QUERY,) if name == "query" else TASKS
        guides.append(
            {
                "guide": name,
                "strength": next(iter(next(iter(merged.values())).values()))["strength"],
                "by_rate": {rate: difference(_each(merged, plain, [rate], tasks), resamples) for rate in merged},
                "where": _where(merged, plain, tasks, resamples),
            }
        )
    return {"plain": [_curve(rate, by_seed) for rate, by_seed in sorted(plain.items())], "guides": guides}


def _curve(rate: float, by_seed: BySeed) -> Record:
    """Accuracy of plain merging at a rate: mean over seeds and its deviation."""
    records = list(by_seed.values())
    scores = {}
    for name in (*TASKS, QUERY, *ATTRIBUTES):
        tasks = [name] if name in records[0]["hits"] else [f"{name}, seen", f"{name}, unseen"]
        values = [float(np.mean([_array(record, task).mean() for task in tasks])) for record in records]
        scores[name] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }
    return {"rate": rate, "flops": records[0]["flops"], "models": len(records), "scores": scores}


def _array(record: Record, task: str) -> np.ndarray:
    return np.array([mark == "1" for mark in record["hits"][task]], dtype=float)


def _each(
    first: dict[float, BySeed], second: dict[float, BySeed], rates: Iterable[float], tasks: Iterable[str]
) -> list[np.ndarray]:
    """For each seed the paired differences of its pictures, mean over tasks and rates."""
    pairs, tasks = [(first[rate], second[rate]) for rate in rates], list(tasks)
    return [
        np.mean([_array(a[seed], task) - _array(b[seed], task) for a, b in pairs for task in tasks], axis=0)
        for seed in sorted(set.intersection(*({*a} & {*b} for a, b in pairs)))
    ]


def _where(
    merged: dict[float, BySeed], plain: dict[float, BySeed], tasks: Sequence[str], resamples: int
) -> dict[str, Record]:
    """Differences at high rates: together, by task, and for single objects by their size and their background."""
    rates = [rate for rate in merged if rate >= HIGH]
    if not rates:
        return {}
    found = {"all": difference(_each(merged, plain, rates, tasks), resamples)}
    if tasks == (QUERY,):
        return found
    for task in TASKS:
        found[task] = difference(_each(merged, plain, rates, [task]), resamples)
    for name in ATTRIBUTES:
        found[name] = difference(_each(merged, plain, rates, [f"{name}, seen", f"{name}, unseen"]), resamples)
    facts = [record["pictures"] for _, record in sorted(plain.get(0.0, {}).items())]
    parts = [_each(merged, plain, rates, [f"{POOLED}, {part}"]) for part in ("seen", "unseen")]
    both = [np.concatenate(values) for values in zip(*parts, strict=True)]
    if len(facts) != len(both):
        return found
    for column in ("object", "background"):
        words = [np.array(fact["seen"][column] + fact["unseen"][column]) for fact in facts]
        for word in sorted(set(np.concatenate(words).tolist())):
            chosen = [values[labels == word] for values, labels in zip(both, words, strict=True)]
            if all(len(values) for values in chosen):
                found[f"{column}: {word}"] = difference(chosen, resamples)
    return found


def difference(each: Sequence[np.ndarray], resamples: int = 2000) -> Record:
    """Mean of paired differences, that of every seed, 95 % interval.

    Resampled are seeds (models and scenes at once), and within each seed its pictures.
    """
    rng, count = np.random.default_rng(0), len(each)
    drawn = np.stack(
        [values[rng.integers(0, len(values), (count, resamples, len(values)))].mean(axis=2) for values in each]
    )
    seeds = rng.integers(0, count, (count, resamples))
    means = drawn[seeds, np.arange(count)[:, None], np.arange(resamples)].mean(axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    by_seed = [float(values.mean()) for values in each]
    return {"mean": float(np.mean(by_seed)), "low": float(low), "high": float(high), "by_seed": by_seed}


def _development(records: Sequence[Record]) -> dict[str, dict[str, dict[float, float]]]:
    """Mean difference to plain merging on development scenes, by tower, guide and strength."""
    plain = {(r["tower"], r["seed"], r["rate"]): r for r in records if r["guide"] == "none"}
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for record in records:
        other = plain.get((record["tower"], record["seed"], record["rate"]))
        if record["guide"] == "none" or other is None:
            continue
        tasks = (QUERY,) if record["guide"] == "query" else TASKS
        value = float(np.mean([(_array(record, task) - _array(other, task)).mean() for task in tasks]))
        by_guide = found.setdefault(record["tower"], {}).setdefault(record["guide"], {})
        by_guide.setdefault(record["strength"], []).append(value)
    return {
        tower: {guide: {s: float(np.mean(values)) for s, values in row.items()} for guide, row in rows.items()}
        for tower, rows in found.items()
    }


# -- text ---------------------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The tables as text; accuracies and differences in points of a hundred.

    `result` is what `summarise` gives, or what was kept of it as JSON, where numbers that are keys have become words.
    """
    lines: list[str] = []
    for table in result["tables"]:
        lines += [f"### {table['tower']}, {table['way']}", "", "Plain merging, accuracy in %:", ""]
        lines += _plain_lines(table["plain"])
        lines += ["", "Guide minus plain, points, mean of the four tasks (query: its own task):", ""]
        lines += _guide_lines(table["guides"])
        lines += ["", f"Where, at rates from {HIGH:.0%}:", "", *_where_lines(table["guides"]), ""]
    for tower, rows in result["development"].items():
        by_guide = {name: _by_number(row) for name, row in rows.items()}
        strengths = sorted({strength for row in by_guide.values() for strength in row})
        lines += [f"Development scenes, {tower}, guide minus plain by strength, points:", ""]
        lines += [
            f"| guide | {' | '.join(f'{strength:g}' for strength in strengths)} |",
            "|---" * (len(strengths) + 1) + "|",
        ]
        lines += [
            f"| {name} | {' | '.join(f'{100 * row[s]:+.1f}' for s in strengths)} |" for name, row in by_guide.items()
        ]
        lines.append("")
    return "\n".join([*lines, *_verdict_lines(result["verdicts"])])


def _by_number(values: dict[Any, Any]) -> dict[float, Any]:
    """The same values, keyed by numbers where JSON made words of them."""
    return {float(key): value for key, value in values.items()}


def _plain_lines(rows: Sequence[Record]) -> list[str]:
    names = (*TASKS, *ATTRIBUTES)
    lines = [f"| merged away | operations | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        cells = []
        for name in names:
            score = row["scores"][name]
            spread = "" if score["sd"] is None else f" ± {100 * score['sd']:.1f}"
            cells.append(f"{100 * score['mean']:.1f}{spread}")
        lines.append(f"| {row['rate']:.0%} | {row['flops']:.0%} | {' | '.join(cells)} |")
    return lines


def _guide_lines(rows: Sequence[Record]) -> list[str]:
    by_guide = [_by_number(row["by_rate"]) for row in rows]
    rates = sorted({rate for cells in by_guide for rate in cells})
    lines = [f"| guide (strength) | {' | '.join(f'{rate:.0%}' for rate in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for row, by_rate in zip(rows, by_guide, strict=True):
        cells = [_cell(by_rate.get(rate)) for rate in rates]
        strength = f" ({row['strength']:g})" if row["strength"] else ""
        lines.append(f"| {row['guide']}{strength} | {' | '.join(cells)} |")
    return lines


def _where_lines(rows: Sequence[Record]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row["where"]))
    lines = [f"| | {' | '.join(row['guide'] for row in rows)} |", "|---" * (len(rows) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(_cell(row['where'].get(name)) for row in rows)} |" for name in names)]


def _cell(value: Record | None) -> str:
    return (
        "" if value is None else f"{100 * value['mean']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"
    )


def _verdict_lines(verdicts: Record) -> list[str]:
    count = verdicts["comparisons"]
    lines = [
        f"{count} comparisons of a guide with plain merging; at 95 % about {count / 40:.0f} wins and as many losses "
        "come by chance alone.",
        "",
    ]
    for key, words in (
        ("worse_than_plain_by_a_point", "worse than plain by more than a point (the bar)"),
        ("wins", "wins (interval above zero)"),
        ("losses", "losses (interval below zero)"),
    ):
        lines.append(f"* {words}: {len(verdicts[key])}")
        lines += [f"  * {c['tower']}, {c['way']}, {c['guide']}, {c['rate']:.0%}: {_cell(c)}" for c in verdicts[key]]
    return lines
