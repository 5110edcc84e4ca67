"""From the records of `mlip_arms.py` to choices, tables with spread, paired differences, bars and data efficiency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from mlip_study import SCORES
from scipy.stats import t as student

__all__ = [
    "TITLES",
    "cell",
    "choose",
    "difference",
    "hits_of",
    "markdown",
    "mean_sd",
    "summarise",
    "told_difference",
    "trials_markdown",
]

Record = Mapping[str, Any]
TITLES = {
    "clip": "plain CLIP",
    "clip-equal-compute": "plain CLIP, equal compute",
    "clip-double": "plain CLIP, twice the pairs",
    "spectral": "spectral body, CLIP's loss",
    "spectral-frequency": "+ frequency loss",
    "spectral-token": "+ token level",
    "mlip": "all four losses",
    "mlip-parallel": "all four losses, parallel",
    "lowpass": "fixed low-pass body, CLIP's loss",
    "highpass": "fixed high-pass body, CLIP's loss",
    "clip-faster": "plain CLIP, rate 0.001",
    "spectral-faster": "spectral body, CLIP's loss, rate 0.001",
    "mlip-slower": "all four losses, rate 0.0005",
}
ATTRIBUTES = ("shape", "colour", "material", "all together")
WAYS = ("image to text", "text to image")
#: what is compared: the part, and the tasks whose hits are averaged
HEADLINES: dict[str, tuple[str, tuple[str, ...]]] = {
    "seen": ("seen", ("all together",)),
    "unseen": ("unseen", ("all together",)),
    "retrieval": ("seen", WAYS),
    "retrieval, unseen": ("unseen", WAYS),
}
COMPARISONS = (
    ("mlip", "clip"),
    ("mlip", "clip-equal-compute"),
    ("mlip", "clip-double"),
    ("mlip", "spectral"),
    ("spectral", "clip"),
    ("spectral", "clip-equal-compute"),
    ("spectral-frequency", "spectral"),
    ("spectral-token", "spectral"),
    ("mlip-parallel", "mlip"),
    ("lowpass", "spectral"),
    ("highpass", "spectral"),
    ("mlip", "clip-faster"),
    ("mlip", "spectral-faster"),
    ("mlip-slower", "clip"),
    ("mlip-slower", "spectral"),
)
BARS = {"seen": 0.10, "unseen": 0.05, "retrieval": 0.10}
_EIGHTHS = (1, 2, 4, 8)


# -- one record ---------------------------------------------------------------------------------------------------


def hits_of(record: Record, part: str, tasks: Sequence[str], score: str) -> np.ndarray | None:
    """Hit of every picture, averaged over tasks; None where the arm has no such score."""
    found = [one for one in record["answers"] if one["part"] == part and one["task"] in tasks]
    if len(found) != len(tasks) or any(score not in one["hits"] for one in found):
        return None
    packed = [np.frombuffer(bytes.fromhex(one["hits"][score]), dtype=np.uint8) for one in found]
    return np.mean([np.unpackbits(bits)[: one["n"]] for bits, one in zip(packed, found, strict=True)], axis=0)


def share(record: Record, part: str, tasks: Sequence[str], score: str = SCORES[0]) -> float | None:
    """Share of hits, averaged over tasks."""
    hits = hits_of(record, part, tasks, score)
    return None if hits is None else float(hits.mean())


def mean_sd(values: Sequence[float]) -> dict[str, Any]:
    """Mean and deviation over seeds, and the value of each."""
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "by_seed": list(values),
    }


def difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray], resamples: int = 2000) -> dict[str, Any]:
    """Mean of paired differences over seeds, with two 95 % intervals.

    `t` is Student's, over seeds; `bootstrap` resamples seeds and within each seed its pictures.
    """
    each = [np.subtract(one, other) for one, other in zip(first, second, strict=True)]
    means = np.array([values.mean() for values in each])
    rng, drawn = np.random.default_rng(0), np.empty(resamples)
    for at in range(resamples):
        seeds = rng.integers(0, len(each), len(each))
        drawn[at] = np.mean([rng.choice(each[seed], len(each[seed])).mean() for seed in seeds])
    return {**mean_sd(means.tolist()), "t": _student(means), "bootstrap": np.percentile(drawn, [2.5, 97.5]).tolist()}


def _student(values: np.ndarray) -> list[float] | None:
    if len(values) < 2:
        return None
    half = float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return [float(values.mean()) - half, float(values.mean()) + half]


# -- development --------------------------------------------------------------------------------------------------


def criterion(record: Record) -> float:
    """What decides in development: mean of zero-shot on unseen compositions and retrieval, spatial embedding alone."""
    if "failed" in record:
        return -1.0
    zero_shot = share(record, "unseen", ("all together",))
    retrieved = [share(record, part, WAYS) for part in ("seen", "unseen")]
    return float(np.mean([zero_shot, np.mean(retrieved)]))  # type: ignore[list-item]


def choose(records: Sequence[Record], candidates: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """For every arm the candidate with the best mean criterion over seeds; what all of them reached."""
    choices = {}
    for arm, trials in candidates.items():
        reached = [
            {"settings": dict(own), **mean_sd([criterion(one) for one in records if _is(one, arm, trial)])}
            for trial, own in enumerate(trials)
        ]
        best = max(range(len(reached)), key=lambda trial: reached[trial]["mean"])
        if reached[best]["mean"] < 0:
            raise SystemExit(f"every candidate of {arm} failed")
        choices[arm] = {"trial": best, "settings": reached[best]["settings"], "trials": reached}
    return choices


def _is(record: Record, arm: str, trial: int) -> bool:
    return bool(record["arm"] == arm and record["trial"] == trial)


def trials_markdown(choices: Mapping[str, Any]) -> str:
    """The candidates of every arm and what they reached; a star at the chosen one."""
    lines = ["| arm | candidate | criterion |", "|---|---|---|"]
    for arm, choice in choices.items():
        for number, trial in enumerate(choice["trials"]):
            words = ", ".join(f"{key} {value}" for table in trial["settings"].values() for key, value in table.items())
            star = " *" if number == choice["trial"] else ""
            lines.append(f"| {TITLES.get(arm, arm)} | {words} | {cell(trial)}{star} |")
    return "\n".join(lines)


# -- the table ----------------------------------------------------------------------------------------------------


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """All tables of the final runs."""
    by_arm: dict[str, dict[int, Record]] = {}
    for record in records:
        if "failed" not in record:
            by_arm.setdefault(record["arm"], {})[record["seed"]] = record
    compared = {
        f"{first} - {second}": _compared(by_arm[first], by_arm[second])
        for first, second in COMPARISONS
        if first in by_arm and second in by_arm
    }
    return {
        "failed": [f"{one['arm']}, seed {one['seed']}: {one['failed']}" for one in records if "failed" in one],
        "chance": _chances(records),
        "arms": {arm: _row(rows) for arm, rows in by_arm.items()},
        "differences": compared,
        "bars": _bars(compared),
        "pairs_to_reach": _efficiency(by_arm),
    }


def _chances(records: Sequence[Record]) -> dict[str, float]:
    answers = next((one["answers"] for one in records if "failed" not in one), [])
    return {f"{one['part']}, {one['task']}": one["chance"] for one in answers}


def _row(rows: Mapping[int, Record]) -> dict[str, Any]:
    seeds = sorted(rows)
    ordered = [rows[seed] for seed in seeds]
    scores: dict[str, Any] = {}
    for score in SCORES:
        tasks = {f"{part}, {task}": (part, (task,)) for part in ("seen", "unseen") for task in (*ATTRIBUTES, *WAYS)}
        tasks |= {f"{part}, retrieval": (part, WAYS) for part in ("seen", "unseen")}
        for name, (part, wanted) in tasks.items():
            values = [share(one, part, wanted, score) for one in ordered]
            if None not in values:
                scores.setdefault(score, {})[name] = mean_sd(values)  # type: ignore[arg-type]
    return {
        "seeds": seeds,
        "parameters": ordered[0]["parameters"],
        "steps": ordered[0]["settings"]["training"]["steps"],
        "cpu_s": mean_sd([one["cpu_s"] for one in ordered]),
        "scores": scores,
        "curve": _mean_curve(ordered),
    }


def _compared(first: Mapping[int, Record], second: Mapping[int, Record]) -> dict[str, Any]:
    seeds = sorted(set(first) & set(second))
    found = {}
    for name, (part, tasks) in HEADLINES.items():
        pairs = [[hits_of(rows[seed], part, tasks, SCORES[0]) for seed in seeds] for rows in (first, second)]
        found[name] = difference(*pairs)  # type: ignore[arg-type]
    return found


def _bars(compared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was to be shown: a mean difference, the least it had to be, whether it is, whether the interval agrees."""
    wanted = [("mlip - clip", name, least) for name, least in BARS.items()]
    for against in ("mlip - clip-equal-compute", "mlip - spectral"):
        wanted += [(against, name, 0.0) for name in BARS]
    bars = []
    for pair, name, least in wanted:
        if pair in compared:
            found = compared[pair][name]
            met = found["mean"] >= least if least else found["mean"] > 0
            clear = found["t"] is not None and found["t"][0] > least
            bars.append(
                {
                    "difference": pair,
                    "of": name,
                    "least": least,
                    "mean": found["mean"],
                    "t": found["t"],
                    "met": met,
                    "clear": clear,
                }
            )
    return bars


# -- accuracy against pairs seen ----------------------------------------------------------------------------------

#: of the probes during training: names as they stand in the log
PROBES: dict[str, tuple[str, ...]] = {
    "seen": ("all together, seen compositions",),
    "unseen": ("all together, unseen compositions",),
    "retrieval": tuple(f"{way}, seen compositions" for way in WAYS),
}


def _points(record: Record, name: str) -> list[tuple[int, float]]:
    """(pairs seen, accuracy) of the probes of one run; nothing is known before the first pair."""
    curve = [(one["pairs"], float(np.mean([one["scores"][key] for key in PROBES[name]]))) for one in record["curve"]]
    return [(0, 0.0), *curve]


def _mean_curve(rows: Sequence[Record]) -> dict[str, Any]:
    """Accuracy at 1/8, 1/4, 1/2 and all of the pairs, mean and deviation over seeds."""
    found: dict[str, Any] = {"pairs": [rows[0]["curve"][at - 1]["pairs"] for at in _EIGHTHS]}
    for name in PROBES:
        columns = [[_points(one, name)[at][1] for one in rows] for at in _EIGHTHS]
        found[name] = [mean_sd(column) for column in columns]
    return found


def reached_at(points: Sequence[tuple[int, float]], target: float) -> float | None:
    """Pairs at which a curve first reaches a target, between probes along a straight line; None where it never does."""
    for (before, low), (after, high) in pairwise(points):
        if high >= target:
            return before + (after - before) * max(target - low, 0.0) / max(high - low, 1e-12)
    return None


def _efficiency(by_arm: Mapping[str, Mapping[int, Record]]) -> dict[str, Any]:
    """Pairs that one arm needs for what another has in the end, seed by seed."""
    pairs = [("clip", "mlip"), ("clip-double", "mlip"), ("spectral", "mlip"), ("mlip", "clip"), ("spectral", "clip")]
    found: dict[str, Any] = {}
    for runner, goal in pairs:
        seeds = sorted(set(by_arm.get(runner, {})) & set(by_arm.get(goal, {})))
        for name in PROBES if seeds else ():
            needed = []
            for seed in seeds:
                target = _points(by_arm[goal][seed], name)[-1][1]
                needed.append(reached_at(_points(by_arm[runner][seed], name), target))
            available = by_arm[runner][seeds[0]]["curve"][-1]["pairs"]
            own = by_arm[goal][seeds[0]]["curve"][-1]["pairs"]
            found.setdefault(f"{runner} to reach {goal}", {})[name] = {
                "needed": [None if one is None else round(one) for one in needed],
                "of": available,
                "goal_had": own,
            }
    return found


# -- as text ------------------------------------------------------------------------------------------------------


def cell(found: Mapping[str, Any], digits: int = 3) -> str:
    """Mean and deviation."""
    spread = "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{spread}"


def told_difference(found: Mapping[str, Any], wanted: Sequence[str] = ("t", "bootstrap")) -> str:
    """A paired difference in points with its intervals."""
    intervals = [(name[0], found[name]) for name in wanted if found[name] is not None]
    told = [f"{name} [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]" for name, ends in intervals]
    return f"{100 * found['mean']:+.1f} {' '.join(told)}"


def markdown(result: Mapping[str, Any]) -> str:
    """Everything that was found, whatever it says; first whether the losses are worth more than the body alone."""
    parts: list[Callable[[Mapping[str, Any]], list[str]]] = [
        _first,
        _main_table,
        _heads_table,
        _difference_table,
        _bar_table,
        _curve_table,
        _efficiency_table,
    ]
    lines = [f"Failed: {one}" for one in result["failed"]]
    for part in parts:
        lines += [*part(result), ""]
    return "\n".join(lines)


def _first(result: Mapping[str, Any]) -> list[str]:
    found = [bar for bar in result["bars"] if bar["difference"] == "mlip - spectral"]
    if not found:
        return []
    clear = [bar["of"] for bar in found if bar["clear"]]
    told = "; ".join(
        f"{bar['of']} {told_difference(result['differences']['mlip - spectral'][bar['of']])}" for bar in found
    )
    if clear:
        return [f"The losses beat the spectral body alone in {', '.join(clear)} (interval over seeds). Points: {told}."]
    return [
        f"**The losses do not beat the spectral body alone**: no interval over seeds excludes zero. Points: {told}."
    ]


def _head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


_COLUMNS = [f"{part}, {task}" for part in ("seen", "unseen") for task in (*ATTRIBUTES, "retrieval")]


def _main_table(result: Mapping[str, Any]) -> list[str]:
    lines = ["### Spatial embedding alone", ""]
    if "step_ratio" in result:
        lines += [
            f"A step of all four losses takes {result['step_ratio']['ratio']} of the CPU time of one of CLIP.",
            "",
        ]
    lines += _head("arm", "parameters", "steps", "CPU s", *_COLUMNS)
    chance = result["chance"]
    chances = [chance[name.replace("retrieval", WAYS[0])] for name in _COLUMNS] if chance else []
    lines.append(f"| chance | | | | {' | '.join(f'{value:.3f}' for value in chances)} |")
    for arm, row in result["arms"].items():
        cells = [cell(row["scores"][SCORES[0]][name]) for name in _COLUMNS]
        size = f"{row['parameters']:,} | {row['steps']:,} | {row['cpu_s']['mean']:.0f}"
        lines.append(f"| {TITLES[arm]} | {size} | {' | '.join(cells)} |")
    return lines


def _heads_table(result: Mapping[str, Any]) -> list[str]:
    wanted = [name for name in _COLUMNS if name.endswith(("all together", "retrieval"))]
    lines = ["### With frequency embedding and tokens added", "", *_head("arm", "score", *wanted)]
    for arm, row in result["arms"].items():
        for score in SCORES[1:]:
            if score in row["scores"]:
                cells = [cell(row["scores"][score][name]) for name in wanted]
                lines.append(f"| {TITLES[arm]} | {score} | {' | '.join(cells)} |")
    return lines


def _difference_table(result: Mapping[str, Any]) -> list[str]:
    note = "Points; 95 % intervals over seeds: t Student's, b bootstrap over seeds and pictures."
    lines = ["### Paired differences", "", note, "", *_head("difference", *HEADLINES)]
    for pair, found in result["differences"].items():
        first, second = pair.split(" - ")
        cells = [told_difference(found[name]) for name in HEADLINES]
        lines.append(f"| {TITLES[first]} minus {TITLES[second]} | {' | '.join(cells)} |")
    return lines


def _bar_table(result: Mapping[str, Any]) -> list[str]:
    lines = ["### Bars", "", *_head("difference", "of", "at least", "found", "met", "interval above the bar")]
    for bar in result["bars"]:
        least = f"{100 * bar['least']:.0f}" if bar["least"] else "above 0"
        words = ("no", "yes")
        lines.append(
            f"| {bar['difference']} | {bar['of']} | {least} | {100 * bar['mean']:+.1f} | {words[bar['met']]} "
            f"| {words[bar['clear']]} |"
        )
    return lines


def _curve_table(result: Mapping[str, Any]) -> list[str]:
    note = "Probes of the averaged weights during the run (its schedule runs to the end), spatial embedding alone."
    fractions = [f"{name} at {part}" for name in PROBES for part in ("1/8", "1/4", "1/2", "1")]
    lines = ["### Accuracy against pairs seen", "", note, "", *_head("arm", "pairs", *fractions)]
    for arm, row in result["arms"].items():
        cells = [cell(point, 2) for name in PROBES for point in row["curve"][name]]
        lines.append(f"| {TITLES[arm]} | {row['curve']['pairs'][-1]:,} | {' | '.join(cells)} |")
    return lines


def _efficiency_table(result: Mapping[str, Any]) -> list[str]:
    lines = ["### Pairs one needs for what the other has in the end", "", *_head("", "of", "pairs needed, by seed")]
    for pair, by_name in result["pairs_to_reach"].items():
        runner, goal = pair.split(" to reach ")
        for name, found in by_name.items():
            each = [f"not reached in {found['of']:,}" if one is None else f"{one:,}" for one in found["needed"]]
            told = f"{TITLES[runner]} to reach {TITLES[goal]} after {found['goal_had']:,}"
            lines.append(f"| {told} | {name} | {'; '.join(each)} |")
    return lines
