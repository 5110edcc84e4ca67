"""What it costs Lite-Mind to be trained across sites: federated against all trials at one place, at equal epochs.

    OMP_NUM_THREADS=1 python benchmarks/federated_lite_mind.py [--seeds 0 1 2] [--json FILE]

Four virtual people at four sites, fMRI and pictures, no words and no classes: the network of PmcmFL is then a Lite-Mind
decoder with a patch embedding a person, whose spectral trunk and readout are shared. It learns to find the picture's
embedding (`z:pocket`) by InfoNCE. Both have the same people, trials, epochs, batches and learning rate; one place takes
one step for all people, sites take theirs and are averaged once a round. Scored among 200 test pictures that nobody was
trained on, per person first. Chance, a person's own ridge and Lite-Mind at each site alone stand beside. Every seed is
another study.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nsd_size import machine

import phosphene as ph
from phosphene.decoders.ridge import RidgeConfig, fit_ridge
from phosphene.evaluation.metrics import count_true, similarity, top_k, two_way
from phosphene.evaluation.missing_modalities import Network, shown
from phosphene.federation import Agreement, Federated, FederationSettings, SiteState, Trials, federate, site_model
from phosphene.federation.trials import TEXT
from phosphene.files import write_json

RESULTS = Path(__file__).parent / "results" / "federated_lite_mind.json"
PEOPLE, ROUNDS, EPOCHS = 4, 30, 1
SETTINGS: dict[str, Any] = {
    "model": {"trunk": "lite-mind", "adapter": "learned", "width": 64, "patches": 16, "heads": ["retrieval"]},
    "masks": {"token": 1.0, "retrieval": 0.0, "dropout": 0.0},
    "objective": {"retrieval_weight": 1.0, **{f"contrast_{part}": 0.0 for part in ("fmri", "image", "text", "fusion")}},
    "inference": {"rule": "token"},
    "client": {"epochs": EPOCHS, "batch_size": 64, "learning_rate": 2e-3, "optimiser": "kept"},
}
Scores = dict[str, float]


class Bench:
    """A study's people as sites."""

    def __init__(self, seed: int) -> None:
        study = ph.virtual.study(
            None,
            seed=seed,
            subjects=PEOPLE,
            sessions=1,
            repeats=1,
            runs=1,
            person={"voxels": 400, "noise": 0.3},
            stimuli={"test": 200, "common": 0, "own": 800, "size": 32, "captions": 1},
        )
        train, test = study.split("train"), study.split("test")
        targets = ph.encode(study.stimuli, "z:pocket", fit_on=train.stimulus_ids, cache=False, progress=False)
        self.settings = FederationSettings.preset(seed=seed, **SETTINGS)
        width = targets.shape("pooled")[0]
        self.agreement = Agreement(("no", "classes"), width, 2, self.settings.model.width, targets.identity)
        self.sites = {
            f"site-{person}": SiteState(f"site-{person}", self.trials(train.subset([person]), targets), self.agreement)
            for person in study.subjects
        }
        self.tests = {
            f"site-{person}": self.trials(test.subset([person]), targets, averaged=True) for person in study.subjects
        }

    def trials(self, view: Any, targets: Any, averaged: bool = False) -> Trials:
        """One person's, without words and without labels."""
        made = Trials.of_study(view, targets, 2, averaged=averaged)
        assert not bool(made.present[:, TEXT].any())
        return made

    def score(self, done: dict[str, Federated]) -> Scores:
        """Mean over people, of the brain alone."""
        found = []
        for name, trials in self.tests.items():
            own = done[name]
            site = own.sites.get(name) or next(iter(own.sites.values()))
            network = Network(site_model(site, own.shared, self.settings), own.shared.library, self.settings)
            said = network.predict(shown(trials.inputs, "fmri"))
            assert said.embedding is not None
            found.append(scores_of(said.embedding.numpy(), trials))
        return {metric: float(np.mean([each[metric] for each in found])) for metric in found[0]}

    def federated(self) -> Scores:
        """Four sites."""
        done = federate(self.sites, self.settings, ROUNDS, progress=False)
        return self.score(dict.fromkeys(self.tests, done))

    def central(self) -> Scores:
        """All trials at one place."""
        joined = Trials.joined([self.sites[name].trials for name in sorted(self.sites)])
        one = {"everywhere": SiteState("everywhere", joined, self.agreement)}
        return self.score(dict.fromkeys(self.tests, federate(one, self.settings, ROUNDS, progress=False)))

    def local(self) -> Scores:
        """Each site alone."""
        return self.score(
            {n: federate({n: site}, self.settings, ROUNDS, progress=False) for n, site in self.sites.items()}
        )

    def ridge(self) -> Scores:
        """Each person's own ridge to the same embeddings."""
        found = []
        for name, trials in self.tests.items():
            train = self.sites[name].trials
            (person, x), y = next(iter(train.inputs.responses.items())), train.inputs.image
            weight, bias, _ = fit_ridge(x.double(), y.double(), train.ids, RidgeConfig(), person)
            said = trials.inputs.responses[person].double() @ weight + bias
            found.append(scores_of(said.numpy(), trials))
        return {metric: float(np.mean([each[metric] for each in found])) for metric in found[0]}


def scores_of(said: np.ndarray, trials: Trials) -> Scores:
    """Retrieval in both directions."""
    table = similarity(said, trials.inputs.image.numpy(), "cosine")
    found = {}
    for way, each in (("brain to image", table), ("image to brain", table.T)):
        counts = count_true(each)
        found |= {f"top-1, {way}": float(top_k(counts, 1).mean()), f"two-way, {way}": float(two_way(counts).mean())}
    return found


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.getLogger("phosphene").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        bench = Bench(seed)
        row: dict[str, Any] = {"seed": seed}
        for name in ("federated", "central", "local", "ridge"):
            start = time.process_time()
            row[name] = {**getattr(bench, name)(), "cpu_s": round(time.process_time() - start, 1)}
            print(seed, name, {key: round(value, 3) for key, value in row[name].items()}, flush=True)
        runs.append(row)
    metrics = [metric for metric in runs[0]["central"] if metric != "cpu_s"]
    lost = {metric: [round(run["federated"][metric] - run["central"][metric], 4) for run in runs] for metric in metrics}
    facts = {"people": PEOPLE, "rounds": ROUNDS, "epochs a round": EPOCHS, "settings": SETTINGS, "gallery": 200}
    command = f"python benchmarks/{Path(sys.argv[0]).name} --seeds {' '.join(map(str, options.seeds))}"
    result = {"machine": machine(), "command": command, **facts, "runs": runs, "federated minus central": lost}
    write_json(options.json, result)
    print("federated minus central:", lost)


if __name__ == "__main__":
    main()
