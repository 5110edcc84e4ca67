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
from phosphene.evaluation.federated_rivals import ARMS, Arm, Settings, Trained, train
from phosphene.evaluation.hospitals import Cell, Hospitals
from phosphene.evaluation.missing_modalities import (
    PATTERNS,
    Network,
    chances,
    leak_with_labels,
    score_pattern,
    shown,
)
from phosphene.evaluation.scorecard import plain
from phosphene.evaluation.statistics import Resampler
from phosphene.federation.inference import Predicted
from phosphene.federation.missing import fractions
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import SiteState
from phosphene.federation.trials import Trials
from phosphene.files import digest, read_json, write_json
from phosphene.training.progress import progress_bar

__all__ = ["LEAK", "Plan", "chosen_of", "predictions", "run_matrix", "tune"]

log = logging.getLogger(__name__)

LEAK = "leak_with_labels"
_SPLIT = "test"


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
        tuned = ARMS[arm.like] if arm.like else arm
        made = arm.settings(self.common, self.chosen.get(tuned.name, tuned.candidates[0]), seed)
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
        same = digest(str({**asked, "settings": settings.model_dump(mode="json", exclude={"inference"})}))
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
    made: dict[str, dict[str, Network]] = {}
    for pattern, held in PATTERNS.items():
        own = pattern if pattern in trained.held else ""
        if own not in made:
            made[own] = {
                name: trained.network(name, trials.inputs.people, settings, pattern)
                for name, trials in hospitals.test.items()
            }
        networks = made[own]
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


def chosen_of(tried: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Settings]:
    """The best candidate of each arm; the earlier one where they tie."""
    return {name: dict(max(each, key=lambda row: row["score"])["settings"]) for name, each in tried.items()}


def _headline(record: Mapping[str, Any]) -> float:
    """Mean over patterns of accuracy, or of mAP."""
    means = [each["mean"] for each in record["patterns"].values()]
    return float(np.mean([mean.get("accuracy", mean.get("mAP")) for mean in means]))
