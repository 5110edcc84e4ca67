"""From results of persons to scores: per person, mean over people, paired differences to the rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phosphene.evaluation.metrics import Metric
from phosphene.evaluation.protocols import Protocol
from phosphene.evaluation.scorecard import MEAN, Score
from phosphene.evaluation.scoring import Key, PersonResult
from phosphene.evaluation.statistics import bootstrap_people, null_summary, percentile_interval, sign_flip_p

__all__ = ["comparisons", "method_scores", "stimulus_records"]

Results = Mapping[str, PersonResult]  # by subject


def method_scores(
    method: str, results: Results, protocols: Sequence[Protocol], people: np.ndarray, unit: str, suffix: str
) -> list[Score]:
    """Every score of one method: person by person, then the mean.

    Parameters
    ----------
    people : (n_boot, n_people) int array
        Resampled people.
    unit : str
        What was resampled, in words.
    suffix : str
        What is added to a task to make the protocol's full name.
    """
    scores = []
    for protocol in protocols:
        for direction in protocol.directions:
            for metric in protocol.metrics:
                key = (protocol.name, direction, metric.name)
                rows = [_row(metric, key, result) for result in results.values()]
                rows.append(_mean_row(metric, key, list(results.values()), people))
                for subject, row in zip([*results, MEAN], rows, strict=True):
                    several = subject == MEAN and len(results) > 1
                    scores.append(
                        Score(
                            method=method,
                            subject=subject,
                            metric=metric.name,
                            direction=direction,
                            similarity=protocol.similarity,
                            interval_over=f"{unit} and people" if several else unit,
                            task=protocol.name,
                            protocol=f"{protocol.name} {suffix}",
                            transductive=protocol.transductive,
                            **_with_pool(row, protocol),
                        )
                    )
    return scores


def _with_pool(row: dict[str, Any], protocol: Protocol) -> dict[str, Any]:
    sizes = row.pop("sizes")
    if protocol.pool is not None:
        pool = {"size": protocol.pool, "smallest": protocol.pool, "draws": protocol.draws}
    else:
        pool = {"size": int(sizes.max()), "smallest": int(sizes.min()), "draws": 1}
    return {**row, "pool": pool}


def _row(metric: Metric, key: Key, result: PersonResult) -> dict[str, Any]:
    value, extra = result.value(key), dict(result.extra.get(key, {}))
    return {
        "value": value,
        "chance": metric.chance(result.sizes[key]),
        "interval": percentile_interval(result.boot[key]) if key in result.boot else None,
        "null": _null(result.null[key], value, metric, extra) if key in result.null else None,
        "n": len(result.values[key]),
        "sizes": result.sizes[key],
        "extra": extra,
    }


def _mean_row(metric: Metric, key: Key, results: Sequence[PersonResult], people: np.ndarray) -> dict[str, Any]:
    value = float(np.mean([result.value(key) for result in results]))
    row: dict[str, Any] = {
        "value": value,
        "chance": float(np.mean([metric.chance(result.sizes[key]) for result in results])),
        "interval": None,
        "null": None,
        "n": sum(len(result.values[key]) for result in results),
        "sizes": np.concatenate([result.sizes[key] for result in results]),
        "extra": {},
    }
    for name in results[0].extra.get(key, {}):
        row["extra"][name] = float(np.mean([result.extra[key][name] for result in results]))
    if key in results[0].boot:
        boot = np.stack([result.boot[key] for result in results])
        row["interval"] = percentile_interval(bootstrap_people(boot, people))
        if len(results) > 1:
            row["extra"]["interval_fixed_people"] = percentile_interval(bootstrap_people(boot))
    if key in results[0].null:
        # one permutation of stimuli for everybody: people who saw the same things are not independent
        null = np.mean([result.null[key] for result in results], axis=0)
        row["null"] = _null(null, value, metric, row["extra"])
    return row


def _null(null: np.ndarray, value: float, metric: Metric, extra: Mapping[str, Any]) -> dict[str, float]:
    """Null of a score; of drawn pools, both null and observed value are means over all possible pools."""
    return null_summary(null, extra.get("expected", value), metric.higher_is_better)


def comparisons(
    method: str,
    rival: str,
    results: Mapping[str, Results],
    protocols: Sequence[Protocol],
    people: np.ndarray,
    units: Mapping[str, np.ndarray],
    *,
    n_perm: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Paired differences, method minus rival, on the same stimuli and the same resamples.

    Parameters
    ----------
    results : mapping of method name to results by subject
    units : mapping of subject to (n,) array
        Unit of each query: signs are flipped unit by unit.

    Returns
    -------
    list of dict
        ``better`` says whether the method's value lies on the better side of the rival's; ``p`` is that of a sign-flip
        test over units (None for medians, which have no sum to flip).
    """
    ours, theirs = results[method], results[rival]
    rows = []
    for protocol in protocols:
        for direction in protocol.directions:
            for metric in protocol.metrics:
                key = (protocol.name, direction, metric.name)
                differences = {s: ours[s].value(key) - theirs[s].value(key) for s in ours}
                boots = {s: ours[s].boot[key] - theirs[s].boot[key] for s in ours if key in ours[s].boot}
                for subject in [*ours, MEAN]:
                    chosen = list(ours) if subject == MEAN else [subject]
                    value = float(np.mean([differences[s] for s in chosen]))
                    interval = None
                    if boots:
                        stacked = np.stack([boots[s] for s in chosen])
                        interval = percentile_interval(bootstrap_people(stacked, people if len(chosen) > 1 else None))
                    p = None
                    if metric.summary == "mean" and n_perm:
                        values = [ours[s].values[key] - theirs[s].values[key] for s in chosen]
                        p = sign_flip_p(unit_sums(values, [units[s] for s in chosen]), n_perm, seed)
                    rows.append(
                        {
                            "method": method,
                            "rival": rival,
                            "subject": subject,
                            "metric": metric.name,
                            "direction": direction,
                            "similarity": protocol.similarity,
                            "task": protocol.name,
                            "difference": value,
                            "better": value > 0 if metric.higher_is_better else value < 0,
                            "interval": interval,
                            "p": p,
                        }
                    )
    return rows


def unit_sums(values: Sequence[np.ndarray], units: Sequence[np.ndarray]) -> np.ndarray:
    """What each unit adds to the mean over people of per-person means.

    Parameters
    ----------
    values, units : sequences of (n_p,) arrays
        One array a person.

    Returns
    -------
    (n_units,) float64
        Sums to the mean over people.
    """
    weighted = np.concatenate([v / (len(v) * len(values)) for v in values])
    _, codes = np.unique(np.concatenate(list(units)), return_inverse=True)
    return np.bincount(codes, weights=weighted)


def stimulus_records(results: Mapping[str, Results]) -> list[dict[str, Any]]:
    """Per method and person, what each stimulus got; what was retrieved is kept for the first method alone."""
    first = next(iter(results))
    return [
        {"method": method, "subject": subject}
        | {key: value for key, value in result.record.items() if key != "top" or method == first}
        for method, by_subject in results.items()
        for subject, result in by_subject.items()
    ]
