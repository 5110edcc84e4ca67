"""What MLIP's image tower, pretrained on procedural scenes, is worth on photographs.

Run: ``OMP_NUM_THREADS=1 python benchmarks/mlip_transfer.py --work FOLDER [--clip FOLDER]``. Every line of the tables is
kept in ``FOLDER/records.jsonl`` as soon as it is done, and fine-tuning goes on from its checkpoints. Two parts:

``probe``     CIFAR-10 (5,000 training and 1,000 test pictures of ``cifar10_6000``): logistic regression on the frozen
              tower, beside chance, raw pixels, Gabor energy and the same tower with random weights
``finetune``  96 key frames of action videos with their descriptions: retrieval on held-out actions before and after
              fine-tuning on the others, in five folds by action, beside chance and a start from random weights

The data sets are not part of phosphene: ``PHOSPHENE_DATA`` names their folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlip_models import Pair, add_options, describe, pairs, recipe, untrained
from mlip_transfer_data import cifar, key_frames
from mlip_transfer_summary import markdown, summarise
from nsd_size import machine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from virtual_small import read_records

import phosphene as ph
from phosphene.encoders import make_encoder
from phosphene.encoders.mlip.store import read_config
from phosphene.files import digest, write_json
from phosphene.stimuli import StimulusSet
from phosphene.training.pretraining import pretrain

RESULTS = Path(__file__).parent / "results" / "mlip_transfer.json"
PENALTIES = tuple(10.0**power for power in range(-4, 1))  # C of the regression
INNER = 3  # folds of the training rows by which it is chosen
ITERATIONS = 500
#: Fixed beforehand; nothing of it was chosen on held-out actions.
FINE_TUNING = {
    "batch_size": 32,
    "learning_rate": 3e-4,
    "weight_decay": 0.05,
    "warmup": 0.1,
    "ema": 0.95,
    "probe_steps": 0,
    "probe_pictures": 2,
}

log = logging.getLogger("mlip_transfer")

Record = dict[str, Any]


class Records:
    """Finished lines of the work folder; `get` makes what is missing, and `asked` holds what this run is about."""

    def __init__(self, work: Path) -> None:
        self.path = work / "records.jsonl"
        self.done = {record["key"]: record for record in read_records(self.path)}
        self.asked: dict[str, Record] = {}

    def get(self, facts: Record, make: Callable[[], Record]) -> Record:
        """The record of these facts, which decide it."""
        key = digest(json.dumps(facts, sort_keys=True))[:16]
        if key not in self.done:
            log.info("%s", ", ".join(str(facts[name]) for name in ("part", "arm", "seed")))
            cpu = time.process_time()
            made = make()
            self.done[key] = {"key": key, **facts, **made, "cpu_s": round(time.process_time() - cpu, 1)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(self.done[key]) + "\n")
        self.asked[key] = self.done[key]
        return self.done[key]


# -- the frozen tower ----------------------------------------------------------------------------------------------


def tower_features(folder: Path, stimuli: StimulusSet, cache: Path) -> dict[str, np.ndarray]:
    """States of a tower before its projections: the class token, and with it the mean patch."""
    tokens = ph.encode(stimuli, make_encoder(f"mlip:{folder}", projected=False), cache=cache, progress=False).tokens
    states = np.asarray(tokens, dtype=np.float32)
    return {
        "class token": states[:, 0],
        "class token and mean patch": np.concatenate([states[:, 0], states[:, 1:].mean(axis=1)], axis=1),
    }


def simple_features(stimuli: StimulusSet, cache: Path) -> dict[str, np.ndarray]:
    """What needs no training: pixels and Gabor energy."""
    pixels = stimuli.pixels().reshape(len(stimuli), -1).astype(np.float32) / 255
    return {"pixels": pixels, "gabor": ph.encode(stimuli, "gabor", cache=cache, progress=False).of(stimuli.ids)}


def regression(penalty: float) -> Any:
    """Logistic regression on z-scored features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=ITERATIONS, tol=1e-3))


def linear_probe(features: np.ndarray, classes: np.ndarray, trained: np.ndarray, seed: int) -> Record:
    """Whether each test picture is named rightly; the penalty comes from folds of the training rows.

    Parameters
    ----------
    features : (n, width) array
    classes : (n,) array of str
    trained : bool (n,) array
        Rows of the training part.
    seed : int
        Of the inner folds.
    """
    x, y = features[trained], classes[trained]
    folds = list(StratifiedKFold(INNER, shuffle=True, random_state=seed).split(x, y))
    found = [np.mean([regression(c).fit(x[a], y[a]).score(x[b], y[b]) for a, b in folds]) for c in PENALTIES]
    best = PENALTIES[int(np.argmax(found))]
    hits = regression(best).fit(x, y).predict(features[~trained]) == classes[~trained]
    return {"each": {"accuracy": hits.astype(int).tolist()}, "width": features.shape[1], "penalty": best}


def probe_part(records: Records, models: Sequence[Pair], seeds: Sequence[int], work: Path, limit: int | None) -> None:
    """The linear probe of every tower and of what needs none."""
    stimuli, trained = cifar(limit)
    classes, content = stimuli.labels["category"], digest(*stimuli.ids.tolist())
    facts: Record = {"part": "probe", "data": content, "penalties": PENALTIES, "inner": INNER}
    cache = work / "targets"
    for name in ("pixels", "gabor"):
        # nothing about them depends on a seed but the inner folds
        records.get(
            {**facts, "arm": name, "seed": seeds[0]},
            lambda name=name: linear_probe(simple_features(stimuli, cache)[name], classes, trained, seeds[0]),
        )
    for number, seed in enumerate(seeds):
        pair = models[number % len(models)]
        # a trained tower stands for all seeds: nothing about it depends on them but the inner folds
        folders = pair.folders() if number < len(models) else {}
        folders |= {"mlip, random weights": untrained(pair.mlip, work, seed)}
        for name, folder in folders.items():
            weights = read_config(folder)["weights"]
            for kind in ("class token", "class token and mean patch"):

                def probe(folder: Path = folder, kind: str = kind, seed: int = seed) -> Record:
                    return linear_probe(tower_features(folder, stimuli, cache)[kind], classes, trained, seed)

                records.get({**facts, "arm": f"{name}: {kind}", "seed": seed, "weights": weights}, probe)


# -- fine-tuning ---------------------------------------------------------------------------------------------------


def retrieval(folder: Path, stimuli: StimulusSet) -> Record:
    """Retrieval among held-out pictures, for each of them: first places and two-way.

    From picture to text the candidates are the pictures' descriptions, each the mean of its sentences; from text to
    picture every sentence is asked alone, and counts as its share of the picture's sentences.
    """
    pictures = _units(make_encoder(f"mlip:{folder}").encode(stimuli).pooled)
    text = make_encoder(f"mlip-text:{folder}")
    owner = np.repeat(np.arange(len(stimuli)), [len(texts) for texts in stimuli.captions])
    sentences = _units(text.encode_captions([[one] for texts in stimuli.captions for one in texts]).pooled)
    described = np.zeros_like(pictures)
    np.add.at(described, owner, sentences)
    each = _places(pictures @ _units(described).T, np.arange(len(stimuli)), "image to text")
    asked = _places(sentences @ pictures.T, owner, "text to image")
    share = np.bincount(owner)
    return each | {name: (np.bincount(owner, values) / share).round(4).tolist() for name, values in asked.items()}


def _places(similar: np.ndarray, right: np.ndarray, way: str) -> Record:
    own = similar[np.arange(len(similar)), right][:, None]
    above, ties = (similar > own).sum(axis=1), (similar == own).sum(axis=1) - 1
    top = np.where(above > 0, 0.0, 1 / (ties + 1))
    two_way = 1 - (above + ties / 2) / (similar.shape[1] - 1)
    return {f"top-1 {way}": top.round(4).tolist(), f"two-way {way}": two_way.round(4).tolist()}


def _units(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def tuned(folder: Path, train: StimulusSet, test: StimulusSet, out: Path, seed: int, steps: int) -> Path:
    """The model of a folder trained on with the loss it was pretrained with."""
    tables, _ = recipe(folder)
    settings = {
        "objective": tables["objective"],
        "training": {**FINE_TUNING, "steps": steps},
        "data": {"long_captions": "cut"},
    }
    return pretrain(None, train, out=out, held_out=test, start=folder, seed=seed, progress=False, settings=settings)


def over_folds(stimuli: StimulusSet, model_of: Callable[[str, StimulusSet, StimulusSet], Path]) -> Record:
    """Retrieval in every fold, its pictures one after the other, with the action of each and chance."""
    folds = stimuli.labels["fold"]
    found: dict[str, list[float]] = {}
    actions: list[str] = []
    chance: list[float] = []
    for fold in np.unique(folds).tolist():
        train, test = (stimuli.select(stimuli.ids[rows]) for rows in (folds != fold, folds == fold))
        for name, values in retrieval(model_of(str(fold), train, test), test).items():
            found.setdefault(name, []).extend(values)
        actions += test.labels["action"].tolist()
        chance += [1 / len(test)] * len(test)
    return {"each": found, "action": actions, "chance": float(np.mean(chance))}


def finetune_part(records: Records, models: Sequence[Pair], seeds: Sequence[int], work: Path, steps: int) -> None:
    """Retrieval without fine-tuning, after it, and after training from random weights, for every model."""
    for number, seed in enumerate(seeds):
        pair = models[number % len(models)]
        for name, folder in pair.folders().items():
            stimuli = key_frames(read_config(folder)["model"]["image_size"])
            starts = {name: folder}
            if name == "mlip":
                starts["mlip, random start"] = untrained(folder, work, seed)
            facts = {"part": "finetune", "data": digest(*stimuli.hashes.tolist()), "seed": seed}
            if number < len(models):  # once a model
                records.get(
                    {**facts, "arm": f"{name}, not tuned", "weights": read_config(folder)["weights"]},
                    lambda stimuli=stimuli, folder=folder: over_folds(stimuli, lambda *_: folder),
                )
            for arm, start in starts.items():
                weights = read_config(start)["weights"]
                key = f"{weights[:12]}-{seed}-{steps}"

                def tune(
                    fold: str,
                    train: StimulusSet,
                    test: StimulusSet,
                    start: Path = start,
                    key: str = key,
                    seed: int = seed,
                ) -> Path:
                    return tuned(start, train, test, work / "tuned" / f"{key}-{fold}", seed, steps)

                records.get(
                    {**facts, "arm": f"{arm}, tuned", "weights": weights, "settings": {**FINE_TUNING, "steps": steps}},
                    lambda stimuli=stimuli, tune=tune: over_folds(stimuli, tune),
                )


def main() -> None:
    """Run what is missing, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of features, models and finished records")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["probe", "finetune"], choices=["probe", "finetune"])
    parser.add_argument("--steps", type=int, default=100, help="of fine-tuning")
    parser.add_argument("--limit", type=int, help="pictures a class of CIFAR-10, for a trial")
    parser.add_argument("--json", type=Path, default=RESULTS)
    add_options(parser)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("phosphene").setLevel(logging.ERROR)  # of every batch of sentences: how many were cut
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "threads": 1, "seeds": options.seeds}
    models = pairs(options, options.work)
    facts["models"] = [{name: describe(folder) for name, folder in pair.folders().items()} for pair in models]
    facts["fine_tuning"] = {**FINE_TUNING, "steps": options.steps}
    records = Records(options.work)
    if "probe" in options.parts:
        probe_part(records, models, options.seeds, options.work, options.limit)
    if "finetune" in options.parts:
        finetune_part(records, models, options.seeds, options.work, options.steps)
    facts["cpu_seconds"] = round(sum(record["cpu_s"] for record in records.asked.values()))
    result = {**facts, **summarise(list(records.asked.values()))}
    write_json(options.json, result)
    print(markdown(result))


if __name__ == "__main__":
    sys.exit(main())
