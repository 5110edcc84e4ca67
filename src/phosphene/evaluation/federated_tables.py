"""The missing-modality matrix as tables of text (markdown)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phosphene.evaluation.federated_summary import ONE_MODALITY, OURS, TO_BEAT, Records, claims, paired, rows
from phosphene.evaluation.metrics import DIRECTIONS
from phosphene.evaluation.missing_modalities import PATTERNS, RETRIEVED

__all__ = ["choices_table", "markdown"]

_CLAIMED = "Intervals as above; of a share Fieller's. Few seeds make intervals wide: little lies wholly below."
_WAYS = tuple(DIRECTIONS)
Row = Mapping[str, Any]


def markdown(records: Records, ours: str = OURS) -> str:
    """All tables: for each cell classification, retrieval and paired differences; then the claims."""
    made, lines = rows(records), []
    for cell in records.cells:
        here = [row for row in made if (row["condition"], row["kind"], row["rate"]) == cell]
        lines += [*_head(here[0]), "", *_classification(here, records.metric), ""]
        lines += [*_retrieval(here), ""]
        lines += [*_differences(records, cell, here, ours), ""]
    return "\n".join([*lines, *_claims(claims(records, ours=ours))])


def _head(row: Row) -> list[str]:
    condition, kind, rate = row["condition"], row["kind"], row["rate"]
    shares = ", ".join(f"{name} {value:.1%}" for name, value in row["fractions"].items())
    nothing = "nothing missing" if row["fractions"]["complete"] == 1 else "nothing hidden of what sites hold"
    return [
        f"### {condition}: {rate:.0%} missing in training, by {kind}" if rate else f"### {condition}: {nothing}",
        "",
        f"Realised: {shares}. Seeds {', '.join(map(str, row['seeds']))}; mean over sites and seeds ± sd over seeds.",
    ]


def _classification(here: Sequence[Row], metric: str) -> list[str]:
    heads = [f"{metric}, %", *PATTERNS, "mean", "worst site", "ECE", "kB up a round", "seconds"]
    chance = here[0]["chance"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    blank = ["", "", "", "", ""]
    lines.append(_line(["chance", *[f"{100 * chance[metric]:.1f}"] * len(PATTERNS), *blank]))
    if "commonest" in chance:
        lines.append(_line(["commonest class", *[f"{100 * chance['commonest']:.1f}"] * len(PATTERNS), *blank]))
    for row in here:
        each = [row["patterns"][name][metric] for name in PATTERNS]
        cells = [f"{100 * one['mean']:.1f} ± {100 * one['sd']:.1f}" for one in each]
        mean, worst = (100 * np.mean([one[key] for one in each]) for key in ("mean", "worst"))
        error = np.mean([row["patterns"][name]["ECE"]["mean"] for name in PATTERNS])
        cost = [f"{row['cost']['bytes_up'] / 1e3:.0f}", f"{row['cost']['seconds']:.1f}"]
        lines.append(_line([row["arm"], *cells, f"{mean:.1f}", f"{worst:.1f}", f"{error:.3f}", *cost]))
    lines += _leak(here, metric, blank)
    return [*lines, "", *_promises(here)]


def _promises(here: Sequence[Row]) -> list[str]:
    """Epsilon of arms with noise."""
    return [
        f"{row['arm']}: "
        + ", ".join(
            f"no promise per {unit}" if value is None else f"epsilon {value:.3g} per {unit}"
            for unit, value in row["epsilon"].items()
        )
        for row in here
        if row["epsilon"]
    ]


def _leak(here: Sequence[Row], metric: str, blank: Sequence[str]) -> list[str]:
    """Of the first arm: what a mask by the true test label would score."""
    leak = here[0]["leak_with_labels"]
    cells = [f"{100 * leak[name][metric]:.1f}" if name in leak else "" for name in PATTERNS]
    return [_line([f"LEAK: {here[0]['arm']}, leak_with_labels", *cells, *blank])]


def _retrieval(here: Sequence[Row]) -> list[str]:
    """Top-1 and two-way in both directions; of the text alone, there is no brain in it."""
    heads = ["top-1 / two-way, %", *(f"{name}, {way.replace('_', ' ')}" for name in RETRIEVED for way in _WAYS)]
    chance = here[0]["chance"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    nothing = f"{100 * chance['top-1']:.1f} / 50.0"
    lines.append(_line([f"chance, {chance['gallery']:.0f} pictures", *[nothing] * (len(heads) - 1)]))
    for row in here:
        scores = [row["patterns"][name] for name in RETRIEVED]
        if f"top-1 {_WAYS[0]}" not in scores[0]:
            lines.append(_line([row["arm"], *["no such head"] * (len(heads) - 1)]))
            continue
        cells = [
            f"{100 * each[f'top-1 {way}']['mean']:.1f} / {100 * each[f'two-way {way}']['mean']:.1f}"
            for each in scores
            for way in _WAYS
        ]
        lines.append(_line([row["arm"], *cells]))
    return lines


def _differences(records: Records, cell: tuple[str, str, float], here: Sequence[Row], ours: str) -> list[str]:
    """`ours` minus every other arm, with 95 % intervals."""
    names = [row["arm"] for row in here if row["arm"] != ours]
    if not records.of(cell, ours) or not names:
        return []
    heads = [f"{ours} minus, points", *PATTERNS, "mean", "p of the mean"]
    lines, over = [_line(heads), "|---" * len(heads) + "|"], []
    for name in names:
        theirs = records.of(cell, name)
        pairs = [(one, theirs[seed]) for seed, one in records.of(cell, ours).items() if seed in theirs]
        if not pairs:
            continue
        found = [paired(pairs, [pattern], records.metric) for pattern in PATTERNS]
        whole = paired(pairs, list(PATTERNS), records.metric)
        lines.append(
            _line([name, *map(_interval, found), _interval(whole), f"{whole['p']:.3g} (floor {whole['p_floor']:.3g})"])
        )
        over.append(whole)
    return [*lines, "", *_what_intervals_are(over)]


def _what_intervals_are(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is behind intervals and p of differences."""
    lines = []
    if several := sorted({len(each["by_seed"]) for each in found if each["over"] == "seeds"}):
        counts = " or ".join(map(str, several))
        lines.append(
            f"95 % t intervals over {counts} seeds, p of an exact sign-flip test over them, with the least it can be."
        )
    if any(each["over"] == "stimuli" for each in found):
        lines.append("One seed: 95 % bootstrap over its test stimuli alone, which says nothing of other seeds.")
    return lines


def _claims(found: Mapping[str, Any]) -> list[str]:
    rate, lines = f"{found['rate']:.0%}", ["### What was asked", "", _CLAIMED, ""]
    if above := found.get("above_zero_fill"):
        lines.append(f"* At {rate} missing, minus FedAvg with zero fill: {_interval(above['mean'])} points.")
    if closed := found.get("gap_closed"):
        told = closed["mean"]
        words = "there is no gap" if told is None else f"{told['share']:.0%} {_shares(told)}"
        gap = "" if told is None else f" of {100 * told['gap']:.1f} points"
        lines.append(f"* Share of the gap to centralised models for each pattern that is closed: {words}{gap}.")
    for name, what in (("against_dropout_token", found["metric"]), ("against_dropout_token_retrieval", "top-1")):
        if beaten := found.get(name):
            below = [
                f"{each['condition']} {each['kind']} {each['rate']:.0%} {each['pattern']}"
                for each in beaten["wholly_below_minus_1_point"]
            ]
            lines.append(
                f"* Minus {TO_BEAT}, {what}: {_interval(beaten['mean'])} points over {len(beaten['cells'])} cells; "
                f"wholly below -1 point: {', '.join(below) or 'none'}."
            )
    if single := found.get("one_modality"):
        lines.append(
            "* One modality in test, minus a FedAvg that was trained on complete trials alone and is given zeros for "
            "what is missing (never trained for absence):"
        )
        for cell in dict.fromkeys((each["condition"], each["kind"], each["rate"]) for each in single):
            here = {each["pattern"]: each for each in single if (each["condition"], each["kind"], each["rate"]) == cell}
            words = ", ".join(f"{name} {_interval(here[name])}" for name in ONE_MODALITY)
            lines.append(f"  * {cell[0]}, {cell[1]}, {cell[2]:.0%} missing in training: {words}")
    return lines


def choices_table(tried: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What every candidate scored in tuning, and which was taken."""
    lines = [_line(["arm", "settings", "score, %", "taken"]), "|---" * 4 + "|"]
    for name, each in tried.items():
        best = max(each, key=lambda row: row["score"])
        for row in each:
            words = ", ".join(f"{t}.{k} = {v}" for t, inner in row["settings"].items() for k, v in inner.items())
            score = row["score"]
            lines.append(_line([name, words or "as published", f"{100 * score:.1f}", "x" if row is best else ""]))
    return "\n".join(lines)


def _shares(found: Mapping[str, Any]) -> str:
    """The interval of a share."""
    if found["low"] is None:
        return "[no interval: the gap may be nothing]"
    return f"[{found['low']:.0%}, {found['high']:.0%}]"


def _interval(found: Mapping[str, Any]) -> str:
    return f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
