"""Sites from a study file: people dealt to sites, classes agreed on, modalities hidden on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from phosphene.errors import InputError
from phosphene.federation.classes import LabelClasses
from phosphene.federation.missing import missing_pattern
from phosphene.federation.state import Agreement, SiteState
from phosphene.federation.trials import Trials

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["dealt", "site_of_study"]


def dealt(people: Sequence[str], n_sites: int) -> dict[str, list[str]]:
    """People of each site, in order, as evenly as can be.

    Raises
    ------
    InputError
        For no site, and for more sites than people.

    Examples
    --------
    >>> dealt(["a", "b", "c"], 2)
    {'site-1': ['a', 'b'], 'site-2': ['c']}
    """
    if not 1 <= n_sites <= len(people):
        raise InputError(f"--sites lies in 1 to {len(people)}, the people of the training part; found {n_sites}")
    each, more = divmod(len(people), n_sites)
    starts = [number * each + min(number, more) for number in range(n_sites + 1)]
    return {f"site-{number + 1}": list(people[starts[number] : starts[number + 1]]) for number in range(n_sites)}


def site_of_study(
    name: str,
    view: StudyView,
    classes: LabelClasses,
    targets: tuple[Targets, Targets],
    width: int,
    lack: dict[str, Any] | None = None,
) -> SiteState:
    """A site before its first round.

    Parameters
    ----------
    name : str
    view : StudyView
        Its people's trials.
    classes : LabelClasses
        Those of the whole federation.
    targets : pair of Targets
        Image and text, of the view's stimuli.
    width : int
        Of the network's features.
    lack : dict, optional
        What is hidden on purpose: arguments of `missing_pattern` beside trials and site.
    """
    image, text = targets
    agreement = Agreement(
        classes.names, image.shape("pooled")[0], text.shape("pooled")[0], width, image.identity, text.identity
    )
    trials = Trials.of_study(view, image, text, classes.labels(view.stimuli.labels))
    if lack is not None:
        trials = trials.hiding(missing_pattern(trials.ids, site=name, **lack))
    return SiteState(name, trials, agreement)
