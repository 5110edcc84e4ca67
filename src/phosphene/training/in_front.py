"""The aligner in front of a decoder, when somebody new comes: who it knows already, and from what."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.alignment import TRAINING_ROLES

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.recordings import Study, StudyView

__all__ = ["aligner_with", "check_aligner"]

log = logging.getLogger(__name__)


def check_aligner(aligner: Aligner, study: Study) -> None:
    """Refuse an aligner that was fitted on stimuli which are scored.

    People may be aligned on training stimuli, on some set apart for that, or on validation ones.

    Raises
    ------
    LeakageError
    """
    if aligner.fitted_on:
        trained = [name for role, names in study.roles().items() if role in TRAINING_ROLES for name in names]
        outside = ~np.isin(study.stimuli.ids, trained)
        aligner.check_apart(study.stimuli.ids[outside], study.stimuli.hashes[outside])


def aligner_with(aligner: Aligner, view: StudyView, subject: str) -> tuple[Aligner, dict[str, Any]]:
    """An aligner that knows the person, and how it came to.

    Parameters
    ----------
    aligner : Aligner
        Not changed: somebody it does not know is added to a copy (which shares the maps), from the view alone.
    view : StudyView
        What of the person may be used, in native voxels.
    subject : str

    Returns
    -------
    Aligner
    dict
        ``aligner``, ``functional``, ``added`` (now, from this view), and of a functional one ``sessions`` and
        ``n_trials`` that the map was learned from (None where that was not kept) and ``beyond``: words, where this is
        more than the view holds, else None. A warning goes with them.

    Raises
    ------
    InputError
        For somebody who cannot be added, such as one who saw too few of the stimuli the aligner was fitted on.
    """
    added = subject not in aligner.subjects
    if added:
        aligner = copy.deepcopy(aligner)
        aligner.add(subject, view)
        log.info("%s added to the %s aligner from %d trials", subject, aligner.name, view.n_trials(subject))
    facts: dict[str, Any] = {"aligner": aligner.name, "functional": aligner.functional, "added": added}
    if not aligner.functional:
        return aligner, facts
    heard = aligner.heard(subject)
    beyond = _beyond(heard, view, subject)
    if beyond is not None:
        log.warning(
            "the %s aligner in front knows %s %s: scores do not tell what these alone give; "
            "use one that was fitted without them",
            aligner.name,
            subject,
            beyond,
        )
    known = heard or {"sessions": None, "n_trials": None}
    return aligner, {**facts, **known, "beyond": beyond}


def _beyond(heard: dict[str, Any] | None, view: StudyView, subject: str) -> str | None:
    """In words, what a map was learned from beyond a view."""
    if heard is None:
        return None if view.n_sessions is None else "from sessions that were not kept, maybe more than the asked ones"
    asked, n_trials = view.sessions(subject), view.n_trials(subject)
    more = [session for session in heard["sessions"] if session not in asked]
    if more:
        return f"from {len(more)} more session{'s' * (len(more) > 1)} than the {len(asked)} asked for"
    if heard["n_trials"] > n_trials:
        return f"from {heard['n_trials']} trials, more than the {n_trials} asked for"
    return None
