"""Who is shown what, and when: sessions in order, runs, repeats, stimuli shared by all and a person's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phosphene.table import Table
from phosphene.virtual.fields import stream
from phosphene.virtual.settings import VirtualSettings

__all__ = ["plan_trials", "trials_per_session"]


def trials_per_session(settings: VirtualSettings, n_stimuli: int) -> int:
    """Trials a session: as set, else just enough to show every stimulus `repeats` times."""
    return settings.trials or -(-n_stimuli * settings.repeats // settings.sessions)


def plan_trials(settings: VirtualSettings, seed: int, name: str, shared: Sequence[str], others: Sequence[str]) -> Table:
    """Draw the order of trials of one person.

    Shared stimuli get all their repeats even from a person with fewer sessions than the others; what does not fit
    is taken from the other stimuli.

    Parameters
    ----------
    settings : VirtualSettings
    seed, name
        Of the study and the person.
    shared, others : sequences of str
        Stimulus ids: those that must be shown, those that fill the rest.

    Returns
    -------
    Table
        BIDS columns stimulus_id, session and run (1-based), onset (seconds from the start of the run), duration,
        repeat (0-based).
    """
    rng = stream(seed, name, "order")
    per_session = trials_per_session(settings, len(shared) + len(others))
    room = per_session * (settings.of(name).sessions or settings.sessions)
    must = rng.permutation(np.repeat(np.asarray(shared, dtype=str), settings.repeats))[:room]
    rest = rng.permutation(np.repeat(np.asarray(others, dtype=str), settings.repeats))[: room - len(must)]
    shown = rng.permutation(np.concatenate([must, rest]) if len(rest) else must)
    number = np.arange(len(shown))
    session, within = number // per_session, number % per_session
    length = np.minimum(per_session, len(shown) - session * per_session)
    run = within * settings.runs // length
    # the first trial of a run is the smallest whose number times runs reaches the run's share of the session
    first = -(-run * length // settings.runs)
    return Table(
        {
            "stimulus_id": shown,
            "session": session + 1,
            "run": run + 1,
            "onset": (within - first) * settings.interval,
            "duration": np.full(len(shown), settings.duration),
            "repeat": _occurrence(shown),
        }
    )


def _occurrence(shown: np.ndarray) -> np.ndarray:
    """How often each entry occurred before."""
    order = np.argsort(shown, kind="stable")
    ordered = shown[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    rank = np.arange(len(shown)) - np.repeat(starts, np.diff(np.append(starts, len(shown))))
    occurrence = np.empty(len(shown), dtype=np.int64)
    occurrence[order] = rank
    return occurrence
