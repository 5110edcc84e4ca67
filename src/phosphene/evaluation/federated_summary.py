"""What records of a missing-modality matrix say: cells with their spread, paired differences, and the claims.

Means are over sites, then over seeds; the spread is the standard deviation over seeds. A difference is paired: both
arms have the same sites, masks, seeds and test stimuli. Its 95 % interval is a t interval over the seeds' differences,
each a mean over stimuli, and its p that of an exact test which flips their signs: of five seeds it cannot fall below
1/16. Seeds of one study share their test stimuli: nothing is said of other stimuli. Of one seed there is no such
interval; a bootstrap of its stimuli stands there instead, and says so. Sites are not drawn again: they are the
federation, and share most of what is random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from phosphene.errors import InputError
from phosphene.evaluation.metrics import DIRECTIONS
from phosphene.evaluation.missing_modalities import PATTERNS, RETRIEVED
from phosphene.evaluation.statistics import exact_sign_flip_p, percentile_interval

__all__ = ["Records", "claims", "paired", "rows", "share_closed"]

OURS, ZERO, TO_BEAT, BOUND = "pmcmfl", "fedavg-zero", "dropout-token", "central-by-pattern"
ONE_MODALITY = ("fmri", "image", "text")
CLASSIFICATION = "classification"
RETRIEVAL = "top-1"
_LEVEL = 0.95
Record = Mapping[str, Any]
Key = tuple[str, str, float]


class Records:
    """Records of a matrix, by cell, arm and seed.

    Parameters
    ----------
    records : sequence of dict
        Of `run_matrix`.

    Attributes
    ----------
    cells : list of (condition, kind, rate)
    arms : list of str
        In the order in which they come.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        if not records:
            raise InputError("there is no record to summarise")
        self.all = list(records)
        self.cells: list[Key] = list(dict.fromkeys((each["condition"], each["kind"], each["rate"]) for each in records))
        self.arms: list[str] = list(dict.fromkeys(each["arm"] for each in records))
        self._of = {(e["condition"], e["kind"], e["rate"], e["arm"], e["seed"]): e for e in records}
        self.metric = "accuracy" if "accuracy" in records[0]["chance"] else "mAP"

    def of(self, cell: Key, arm: str) -> dict[int, Record]:
        """Records of an arm in a cell by seed."""
        return {e["seed"]: e for e in self.all if (e["condition"], e["kind"], e["rate"], e["arm"]) == (*cell, arm)}

    def at(self, cell: Key, arm: str, seed: int) -> Record | None:
        """One record."""
        return self._of.get((*cell, arm, seed))

    def unimpaired(self, cell: Key) -> Key | None:
        """The cell of the same data in whose training nothing was missing; none where sites lack something anyway."""
        whole = {(e["condition"], e["kind"], e["rate"]) for e in self.all if e["fractions"]["all"]["complete"] == 1}
        return next((each for each in self.cells if each[0] == cell[0] and each[2] == 0 and each in whole), None)


def _value(scores: Mapping[str, float], metric: str) -> float:
    """A metric, or top-1 as the mean of both directions."""
    return float(np.mean([scores[f"{metric} {way}"] for way in DIRECTIONS])) if metric == RETRIEVAL else scores[metric]


def paired(pairs: Sequence[tuple[Record, Record]], patterns: Sequence[str], metric: str) -> dict[str, Any]:
    """The mean difference of two arms over cells, seeds and patterns, first minus second.

    Parameters
    ----------
    pairs : sequence of pair of dict
        Records of the two arms; those of one seed belong together, whatever their cells.
    patterns : sequence of str
    metric : str
        "accuracy", "mAP" or "top-1".

    Returns
    -------
    dict
        ``mean``, ``low`` and ``high`` of the 95 % interval, ``by_seed``, ``p`` (two-sided), ``p_floor`` (the least that
        p can be) and ``over``: "seeds", or "stimuli" where there is one seed alone.
    """
    if not pairs:
        raise InputError("no seed has both arms: nothing can be paired")
    values: dict[int, list[float]] = {}
    draws: dict[int, list[np.ndarray]] = {}
    for one, other in pairs:
        for pattern in patterns:
            ours, theirs = one["patterns"][pattern], other["patterns"][pattern]
            seed = int(one["seed"])
            values.setdefault(seed, []).append(_value(ours["mean"], metric) - _value(theirs["mean"], metric))
            draws.setdefault(seed, []).append(np.subtract(ours["draws"][metric], theirs["draws"][metric]))
    by_seed = {seed: float(np.mean(each)) for seed, each in values.items()}
    found = np.array(list(by_seed.values()))
    if len(found) > 1:
        half = _half_width(found)
        told = {"low": found.mean() - half, "high": found.mean() + half, "p": exact_sign_flip_p(found), "over": "seeds"}
        floor = 2.0 ** (1 - len(found))
    else:
        resampled = np.mean(next(iter(draws.values())), axis=0)
        low, high = percentile_interval(resampled)
        beyond, floor = min((resampled <= 0).sum(), (resampled >= 0).sum()), 1 / (1 + len(resampled))
        told = {"low": low, "high": high, "p": min(1.0, (1 + 2 * beyond) / (1 + len(resampled))), "over": "stimuli"}
    numbers = {name: each if isinstance(each, str) else float(each) for name, each in told.items()}
    return {"mean": float(found.mean()), **numbers, "p_floor": floor, "by_seed": by_seed}


def _quantile(n: int) -> float:
    """Of Student's t with n - 1 degrees of freedom, for an interval of 95 %."""
    return float(student.ppf((1 + _LEVEL) / 2, n - 1))


def _half_width(values: np.ndarray) -> float:
    return _quantile(len(values)) * float(values.std(ddof=1)) / float(np.sqrt(len(values)))


def share_closed(triples: Sequence[tuple[Record, Record, Record]], metric: str) -> dict[str, Any] | None:
    """Of the gap from a second arm up to a third, the share that the first closes; over all patterns.

    None where the third is not above the second: there is no gap to close. The interval is Fieller's (1954): the shares
    r for which a paired t test over seeds does not tell ``ours - r gap`` from nothing. Where it does not tell the gap
    itself from nothing, ``low`` and ``high`` are None: there is no interval. Of one seed there is a bootstrap of its
    stimuli, as in `paired`.
    """
    seeds = sorted({int(a["seed"]) for a, _, _ in triples})
    ours, gaps = (
        np.array([np.mean([_gained(t, at, metric) for t in triples if t[0]["seed"] == s]) for s in seeds])
        for at in (0, 2)
    )
    if not gaps.mean() > 0:
        return None
    several = len(seeds) > 1
    low, high = (_fieller(ours, gaps) if several else _of_stimuli(triples, metric)) or (None, None)
    share = float(ours.mean() / gaps.mean())
    over = "seeds" if several else "stimuli"
    return {"share": share, "low": low, "high": high, "gap": float(gaps.mean()), "over": over}


def _fieller(ours: np.ndarray, gaps: np.ndarray) -> tuple[float, float] | None:
    """Where a r^2 - 2 b r + c <= 0; None where that is no interval."""
    spread = _quantile(len(ours)) ** 2 / len(ours) * np.cov(ours, gaps)
    a = gaps.mean() ** 2 - spread[1, 1]
    b = ours.mean() * gaps.mean() - spread[0, 1]
    c = ours.mean() ** 2 - spread[0, 0]
    if a <= 0:
        return None
    half = np.sqrt(max(b**2 - a * c, 0.0))
    return float((b - half) / a), float((b + half) / a)


def _of_stimuli(triples: Sequence[tuple[Record, Record, Record]], metric: str) -> tuple[float, float]:
    """Interval of the share over resamples of stimuli."""
    tables = [
        np.mean([_drawn(each[at], metric) - _drawn(each[1], metric) for each in triples], axis=0) for at in (0, 2)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = tables[0] / tables[1]
    return percentile_interval(ratio[np.isfinite(ratio)])


def _gained(triple: tuple[Record, Record, Record], at: int, metric: str) -> float:
    """Of one of the arms over the second, over all patterns."""
    return float(np.mean([_of(triple[at], p, metric) - _of(triple[1], p, metric) for p in PATTERNS]))


def _of(record: Record, pattern: str, metric: str) -> float:
    return _value(record["patterns"][pattern]["mean"], metric)


def _drawn(record: Record, metric: str) -> np.ndarray:
    return np.asarray(np.mean([record["patterns"][pattern]["draws"][metric] for pattern in PATTERNS], axis=0))


# -- cells ---------------------------------------------------------------------------------------------------------


def rows(records: Records) -> list[dict[str, Any]]:
    """One row a cell and arm, in plain values.

    Returns
    -------
    list of dict
        ``condition``, ``kind``, ``rate``, ``arm``, ``seeds``; by pattern the ``mean``, ``sd`` and ``worst`` site's mean
        of every metric; ``by_seed``, the mean over patterns of accuracy or mAP; ``leak_with_labels``; ``chance``,
        ``fractions`` (realised), ``cost``; ``epsilon`` by unit of protection, under noise (None is no promise).
    """
    return [
        _row(cell, arm, list(found.values()), records.metric)
        for cell in records.cells
        for arm in records.arms
        if (found := records.of(cell, arm))
    ]


def _row(cell: Key, arm: str, found: Sequence[Record], metric: str) -> dict[str, Any]:
    condition, kind, rate = cell
    shares = [each["fractions"]["all"] for each in found]
    return {
        "condition": condition,
        "kind": kind,
        "rate": rate,
        "arm": arm,
        "seeds": [each["seed"] for each in found],
        "patterns": {name: _spread([each["patterns"][name] for each in found]) for name in PATTERNS},
        "by_seed": [round(float(np.mean([_of(each, name, metric) for name in PATTERNS])), 5) for each in found],
        "leak_with_labels": {
            name: _means([each["leak_with_labels"][name]["mean"] for each in found])
            for name in found[0]["leak_with_labels"]
        },
        "chance": _means([each["chance"] for each in found]),
        "fractions": _means([{k: v for k, v in each.items() if not k.startswith("only ")} for each in shares]),
        "cost": _means([_numbers(each["cost"]) for each in found]),
        "epsilon": found[-1]["cost"].get("epsilon", {}),
    }


def _spread(scores: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found = {}
    for metric in scores[0]["mean"]:
        values = [each["mean"][metric] for each in scores]
        worst = float(np.mean([each["worst"][metric]["value"] for each in scores]))
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        told = {"mean": float(np.mean(values)), "sd": sd, "worst": worst}
        found[metric] = {name: round(value, 5) for name, value in told.items()}
    return found


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in values])) for name in values[0]}


def _numbers(cost: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in cost.items() if isinstance(value, int | float)}


# -- claims --------------------------------------------------------------------------------------------------------


def claims(records: Records, rate: float = 0.5, ours: str = OURS) -> dict[str, Any]:
    """What the comparison was made for; what cannot be said for want of an arm or a rate is left out.

    Returns
    -------
    dict
        ``above_zero_fill``: `ours` minus FedAvg with zeros at `rate`, over all patterns, by cell and in the mean.
        ``gap_closed``: share of the gap from there to a centralised model for each pattern.
        ``against_dropout_token``: the difference in every cell and pattern with its interval, their mean, and those
        that lie wholly below -1 point; the fewer the seeds, the less can be found so.
        ``one_modality``: minus a FedAvg that never saw a trial without a modality (rate 0) and is given zeros in test.
        Classification, and for brains top-1 of retrieval under ``against_dropout_token_retrieval``.
    """
    metric = records.metric
    at_rate = [cell for cell in records.cells if cell[2] == rate]
    found = {
        "above_zero_fill": _over_cells(records, at_rate, ours, ZERO, list(PATTERNS), metric),
        "gap_closed": _closed(records, at_rate, ours, metric),
        "against_dropout_token": _each_cell(records, ours, metric, list(PATTERNS)),
        "against_dropout_token_retrieval": _each_cell(records, ours, RETRIEVAL, [p for p in RETRIEVED if "fmri" in p]),
        "one_modality": _one_modality(records, ours, metric),
    }
    return {"rate": rate, "ours": ours, "metric": metric, **{name: each for name, each in found.items() if each}}


def _pairs(
    records: Records, cell: Key, one: str, other: str, other_cell: Key | None = None
) -> list[tuple[Record, Record]]:
    theirs = records.of(other_cell or cell, other)
    return [(each, theirs[seed]) for seed, each in records.of(cell, one).items() if seed in theirs]


def _everywhere(by_cell: Mapping[Key, Sequence[Any]]) -> list[Any]:
    """Those of seeds that have every cell: one that lacks some would mix differences of cells into the spread."""
    seeds = [{int(each[0]["seed"]) for each in found} for found in by_cell.values()]
    common = set.intersection(*seeds) if seeds else set()
    return [each for found in by_cell.values() for each in found if int(each[0]["seed"]) in common]


def _over_cells(
    records: Records, cells: Sequence[Key], one: str, other: str, patterns: Sequence[str], metric: str
) -> dict[str, Any]:
    by_cell = {cell: pairs for cell in cells if (pairs := _pairs(records, cell, one, other))}
    if not (whole := _everywhere(by_cell)):
        return {}
    return {
        "mean": paired(whole, patterns, metric),
        "cells": [_named(cell, paired(pairs, patterns, metric)) for cell, pairs in by_cell.items()],
    }


def _closed(records: Records, cells: Sequence[Key], ours: str, metric: str) -> dict[str, Any]:
    found: dict[Key, list[tuple[Record, Record, Record]]] = {}
    for cell in cells:
        triples = [
            (one, zero, bound)
            for one, zero in _pairs(records, cell, ours, ZERO)
            if (bound := records.at(cell, BOUND, one["seed"])) is not None
        ]
        if triples:
            found[cell] = triples
    if not (whole := _everywhere(found)):
        return {}
    each_cell = [_named(cell, share_closed(triples, metric) or {}) for cell, triples in found.items()]
    return {"mean": share_closed(whole, metric), "cells": each_cell}


def _each_cell(records: Records, ours: str, metric: str, patterns: Sequence[str]) -> dict[str, Any]:
    pairs = {cell: found for cell in records.cells if (found := _pairs(records, cell, ours, TO_BEAT))}
    if not (whole := _everywhere(pairs)) or metric not in whole[0][0]["patterns"][patterns[0]]["draws"]:
        return {}
    cells = [
        _named(cell, {"pattern": pattern, **paired(found, [pattern], metric)})
        for cell, found in pairs.items()
        for pattern in patterns
    ]
    return {
        "mean": paired(whole, patterns, metric),
        "cells": cells,
        "wholly_below_minus_1_point": [each for each in cells if each["high"] < -0.01],
    }


def _one_modality(records: Records, ours: str, metric: str) -> list[dict[str, Any]]:
    found = []
    for cell in records.cells:
        never = records.unimpaired(cell)
        pairs = _pairs(records, cell, ours, ZERO, never) if never else []
        for pattern in ONE_MODALITY if pairs else ():
            found.append(_named(cell, {"pattern": pattern, **paired(pairs, [pattern], metric)}))
    return found


def _named(cell: Key, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"condition": cell[0], "kind": cell[1], "rate": cell[2], **found}
