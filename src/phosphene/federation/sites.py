"""Sites from a study file: people dealt to sites, classes agreed on, modalities hidden on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from phosphene.errors import InputError
from phosphene.federation.classes import ClusterClasses, LabelClasses
from phosphene.federation.missing import missing_pattern
from phosphene.federation.state import Agreement, SiteState
from phosphene.federation.trials import Trials

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["clusters_of_study", "dealt", "site_of_study", "trials_of_view"]


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


def clusters_of_study(study: Study, public: str, image: Targets, n_classes: int, seed: int = 0) -> ClusterClasses:
    """Classes from clusters of the image embeddings of public stimuli, none of which is a test stimulus.

    Parameters
    ----------
    study : Study
        With the split whose test part will be scored.
    public : str
        Which stimuli are public: a role of that split, such as ``train``, or ``SPLIT/ROLE`` of another one.
    image : Targets
    n_classes : int
    seed : int
        Of k-means.

    Raises
    ------
    LeakageError
        Where a stimulus of the test part is among them.
    InputError
        For an unknown split or role, and as of `ClusterClasses.fit`.
    """
    split, _, role = public.rpartition("/")
    view = (study.using(split) if split else study).split(role)
    clusters = ClusterClasses.fit(image, view.stimulus_ids, n_classes, seed)
    clusters.check_apart(study.roles().get("test", []))
    return clusters


def trials_of_view(
    view: StudyView, classes: LabelClasses | ClusterClasses, targets: tuple[Targets, Targets], averaged: bool = False
) -> Trials:
    """Trials of a view's people, with labels.

    Parameters
    ----------
    view : StudyView
    classes : LabelClasses or ClusterClasses
    targets : pair of Targets
        Image and text, of the view's stimuli.
    averaged : bool
        One trial a stimulus and person, with the mean of its repeats.
    """
    image, text = targets
    if isinstance(classes, ClusterClasses):
        labels = classes.labels(image, view.stimulus_ids)
    else:
        labels = classes.labels(view.stimuli.labels)
    return Trials.of_study(view, image, text, labels, averaged=averaged)


def site_of_study(
    name: str,
    view: StudyView,
    classes: LabelClasses | ClusterClasses,
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
    classes : LabelClasses or ClusterClasses
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
    trials = trials_of_view(view, classes, targets)
    if lack is not None:
        trials = trials.hiding(missing_pattern(trials.ids, site=name, **lack))
    return SiteState(name, trials, agreement)
