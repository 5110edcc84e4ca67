"""From the records of `virtual_small.py` to tables with spread, paired differences, and a drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.files import write_text

__all__ = [
    "ALMOST_LINEAR",
    "CHOSEN",
    "MORE_DROPOUT",
    "RANDOM_START",
    "SCORES",
    "WHOLE",
    "WITHOUT_LINEAR",
    "difference",
    "draw",
    "markdown",
    "summarise",
]

SCORES = ("top-1 brain_to_image", "top-1 image_to_brain", "two-way brain_to_image", "two-way image_to_brain")
CHOSEN = "mindeye-mlp (size chosen by validation)"
WITHOUT_LINEAR = "lite-mind without linear path"
ALMOST_LINEAR = "lite-mind, linear path with a network of width 1"
MORE_DROPOUT = "lite-mind, more dropout in the network"
RANDOM_START = "lite-mind, linear path from a random start"
WHOLE = "network as in the preset"
Record = dict[str, Any]


def summarise(records: Sequence[Record], resamples: int = 2000) -> dict[str, Any]:
    """Tables: means over seeds of means over people, deviation over seeds, paired differences with intervals."""
    records = [*records, *chosen(records)]
    by_arm: dict[str, dict[int, Record]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], {})[record["seed"]] = record
    groups = {name: [arm for arm, rows in by_arm.items() if _group(rows) == name] for name in _groups(records)}
    plan = {
        "rivals": ("lite-mind", ["mean", "nearest", "ridge", CHOSEN, "lite-mind", WITHOUT_LINEAR], 1),
        "sizes of mindeye-mlp": ("lite-mind", [*groups.get("grid", []), *groups.get("longer", [])], 1),
        "tokens": ("lite-mind, tokens", groups.get("tokens", []), 1),
        "linear path": (
            "lite-mind",
            ["lite-mind", WITHOUT_LINEAR, ALMOST_LINEAR, MORE_DROPOUT, RANDOM_START, "ridge"],
            -1,
        ),
        "parts": (WHOLE, groups.get("ablation", []), -1),
    }
    tables = {}
    for title, (reference, names, sign) in plan.items():
        present = [name for name in names if name in by_arm]
        if present:
            tables[title] = [_row(name, by_arm, reference, sign, resamples) for name in present]
    picked = {str(one["seed"]): one["picked"] for one in records if one["arm"] == CHOSEN}
    return {"scores": list(SCORES), "chosen_by_validation": picked, "references": _references(plan), "tables": tables}


def chosen(records: Sequence[Record]) -> list[Record]:
    """For every seed mindeye-mlp in the size that was best on validation stimuli."""
    picked = []
    for seed in sorted({record["seed"] for record in records}):
        sizes = [record for record in records if record["group"] == "grid" and record["seed"] == seed]
        if sizes:
            best = max(sizes, key=lambda record: record["validation_best"])
            picked.append({**best, "arm": CHOSEN, "group": "main", "picked": best["arm"]})
    return picked


def difference(first: Sequence[Record], second: Sequence[Record], scores: Sequence[str], resamples: int) -> Record:
    """Mean of the paired differences first minus second, deviation over seeds, 95 % interval.

    Resampled are seeds (people, scenes and fits at once), and within each seed its test stimuli.
    """
    rng = np.random.default_rng(0)
    each = [
        np.mean([np.subtract(one["each"][name], other["each"][name]) for name in scores], axis=0)
        for one, other in zip(first, second, strict=True)
    ]
    means = [float(values.mean()) for values in each]
    drawn = np.empty(resamples)
    for at in range(resamples):
        seeds = rng.integers(0, len(each), len(each))
        drawn[at] = np.mean([each[seed][rng.integers(0, len(each[seed]), len(each[seed]))].mean() for seed in seeds])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "mean": float(np.mean(means)),
        "low": float(low),
        "high": float(high),
        "sd": _deviation(means),
        "by_seed": means,
    }


def markdown(result: Record) -> str:
    """The tables as text: mean over seeds with its deviation, and the paired difference in top-1 (both directions)."""
    ways = [
        score.replace("brain_to_image", "brain to image").replace("image_to_brain", "image to brain")
        for score in SCORES
    ]
    lines = []
    for title, rows in result["tables"].items():
        lines += [f"### {title}", "", f"Difference: {result['references'][title]}.", ""]
        lines.append("| | fitted numbers | " + " | ".join(ways) + " | difference in top-1 |")
        lines.append("|---" * 7 + "|")
        for row in rows:
            size = f"{row['parameters']['total']:,}" if row["parameters"] else "-"
            cells = [f"{row[score]['mean']:.3f} ± {row[score]['sd'] or 0:.3f}" for score in SCORES]
            told = "-"
            if "difference" in row:
                told = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["difference"]["top-1"])
            lines.append(f"| {row['arm']} | {size} | " + " | ".join(cells) + f" | {told} |")
        lines.append("")
    return "\n".join(lines)


def _group(rows: dict[int, Record]) -> str:
    return str(next(iter(rows.values()))["group"])


def _groups(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["group"] for record in records))


def _references(plan: dict[str, tuple[str, list[str], int]]) -> dict[str, str]:
    return {
        title: f"{reference} minus the row" if sign > 0 else f"the row minus {reference}"
        for title, (reference, _, sign) in plan.items()
    }


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _parameters(rows: Sequence[Record]) -> dict[str, int] | None:
    """Mean over seeds (they differ where validation chose different sizes)."""
    counts = [one["parameters"] for one in rows if one["parameters"]]
    return {key: round(float(np.mean([one[key] for one in counts]))) for key in counts[0]} if counts else None


def _row(name: str, by_arm: dict[str, dict[int, Record]], reference: str, sign: int, resamples: int) -> Record:
    seeds = sorted(by_arm[name])
    rows = [by_arm[name][seed] for seed in seeds]
    row: Record = {"arm": name, "seeds": seeds, "parameters": _parameters(rows)}
    for score in SCORES:
        values = [one["scores"][score]["value"] for one in rows]
        row[score] = {"mean": float(np.mean(values)), "sd": _deviation(values), "by_seed": values}
        row[score]["intervals"] = [one["scores"][score]["interval"] for one in rows]
    row["fit_cpu_s"] = float(np.mean([one.get("cpu_s", 0.0) for one in rows]))
    row["validation_best"] = [one.get("validation_best") for one in rows]
    row["best_epoch"] = [one.get("best_epoch") for one in rows]
    shared = [seed for seed in seeds if seed in by_arm.get(reference, {})]
    if name != reference and shared:
        pairs = [by_arm[reference][seed] for seed in shared], [by_arm[name][seed] for seed in shared]
        first, second = pairs if sign > 0 else pairs[::-1]
        row["difference"] = {score: difference(first, second, [score], resamples) for score in SCORES}
        for metric in ("top-1", "two-way"):
            both = [score for score in SCORES if score.startswith(metric)]
            row["difference"][metric] = difference(first, second, both, resamples)
    return row


# -- accuracy against parameters ------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720.0, 400.0, 64.0, 24.0, 40.0, 52.0
_COLOURS = {"lite-mind": "#b2382f", "mindeye-mlp": "#2f5f9e", "ridge": "#555555"}


def draw(records: Sequence[Record], result: Record, path: Path) -> None:
    """Write a drawing of top-1 (mean of both directions) against fitted numbers, pooled targets."""
    names = [row["arm"] for title in ("rivals", "sizes of mindeye-mlp") for row in result["tables"].get(title, [])]
    picked = set(result["chosen_by_validation"].values())
    points = []
    for name in dict.fromkeys(names):
        rows = [record for record in records if record["arm"] == name and record["parameters"]]
        if rows:
            each = [np.mean([one["scores"][score]["value"] for score in SCORES[:2]]) for one in rows]
            family = next(one for one in ("lite-mind", "mindeye-mlp", "ridge") if name.startswith(one))
            size = rows[0]["parameters"]["total"]
            points.append((size, float(np.mean(each)), _deviation(each), name, family, name in picked))
    if points:
        write_text(path, _svg(points))


def _svg(points: Sequence[tuple[int, float, float | None, str, str, bool]]) -> str:
    low = math.floor(math.log10(min(point[0] for point in points)) * 2) / 2
    high = math.ceil(math.log10(max(point[0] for point in points)) * 2 + 0.4) / 2
    bottom = math.floor(min(point[1] for point in points) * 10 - 0.5) / 10
    top = math.ceil(max(point[1] for point in points) * 10 + 0.5) / 10

    def across(size: float) -> float:
        return _LEFT + (math.log10(size) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" font-family="sans-serif" '
        'font-size="12" role="img" aria-labelledby="t"><title id="t">Top-1 of 300 against fitted numbers on the '
        "virtual study small</title>",
        f'<rect width="{_WIDTH:g}" height="{_HEIGHT:g}" fill="#ffffff"/>',
        f'<text x="{_LEFT:g}" y="20">top-1 of 300 (mean of both directions; bars: deviation over seeds)</text>',
        f'<text x="{_WIDTH / 2:g}" y="{_HEIGHT - 12:g}" text-anchor="middle">fitted numbers, both people</text>',
    ]
    for step in range(round(bottom * 10), round(top * 10) + 1):
        y = up(step / 10)
        parts.append(f'<path d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{step / 10:.1f}</text>')
    for size in (1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7):
        if low <= math.log10(size) <= high:
            label = f"{size / 1e6:g} M" if size >= 1e6 else f"{size / 1e3:g} k"
            parts.append(f'<text x="{across(size):.1f}" y="{_HEIGHT - 34:g}" text-anchor="middle">{label}</text>')
    for at, (family, colour) in enumerate(_COLOURS.items()):
        parts.append(
            f'<text x="{_WIDTH - _RIGHT - 90 * (2 - at):g}" y="34" text-anchor="end" fill="{colour}">{family}</text>'
        )
    placed: list[tuple[float, float]] = []
    for size, value, spread, name, family, best in sorted(points, key=lambda point: -point[1]):
        x, y, colour = across(size), up(value), _COLOURS[family]
        if spread is not None:
            parts.append(f'<path d="M{x:.1f} {up(value - spread):.1f}V{up(value + spread):.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if best else 4}" fill="{colour}"/>')
        while any(abs(x - other) < 130 and abs(y - height) < 13 for other, height in placed):
            y += 1
        placed.append((x, y))
        label = name.removeprefix("mindeye-mlp ").replace("x", " x ").replace(" d", ", dropout ")
        label = escape(label if family == "mindeye-mlp" else name)
        parts.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])
