"""Responses to what several people saw: means over repeats, and two halves of the repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["half_means", "mean_responses", "shared_stimuli", "units_of"]


_WHY = "Functional alignment needs shared training stimuli; anatomical alignment needs none"


def shared_stimuli(view: StudyView, subjects: Sequence[str], least: int, why: str = _WHY) -> np.ndarray:
    """Ids of the stimuli of the view that all of these people saw, in its order.

    Raises
    ------
    InputError
        When there are fewer than `least`; the message says how many each of them saw, and `why` that matters.
    """
    seen = {subject: set(np.unique(view.trials(subject)["stimulus_id"]).tolist()) for subject in subjects}
    common = set.intersection(*seen.values())
    if len(common) < least:
        counts = ", ".join(f"{subject} {len(ids)}" for subject, ids in seen.items())
        raise InputError(
            f"{len(common)} stimuli of the {view.role} part of split {view.split_name!r} were seen by all of "
            f"{', '.join(subjects)}; at least {least} are needed (seen by each: {counts}). {why}"
        )
    return np.array([name for name in view.stimulus_ids.tolist() if name in common], dtype=str)


def mean_responses(view: StudyView, subject: str, ids: np.ndarray) -> np.ndarray:
    """Mean over repeats of a person's responses to these stimuli, float32 ``(n, V_s)``, in their order."""
    return view.restrict(ids).averaged(subject)[1]


def units_of(view: StudyView, ids: np.ndarray) -> np.ndarray:
    """What each of these stimuli belongs to (itself, where the study names no unit), ``(n,)``."""
    return view.restrict(ids).units


def half_means(view: StudyView, subject: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Means over the odd and over the even repeats, float32 ``(n, V_s)`` each; None where a stimulus has no repeat."""
    part = view.restrict(ids)
    shown = part.trials(subject)["stimulus_id"]
    where = {name: row for row, name in enumerate(ids.tolist())}
    stimulus = np.array([where[name] for name in shown.tolist()], dtype=np.int64)
    counts = np.bincount(stimulus, minlength=len(ids))
    if counts.min() < 2:
        return None
    order = np.argsort(stimulus, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    sums, totals = np.zeros((2, len(ids), part.n_voxels(subject))), np.zeros((2, len(ids)))
    for rows, block in part.blocks(subject):
        np.add.at(sums, (rank[rows] % 2, stimulus[rows]), block)
        np.add.at(totals, (rank[rows] % 2, stimulus[rows]), 1)
    halves = (sums / totals[..., None]).astype(np.float32)
    return halves[0], halves[1]
