"""From the records of `mlip_transfer.py` to tables with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["interval", "markdown", "summarise"]

Record = dict[str, Any]
SCORES = tuple(f"{metric} {way}" for metric in ("top-1", "two-way") for way in ("image to text", "text to image"))


def interval(values: np.ndarray, blocks: np.ndarray, resamples: int = 2000) -> dict[str, float]:
    """Mean of (seeds, pictures) with its 95 % interval: seeds and blocks of pictures are resampled.

    Parameters
    ----------
    values : (seeds, pictures) array
    blocks : (pictures,) array
        Equal for pictures that belong together.
    """
    rng = np.random.default_rng(0)
    _, code = np.unique(blocks, return_inverse=True)
    size = np.bincount(code)
    sums = np.stack([np.bincount(code, row) for row in values])
    drawn = np.empty(resamples)
    for at in range(resamples):
        picked = rng.integers(0, len(size), len(size))
        seeds = rng.integers(0, len(values), len(values))
        drawn[at] = sums[seeds][:, picked].sum() / (size[picked].sum() * len(values))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Tables of both parts. The pictures are the same for every seed, so they are resampled once for all seeds."""
    result: dict[str, Any] = {}
    for part, scores in (("probe", ("accuracy",)), ("finetune", SCORES)):
        arms: dict[str, dict[int, Record]] = {}
        for record in records:
            if record["part"] == part:
                arms.setdefault(record["arm"], {})[record["seed"]] = record
        if arms:
            result[part] = [_row(name, rows, scores) for name, rows in arms.items()]
            result[f"{part} differences"] = [
                _difference(one, other, arms, scores) for one, other in _compared(part, arms)
            ]
            if part == "finetune":
                result["chance"] = next(iter(next(iter(arms.values())).values()))["chance"]
    return result


def _compared(part: str, arms: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of arms whose difference is told, first minus second."""
    if part == "probe":
        kinds = [name.removeprefix("mlip: ") for name in arms if name.startswith("mlip: ")]
        others = [f"{name}: {kind}" for kind in kinds for name in ("clip", "mlip, random weights")]
        wanted = [(f"mlip: {other.partition(': ')[2]}", other) for other in others]
        wanted += [(f"mlip: {kind}", simple) for kind in kinds for simple in ("pixels", "gabor")]
    else:
        wanted = [
            *((f"{name}, tuned", f"{name}, {rival}") for name in ("mlip", "clip") for rival in _RIVALS),
            ("mlip, not tuned", "clip, not tuned"),
            ("mlip, tuned", "clip, tuned"),
        ]
    return [(one, other) for one, other in wanted if one in arms and other in arms]


_RIVALS = ("not tuned", "random start, tuned")


def _values(rows: Mapping[int, Record], seeds: Sequence[int], score: str) -> np.ndarray:
    """(seeds, pictures); what does not depend on the seed was measured for the first alone."""
    only = next(iter(rows.values()))
    return np.array([rows.get(seed, only)["each"][score] for seed in seeds], dtype=float)


def _blocks(rows: Mapping[int, Record]) -> np.ndarray:
    one = next(iter(rows.values()))
    return np.array(one.get("action") or range(len(one["each"]["accuracy"])))


def _row(name: str, rows: Mapping[int, Record], scores: Sequence[str]) -> Record:
    row: Record = {"arm": name, "seeds": list(rows)}
    for score in scores:
        values = _values(rows, list(rows), score)
        row[score] = interval(values, _blocks(rows)) | {"by_seed": values.mean(axis=1).tolist()}
    one = next(iter(rows.values()))
    row |= {key: one[key] for key in ("width", "penalty") if key in one}
    row["cpu_s"] = float(np.mean([record["cpu_s"] for record in rows.values()]))
    return row


def _difference(one: str, other: str, arms: Mapping[str, Any], scores: Sequence[str]) -> Record:
    seeds = max([*arms[one]], [*arms[other]], key=len)
    told: Record = {"arm": f"{one} minus {other}"}
    for score in scores:
        values = _values(arms[one], seeds, score) - _values(arms[other], seeds, score)
        told[score] = interval(values, _blocks(arms[one]))
    return told


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as text."""
    lines: list[str] = []
    if "probe" in result:
        lines += ["### Linear probe on CIFAR-10", "", "Chance: 0.1.", ""]
        lines += _table(result["probe"], ["width", "accuracy", "CPU s"])
        lines += _table(result["probe differences"], ["accuracy"], sign=True)
    if "finetune" in result:
        lines += ["### Fine-tuning on key frames of actions", ""]
        lines += [f"Chance: {result['chance']:.3f} (top-1), 0.5 (two-way).", ""]
        lines += _table(result["finetune"], [*SCORES, "CPU s"])
        lines += _table(result["finetune differences"], list(SCORES), sign=True)
    return "\n".join(lines)


def _table(rows: Sequence[Record], columns: Sequence[str], sign: bool = False) -> list[str]:
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return [
        *lines,
        *(f"| {row['arm']} | " + " | ".join(_cell(row, name, sign) for name in columns) + " |" for row in rows),
        "",
    ]


def _cell(row: Record, column: str, sign: bool) -> str:
    if column == "CPU s":
        return f"{row['cpu_s']:.0f}"
    if column == "width":
        return f"{row['width']:,}"
    form = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if sign else "{mean:.3f} [{low:.3f}, {high:.3f}]"
    return form.format(**row[column])
