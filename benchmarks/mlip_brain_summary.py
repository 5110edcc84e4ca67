"""From the records of `mlip_brain.py` to tables with spread and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from virtual_small_summary import SCORES, difference

__all__ = ["markdown", "summarise"]

Record = dict[str, Any]
ATTRIBUTES = ("shape", "colour", "material")
TOP = {"top-1": SCORES[:2], "two-way": SCORES[2:]}
POOLED = {"pooled top-1": ("pooled top-1 brain_to_image", "pooled top-1 image_to_brain")}
TEXT = {f"{name} by text": (f"{name} by text",) for name in ATTRIBUTES}
MEANS = {f"{name} by class means": (f"{name} by class means",) for name in ATTRIBUTES}
CHANCE = {"shape": 1 / 24, "colour": 1 / 12, "material": 1 / 8}


def summarise(found: Mapping[str, Any], resamples: int = 2000) -> dict[str, Any]:
    """Tables: means over seeds of means over people, deviation over seeds, paired differences with intervals.

    Resampled are seeds (people, scenes and fits at once), and within each its test stimuli.
    """
    result: dict[str, Any] = {"chance": CHANCE}
    if "targets" in found:
        arms = _by_arm(found["targets"])
        result["targets"] = [_row(name, rows, {**TOP, **POOLED, **TEXT, **MEANS}) for name, rows in arms.items()]
        result["mlip minus clip"] = [
            {
                "arm": name.replace("mlip", "..."),
                **_differences(rows, other, {**TOP, **POOLED, **TEXT, **MEANS}, resamples),
            }
            for name, rows in arms.items()
            if "mlip" in name and (other := arms.get(name.replace("mlip", "clip")))
        ]
    for group, scores in (("layouts", {**TOP, **POOLED, **TEXT}), ("alignment", {**TOP, **POOLED})):
        if group in found:
            arms = _by_arm(found[group])
            first = next(iter(arms.values()))
            result[group] = [
                _row(name, rows, scores) | ({} if rows is first else _differences(rows, first, scores, resamples))
                for name, rows in arms.items()
            ]
    if "alignment" in found:
        result["trials"] = found["trials"]
        result["verdict"] = _verdict(result["alignment"])
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as text."""
    lines: list[str] = []
    if "targets" in result:
        named, differences = [*TEXT, *MEANS], result["mlip minus clip"]
        lines += [
            "### Targets",
            "",
            *_table(result["targets"], ["shape", "fitted numbers", *TOP, *POOLED, "CPU s"], _cell),
        ]
        lines += ["### What the main object is", ""]
        lines += ["In brackets: the true embedding of the test scene in place of a predicted one.", ""]
        lines += _table(result["targets"], named, _cell)
        if differences:
            lines += ["### MLIP minus CLIP", "", *_table(differences, [*TOP, *POOLED], _told)]
            lines += _table(differences, named, _told)
    if "alignment" in result:
        chosen = {loss: max(trials, key=lambda one: one["validation"]) for loss, trials in result["trials"].items()}
        lines += [
            "### MLIP's objective as a loss",
            "",
            result["verdict"],
            "",
            "Differences: the row minus the first.",
            "",
        ]
        lines += [f"* {loss}: {_settings(settings)}" for loss, settings in chosen.items()] + [""]
        lines += _table(result["alignment"], ["fitted numbers", *TOP, *POOLED, "CPU s"], _both)
    if "layouts" in result:
        lines += ["### Layouts of tokens", "", "Differences: the row minus the first.", ""]
        lines += _table(result["layouts"], ["shape", "fitted numbers", *TOP, *POOLED, *TEXT, "CPU s"], _both)
    return "\n".join(lines)


def _by_arm(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    arms: dict[str, dict[int, Record]] = {}
    for record in records:
        arms.setdefault(record["arm"], {})[record["seed"]] = record
    return arms


def _row(name: str, rows: Mapping[int, Record], scores: Mapping[str, Sequence[str]]) -> Record:
    """Means over seeds; a score over several directions is their mean."""
    records = list(rows.values())
    row: Record = {
        "arm": name,
        "seeds": list(rows),
        "shape": records[0]["shape"],
        "parameters": records[0]["parameters"],
    }
    for score, parts in scores.items():
        if parts[0] not in records[0]["each"]:
            continue
        values = [float(np.mean([record["each"][part] for part in parts])) for record in records]
        row[score] = {"mean": float(np.mean(values)), "sd": _deviation(values), "by_seed": values}
        if parts[0] in records[0]["ceiling"]:
            row[score]["ceiling"] = float(np.mean([record["ceiling"][parts[0]] for record in records]))
        for part in parts if len(parts) > 1 else ():
            row[part] = float(np.mean([np.mean(record["each"][part]) for record in records]))
    row["cpu_s"] = float(np.mean([record["cpu_s"] for record in records]))
    row["best_epoch"] = [record["best_epoch"] for record in records]
    return row


def _differences(
    rows: Mapping[int, Record], others: Mapping[int, Record], scores: Mapping[str, Sequence[str]], resamples: int
) -> Record:
    shared = [seed for seed in rows if seed in others]
    first, second = [rows[seed] for seed in shared], [others[seed] for seed in shared]
    there = [name for name, parts in scores.items() if all(part in first[0]["each"] for part in parts)]
    return {"difference": {name: difference(first, second, scores[name], resamples) for name in there}}


def _verdict(rows: Sequence[Record]) -> str:
    """In words: which losses help, by the interval of the difference in top-1."""
    told = [(row["arm"].rsplit(", ", 1)[-1], row["difference"]["top-1"]) for row in rows if "difference" in row]
    better = [name for name, one in told if one["low"] > 0]
    worse = [name for name, one in told if one["high"] < 0]
    text = f"Better than without: {', '.join(better)}."
    if not better:
        text = "None of the losses helps: no interval of a difference in top-1 lies above zero."
    return f"{text} Worse: {', '.join(worse)}." if worse else text


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _settings(settings: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in settings.items())


def _table(rows: Sequence[Record], columns: Sequence[str], cell: Any) -> list[str]:
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return [
        *lines,
        *(f"| {row['arm']} | " + " | ".join(cell(row, column) for column in columns) + " |" for row in rows),
        "",
    ]


def _cell(row: Record, column: str) -> str:
    if column == "shape":
        return " x ".join(map(str, row["shape"]))
    if column == "fitted numbers":
        return f"{row['parameters']['total']:,}"
    if column == "CPU s":
        return f"{row['cpu_s']:.0f}"
    if column not in row:
        return "-"
    one = row[column]
    ceiling = f" [{one['ceiling']:.2f}]" if "ceiling" in one else ""
    return f"{one['mean']:.3f} ± {one['sd'] or 0:.3f}{ceiling}"


def _told(row: Record, column: str) -> str:
    one = row["difference"].get(column)
    return "-" if one is None else f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def _both(row: Record, column: str) -> str:
    text = _cell(row, column)
    return f"{text}, {_told(row, column)}" if column in row.get("difference", {}) else text
