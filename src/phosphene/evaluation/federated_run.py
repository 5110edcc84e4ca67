"""Scores of a federated run: what every site decodes of the test part, under every pattern of what is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from phosphene.errors import InputError
from phosphene.evaluation.missing_modalities import PATTERNS, Network, chances, score_pattern, shown
from phosphene.evaluation.statistics import Resampler
from phosphene.federation.client import site_model
from phosphene.federation.run_state import Federated
from phosphene.federation.settings import FederationSettings
from phosphene.federation.trials import Trials

__all__ = ["score_run"]

_LEVEL = 0.95


def score_run(
    done: Federated,
    tests: Mapping[str, Trials],
    settings: FederationSettings,
    units: Mapping[str, str],
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every site's own network (its people's adapters, the server's weights and prototypes) on its own test trials.

    Parameters
    ----------
    done : Federated
    tests : mapping of str to Trials
        Complete test trials with labels, of every site that has people.
    settings : FederationSettings
        Of the run; they name the rule of inference.
    units : mapping of str to str
        Unit of resampling of each test stimulus: stimuli of one unit resemble each other.
    n_boot : int
    seed : int
        Of the bootstrap over units.

    Returns
    -------
    dict
        For JSON. ``patterns``: of each of `PATTERNS` what `score_pattern` says, with 95 % intervals of the mean over
        sites, centred on it, for the metrics that have draws (``intervals``). ``chances``: what knows nothing scores.

    Raises
    ------
    InputError
        For sites without test trials or labels.
    """
    brains = {name for name, site in done.sites.items() if site.trials.inputs.people}
    if lacking := sorted(brains ^ tests.keys()):
        raise InputError(f"test trials of every site with a brain are needed, and of no other: {', '.join(lacking)}")
    names = np.unique([units[each] for trials in tests.values() for each in trials.ids.tolist()])
    resampler = Resampler({"test": names}, n_boot, seed)
    networks = {
        name: Network(site_model(site, done.shared, settings), done.shared.library, settings)
        for name, site in done.sites.items()
        if name in brains
    }
    found = {}
    for pattern in PATTERNS:
        predicted = {name: networks[name].predict(shown(tests[name].inputs, pattern)) for name in networks}
        scores = score_pattern(predicted, tests, pattern, resampler, units, settings.objective.task)
        found[pattern] = {
            **{key: scores[key] for key in ("mean", "worst", "sites")},
            "intervals": {
                metric: _interval(draws, scores["mean"].get(metric)) for metric, draws in scores["draws"].items()
            },
        }
    return {"patterns": found, "chances": chances(tests)}


def _interval(draws: list[float], value: float | None) -> list[float]:
    """Percentiles about the value: in a resample, trials that come twice raise a mean average precision."""
    shift = 0.0 if value is None else value - float(np.mean(draws))
    low, high = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) + shift
    return [float(low), float(high)]
