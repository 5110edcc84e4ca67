"""actions96: what nine people's responses to 96 short videos say about the videos they never trained on.

    python benchmarks/actions96.py [--targets tfidf-svd30 ...] [--methods 'ridge, pooled' ...] [--seeds 1 2 ...]
                                   [--work FOLDER] [--out JSON]

Five folds by action (`examples/actions96_folds.tsv`): both videos of an action are held out, for every person, from
scalers, means, weights, penalties and early stopping alike; hyper-parameters come from inner folds; candidates are the
fold's 18 to 20 test videos; a prediction is made from one person's single response. The data set must be at hand
(`PHOSPHENE_DATA`). Every (target, method) is kept in the work folder, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GroupKFold

import phosphene as ph
from phosphene.decoders import Decoder
from phosphene.decoders.ridge import RidgeConfig
from phosphene.encoders import Targets
from phosphene.evaluation import Scorecard
from phosphene.files import data_root, write_json
from phosphene.recordings import Study
from phosphene.recordings.folds import folds_by
from phosphene.recordings.readers.folder import import_folder

HERE = Path(__file__).parent
TARGETS = ("tfidf-svd30", "z:minilm", "z:gabor")
IMAGE_SIZE = 128


class OneEach:
    """A decoder for each person, fitted to that person alone, under the face of one."""

    def __init__(self, decoders: dict[str, Decoder]) -> None:
        first = next(iter(decoders.values()))
        self.decoders = decoders
        self.subjects = {subject: decoder.subjects[subject] for subject, decoder in decoders.items()}
        self.subject_free = False
        for name in ("name", "config", "encoder", "target_kind", "target_shape", "n_outputs", "provenance"):
            setattr(self, name, getattr(first, name))

    def predict(self, responses: np.ndarray, subject: str, batch_size: int = 256) -> np.ndarray:
        return self.decoders[subject].predict(responses, subject, batch_size)


def one_each(name: str, study: Study, targets: Targets, **settings: Any) -> OneEach:
    return OneEach({s: ph.fit(name, study, targets, subjects=[s], progress=False, **settings) for s in study.subjects})


def pooled(name: str, study: Study, targets: Targets, **settings: Any) -> Decoder:
    return ph.fit(name, study, targets, pool_subjects=True, progress=False, **settings)


def together(name: str, study: Study, targets: Targets, **settings: Any) -> Decoder:
    """One model, an input for each person, everything else shared."""
    return ph.fit(name, study, targets, progress=False, **settings)


METHODS: dict[str, Callable[[Study, Targets], Any]] = {
    "ridge, one person": lambda study, targets: together("ridge", study, targets),
    "ridge, pooled": lambda study, targets: pooled("ridge", study, targets),
    "mindeye-mlp, one person": lambda study, targets: one_each("mindeye-mlp", study, targets),
    "mindeye-mlp, pooled": lambda study, targets: pooled("mindeye-mlp", study, targets),
    "lite-mind, one person": lambda study, targets: one_each("lite-mind", study, targets),
    "lite-mind, people together": lambda study, targets: together("lite-mind", study, targets),
    "lite-mind, pooled": lambda study, targets: pooled("lite-mind", study, targets),
    "shared-response, one person": lambda study, targets: together("shared-response", study, targets),
    "shared-response, pooled": lambda study, targets: pooled("shared-response", study, targets),
}


def load(work: Path) -> Study:
    """The study, built the general way: example script, study folder, import."""
    path = work / "actions96.h5"
    if not path.exists():
        sys.path.insert(0, str(HERE.parent / "examples"))
        from actions96 import build

        root = data_root()
        if root is None:
            raise SystemExit("actions96 is not at hand: set PHOSPHENE_DATA to the folder of data sets")
        import_folder(build(root / "actions96", work / "folder"), path, image_size=IMAGE_SIZE)
    return Study.open(path)


def encode(study: Study, folds: Sequence[str], encoder: str, work: Path) -> dict[str, Targets]:
    """Targets by fold, fitted on the fold's training videos."""
    cache = work / "targets"
    return {
        fold: ph.encode(
            study.stimuli,
            encoder,
            fit_on=study.using(fold).split("train").stimulus_ids,
            cache=cache,
            progress=False,
        )
        for fold in folds
    }


def scores(card: Scorecard) -> dict[str, Any]:
    """The figures of the table, with their protocol."""
    wanted = {
        "two-way cosine": {"metric": "two-way", "similarity": "cosine"},
        "two-way pearson": {"metric": "two-way", "similarity": "pearson"},
        "top-1": {"metric": "top-1", "similarity": "cosine"},
        "top-5": {"metric": "top-5", "similarity": "cosine"},
    }
    found: dict[str, Any] = {}
    for name, facts in wanted.items():
        kept = [s for s in card.find(**facts, direction="brain_to_image") if s.method == card.scores[0].method]
        mean = next(s for s in kept if s.subject == "mean")
        people = [s.value for s in kept if s.subject != "mean"]
        found[name] = {
            "value": mean.value,
            "chance": mean.chance,
            "interval": mean.interval,
            "null": mean.null,
            "people": [min(people), max(people)],
        }
    return found


def straight(study: Study, targets: dict[str, Targets]) -> float:
    """Two-way (cosine) of per-person ridge with nothing but scikit-learn and loops, mean over people and videos."""
    config = RidgeConfig()
    won, pairs = np.zeros(len(study.subjects)), np.zeros(len(study.subjects))
    for fold in study.split_names:
        train, test = (study.using(fold).split(role) for role in ("train", "test"))
        for number, subject in enumerate(study.subjects):
            ids, x = train.averaged(subject)
            names, x_test = test.averaged(subject)
            y, shown = targets[fold].of(ids), targets[fold].of(names)
            centre, spread = x.mean(axis=0), x.std(axis=0)
            spread[spread == 0] = 1
            x, x_test = (x - centre) / spread, (x_test - centre) / spread
            alphas = np.array(config.penalties) * ((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()
            error = np.zeros((len(alphas), y.shape[1]))
            inner = GroupKFold(config.folds, shuffle=True, random_state=0)
            for a, b in inner.split(x, groups=train.units):
                for row, alpha in enumerate(alphas):
                    error[row] += ((SklearnRidge(alpha=alpha).fit(x[a], y[a]).predict(x[b]) - y[b]) ** 2).sum(axis=0)
            predicted = SklearnRidge(alpha=alphas[error.argmin(axis=0)]).fit(x, y).predict(x_test)
            for i in range(len(names)):
                cosine = shown @ predicted[i] / np.linalg.norm(shown, axis=1)
                others = np.delete(cosine, i)
                won[number] += (cosine[i] > others).sum() + 0.5 * (cosine[i] == others).sum()
                pairs[number] += len(others)
    return float((won / pairs).mean())


def partitions(study: Study, seeds: Sequence[int]) -> dict[str, tuple[Study, list[str]]]:
    """The committed folds, and five other folds by action for every seed."""
    found = {"committed": (study, list(study.split_names))}
    for seed in seeds:
        folds = folds_by(study.stimuli, "action", 5, seed)
        found[f"seed {seed}"] = (study.with_splits(folds), list(folds))
    return found


def run(study: Study, folds: Sequence[str], targets: dict[str, Targets], method: str, kept: Path) -> dict[str, Any]:
    """Fit and score one method on one set of folds, or read what was kept."""
    if not kept.exists():
        start = time.perf_counter()
        fitted = {fold: METHODS[method](study.using(fold), targets[fold]) for fold in folds}
        seconds = time.perf_counter() - start
        card = ph.evaluate(fitted, study, targets, rivals=(), progress=False)
        write_json(kept, {**scores(card), "seconds": round(seconds, 1)})
    return dict(json.loads(kept.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="further partitions into folds, by seed")
    parser.add_argument("--work", type=Path, default=Path("runs/actions96"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "actions96.json")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    study = load(arguments.work)
    results: dict[str, Any] = {}
    for name, (part, folds) in partitions(study, arguments.seeds).items():
        for encoder in arguments.targets:
            targets = encode(part, folds, encoder, arguments.work)
            found = results.setdefault(name, {}).setdefault(encoder, {})
            for method in arguments.methods:
                kept = _kept(arguments.work, name, encoder, method)
                found[method] = run(part, folds, targets, method, kept)
                show(name, encoder, method, found[method])
            if name == "committed" and "ridge, one person" in found:
                kept = _kept(arguments.work, name, encoder, "scikit-learn")
                if not kept.exists():
                    write_json(kept, {"two-way cosine": straight(study, targets)})
                found["scikit-learn, one person"] = json.loads(kept.read_text())
                print(f"{encoder}: ridge, one person, straight with scikit-learn: {found['scikit-learn, one person']}")
    facts = {
        "command": shlex.join(["python", "benchmarks/actions96.py", *sys.argv[1:]]),
        "study": study.digest,
        "folds": "examples/actions96_folds.tsv",
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, CPU",
        "versions": {"phosphene": ph.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }
    write_json(arguments.out, {**facts, "results": results})


def _kept(work: Path, *names: str) -> Path:
    return work / ("--".join(names).replace(" ", "_").replace(":", "-").replace(",", "") + ".json")


def show(partition: str, encoder: str, method: str, found: dict[str, Any]) -> None:
    two_way = found["two-way cosine"]
    low, high = two_way["interval"]
    print(
        f"{partition:9} {encoder:11} {method:27} two-way {two_way['value']:.3f} [{low:.3f}, {high:.3f}] "
        f"people {two_way['people'][0]:.3f} to {two_way['people'][1]:.3f}  null {two_way['null']['mean']:.3f} "
        f"p {two_way['null']['p']:.3f}  pearson {found['two-way pearson']['value']:.3f}  "
        f"top-1 {found['top-1']['value']:.3f} (chance {found['top-1']['chance']:.3f})  "
        f"top-5 {found['top-5']['value']:.3f}  {found['seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
