"""Rounds that go wrong: sites that die, one that sends NaN and one that is poisoned; and 32 sites in one process.

    OMP_NUM_THREADS=1 python benchmarks/federated_faults.py [--seeds 0 1 2] [--json FILE]

Eight virtual people at eight sites, half of the modalities missing. Three sites die in rounds of their own and never
come back, one sends NaN and one its update and sums times 100, in every round. The other three are scored: in that run,
in a clean run of those three alone, and in a clean run of all eight. Every seed is another study. The second table is
32 people at 32 sites: seconds and bytes of a round, plain and with secure sums.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nsd_size import machine

import phosphene as ph
from phosphene.evaluation.hospitals import Cell, Hospitals, hospitals_of_study
from phosphene.evaluation.missing_modalities import PATTERNS, Network, shown
from phosphene.federation import Fault, Federated, FederationSettings, LabelClasses, dealt, federate, site_model
from phosphene.files import write_json

RESULTS = Path(__file__).parent / "results" / "federated_faults.json"
ROUNDS, RATE = 12, 0.5
FAULTS = ["drop:site-1:3-12", "drop:site-2:6-12", "drop:site-3:9-12", "nan:site-4:1-12", "poison:site-5:1-12:100"]
STRUCK = {fault.split(":")[1] for fault in FAULTS}
SETTINGS = {"client": {"learning_rate": 3e-3}}


def hospitals(people: int, own: int, voxels: int, seed: int) -> Hospitals:
    """Virtual people at a site each."""
    study = ph.virtual.study(
        None,
        seed=seed,
        subjects=people,
        sessions=1,
        repeats=1,
        runs=1,
        person={"voxels": voxels, "noise": 0.5},
        stimuli={"test": 120, "common": 0, "own": own, "size": 32, "captions": 1},
    )
    train = study.split("train")
    options: dict[str, Any] = {"fit_on": train.stimulus_ids, "cache": False, "progress": False}
    image, text = (ph.encode(study.stimuli, name, **options) for name in ("z:pocket", "tfidf-svd100"))
    classes = LabelClasses.found(train.stimuli.labels, ["group"])
    return hospitals_of_study(study, dealt(study.subjects, people), classes, (image, text))


def accuracy(done: Federated, made: Hospitals, names: Sequence[str], settings: FederationSettings) -> dict[str, float]:
    """Mean over some sites, by pattern."""
    found: dict[str, list[float]] = {}
    for name in names:
        network = Network(site_model(done.sites[name], done.shared, settings), done.shared.library, settings)
        trials = made.test[name]
        assert trials.labels is not None
        for pattern in PATTERNS:
            logits = network.predict(shown(trials.inputs, pattern)).logits
            assert logits is not None
            hits = logits.argmax(dim=1) == trials.labels.argmax(dim=1)
            found.setdefault(pattern, []).append(float(hits.float().mean()))
    return {pattern: float(np.mean(values)) for pattern, values in found.items()}


def struck(seed: int) -> dict[str, Any]:
    """Accuracy of the sites that nothing happens to, in three runs of one study."""
    settings = FederationSettings.preset(seed=seed, **SETTINGS)
    made = hospitals(8, 150, 200, seed)
    sites = made.sites(Cell("faults", "instance", RATE, seed), settings)
    spared = sorted(set(sites) - STRUCK)
    faults = [Fault.parse(words) for words in FAULTS]
    runs = {
        "with faults": federate(sites, settings, ROUNDS, faults=faults, quorum=3, progress=False),
        "clean, without the struck sites": federate({n: sites[n] for n in spared}, settings, ROUNDS, progress=False),
        "clean, all sites": federate(sites, settings, ROUNDS, progress=False),
    }
    history = runs["with faults"].history
    return {
        "seed": seed,
        "accuracy": {name: accuracy(done, made, spared, settings) for name, done in runs.items()},
        "used": [len(record.used) for record in history],
        "refused": {name: reason for record in history for name, reason in record.refused.items()},
        "missing": {name: reason for record in history for name, reason in record.missing.items()},
    }


def many(n_sites: int = 32, rounds: int = 5) -> dict[str, Any]:
    """Seconds and bytes of a round with many sites."""
    settings = FederationSettings.preset(**SETTINGS)
    made = hospitals(n_sites, 40, 100, 7)
    sites = made.sites(Cell("many", "instance", RATE, 0), settings)
    found: dict[str, Any] = {"sites": n_sites, "rounds": rounds, "trials per site": 40, "voxels": 100}
    without = FederationSettings.preset(**SETTINGS, server={"max_ratio": None})
    for name, own, secure in (("plain", settings, False), ("secure sums", without, True)):
        start = time.perf_counter()
        done = federate(sites, own, rounds, secure=secure, progress=False)
        found[name] = {
            "seconds per round": round((time.perf_counter() - start) / rounds, 2),
            "bytes up per site": int(np.mean([n for record in done.history for n in record.bytes_up.values()])),
            "sites used": min(len(record.used) for record in done.history),
        }
    return found


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.getLogger("phosphene").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    runs = [struck(seed) for seed in options.seeds]
    differences = [
        {p: run["accuracy"]["with faults"][p] - run["accuracy"]["clean, without the struck sites"][p] for p in PATTERNS}
        for run in runs
    ]
    result = {
        "machine": machine(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} --seeds {' '.join(map(str, options.seeds))}",
        "faults": FAULTS,
        "rounds": ROUNDS,
        "missing": RATE,
        "runs": runs,
        "with faults minus clean without the struck sites": {
            p: [round(each[p], 4) for each in differences] for p in PATTERNS
        },
        "many sites": many(),
    }
    write_json(options.json, result)
    for name in runs[0]["accuracy"]:
        means = {p: np.mean([run["accuracy"][name][p] for run in runs]) for p in PATTERNS}
        print(f"{name}: " + ", ".join(f"{p} {value:.3f}" for p, value in means.items()))
    print("difference:", {p: round(float(np.mean([each[p] for each in differences])), 3) for p in PATTERNS})
    print("used:", runs[0]["used"], runs[0]["refused"], runs[0]["missing"])
    print(result["many sites"])


if __name__ == "__main__":
    main()
