"""Splits by stimulus: leave-one-group-out, k folds by group, and a plain holdout."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import GroupKFold

from phosphene.errors import InputError, unknown
from phosphene.stimuli import StimulusSet

__all__ = ["folds_by", "holdout"]


def _groups(stimuli: StimulusSet, column: str) -> np.ndarray:
    if column == "stimulus_id":
        return stimuli.ids
    if column not in stimuli.labels:
        raise unknown("label column to split by", column, ["stimulus_id", *stimuli.labels.columns])
    return stimuli.labels[column]


def folds_by(
    stimuli: StimulusSet, column: str, folds: int | None = None, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Cross-validation splits in which all stimuli of a group are on one side.

    Parameters
    ----------
    stimuli : StimulusSet
        What is split.
    column : str
        Label column that names the groups (``"action"``, ``"run"``), or ``"stimulus_id"``.
    folds : int, optional
        Number of folds; None leaves out one group at a time.
    seed : int
        Which groups share a fold.

    Returns
    -------
    dict
        ``{"fold-0": {"train": ids, "test": ids}, ...}``; left-out single groups name the split: ``"run-3"``.

    Examples
    --------
    >>> s = StimulusSet(["a1", "a2", "b1"], labels={"action": ["a", "a", "b"]})
    >>> folds_by(s, "action")["action-b"]["test"].tolist()
    ['b1']
    """
    groups = _groups(stimuli, column)
    names = np.unique(groups)  # before they become text, so that run 2 comes before run 10
    if len(names) < 2:
        raise InputError(f"splitting by {column!r} needs at least two groups, found {len(names)}")
    if folds is None:
        tests = {f"{column}-{name}": groups == name for name in names}
    else:
        if not 2 <= folds <= len(names):
            raise InputError(f"folds must be 2 to {len(names)} (the groups of {column!r}), found {folds}")
        splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
        tests = {}
        for number, (_, test) in enumerate(splitter.split(groups, groups=groups)):
            tests[f"fold-{number}"] = np.isin(np.arange(len(groups)), test)
    return {name: {"train": stimuli.ids[~test], "test": stimuli.ids[test]} for name, test in tests.items()}


def holdout(
    stimuli: StimulusSet, column: str = "stimulus_id", share: float = 0.2, seed: int = 0
) -> dict[str, np.ndarray]:
    """One split that keeps a seeded share of the groups for test."""
    groups = _groups(stimuli, column)
    names = np.unique(groups)
    if len(names) < 2:
        raise InputError(f"a holdout by {column!r} needs at least two groups, found {len(names)}")
    n_test = min(len(names) - 1, max(1, round(share * len(names))))
    test = np.isin(groups, np.random.default_rng(seed).permutation(names)[:n_test])
    return {"train": stimuli.ids[~test], "test": stimuli.ids[test]}
