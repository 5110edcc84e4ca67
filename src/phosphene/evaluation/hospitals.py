"""Hospitals of a comparison: complete trials of every site, classes dealt to them, and what a cell takes away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from phosphene.errors import InputError
from phosphene.evaluation.missing_modalities import one_class_each
from phosphene.federation.classes import ClusterClasses, LabelClasses
from phosphene.federation.missing import Kind, Missing
from phosphene.federation.randomness import seed_of
from phosphene.federation.settings import FederationSettings
from phosphene.federation.sites import StudySites, first_state_of
from phosphene.federation.state import Agreement, SiteState
from phosphene.federation.trials import Trials
from phosphene.files import digest

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import Study

__all__ = ["Cell", "Hospitals", "held_out", "hospitals_of_sites", "hospitals_of_study", "skewed"]


@dataclass(frozen=True, order=True)
class Cell:
    """What is missing in training, and the seed of everything drawn.

    Attributes
    ----------
    condition : str
        Which data, such as how classes were dealt to sites.
    kind : {"instance", "site"}
    rate : float
        Of missing modalities, in [0, 1).
    seed : int
    """

    condition: str
    kind: Kind
    rate: float
    seed: int

    @property
    def words(self) -> str:
        """For file names and progress."""
        return f"{self.condition}-{self.kind}-{self.rate:g}-seed{self.seed}".replace(" ", "_")


@dataclass(frozen=True, eq=False)
class Hospitals:
    """Trials of all sites, with all that each holds, before anything is hidden.

    Attributes
    ----------
    train, test : dict of str to Trials
        By site, labelled; the test's are complete, and no stimulus is in both. A site without a brain is in training
        alone; one that lacks pictures or words may be.
    image, text : tuple of int and str
        Width and identity of the frozen encoders' embeddings.
    classes : tuple of str
    units : dict of str to str
        Unit of resampling of each test stimulus.

    Raises
    ------
    InputError
        For a site in test that has no brain or is not in training, one with complete trials that is not in test, people
        who were never trained on, stimuli in both, and classes that do not fit the labels.
    """

    train: dict[str, Trials]
    test: dict[str, Trials]
    image: tuple[int, str]
    text: tuple[int, str]
    classes: tuple[str, ...]
    units: dict[str, str]

    def __post_init__(self) -> None:
        brains = {name for name, trials in self.train.items() if trials.inputs.people}
        whole = {name for name, trials in self.train.items() if bool(trials.complete.any())}
        if not self.test or not whole <= self.test.keys() <= brains:
            raise InputError(
                f"sites {', '.join(self.train)} in training and {', '.join(self.test) or 'none'} in test: not alike"
            )
        seen = {name for trials in self.train.values() for name in trials.ids.tolist()}
        for name, trials in self.test.items():
            if strangers := trials.inputs.people.keys() - self.train[name].inputs.people.keys():
                raise InputError(f"{name} has no training trial of {', '.join(sorted(strangers))}")
            if both := sorted(seen & set(trials.ids.tolist())):
                raise InputError(f"{len(both)} test stimuli of {name} are in training, such as {both[0]}")
            if not bool(trials.complete.all()):
                raise InputError(f"{name} has test trials that lack a modality: they are hidden here, not before")
        one_class_each(self.test)

    @property
    def task(self) -> str:
        """Cross-entropy where each trial has one class, binary cross-entropy with several."""
        return "ce" if one_class_each(self.train) and one_class_each(self.test) else "bce"

    @property
    def fingerprint(self) -> str:
        """Hash of all trials."""
        parts: list[Any] = [",".join(self.classes), *self.image, *self.text]
        for trials in (*(self.train[name] for name in sorted(self.train)), *(self.test[n] for n in sorted(self.test))):
            brains = [rows.numpy() for _, rows in sorted(trials.inputs.responses.items())]
            parts += ["\n".join(trials.ids.tolist()), trials.inputs.image.numpy(), trials.inputs.text.numpy(), *brains]
            parts += [trials.present.numpy(), *([] if trials.labels is None else [trials.labels.numpy()])]
        return digest(*(str(each) if isinstance(each, int) else each for each in parts))[:16]

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """Share of every class among each site's training trials."""
        return {
            name: {c: round(share, 4) for c, share in zip(self.classes, each.labels.mean(dim=0).tolist(), strict=True)}
            for name, each in self.train.items()
            if each.labels is not None
        }

    def sites(self, cell: Cell, settings: FederationSettings) -> dict[str, SiteState]:
        """Sites before their first round, with what the cell takes from them: the same for every arm."""
        agreement = Agreement(
            self.classes, self.image[0], self.text[0], settings.model.width, self.image[1], self.text[1]
        )
        held = {name: self.train[name].present.any(dim=0).tolist() for name in sorted(self.train)}
        missing = Missing(cell.rate, cell.kind, cell.seed)
        return {name: first_state_of(name, self.train[name], agreement, missing, held) for name in held}


def hospitals_of_study(
    study: Study,
    places: Mapping[str, list[str]],
    classes: LabelClasses | ClusterClasses,
    targets: tuple[Targets, Targets],
    role: str = "test",
) -> Hospitals:
    """Hospitals of a study: its training part as trials, its test part with repeats averaged.

    Parameters
    ----------
    study : Study
        Its current split.
    places : mapping of str to list of str
        People of each site: see `phosphene.federation.dealt`.
    classes : LabelClasses or ClusterClasses
    targets : pair of Targets
        Image and text.
    role : str
        Of the test part.
    """
    return hospitals_of_sites(StudySites(study, places, classes, *targets), role)


def hospitals_of_sites(made: StudySites, role: str = "test") -> Hospitals:
    """As `hospitals_of_study`, of sites that were made already."""
    image, text = ((each.shape("pooled")[0], each.identity) for each in (made.image, made.text))
    train = {name: made.trials(name) for name in made.names}
    return Hospitals(train, made.tests(role), image, text, made.classes.names, made.units(role))


def skewed(hospitals: Hospitals, n: int, alpha: float | None, seed: int) -> Hospitals:
    """Hospitals that keep `n` training trials of each person, with classes in their own shares.

    A site's shares are drawn from a Dirichlet distribution; its people keep trials, drawn without replacement, with the
    odds that a trial's classes have there. What a class has runs out: see the realised shares (`Hospitals.shares`).

    Parameters
    ----------
    hospitals : Hospitals
    n : int
    alpha : float, optional
        Of the Dirichlet distribution over classes; None keeps trials at random.
    seed : int

    Raises
    ------
    InputError
        For somebody with fewer trials, trials without labels, and a site without people.
    """
    kept = {}
    for name, trials in hospitals.train.items():
        if trials.labels is None or not trials.inputs.people:
            lacks = "labels: classes" if trials.labels is None else "people: trials of theirs"
            raise InputError(f"the trials of {name} have no {lacks} cannot be dealt")
        rng = np.random.default_rng(seed_of(seed, "classes", name))
        labels = trials.labels.numpy().astype(np.float64)
        shares = np.ones(labels.shape[1]) if alpha is None else rng.dirichlet(np.full(labels.shape[1], alpha))
        odds = labels @ (np.maximum(shares, 1e-9) / np.maximum(labels.sum(axis=0), 1))
        rows = []
        for person in sorted(trials.inputs.people):
            own = np.flatnonzero(trials.inputs.subjects == person)
            if len(own) < n:
                raise InputError(f"{person} has {len(own)} training trials, {n} are to be kept")
            weights = None if alpha is None else np.maximum(odds[own], 1e-12)
            rows.append(rng.choice(own, n, replace=False, p=None if weights is None else weights / weights.sum()))
        kept[name] = trials.select(torch.from_numpy(np.sort(np.concatenate(rows))))
    return replace(hospitals, train=kept)


def held_out(hospitals: Hospitals, share: float = 0.2, seed: int = 0) -> Hospitals:
    """The training part alone, a share of its units in the place of the test: for choosing settings.

    What is held out is out of training everywhere. It is scored at sites that hold everything: another one has no
    complete trial that is its own.

    Raises
    ------
    InputError
        For a share that leaves a person without training or validation trials, and where no site holds everything.
    """
    units = np.array(sorted({name for trials in hospitals.train.values() for name in trials.units.tolist()}))
    chosen = np.random.default_rng(seed).permutation(units)[: max(2, round(share * len(units)))]
    train_, test = {}, {}
    for name, trials in hospitals.train.items():
        out = torch.from_numpy(np.isin(trials.units, chosen))
        complete = trials.complete
        train_[name] = trials.select((~out).nonzero().flatten())
        if not bool(complete.any()):
            continue
        test[name] = trials.select((out & complete).nonzero().flatten())
        if trials.inputs.people.keys() - test[name].inputs.people.keys():
            raise InputError(f"{share:g} of the training stimuli leave somebody at {name} without a validation trial")
    if not test:
        raise InputError("no site holds fmri, image and text: settings cannot be chosen on training stimuli held out")
    unit_of = {name: unit for each in test.values() for name, unit in zip(each.ids, each.units, strict=True)}
    return replace(hospitals, train=train_, test=test, units=unit_of)
