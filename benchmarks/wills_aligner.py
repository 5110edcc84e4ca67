"""What one model of many people is worth on virtual studies, where people differ and where they do not.

    OMP_NUM_THREADS=1 python benchmarks/wills_aligner.py --work FOLDER [--seeds 0 1 2] [--encoder z:pocket]

Every (seed, condition, arm) is a line in ``FOLDER/records.jsonl`` as soon as it is done; an interrupted run goes on
from there. Seed s simulates study s and decides everything random of the fits. All arms have the same trunk, heads,
samples and batches of the preset `small`; weights are those best on validation stimuli inside the training part, and
the test stimuli are scored once. Single-person models are wills-aligner itself with one person and no experts.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

import phosphene as ph
from phosphene.alignment import make_aligner
from phosphene.decoders import Decoder
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.evaluation.multilabel import evaluate_labels
from phosphene.files import write_json
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
}
PERSON: dict[str, Any] = {"voxels": 400, "noise": 0.8}
CLASSES: dict[str, Any] = {"class_columns": ("shape_*", "background")}
METRICS = ("top-1 brain_to_image", "top-1 image_to_brain", "two-way brain_to_image", "two-way image_to_brain", "mAP")


class Bench:
    """One virtual study, its targets and aligners, and the fits and scores of arms on it."""

    def __init__(self, seed: int, condition: str, encoder: str) -> None:
        person = {**PERSON, **CONDITIONS[condition]}
        self.seed, self.encoder = seed, encoder
        self.study = simulate(make_settings(None, **PLAN, person=person), seed, progress=False).study

    @cached_property
    def targets(self) -> Any:
        """Targets, fitted on the training part where they are fitted."""
        train = self.study.split("train").stimulus_ids
        return ph.encode(self.study.stimuli, self.encoder, fit_on=train, cache=False, progress=False)

    def fit(self, aligner: str | None, subjects: list[str] | None = None, **settings: Any) -> WillsAligner:
        """Fit wills-aligner, behind an aligner or on voxels as they are."""
        made = None if aligner is None else make_aligner(aligner).fit(self.study.split("train"))
        training = {"class_weight": 1.0, **settings.pop("training", {})}
        found = ph.fit(
            "wills-aligner",
            self.study,
            self.targets,
            preset="small",
            subjects=subjects,
            aligner=made,
            seed=self.seed,
            progress=False,
            training=training,
            **CLASSES,
            **settings,
        )
        assert isinstance(found, WillsAligner)
        return found

    def score(self, decoder: Decoder, subjects: list[str] | None = None) -> dict[str, float]:
        """Scores of the test part, means over people."""
        people = subjects or self.study.subjects
        quiet: dict[str, Any] = {"subjects": people, "rivals": (), "n_boot": 0, "n_perm": 0, "progress": False}
        card = ph.evaluate(decoder, self.study, self.targets, **quiet)
        found = {
            f"{metric} {direction}": card.get(metric, direction).value
            for metric in ("top-1", "two-way")
            for direction in ("brain_to_image", "image_to_brain")
        }
        labels = evaluate_labels(decoder, self.study, subjects=people, n_boot=0)
        return {**found, "mAP": labels.get("mAP").value}


def single(bench: Bench) -> dict[str, dict[str, float]]:
    """One model a person, on the person's own voxels."""
    scores = [bench.score(bench.fit(None, [subject], stage2="none"), [subject]) for subject in bench.study.subjects]
    return {"single-person models": {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}}


def naive(bench: Bench) -> dict[str, dict[str, float]]:
    """One model of all, voxel by number, as if brains were alike."""
    return {"naive pooling": bench.score(bench.fit(None, stage2="none"))}


def two_stages(bench: Bench, aligner: str, name: str, **settings: Any) -> dict[str, dict[str, float]]:
    """Both stages; the first alone is the same decoder with its experts off."""
    decoder = bench.fit(aligner, **settings)
    both = bench.score(decoder)
    told = decoder.provenance["experts"]
    both["I(expert; subject)"] = told["information_expert_subject"]
    both["best epoch of stage 2"] = decoder.provenance["stage2"]["best_epoch"]
    with decoder.commonality():
        first = bench.score(decoder)
    return {f"{aligner}, stage 1": first, f"{aligner}, {name}": both}


ARMS: dict[str, Callable[[Bench], dict[str, dict[str, float]]]] = {
    "single": single,
    "naive": naive,
    "anatomical": partial(two_stages, aligner="anatomical", name="stage 1 + 2 (plain)"),
    "functional": partial(two_stages, aligner="ridge", name="stage 1 + 2 (plain)"),
    "private": partial(two_stages, aligner="anatomical", name="stage 1 + 2 (plain), private experts", private=True),
    "meta": partial(
        two_stages, aligner="anatomical", name="stage 1 + 2 (meta), private experts", private=True, stage2="meta"
    ),
}


def records(work: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    """What is done already."""
    path = work / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["seed"], line["condition"], line["arm"]): line for line in lines}


def run(work: Path, seeds: list[int], arms: list[str], conditions: list[str], encoder: str) -> None:
    """Everything that is not done yet."""
    for seed in seeds:
        for condition in conditions:
            missing = [arm for arm in arms if (seed, condition, arm) not in records(work)]
            bench = Bench(seed, condition, encoder) if missing else None
            for arm in missing:
                assert bench is not None
                start = time.perf_counter()
                line = {"seed": seed, "condition": condition, "arm": arm, "scores": ARMS[arm](bench)}
                line["seconds"] = round(time.perf_counter() - start, 1)
                with (work / "records.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                log.info("seed %d, %s, %s: %.0f s", seed, condition, arm, line["seconds"])


def summary(done: Mapping[tuple[int, str, str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over seeds of every arm and metric."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for (seed, condition, _), line in done.items():
        for name, scores in line["scores"].items():
            found.setdefault((condition, name), {})[seed] = scores
    rows = []
    for (condition, name), by_seed in found.items():
        row: dict[str, Any] = {"condition": condition, "arm": name, "seeds": sorted(by_seed)}
        for metric in next(iter(by_seed.values())):
            values = [by_seed[seed][metric] for seed in row["seeds"]]
            row[metric] = {"mean": float(np.mean(values)), "by_seed": values}
        rows.append(row)
    return sorted(rows, key=lambda row: list(CONDITIONS).index(row["condition"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--encoder", default="z:pocket")
    parser.add_argument("--json", type=Path, help="where the summary goes")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked.work.mkdir(parents=True, exist_ok=True)
    settings = {"encoder": asked.encoder, "plan": PLAN, "person": PERSON, "conditions": CONDITIONS}
    kept = asked.work / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise SystemExit(f"{kept} is of another benchmark: give another --work")
    write_json(kept, settings)
    run(asked.work, asked.seeds, asked.arms, asked.conditions, asked.encoder)
    rows = summary(records(asked.work))
    print(f"{'condition':<18} {'arm':<46} " + " ".join(f"{metric:<24}" for metric in METRICS))
    for row in rows:
        words = [
            f"{row[m]['mean']:.3f} ({min(row[m]['by_seed']):.3f} to {max(row[m]['by_seed']):.3f})" for m in METRICS
        ]
        print(f"{row['condition']:<18} {row['arm']:<46} " + " ".join(f"{text:<24}" for text in words))
    if asked.json:
        write_json(asked.json, {**settings, "rows": rows})


if __name__ == "__main__":
    main()
