"""actions96: many people in one model, and a new person of whom only 16 or 48 videos are known.

    OMP_NUM_THREADS=1 python benchmarks/actions96_people.py --work FOLDER [--seeds 1 2] [--out JSON]

Needs the data set `actions96` in the folder `PHOSPHENE_DATA`. Folds by action, the committed ones and one partition for
every seed: both videos of an action are held out for everybody, from scaling, weights and penalties alike, and nobody
was trained on what is scored. Candidates are the 18 to 20 held-out videos; a prediction comes from one response of one
person. Every fold is scored once with nine people together and once for each person who is left out: of that person
16 or 48 training videos are known (whole actions, drawn by the seed), the same ones for all methods. *Permuted* people
have their voxels in an order of their own: nothing but a functional aligner, fitted on training videos, brings them
together. A line of ``FOLDER/records.jsonl`` is one fold of one question; a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import json
import logging
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actions96 import IMAGE_SIZE, encode, partitions
from actions96_people_summary import METRICS, show, summarise

import phosphene as ph
from phosphene.alignment import make_aligner
from phosphene.decoders.ridge import RidgeConfig, inner_folds
from phosphene.encoders import Targets
from phosphene.evaluation.metrics import count_true, similarity, top_k, two_way
from phosphene.files import data_root, write_json
from phosphene.recordings import Recording, Study
from phosphene.recordings.readers.folder import import_folder
from phosphene.table import Table
from phosphene.training import adapt
from phosphene.training.newcomer import add_subject

HERE = Path(__file__).parent
ENCODER = "tfidf-svd30"
SIZES = (16, 48)
OWN_TIMES = 8
"""How often the new person's rows count in the weighted pooled ridge."""
WILLS: dict[str, Any] = {"preset": "few", "progress": False}
TUNER: dict[str, Any] = {"preset": "few", "progress": False}
SRM: dict[str, Any] = {"features": (15,), "least": min(SIZES)}
Scores = dict[str, list[float]]


def load(work: Path) -> Study:
    """The study in memory, built the general way: example script, study folder, import."""
    path = work / "actions96.h5"
    if not path.exists():
        root = data_root()
        if root is None:
            raise SystemExit("actions96 is not at hand: set PHOSPHENE_DATA to the folder of data sets")
        spec = importlib.util.spec_from_file_location("actions96_example", HERE.parent / "examples" / "actions96.py")
        assert spec is not None
        assert spec.loader is not None
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        import_folder(example.build(root / "actions96", work / "folder"), path, image_size=IMAGE_SIZE)
    return Study.open(path)


def with_people(study: Study, people: Sequence[Recording]) -> Study:
    """The same stimuli and splits with other recordings, as recorded: every method scales by what it may see."""
    splits = {name: study.roles(name) for name in study.split_names}
    found = Study(study.stimuli, people, splits, name=study.name, scaling="none", unit=study.unit)
    return found.using(study.current_split)


def in_memory(study: Study, subject: str, keep: np.ndarray | None = None, permuted: bool = False) -> Recording:
    """One person's recording, of some stimuli, with voxels in an order of their own if asked to."""
    old = study.recordings[subject]
    shown = old.trials["stimulus_id"]
    rows = np.arange(len(shown)) if keep is None else np.flatnonzero(np.isin(shown, keep))
    responses, trials = np.asarray(old.read(rows), dtype=np.float32), old.trials.take(rows)
    if not permuted:
        meta = {name: value for name, value in old.meta().items() if name in ("space", "affine", "volume_shape")}
        return Recording(subject, responses, trials, old.voxels, **meta)
    responses = responses[:, order_of(subject, old.n_voxels)]
    return Recording(subject, responses, trials, Table({"number": np.arange(old.n_voxels)}))


def order_of(subject: str, n_voxels: int) -> np.ndarray:
    """The order of a permuted person's voxels."""
    return np.random.default_rng(int(subject[-2:])).permutation(n_voxels)


def scored(predictions: np.ndarray, shown: np.ndarray) -> Scores:
    """Each test video's two-way, top-1 and top-5 in both directions."""
    similarities = similarity(predictions.reshape(len(shown), -1), shown, "cosine")
    found: Scores = {}
    for direction, table in (("brain to video", similarities), ("video to brain", similarities.T)):
        counts = count_true(table)
        values = {"two-way": two_way(counts), "top-1": top_k(counts, 1), "top-5": top_k(counts, 5)}
        found |= {f"{name}, {direction}": np.round(values[name], 4).tolist() for name in values}
    return found


def kernel_ridge(gram: np.ndarray, cross: np.ndarray, y: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Predictions of the `ridge` decoder from products of rows alone: the same penalties, folds and choice."""
    penalties = np.array(RidgeConfig().penalties)
    n = len(gram)
    centring = np.eye(n) - 1 / n
    scale = float((centring @ gram @ centring).diagonal().mean())
    error = np.zeros((len(penalties), y.shape[1]))
    for train, held in inner_folds(units, RidgeConfig().folds):
        values, left, right, mean = _spectral(gram[np.ix_(train, train)], gram[np.ix_(held, train)], y[train])
        for row, penalty in enumerate(penalties * scale):
            error[row] += ((left @ (right / (values + penalty)) + mean - y[held]) ** 2).sum(axis=0)
    values, left, right, mean = _spectral(gram, cross, y)
    found: np.ndarray = left @ (right / (values + scale * penalties[error.argmin(axis=0)])) + mean
    return found


def _spectral(gram: np.ndarray, cross: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    centring = np.eye(len(gram)) - 1 / len(gram)
    values, vectors = np.linalg.eigh(centring @ gram @ centring)
    mean = y.mean(axis=0)
    return values.clip(0)[:, None], (cross - gram.mean(axis=0)) @ centring @ vectors, vectors.T @ (y - mean), mean


class Fold:
    """One fold: the study, its targets, and scores of everybody's test videos."""

    def __init__(self, study: Study, targets: Targets) -> None:
        self.study, self.targets = study, targets
        self.seconds: dict[str, float] = {}
        self.found: dict[str, dict[str, Scores]] = {}

    @cached_property
    def shown(self) -> np.ndarray:
        """Targets of the test videos."""
        ids = self.study.split("test").stimulus_ids
        return self.targets.of(ids).reshape(len(ids), -1)

    def fitted(self, name: str, fit: Callable[[], Any]) -> Any:
        """What was fitted; the time goes to the account of the method."""
        start = time.process_time()
        found = fit()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
        return found

    def score(
        self, name: str, decoder: Any, people: Sequence[str], study: Study | None = None, stranger: bool = False
    ) -> None:
        """Keep the scores of people by a method; a stranger is decoded without a name."""
        test = (self.study if study is None else study).split("test")
        for subject in people:
            ids, responses = test.averaged(subject)
            assert np.array_equal(ids, test.stimulus_ids)
            said = decoder.predict(responses, None if stranger else subject)
            self.found.setdefault(name, {})[subject] = scored(said, self.shown)

    def record(self) -> dict[str, Any]:
        """What is kept."""
        ids = self.study.split("test").stimulus_ids.tolist()
        return {"ids": ids, "scores": self.found, "seconds": {n: round(s, 2) for n, s in self.seconds.items()}}


def together(study: Study, targets: Targets, subject: str, seed: int) -> dict[str, Any]:
    """Nine people in one model."""
    fold, people = Fold(study, targets), study.subjects

    def ridge(of: Study, **settings: Any) -> Callable[[], Any]:
        return lambda: ph.fit("ridge", of, targets, progress=False, **settings)

    name = "ridge, one person"
    fold.score(name, fold.fitted(name, ridge(study)), people)
    name = "ridge, pooled"
    fold.score(name, fold.fitted(name, ridge(study, pool_subjects=True)), people)
    name = "wills-aligner, stages 1 + 2"
    decoder = fold.fitted(name, lambda: ph.fit("wills-aligner", study, targets, seed=seed, **WILLS))
    fold.score(name, decoder, people)
    with decoder.commonality():
        fold.score("wills-aligner, stage 1", decoder, people)
    mixed = with_people(study, [in_memory(study, each, permuted=True) for each in people])
    aligner = make_aligner("srm", **SRM).fit(mixed.split("train"))
    for name, settings in {
        "permuted: ridge, one person": {},
        "permuted: ridge, naively pooled": {"pool_subjects": True},
        "permuted: srm, ridge, pooled": {"aligner": aligner},
    }.items():
        fold.score(name, fold.fitted(name, ridge(mixed, **settings)), people, mixed)
    name = "permuted: srm, wills-aligner, stages 1 + 2"
    behind = fold.fitted(name, lambda: ph.fit("wills-aligner", mixed, targets, seed=seed, aligner=aligner, **WILLS))
    fold.score(name, behind, people, mixed)
    return fold.record()


def left_out(study: Study, targets: Targets, subject: str, seed: int) -> dict[str, Any]:
    """A person whom a model of the other eight meets, with 16 or 48 of their videos."""
    fold = Fold(study, targets)
    few = {size: with_few(study, subject, size, seed) for size in SIZES}
    rivals(fold, subject, few)
    wills(fold, subject, few, seed)
    tuner(fold, subject, few, seed)
    permuted(fold, subject, few, seed)
    return fold.record()


def with_few(study: Study, subject: str, size: int, seed: int, permuted: bool = False) -> Study:
    """The study in which one person saw only so many of the training videos (whole actions), and those for test."""
    train, units = study.split("train").stimulus_ids, study.split("train").units
    key = hashlib.sha256(f"{subject} {study.current_split} {seed}".encode()).digest()[:8]
    actions = np.random.default_rng(int.from_bytes(key, "little")).permutation(np.unique(units))
    kept = [train[np.isin(units, actions[:count])] for count in range(1, len(actions) + 1)]
    known = next(ids for ids in kept if len(ids) >= size)
    keep = np.concatenate([known, study.split("test").stimulus_ids])
    people = [in_memory(study, each, keep if each == subject else None, permuted=permuted) for each in study.subjects]
    return with_people(study, people)


def rivals(fold: Fold, subject: str, few: Mapping[int, Study]) -> None:
    """Ridge of the new person alone, of the eight, and of all nine with the new person's rows once or several times."""
    train, others = fold.study.split("train"), [each for each in fold.study.subjects if each != subject]
    test = fold.study.split("test").averaged(subject)[1]
    moments = [_moments(train.averaged(each)[1]) for each in others]
    rows = [(train.averaged(each)[1] - mean) / spread for each, (mean, spread) in zip(others, moments, strict=True)]
    ids = [train.averaged(each)[0] for each in others]
    typical = [np.mean([moment[part] for moment in moments], axis=0) for part in (0, 1)]
    queries = {"stranger": (test - typical[0]) / typical[1]}
    new: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for size, study in few.items():
        known, responses = study.split("train").averaged(subject)
        mean, spread = _moments(responses)
        new[size] = (known, (responses - mean) / spread)
        queries[f"known {size}"] = (test - mean) / spread
    begin = np.cumsum([0, sum(map(len, rows)), *[len(each) for _, each in new.values()], *map(len, queries.values())])
    span = [np.arange(a, b) for a, b in itertools.pairwise(begin)]
    of_eight, of_new = span[0], dict(zip(new, span[1:], strict=False))
    asked = dict(zip(queries, span[1 + len(new) :], strict=True))
    names = np.concatenate([*ids, *[known for known, _ in new.values()]])
    y, units = fold.targets.of(names).reshape(len(names), -1).astype(np.float64), train.units_of(names)

    def said(name: str, products: np.ndarray, used: np.ndarray, query: np.ndarray) -> None:
        start = time.process_time()
        predicted = kernel_ridge(products[np.ix_(used, used)], products[np.ix_(query, used)], y[used], units[used])
        fold.seconds[name] = time.process_time() - start
        fold.found.setdefault(name, {})[subject] = scored(predicted, fold.shown)

    everything = np.concatenate([*rows, *[each for _, each in new.values()], *queries.values()])
    products = _products(everything)
    said("zero-shot: ridge of eight", products, of_eight, asked["stranger"])
    for size, own in of_new.items():
        query = asked[f"known {size}"]
        said(f"{size}: ridge from scratch", products, own, query)
        said(f"{size}: ridge of eight, scaled by the new person", products, of_eight, query)
        said(f"{size}: ridge, pooled with the new person", products, np.concatenate([of_eight, own]), query)
        several = np.concatenate([of_eight, np.tile(own, OWN_TIMES)])
        said(f"{size}: ridge, pooled, the new person's rows {OWN_TIMES} times", products, several, query)
    owners = np.concatenate([np.repeat(others, [len(each) for each in rows]), np.repeat(subject, begin[-1] - begin[1])])
    for each in fold.study.subjects:
        whose = owners == each
        everything[whose] = everything[whose][:, order_of(each, everything.shape[1])]
    products = _products(everything)
    for size, own in of_new.items():
        used = np.concatenate([of_eight, own])
        said(f"{size}: permuted: ridge, naively pooled", products, used, asked[f"known {size}"])


def _products(rows: np.ndarray) -> np.ndarray:
    return (rows @ rows.T).astype(np.float64)


def _moments(responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, spread = responses.mean(axis=0), responses.std(axis=0)
    return mean, np.where(spread > 0, spread, 1.0)


def wills(fold: Fold, subject: str, few: Mapping[int, Study], seed: int) -> None:
    """Pre-trained on eight, then `add_subject`."""
    others = [each for each in fold.study.subjects if each != subject]
    base = fold.fitted(
        "wills-aligner of eight",
        lambda: ph.fit("wills-aligner", fold.study, fold.targets, subjects=others, seed=seed, **WILLS),
    )
    fold.score("zero-shot: wills-aligner of eight", base, [subject], stranger=True)
    for size, study in few.items():
        name = f"{size}: wills-aligner, add_subject"
        fold.score(name, fold.fitted(name, lambda s=study: _added(base, s, fold.targets, subject, seed)), [subject])


def _added(base: Any, study: Study, targets: Targets, subject: str, seed: int) -> Any:
    return add_subject(base, study, targets, subject, seed=seed, progress=False)


def tuner(fold: Fold, subject: str, few: Mapping[int, Study], seed: int) -> None:
    """Pre-trained on eight, then `adapt`: from the new videos alone, or borrowing from the others on the grid."""
    others = [each for each in fold.study.subjects if each != subject]
    base = fold.fitted(
        "mindtuner of eight",
        lambda: ph.fit("mindtuner", fold.study, fold.targets, subjects=others, seed=seed, **TUNER),
    )
    for size, study in few.items():
        grid = make_aligner("anatomical").fit(study.split("train"))
        for (borrowing, aligner), arm in itertools.product(
            {"": None, ", borrowing": grid}.items(), ("ridge-only", "both")
        ):
            name = f"{size}: mindtuner, adapt, {arm}{borrowing}"
            words = {"arm": arm, "seed": seed, "aligner": aligner, **TUNER}
            adapted = fold.fitted(name, lambda s=study, w=words: adapt(base, s, fold.targets, subject, **w))
            fold.score(name, adapted, [subject])


def permuted(fold: Fold, subject: str, few: Mapping[int, Study], seed: int) -> None:
    """The same where everybody's voxels have an order of their own."""
    others = [each for each in fold.study.subjects if each != subject]
    for size in few:
        study = with_few(fold.study, subject, size, seed, permuted=True)
        aligner = make_aligner("srm", **SRM).fit(study.split("train").subset(others))
        if size == min(few):
            settings = {"subjects": others, "seed": seed, "aligner": aligner, **WILLS}
            base = ph.fit("wills-aligner", study, fold.targets, **settings)
        behind = _added(base, study, fold.targets, subject, seed)
        fold.score(f"{size}: permuted: srm, wills-aligner, add_subject", behind, [subject], study)
        aligner.add(subject, study.split("train"))
        behind = ph.fit("ridge", study, fold.targets, progress=False, aligner=aligner)
        fold.score(f"{size}: permuted: srm, ridge, pooled with the new person", behind, [subject], study)


QUESTIONS: dict[str, Callable[[Study, Targets, str, int], dict[str, Any]]] = {
    "together": together,
    "left out": left_out,
}


def records(work: Path) -> dict[str, dict[str, Any]]:
    """What is done already."""
    path = work / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["key"]: line for line in lines}


def run(work: Path, study: Study, seeds: Sequence[int], committed: bool, questions: Sequence[str], folds: int) -> None:
    """Everything that is not done yet, partition by partition."""
    for name, (part, splits) in partitions(study, seeds).items():
        if name == "committed" and not committed:
            continue
        seed = 0 if name == "committed" else int(name.split()[-1])
        for split in splits[:folds]:
            targets = encode(part, [split], ENCODER, work)[split]
            for question in questions:
                for subject in ["everybody"] if question == "together" else part.subjects:
                    key = f"{name}/{split}/{question}/{subject}"
                    if key in records(work):
                        continue
                    start = time.perf_counter()
                    line = {"key": key, **QUESTIONS[question](part.using(split), targets, subject, seed)}
                    with (work / "records.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    logging.info("%s: %.0f s", key, time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2], help="further partitions into folds, by seed")
    parser.add_argument("--not-committed", action="store_true", help="leave the committed folds out (development)")
    parser.add_argument("--questions", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument("--folds", type=int, default=5, help="only the first so many of each partition")
    parser.add_argument("--out", type=Path, help="where the summary goes")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("phosphene").setLevel(logging.ERROR)
    asked.work.mkdir(parents=True, exist_ok=True)
    study = load(asked.work)
    people = with_people(study, [in_memory(study, subject) for subject in study.subjects])
    run(asked.work, people, asked.seeds, not asked.not_committed, asked.questions, asked.folds)
    units = dict(zip(study.stimuli.ids.tolist(), study.stimuli.labels[str(study.unit)].tolist(), strict=True))
    summary = summarise(records(asked.work), units)
    print(show(summary))
    if asked.out:
        facts = {
            "command": shlex.join(["python", "benchmarks/actions96_people.py", *sys.argv[1:]]),
            "encoder": ENCODER,
            "metrics": list(METRICS),
            "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, CPU",
            "versions": {"phosphene": ph.__version__, "torch": torch.__version__, "numpy": np.__version__},
        }
        write_json(asked.out, {**facts, **summary})


if __name__ == "__main__":
    main()
