"""Sites from a study: people dealt to sites, what each site holds, classes agreed on, modalities hidden on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from phosphene.errors import InputError
from phosphene.federation.classes import ClusterClasses, LabelClasses
from phosphene.federation.holdings import PUBLIC, check_classes, check_places, held_by, public_view
from phosphene.federation.missing import Missing, missing_pattern
from phosphene.federation.state import Agreement, SiteState
from phosphene.federation.trials import MODALITIES, Trials

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["StudySites", "classes_asked", "dealt", "first_state_of"]

_BRAIN, _PICTURE, _WORDS = MODALITIES


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


def classes_asked(
    study: Study,
    image: Targets,
    columns: Sequence[str] = (),
    clusters: int | None = None,
    public: str | None = None,
    seed: int = 0,
) -> tuple[LabelClasses | ClusterClasses, str]:
    """Classes from label columns, or from clusters of the image embeddings of public stimuli, and which in words.

    Parameters
    ----------
    study : Study
        With the split whose test part will be scored.
    image : Targets
    columns : sequence of str
        Names or patterns; the classes are those of the training part.
    clusters : int, optional
        How many.
    public : str, optional
        What they are fitted on: see `public_view`.
    seed : int
        Of k-means.

    Raises
    ------
    InputError
        As of `check_classes`, which can be asked before the image embeddings are made, and `ClusterClasses.fit`.
    """
    check_classes(study, columns, clusters, public)
    if clusters is None or public is None:
        return LabelClasses.found(study.split("train").stimuli.labels, columns), f"label columns {', '.join(columns)}"
    fitted = ClusterClasses.fit(image, public_view(study, public).stimulus_ids, clusters, seed)
    return fitted, f"clusters of image embeddings of {len(fitted.fitted_on)} public stimuli ({public})"


# -- sites ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StudySites:
    """A study as sites of a federation: who and what is where, and what all of them have alike.

    What a site does not hold is not there: it is neither read nor encoded into its trials. A site without fMRI has the
    stimuli of the training part that its people saw, each once, or all of them where it has no people.

    Attributes
    ----------
    study : Study
        Its current split: the role ``train`` is trained on, ``test`` is scored.
    places : mapping of str to sequence of str
        People of each site; see `dealt`.
    classes : LabelClasses or ClusterClasses
    image, text : Targets
    holds : mapping of str to tuple of str
        Modalities of sites that do not hold all; see `held_at`.
    public : str, optional
        Stimuli of one site more, `PUBLIC`, that has no brain: see `public_view`.

    Raises
    ------
    LeakageError
        For clusters fitted on stimuli of the test part.
    InputError
        As of `check_places`, which can be asked before the embeddings are made.
    """

    study: Study
    places: Mapping[str, Sequence[str]]
    classes: LabelClasses | ClusterClasses
    image: Targets
    text: Targets
    holds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    public: str | None = None

    def __post_init__(self) -> None:
        check_places(self.study, self.places, self.holds, self.public, isinstance(self.classes, ClusterClasses))
        if isinstance(self.classes, ClusterClasses):
            self.classes.check_apart(self.study.roles().get("test", []))

    @property
    def names(self) -> list[str]:
        """All sites."""
        return list(held_by(self.places, self.holds, self.public))

    @property
    def people(self) -> dict[str, list[str]]:
        """Whose brains each site has; nobody's where it holds no fMRI."""
        return {name: list(self.places[name]) if _BRAIN in self.held(name) else [] for name in self.names}

    def held(self, name: str) -> tuple[str, ...]:
        """Modalities of a site."""
        return held_by(self.places, self.holds, self.public)[name]

    def agreement(self, width: int) -> Agreement:
        """What sites have alike, with a network of this width."""
        image, text = self.image, self.text
        widths = image.shape("pooled")[0], text.shape("pooled")[0]
        return Agreement(self.classes.names, *widths, width, image.identity, text.identity)

    def trials(self, name: str) -> Trials:
        """What a site trains on, with labels, before anything is hidden."""
        image, text = (
            each if modality in self.held(name) else each.shape("pooled")[0]
            for modality, each in ((_PICTURE, self.image), (_WORDS, self.text))
        )
        if self.people[name]:
            view = self.study.split("train").subset(self.places[name])
            return Trials.of_study(view, image, text, self._labels(view))
        view = public_view(self.study, self.public if name == PUBLIC and self.public is not None else "train")
        rows = np.ones(len(view.stimulus_ids), dtype=bool)
        if people := self.places.get(name, ()):
            rows = np.isin(view.stimulus_ids, np.concatenate([view.trials(who)["stimulus_id"] for who in people]))
        ids = view.stimulus_ids[rows]
        return Trials.of_stimuli(ids, image, text, self._labels(view)[rows], view.units[rows])

    def tests(self, role: str = "test") -> dict[str, Trials]:
        """Complete trials of every site that has a brain, repeats averaged, whatever modalities the site holds."""
        views = {name: self.study.split(role).subset(people) for name, people in self.people.items() if people}
        return {
            name: Trials.of_study(view, self.image, self.text, self._labels(view), averaged=True)
            for name, view in views.items()
        }

    def units(self, role: str = "test") -> dict[str, str]:
        """Unit of resampling of each stimulus of a role."""
        view = self.study.split(role)
        return dict(zip(view.stimulus_ids.tolist(), view.units.tolist(), strict=True))

    def site(self, name: str, width: int, missing: Missing | None = None) -> SiteState:
        """A site before its first round, in a network of this width, with what is hidden on purpose."""
        held = {each: [modality in self.held(each) for modality in MODALITIES] for each in self.names}
        return first_state_of(name, self.trials(name), self.agreement(width), missing, held)

    def sites(self, width: int, missing: Missing | None = None) -> dict[str, SiteState]:
        """All sites before their first round."""
        return {name: self.site(name, width, missing) for name in self.names}

    def _labels(self, view: StudyView) -> np.ndarray:
        """Of the view's stimuli."""
        if isinstance(self.classes, ClusterClasses):
            return self.classes.labels(self.image, view.stimulus_ids)
        return self.classes.labels(view.stimuli.labels)


def first_state_of(
    name: str,
    trials: Trials,
    agreement: Agreement,
    missing: Missing | None = None,
    sites: Sequence[str] | Mapping[str, Sequence[bool]] = (),
) -> SiteState:
    """A site before its first round from its trials, with what is hidden on purpose of what they have.

    Parameters
    ----------
    name : str
    trials : Trials
    agreement : Agreement
    missing : Missing, optional
    sites : sequence of str, or mapping of str to (3,) sequence of bool
        All sites of the federation, and what they hold: see `missing_pattern`.
    """
    if missing is not None:
        held = trials.present.numpy()
        hidden = missing_pattern(trials.ids, missing.rate, missing.kind, missing.seed, name, sites, held)
        trials = trials.hiding(hidden)
    return SiteState(name, trials, agreement)
