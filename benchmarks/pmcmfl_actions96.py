"""actions96: nine people as nine hospitals, or three of three; what their brains alone say of unseen actions.

    OMP_NUM_THREADS=1 python benchmarks/pmcmfl_actions96.py --work FOLDER [--seeds 1 2] [--out JSON]

Needs the data set `actions96` in the folder `PHOSPHENE_DATA`. Modalities are the response, the frame (`z:pocket`) and
the description (`tfidf-svd30`, fitted on the fold's training videos). Classes are the categories with at least two
actions (the word before the underscore). Folds by action, the committed ones and one partition for every seed: both
videos of an action are held out for everybody. Scores are of the brain alone: the category of test videos that have one
whose other actions were trained on, and the frame among all 18 to 20 test videos of the fold. Per person first, mean
second; intervals resample actions (the unit of the folds) over all folds and partitions.

At half of the modalities missing, masks are drawn by instance from the seed of the partition, the same for all arms.
*ridge at the site* is the closed-form adapter alone, without anything that is shared; *always the same* says the
commonest category and the mean frame of all training videos, and is what a category must be told from. Settings are
those of the presets; nothing was tuned here. A line of ``FOLDER/records.jsonl`` is one fold of one arm; a run that was
stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actions96 import encode, partitions
from actions96_people import load
from nsd_size import machine

from phosphene.evaluation.federated_rivals import ARMS, train
from phosphene.evaluation.metrics import count_true, similarity, top_k, two_way
from phosphene.evaluation.missing_modalities import Network, shown
from phosphene.evaluation.statistics import Resampler
from phosphene.federation import FederationSettings, LabelClasses, Missing, StudySites, Trials, dealt
from phosphene.federation.adapter import with_adapters
from phosphene.files import write_json
from phosphene.recordings import Study
from phosphene.table import Table

RESULTS = Path(__file__).parent / "results" / "pmcmfl_actions96.json"
ENCODERS = ("z:pocket", "tfidf-svd30")
FEDERATIONS = {"nine sites of one": 9, "three sites of three": 3}
RATES = (0.0, 0.5)
RIDGE, SAME = "ridge at the site", "always the same"
NAMES = ("pmcmfl", "dropout-token", "fedavg-zero", "local", "central")
COMMON: dict[str, Any] = {"client": {"epochs": 3, "batch_size": 32}}
ROUNDS = 10
Scores = dict[str, list[float]]


def categories(study: Study) -> LabelClasses:
    """Categories of at least two actions."""
    labels = study.stimuli.labels
    actions: dict[str, set[str]] = {}
    for category, action in zip(labels["category"].tolist(), labels["action"].tolist(), strict=True):
        actions.setdefault(category, set()).add(action)
    kept = sorted(name for name, found in actions.items() if len(found) > 1)
    every = LabelClasses.found(Table({"category": labels["category"]}), ["category"])
    return LabelClasses(tuple(each for each in every.names if any(each.endswith(name) for name in kept)), every.columns)


class Fold:
    """One fold of a partition: sites, and complete test trials of all videos."""

    def __init__(self, study: Study, targets: Any, classes: LabelClasses, n_sites: int, rate: float, seed: int) -> None:
        whole = StudySites(study, dealt(study.subjects, n_sites), classes, *targets)
        self.sites = whole.sites(FederationSettings.preset().model.width, Missing(rate, seed=seed) if rate else None)
        self.tests, self.units = whole.tests(), whole.units()
        trained = torch.stack([each.trials.labels.sum(dim=0) for each in self.sites.values()]).sum(dim=0)  # type: ignore[union-attr]
        self.trained, self.known = trained, trained > 0

    def scored(self, arm: str, seed: int) -> dict[str, Any]:
        """Scores of every test video, by person."""
        start = time.process_time()
        said = {RIDGE: self.by_ridge, SAME: self.by_nothing}.get(arm, lambda: self.by(arm, seed))()
        seconds = time.process_time() - start
        people: dict[str, Any] = {}
        for name, trials in self.tests.items():
            logits, embedding = said[name]
            for person in trials.inputs.people:
                rows = np.flatnonzero(trials.inputs.subjects == person)
                people[person] = self.person(trials.select(torch.from_numpy(rows)), logits[rows], embedding[rows])
        return {"people": people, "seconds": round(seconds, 2)}

    def person(self, trials: Trials, logits: torch.Tensor, embedding: torch.Tensor) -> dict[str, Any]:
        """One person's: categories where there is one that was trained on, and frames among all."""
        assert trials.labels is not None
        labels = trials.labels * self.known
        rows = labels.sum(dim=1) > 0
        hit = logits[rows].argmax(dim=1) == labels[rows].argmax(dim=1)
        found: Scores = {"category": hit.float().tolist()}
        table = similarity(embedding.numpy(), trials.inputs.image.numpy(), "cosine")
        for way, each in (("brain to frame", table), ("frame to brain", table.T)):
            counts = count_true(each)
            found |= {f"two-way, {way}": two_way(counts).tolist(), f"top-1, {way}": top_k(counts, 1).tolist()}
        units = [self.units[each] for each in trials.ids.tolist()]
        named = [unit for unit, held in zip(units, rows.tolist(), strict=True) if held]
        return {"units": units, "units of categories": named, "scores": found}

    def by(self, arm: str, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Logits and embeddings of the brain alone, by site."""
        settings = ARMS[arm].settings(COMMON, {}, seed)
        trained = train(ARMS[arm], self.sites, settings, ROUNDS)
        found = {}
        for name, trials in self.tests.items():
            network: Network = trained.network(name, trials.inputs.people, settings, "fmri")
            said = network.predict(shown(trials.inputs, "fmri"))
            assert said.logits is not None
            assert said.embedding is not None
            found[name] = said.logits, said.embedding
        return found

    def by_nothing(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The same for every trial."""
        shown_frames = [each.trials.inputs.image[each.trials.present[:, 1]] for each in self.sites.values()]
        frame = torch.cat(shown_frames).mean(dim=0)
        return {
            name: (self.trained.expand(len(trials), -1), frame.expand(len(trials), -1))
            for name, trials in self.tests.items()
        }

    def by_ridge(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """What adapters in closed form say by themselves."""
        settings = FederationSettings.preset()
        found = {}
        for name, site in self.sites.items():
            made, inputs = with_adapters(site, settings), self.tests[name].inputs
            said = torch.zeros(len(inputs), len(made.private[f"{inputs.subjects[0]}/bias"]))
            for person, responses in inputs.responses.items():
                rows = torch.from_numpy(inputs.subjects == person)
                said[rows] = responses @ made.private[f"{person}/weight"].T + made.private[f"{person}/bias"]
            found[name] = said[:, -len(site.agreement.classes) :], said[:, : site.agreement.image_width]
        return found


def records(study: Study, seeds: Sequence[int], work: Path) -> list[dict[str, Any]]:
    """One for each arm, federation, rate and fold; those in the work folder are not run again."""
    path = work / "records.jsonl"
    kept = {}
    if path.exists():
        kept = {tuple(each["key"]): each for each in map(json.loads, path.read_text().splitlines())}
    classes = categories(study)
    for seed, (partition, (part, splits)) in enumerate(partitions(study, seeds).items()):
        for split in splits:
            targets: Any = None
            for words, n_sites in FEDERATIONS.items():
                for rate in RATES:
                    arms = [SAME, RIDGE, *NAMES]
                    keys = {arm: (partition, split, words, rate, arm) for arm in arms}
                    if all(key in kept for key in keys.values()):
                        continue
                    targets = targets or tuple(encode(part, [split], each, work)[split] for each in ENCODERS)
                    fold = Fold(part.using(split), targets, classes, n_sites, rate, seed)
                    for arm, key in keys.items():
                        if key not in kept:
                            kept[key] = {"key": key, **fold.scored(arm, seed)}
                            with path.open("a") as file:
                                file.write(json.dumps(kept[key]) + "\n")
    return list(kept.values())


# -- the table ---------------------------------------------------------------------------------------------------


def summarise(found: Sequence[Mapping[str, Any]], draws: int = 2000) -> list[dict[str, Any]]:
    """Means and intervals of every arm, and differences to the federated one on the same videos."""
    cells: dict[tuple[str, float], dict[str, list[Mapping[str, Any]]]] = {}
    for each in found:
        _, _, words, rate, arm = each["key"]
        cells.setdefault((words, rate), {}).setdefault(arm, []).append(each)
    names = {unit for each in found for person in each["people"].values() for unit in person["units"]}
    resampler = Resampler({"test": np.array(sorted(names))}, draws)
    rows = []
    for (words, rate), arms in cells.items():
        means = {arm: mean_of(of, resampler) for arm, of in arms.items()}
        for arm, metrics in means.items():
            row: dict[str, Any] = {"federation": words, "missing": rate, "arm": arm}
            row["cpu_s"] = round(float(np.mean([each["seconds"] for each in arms[arm]])), 2)
            for metric, (value, drawn) in metrics.items():
                row[metric] = {"mean": value, "interval": np.quantile(drawn, [0.025, 0.975]).tolist()}
                if arm != "pmcmfl":
                    mean, other = means["pmcmfl"][metric]
                    row[metric]["pmcmfl above it"] = {
                        "mean": mean - value,
                        "interval": np.quantile(other - drawn, [0.025, 0.975]).tolist(),
                    }
            rows.append(row)
    return rows


def mean_of(found: Sequence[Mapping[str, Any]], resampler: Resampler) -> dict[str, tuple[float, np.ndarray]]:
    """Mean over people of the mean over videos of all folds, and in every resample of actions."""
    pooled: dict[str, dict[str, tuple[list[float], list[str]]]] = {}
    for each in found:
        for person, held in each["people"].items():
            for metric, values in held["scores"].items():
                into = pooled.setdefault(metric, {}).setdefault(person, ([], []))
                into[0].extend(values)
                into[1].extend(held["units of categories" if metric == "category" else "units"])
    means = {}
    for metric, people in pooled.items():
        drawn, plain = [], []
        for values, units in people.values():
            weights = resampler.weights("test", np.array(units))
            drawn.append(weights @ np.array(values) / np.maximum(weights.sum(axis=1), 1))
            plain.append(np.mean(values))
        means[metric] = float(np.mean(plain)), np.mean(drawn, axis=0)
    return means


def chance(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of knowing nothing about frames: one half, and one over the gallery; for categories see `SAME`."""
    sizes = [len(person["units"]) for each in found for person in each["people"].values()]
    return {"two-way": 0.5, "top-1": float(np.mean([1 / size for size in sizes]))}


def main() -> None:
    """Run what is missing, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of finished records")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2], help="further partitions into folds, by seed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.getLogger("phosphene").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    with load(options.work) as study:
        found = records(study, options.seeds, options.work)
        classes = categories(study)
    rows = summarise(found)
    result = {
        "machine": machine(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", "--work", "FOLDER", "--seeds"])
        + "".join(f" {seed}" for seed in options.seeds),
        "encoders": ENCODERS,
        "categories": list(classes.names),
        "chance": chance(found),
        "rounds": ROUNDS,
        "common": COMMON,
        "rows": rows,
    }
    write_json(options.out, result)
    for row in rows:
        told = [f"{name} {row[name]['mean']:.3f} [{row[name]['interval'][0]:.3f}, {row[name]['interval'][1]:.3f}]"
                for name in ("category", "two-way, brain to frame", "top-1, brain to frame")]  # fmt: skip
        print(f"{row['federation']}, {row['missing']:.0%} missing, {row['arm']}: {'; '.join(told)}")
    print("chance:", result["chance"])


if __name__ == "__main__":
    main()
