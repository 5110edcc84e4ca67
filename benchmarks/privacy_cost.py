"""What protection costs: epsilon by noise, and measured accuracy and attacks; the tables of docs/federated_privacy.md.

    OMP_NUM_THREADS=1 python benchmarks/privacy_cost.py [--seeds 0 1 2] [--json FILE]
    python benchmarks/privacy_cost.py --reckoned [--rounds 20] [--delta 1e-5]     # without training: seconds

Four virtual people at four sites, 240 trials each, 30 % of modalities missing, six rounds. Every arm is trained and
scored on held-out stimuli, and trained again on half of every site's stimuli and attacked. Every seed is another
study. Needs the extra `privacy`.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federated_faults import accuracy, hospitals
from nsd_size import machine

from phosphene.evaluation.hospitals import Cell, Hospitals
from phosphene.evaluation.missing_modalities import chances
from phosphene.federation import FederationSettings, federate
from phosphene.federation.accounting import Accountant, Release, Unit
from phosphene.federation.audit_run import audit_run
from phosphene.federation.library import PARTS
from phosphene.federation.privacy import PrivacySettings, Protection
from phosphene.federation.protected import readable
from phosphene.federation.trial_sgd import TrialSgdSettings
from phosphene.files import write_json
from phosphene.settings import merge

RESULTS = Path(__file__).parent / "results" / "privacy_cost.json"
WIDTH = 64
NOISE = (1.0, 2.0, 4.0, 8.0, 16.0)
TRIALS, EPOCHS = 640, 2  # of private training in the table without training

SITES, OWN, VOXELS, RATE, ROUNDS = 4, 240, 300, 0.3, 6
SETTINGS = {"model": {"width": 32}, "client": {"learning_rate": 2e-3, "epochs": 4}}
CLASSES_ALONE = {
    "client": {"epochs": 2},  # a backward pass a trial is slow
    "model": {"adapter": "learned"},
    "objective": {"retrieval_weight": 0.0, **{f"contrast_{part}": 0.0 for part in PARTS}},
}
CLIPPED = {"update_limit": 4.0, "feature_limit": 6.0}
PROTOTYPES = {"feature_limit": 6.0, "library_noise": 2.0}
BY_LOSS, BY_PROTOTYPE = "membership by loss", "inversion, all counts, image"
BORNE = 0.03  # noise, for --reckoned, which measures nothing
TOLERATED = 0.05  # accuracy from the brain alone that noise may cost


@dataclass(frozen=True)
class Arm:
    """How a run is protected."""

    privacy: dict[str, Any] = field(default_factory=dict)
    secure: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def noise(level: float) -> dict[str, Any]:
    """On weights and prototypes."""
    return {**CLIPPED, "update_noise": level, "library_noise": level}


def private(level: float) -> Arm:
    """Training per trial, beside noise on prototypes."""
    return Arm({**PROTOTYPES, "trial_sgd": {"noise": level}}, settings=CLASSES_ALONE)


BARE_CLASSES = "none, classification loss alone"
LEVELS = (0.001, 0.01, 0.03, 0.1, 2.0)
PRIVATE = (0.03, 1.0)
ARMS = {
    "none": Arm(),
    "secure sums": Arm(secure=True),
    "clipping alone": Arm(noise(1e-6)),
    "noise 2 on prototypes alone": Arm(PROTOTYPES),
    **{f"noise {level:g} on weights and prototypes": Arm(noise(level)) for level in LEVELS},
    "noise 2, split in secure sums": Arm({**noise(2.0), "shares": SITES}, True, {"server": {"weighting": "equal"}}),
    BARE_CLASSES: Arm(settings=CLASSES_ALONE),
    **{f"private training, noise {level:g}": private(level) for level in PRIVATE},
}


# -- measured -------------------------------------------------------------------------------------------------------


def measured(arm: Arm, made: Hospitals, seed: int) -> dict[str, Any]:
    """Accuracy by pattern, epsilon per trial, and attacks: their mean over the sites at which there was one."""
    start = time.process_time()
    changes = merge(merge(SETTINGS, arm.settings), {"server": {"max_ratio": None}} if arm.secure else {})
    privacy = PrivacySettings.asked({**arm.privacy, "seed": seed}) if arm.privacy else None
    settings, _ = readable(FederationSettings.preset(seed=seed, **changes), privacy, SITES, given=False)
    sites = made.sites(Cell("privacy", "instance", RATE, seed), settings)
    done = federate(sites, settings, ROUNDS, privacy=privacy, secure=arm.secure, progress=False)
    audited = audit_run(sites, settings, ROUNDS, privacy=privacy, secure=arm.secure, seed=seed)
    found: dict[str, list[float]] = {}
    for attack in (attack for attacks in audited.values() for attack in attacks):
        found.setdefault(attack.name, []).append(attack.value)
    all_ = [attack.succeeds for attacks in audited.values() for attack in attacks]
    epsilon = math.inf if done.accountant is None else done.accountant.epsilon("trial")
    return {
        "seed": seed,
        "epsilon per trial": epsilon if math.isfinite(epsilon) else None,
        "accuracy": accuracy(done, made, list(sites), settings),
        "attacks": {name: float(np.mean(values)) for name, values in found.items()},
        "sites attacked": {name: len(values) for name, values in found.items()},
        "attacks above chance": [sum(all_), len(all_)],
        "core seconds": round(time.process_time() - start, 1),
    }


def studies(seeds: Sequence[int], arms: Sequence[str]) -> dict[str, Any]:
    """Every arm on every study."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    guesses = []
    for seed in seeds:
        made = hospitals(SITES, OWN, VOXELS, seed)
        guesses.append({name: value for name, value in chances(made.test).items() if name in ("accuracy", "commonest")})
        for name in arms:
            runs[name].append(measured(ARMS[name], made, seed))
            last = runs[name][-1]
            print(f"seed {seed}, {name}: {last['accuracy']['fmri']:.3f}, {last['core seconds']} s", file=sys.stderr)
    return {"runs": runs, "chances": guesses}


def row(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """A line of the table: mean and standard deviation over studies."""
    epsilon = runs[0]["epsilon per trial"]
    values = [[run["accuracy"][pattern] for run in runs] for pattern in ("fmri", "all")]
    values += [[run["attacks"][a] for run in runs if a in run["attacks"]] for a in (BY_LOSS, BY_PROTOTYPE)]
    above = [sum(run["attacks above chance"][place] for run in runs) for place in (0, 1)]
    words = ["no promise" if epsilon is None else f"{epsilon:.3g}", *map(spread, values), f"{above[0]} of {above[1]}"]
    return f"| {name} | " + " | ".join(words) + " |"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return "nothing to attack"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """All arms."""
    head = ["protection", "epsilon per trial", "brain alone", "everything shown", "membership by loss, AUC"]
    head += ["inversion, picture prototypes, top-1", "attacks above chance"]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(row(name, each) for name, each in runs.items())]


# -- what it would take ---------------------------------------------------------------------------------------------


def tolerated(runs: dict[str, list[dict[str, Any]]], levels: Sequence[float], words: str, bare: str) -> float | None:
    """The strongest noise that costs the brain alone no more than `TOLERATED`; None where all cost more."""
    mean = {name: float(np.mean([run["accuracy"]["fmri"] for run in each])) for name, each in runs.items()}
    return max((level for level in levels if mean[words.format(level)] >= mean[bare] - TOLERATED), default=None)


def more_sites(level: float, delta: float) -> list[dict[str, float]]:
    """Epsilon of weights where so many sites share what the mean of the four bears, of one trial and of one site.

    Four sites that add `level` limits each leave level / sqrt(4) limits on the mean. So many sites reach that with
    noise of `level` sqrt(n / 4) each, and with noise of `level` n / 2 that is split among them in secure sums.
    """
    found = []
    for n in (SITES, 100, 1000, 10_000):
        own, split = level * math.sqrt(n / SITES), level * n / math.sqrt(SITES)
        words: dict[str, float] = {"sites": n, "noise": own, "noise, split": split}
        for unit in ("trial", "site"):
            for name, value in (("", own), (", split", split)):
                words[f"per {unit}{name}"] = epsilon([Release("weights", value)], unit, ROUNDS, delta)
        found.append(words)
    return found


def more_trials(level: float, delta: float) -> list[dict[str, float]]:
    """Epsilon of private training where a site has more trials: as much noise on a mean gradient, in larger batches."""
    own, found = TrialSgdSettings(noise=level), []
    steps = own.steps(OWN, CLASSES_ALONE["client"]["epochs"])
    for n in (OWN, 2400, 24_000, 240_000):
        batch = min(own.batch_size / level, n)  # noise 1, where a site has so many trials
        noise = level * batch / own.batch_size
        release = Release("gradients", noise, steps, batch / n)
        words = {"trials": n, "batch": round(batch), "noise": noise}
        found.append({**words, "per trial": epsilon([release], "trial", ROUNDS, delta)})
    return found


def epsilon(releases: Sequence[Release], unit: Unit, rounds: int, delta: float) -> float:
    """After so many rounds of one site."""
    accountant = Accountant(delta)
    for _ in range(rounds):
        accountant.spend("site", releases)
    return accountant.epsilon(unit, "site")


def reckoned(rounds: int, delta: float) -> list[str]:
    """Epsilon by noise, and what it adds to prototypes."""
    head = ["noise", "per trial, prototypes alone", "per trial, with weights", "per site, weights", "on a sum"]
    lines = [f"| {' | '.join([*head, 'on a count'])} |", "|---" * 6 + "|"]
    for level in NOISE:
        library = {"feature_limit": 1.0, "library_noise": level}
        both = {**library, "update_limit": 1.0, "update_noise": level}
        alone, all_ = (Protection(PrivacySettings(**each), WIDTH, len(PARTS)) for each in (library, both))
        values = [
            epsilon(alone.releases(weights=False), "trial", rounds, delta),
            epsilon(all_.releases(), "trial", rounds, delta),
            epsilon(all_.releases(), "site", rounds, delta),
            alone.sum_deviation,
            alone.count_deviation,
        ]
        lines.append(f"| {level:g} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    for level in NOISE[:3]:
        release = TrialSgdSettings(noise=level, batch_size=64).release(TRIALS, EPOCHS)
        lines.append(f"private training, noise {level:g}: epsilon {epsilon([release], 'trial', rounds, delta):.1f}")
    return lines


def needed(runs: dict[str, list[dict[str, Any]]], delta: float) -> dict[str, Any]:
    """How many sites and trials a promise would take, from what noise the measured runs bear."""
    on_weights = tolerated(runs, LEVELS, "noise {:g} on weights and prototypes", "none")
    on_gradients = tolerated(runs, PRIVATE, "private training, noise {:g}", BARE_CLASSES)
    return {
        "delta": delta,
        "noise on weights that is borne": on_weights,
        "sites": [] if on_weights is None else more_sites(on_weights, delta),
        "noise on gradients that is borne": on_gradients,
        "trials": [] if on_gradients is None else more_trials(on_gradients, delta),
    }


def main() -> None:
    """Print all tables; train and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--reckoned", action="store_true", help="no training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    print("\n".join(reckoned(options.rounds, options.delta)))
    if options.reckoned:
        print(f"if four sites bear noise {BORNE:g} on weights, or private training does, {ROUNDS} rounds:")
        print(*more_sites(BORNE, options.delta), *more_trials(BORNE, options.delta), sep="\n")
        return
    logging.getLogger("phosphene").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    found = studies(options.seeds, list(ARMS))
    result = {
        "machine": machine(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} --seeds {' '.join(map(str, options.seeds))}",
        "rounds": ROUNDS,
        "missing": RATE,
        **found,
        "needed": needed(found["runs"], options.delta),
        "core minutes": round(time.process_time() / 60, 1),
    }
    write_json(options.json, result)
    print("\n".join(table(found["runs"])))
    print("chance:", spread([each["accuracy"] for each in found["chances"]]), "commonest:", end=" ")
    print(spread([each["commonest"] for each in found["chances"]]), f"{result['core minutes']} core minutes")
    for name in ("sites", "trials"):
        print(f"noise that is borne by the number of {name}:", *result["needed"][name], sep="\n")


if __name__ == "__main__":
    main()
