"""The missing-modality matrix: what is missing in training by what is shown in test, for every arm, kept cell by cell.

All arms of a cell have the same sites, masks (drawn from the seed and the sites' names), seed, rounds and test trials,
and the same resamples of test stimuli, so that they can be paired. A record is written, whole, as soon as an arm of a
cell is done; a matrix that was interrupted goes on behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phosphene.errors import InputError
from phosphene.evaluation.federated_rivals import Arm, Settings, Trained, train
from phosphene.evaluation.missing_modalities import (
    PATTERNS,
    Network,
    chances,
    leak_with_labels,
    one_class_each,
    score_pattern,
    shown,
)
from phosphene.evaluation.scorecard import plain
from phosphene.evaluation.statistics import Resampler
from phosphene.federation.inference import Predicted
from phosphene.federation.missing import Kind, fractions, missing_pattern
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Agreement, SiteState
from phosphene.federation.trials import Trials
from phosphene.files import digest, read_json, write_json
from phosphene.training.progress import progress_bar

__all__ = ["Cell", "Hospitals", "Plan", "held_out", "run_matrix", "tune"]

log = logging.getLogger(__name__)

LEAK = "leak_with_labels"
_SPLIT = "test"


@dataclass(frozen=True, eq=False)
class Hospitals:
    """Trials of all sites, complete, before anything is hidden.

    Attributes
    ----------
    train, test : dict of str to Trials
        By site, labelled; the test's are complete, and no stimulus is in both.
    image, text : tuple of int and str
        Width and identity of the frozen encoders' embeddings.
    classes : tuple of str
    units : dict of str to str
        Unit of resampling of each test stimulus.

    Raises
    ------
    InputError
        For other sites in test than in training, people who were never trained on, stimuli in both, and classes that
        do not fit the labels.
    """

    train: dict[str, Trials]
    test: dict[str, Trials]
    image: tuple[int, str]
    text: tuple[int, str]
    classes: tuple[str, ...]
    units: dict[str, str]

    def __post_init__(self) -> None:
        if not self.train or self.train.keys() != self.test.keys():
            raise InputError(f"sites {', '.join(self.train)} in training and {', '.join(self.test)} in test: not alike")
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

    def sites(self, cell: Cell, settings: FederationSettings) -> dict[str, SiteState]:
        """Sites before their first round, with what the cell takes from them: the same for every arm."""
        agreement = Agreement(
            self.classes, self.image[0], self.text[0], settings.model.width, self.image[1], self.text[1]
        )
        names = sorted(self.train)
        made = {}
        for name in names:
            trials = self.train[name]
            held = missing_pattern(trials.ids, cell.rate, cell.kind, cell.seed, name, names, trials.present.numpy())
            made[name] = SiteState(name, trials.hiding(held), agreement)
        return made


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


@dataclass(frozen=True)
class Plan:
    """What is alike in all cells.

    Attributes
    ----------
    arms : dict of str to Arm
    chosen : dict of str to dict
        What tuning chose, by arm; without an entry its first candidate stands.
    common : dict
        Settings of all arms: tables model and client.
    rounds : int
    n_boot : int
        Resamples of test stimuli.
    """

    arms: Mapping[str, Arm]
    chosen: Mapping[str, Settings] = field(default_factory=dict)
    common: Settings = field(default_factory=dict)
    rounds: int = 15
    n_boot: int = 200

    def settings(self, arm: Arm, task: str, seed: int) -> FederationSettings:
        """Settings of an arm in a cell; those published keep their own form of the task loss."""
        first = arm.candidates[0] if arm.candidates else {}
        made = arm.settings(self.common, self.chosen.get(arm.like or arm.name, first), seed)
        if task == "bce" and made.objective.task != "bce":
            made = FederationSettings.build(made.model_dump(), {"objective": {"task": "bce"}})
        return made


def run_matrix(
    hospitals: Hospitals, plan: Plan, cells: Sequence[Cell], folder: str | Path, progress: bool = True
) -> list[dict[str, Any]]:
    """Records of all arms in all cells; what `folder` holds already is read, not done again.

    Parameters
    ----------
    hospitals : Hospitals
    plan : Plan
    cells : sequence of Cell
    folder : str or Path
        A file a record, ``records/<cell>-<arm>.json``.
    progress : bool

    Raises
    ------
    InputError
        For a record that was made with other data, settings or rounds.
    """
    records, print_ = [], hospitals.fingerprint
    with progress_bar("federate-matrix", len(cells) * len(plan.arms), progress) as tell:
        for cell in cells:
            for record in _cell(hospitals, plan, cell, Path(folder) / "records", print_):
                records.append(record)
                tell(len(records), f"{cell.words} {record['arm']}")
    return records


def _cell(hospitals: Hospitals, plan: Plan, cell: Cell, folder: Path, print_: str) -> Iterator[dict[str, Any]]:
    """Records of one cell; arms that train alike and differ in inference alone are trained once."""
    trained: dict[str, Trained] = {}
    for arm in plan.arms.values():
        settings = plan.settings(arm, hospitals.task, cell.seed)
        asked = plain({
            "data": print_, "rounds": plan.rounds, "n_boot": plan.n_boot, "settings": settings.model_dump(mode="json"),
            "engine": arm.engine, "privacy": arm.privacy,
        })  # fmt: skip
        path = folder / f"{cell.words}-{arm.name}.json"
        if path.exists():
            yield _known(path, asked)
            continue
        sites = hospitals.sites(cell, settings)
        same = digest(str({**asked, "settings": settings.model_copy(update={"inference": None}).model_dump()}))
        if same not in trained:
            trained[same] = train(arm, sites, settings, plan.rounds)
        record = {
            "condition": cell.condition, "kind": cell.kind, "rate": cell.rate, "seed": cell.seed, "arm": arm.name,
            **_scores(hospitals, trained[same], settings, cell.seed, plan.n_boot),
            "fractions": _realised(sites), "cost": trained[same].cost, "asked": asked,
        }  # fmt: skip
        write_json(path, plain(record))
        log.info("%s %s: %.1f s", cell.words, arm.name, trained[same].cost["seconds"])
        yield read_json(path)


def _known(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = read_json(path)
    if differ := [name for name in asked if record["asked"].get(name) != asked[name]]:
        raise InputError(f"{path} was made with other {', '.join(differ)}: name a new folder, or use the same")
    return record


def _scores(
    hospitals: Hospitals, trained: Trained, settings: FederationSettings, seed: int, n_boot: int
) -> dict[str, Any]:
    resampler = Resampler({_SPLIT: np.array(sorted(set(hospitals.units.values())))}, n_boot, seed)
    found: dict[str, Any] = {"patterns": {}, LEAK: {}}
    for pattern, held in PATTERNS.items():
        networks = {
            name: trained.network(name, trials.inputs.people, settings, pattern)
            for name, trials in hospitals.test.items()
        }
        said = predictions(networks, hospitals.test, pattern)
        rest = (hospitals.test, pattern, resampler, hospitals.units, settings.objective.task)
        found["patterns"][pattern] = score_pattern(said, *rest)
        if not all(held):
            told = {name: leak_with_labels(networks[name], trials, pattern) for name, trials in hospitals.test.items()}
            leak = score_pattern(told, *rest)
            found[LEAK][pattern] = {"mean": leak["mean"], "worst": leak["worst"]}
    return {**found, "chance": chances(hospitals.test)}


def predictions(networks: Mapping[str, Network], tests: Mapping[str, Trials], pattern: str) -> dict[str, Predicted]:
    """What sites say of their test trials; labels are not handed on."""
    return {name: networks[name].predict(shown(trials.inputs, pattern)) for name, trials in tests.items()}


def _realised(sites: Mapping[str, SiteState]) -> dict[str, Any]:
    """Shares of what is missing, over all trials and by site."""
    whole = torch.cat([site.trials.present for site in sites.values()]).numpy()
    return {"all": fractions(whole), **{name: fractions(each.trials.present.numpy()) for name, each in sites.items()}}


# -- tuning ------------------------------------------------------------------------------------------------------


def held_out(hospitals: Hospitals, share: float = 0.2, seed: int = 0) -> Hospitals:
    """The training part alone, a share of its stimuli in the place of the test: for choosing settings.

    Raises
    ------
    InputError
        For a share that leaves a person without training or validation trials.
    """
    ids = np.array(sorted({name for trials in hospitals.train.values() for name in trials.ids.tolist()}))
    chosen = np.random.default_rng(seed).permutation(ids)[: max(2, round(share * len(ids)))]
    train_, test = {}, {}
    for name, trials in hospitals.train.items():
        out = torch.from_numpy(np.isin(trials.ids, chosen))
        complete = trials.complete
        train_[name], test[name] = (trials.select(rows.nonzero().flatten()) for rows in (~out, out & complete))
        if trials.inputs.people.keys() - test[name].inputs.people.keys():
            raise InputError(f"{share:g} of the training stimuli leave somebody at {name} without a validation trial")
    return replace(hospitals, train=train_, test=test, units={each: each for each in chosen.tolist()})


def tune(
    hospitals: Hospitals, plan: Plan, cells: Sequence[Cell], folder: str | Path, progress: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """Scores of every candidate of every arm on `hospitals`, by arm: the mean of the headline over cells and patterns.

    Parameters
    ----------
    hospitals : Hospitals
        Of `held_out`: the test of the comparison must not be in it.
    plan : Plan
    cells : sequence of Cell
        Of development: other seeds than the comparison's, where these decide about the data.
    folder : str or Path
    progress : bool

    Returns
    -------
    dict
        Of each arm that is tuned, its candidates with ``settings``, ``score`` and the number of ``cells``.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    most = max(len(arm.candidates) for arm in plan.arms.values())
    for number in range(most):
        arms = {name: arm for name, arm in plan.arms.items() if number < len(arm.candidates)}
        chosen = {name: arm.candidates[number] for name, arm in arms.items()}
        trial = replace(plan, arms=arms, chosen=chosen)
        records = run_matrix(hospitals, trial, cells, Path(folder) / f"candidate-{number}", progress)
        for name in arms:
            scores = [_headline(record) for record in records if record["arm"] == name]
            row = {"settings": chosen[name], "score": float(np.mean(scores)), "cells": len(scores)}
            found.setdefault(name, []).append(row)
    return found


def _headline(record: Mapping[str, Any]) -> float:
    """Mean over patterns of accuracy, or of mAP."""
    means = [each["mean"] for each in record["patterns"].values()]
    return float(np.mean([mean.get("accuracy", mean.get("mAP")) for mean in means]))
