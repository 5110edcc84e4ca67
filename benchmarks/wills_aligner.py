"""What one model of many people is worth on virtual studies, beside its rivals, where people differ and do not.

    OMP_NUM_THREADS=1 python benchmarks/wills_aligner.py --work FOLDER [--seeds 0 1 2] [--arms ...] [--json FILE]

Every (seed, condition, arm) is a line in ``FOLDER/records.jsonl`` as soon as it is done; an interrupted run goes on
from there, and processes with different seeds or conditions may share a folder. Seed s simulates study s and
decides everything random of the fits: all arms of a cell have the same study, targets, seed and rule for validation
stimuli (a tenth inside the training part). Weights are those best on these, and the test stimuli are scored once.

Arms are those of `phosphene multi-subject`, and variants of ours. Those with the trunk of wills-aligner have its preset
`small`; arms of mindtuner have their own and no head for classes, hence no mAP. Scores are kept by person. Differences
to single-person models and to stage 1 are paired; their intervals are a bootstrap over seeds and, within each, over
test stimuli (`wills_aligner_summary`). Arms in `ROTATED` are run where people differ in tuning.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from wills_aligner_summary import DIRECTIONS, METRICS, markdown, summarise

import phosphene as ph
from phosphene.alignment import make_aligner
from phosphene.decoders import Decoder
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.evaluation.metrics import Counts, metric
from phosphene.evaluation.multi_subject import ARMS as RIVALS
from phosphene.evaluation.multi_subject import OURS, STAGE1, WILLS, Models, Setup, first_stage
from phosphene.evaluation.multilabel import average_precision, evaluate_labels
from phosphene.evaluation.statistics import Resampler
from phosphene.files import write_json
from phosphene.settings import parse_assignments
from phosphene.stimuli.multilabel import label_matrix
from phosphene.virtual import make_settings, simulate

log = logging.getLogger("wills_aligner")

HERE = Path(__file__).parent
PLAN: dict[str, Any] = {
    "subjects": 4,
    "sessions": 3,
    "repeats": 2,
    "stimuli": {"test": 100, "common": 150, "own": 150, "size": 32, "captions": 1},
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "people alike": {"warp": 0.0, "rotation": 0.0, "nonlinearity": 0.0},
    "warp": {"warp": 4.0, "rotation": 0.0, "nonlinearity": 0.0},
    "warp and rotation": {"warp": 4.0, "rotation": 1.2, "nonlinearity": 0.15},
    "far apart": {"warp": 4.0, "rotation": 1.57, "rotation_rank": 96, "nonlinearity": 0.15},
}
PERSON: dict[str, Any] = {"voxels": 400, "noise": 0.8}
ALIGNER: dict[str, Any] = {"spacing": 2.5, "radius": 4.0}
"""Of the anatomical aligner, in mm; finer than its default, chosen on seeds 50 and 51."""
CLASSES: dict[str, Any] = {"class_columns": ("shape_*", "background")}
N_BOOT = 500


class Bench:
    """One virtual study, and the scores of arms on it."""

    def __init__(self, seed: int, condition: str, encoder: str, aligner: dict[str, Any], folder: Path) -> None:
        person = {**PERSON, **CONDITIONS[condition]}
        self.seed = seed
        self.study = simulate(make_settings(None, **PLAN, person=person), seed, progress=False).study
        view = self.study.split("train")
        self.targets = ph.encode(self.study.stimuli, encoder, fit_on=view.stimulus_ids, cache=False, progress=False)
        self.people = list(self.study.subjects)
        fitted = make_aligner("anatomical", **aligner).fit(view)
        self.setup = Setup(
            self.study, self.targets, folder, tuple(self.people), fitted, seed, "small", settings=CLASSES
        )

    def run(self, arm: str) -> dict[str, Any]:
        """Scores of every model of an arm."""
        found = {}
        for name, made in ARMS[arm](self.setup).items():
            if isinstance(made, dict):
                found[name] = joined([self.score(one, [person]) for person, one in made.items()])
            else:
                found[name] = self.score(made, self.people)
        return found

    def score(self, decoder: Decoder, people: list[str]) -> dict[str, Any]:
        """Scores of the test part by person, and of resamples of its stimuli, which are the same for every arm."""
        quiet: dict[str, Any] = {"subjects": people, "rivals": (), "n_boot": 0, "n_perm": 0, "progress": False}
        card = ph.evaluate(decoder, self.study, self.targets, **quiet)
        view = self.study.split("test")
        resampler = Resampler({"test": view.stimulus_ids}, N_BOOT, self.seed)
        scores: dict[str, dict[str, float | None]] = {}
        draws: dict[str, list[np.ndarray]] = {}
        for record in card.stimuli:
            weights = resampler.weights("test", np.asarray(record["ids"])).astype(float)
            each = {f"{name} {way}": _values(record, way, name) for name in ("top-1", "two-way") for way in DIRECTIONS}
            scores[record["subject"]] = {name: float(values.mean()) for name, values in each.items()} | {"mAP": None}
            for name, values in each.items():
                draws.setdefault(name, []).append(weights @ values / weights.sum(axis=1))
        if isinstance(decoder, WillsAligner):
            labels = evaluate_labels(decoder, self.study, subjects=people, n_boot=0)
            for person in people:
                scores[person]["mAP"] = labels.get("mAP", person).value
                draws.setdefault("mAP", []).append(self._precision(decoder, person, resampler))
        means = {name: np.mean(each, axis=0).round(5).tolist() for name, each in draws.items()}
        told = decoder.apart.get(people[0], decoder.provenance)  # an adapted person's training, or everybody's
        facts = {"best_epoch": told["best_epoch"]}
        if isinstance(decoder, WillsAligner) and decoder.router is not None and decoder.individual:
            facts["information_expert_subject"] = told["experts"]["information_expert_subject"]
            facts["best_epoch_stage2"] = told["stage2"]["best_epoch"]
        return {"people": scores, "draws": means, "facts": facts}

    def _precision(self, decoder: WillsAligner, person: str, resampler: Resampler) -> np.ndarray:
        """Mean average precision of every resample, over the classes that have a positive in it."""
        config: Any = decoder.config
        view = self.study.split("test")
        ids, responses = view.averaged(person)
        rows = label_matrix(view.stimuli.labels, config.class_columns, config.classes)
        truth = rows[np.array([view.stimulus_ids.tolist().index(name) for name in ids.tolist()])]
        logits = decoder.predict(responses, decoder.known_as(person), what="classes")
        weights = resampler.weights("test", ids).astype(float)
        found = [average_precision(truth[:, at], logits[:, at], weights) for at in np.flatnonzero(truth.any(axis=0))]
        return np.asarray(np.nanmean(found, axis=0))


def _values(record: dict[str, Any], way: str, name: str) -> np.ndarray:
    """Of every stimulus, from its rank and ties among all candidates."""
    rank, ties = np.asarray(record["rank"][way], float), np.asarray(record["ties"][way], float)
    size = int(np.asarray(record["candidates"])[0])
    return np.asarray(metric(name).values(Counts(rank - 1 - ties / 2, ties, size)))


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of several people's own models as those of one."""
    names = parts[0]["draws"]
    return {
        "people": {person: scores for part in parts for person, scores in part["people"].items()},
        "draws": {name: np.mean([part["draws"][name] for part in parts], axis=0).round(5).tolist() for name in names},
        "facts": {"best_epoch": [part["facts"]["best_epoch"] for part in parts]},
    }


def by_regions(setup: Setup) -> Models:
    """Adaptive average pooling within each region."""
    pooled = make_aligner("pooled", within="roi").fit(setup.study.split("train"))
    return {"MindBridge-style pooling, region by region": setup.trunk("regions", pooled, stage2="none")}


def variant(setup: Setup, name: str, aligner: str = "anatomical", **settings: Any) -> Models:
    """Ours with other settings, or behind another aligner, where the first stage is another one too."""
    made = setup.aligner if aligner == "anatomical" else make_aligner(aligner).fit(setup.study.split("train"))
    both = setup.trunk(name, made, **settings)
    found: Models = {f"{WILLS}, {name}": both}
    return found if aligner == "anatomical" else {f"{STAGE1}, {name}": first_stage(both), **found}


ARMS: dict[str, Callable[[Setup], Models]] = {
    **{name: arm.train for name, arm in RIVALS.items() if name != OURS},
    "regions": by_regions,
    OURS: RIVALS[OURS].train,
    "zero": partial(variant, name="private experts from zero", private_start="zero"),
    "no-private": partial(variant, name="no private experts", private=False),
    "meta": partial(variant, name="meta", stage2="meta"),
    "functional": partial(variant, name="ridge aligner", aligner="ridge"),
    "hybrid": partial(variant, name="hybrid aligner", aligner="hybrid"),
}
ROTATED = ("zero", "no-private", "meta", "functional", "hybrid")
"""Variants of ours, run where `rotation` is not 0 alone."""


def records(work: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    """What is done already."""
    path = work / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["seed"], line["condition"], line["arm"]): line for line in lines}


def run(
    work: Path, seeds: list[int], arms: list[str], conditions: list[str], encoder: str, aligner: dict[str, Any]
) -> None:
    """Everything that is not done yet."""
    for seed in seeds:
        for condition in conditions:
            wanted = [arm for arm in arms if CONDITIONS[condition]["rotation"] or arm not in ROTATED]
            missing = [arm for arm in wanted if (seed, condition, arm) not in records(work)]
            if not missing:
                continue
            folder = work / "runs" / f"{seed}-{condition.replace(' ', '-')}"
            bench = Bench(seed, condition, encoder, aligner, folder)
            for arm in missing:
                start = time.process_time()
                line = {"seed": seed, "condition": condition, "arm": arm, "models": bench.run(arm)}
                line["seconds"] = round(time.process_time() - start, 1)
                with (work / "records.jsonl").open("ab", buffering=0) as file:  # a line at once: others may write too
                    file.write(json.dumps(line).encode() + b"\n")
                log.info("seed %d, %s, %s: %.0f s", seed, condition, arm, line["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--encoder", default="z:pocket")
    parser.add_argument(
        "--aligner", nargs="+", metavar="KEY=VALUE", default=[], help="settings of the anatomical aligner"
    )
    parser.add_argument("--json", type=Path, help="where the summary goes", default=HERE / "results/wills_aligner.json")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("phosphene").setLevel(logging.ERROR)
    asked.work.mkdir(parents=True, exist_ok=True)
    aligner = parse_assignments(asked.aligner) or ALIGNER
    settings = {"encoder": asked.encoder, "plan": PLAN, "person": PERSON, "aligner": aligner, "conditions": CONDITIONS}
    kept = asked.work / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise SystemExit(f"{kept} is of another benchmark: give another --work")
    write_json(kept, settings)
    run(asked.work, asked.seeds, asked.arms, asked.conditions, asked.encoder, aligner)
    done = [line for line in records(asked.work).values() if line["seed"] in asked.seeds]
    rows = summarise(done, list(CONDITIONS), list(ARMS))
    print(markdown(rows))
    write_json(asked.json, {**settings, "metrics": METRICS, "rows": rows})


if __name__ == "__main__":
    main()
