"""Which targets are easier to reach from the brain: MLIP's, those of a CLIP of the same size, or Gabor energy?

Run: ``OMP_NUM_THREADS=1 python benchmarks/mlip_brain.py --work FOLDER --clip FOLDER``. Every (arm, seed) is a line in
``FOLDER/records.jsonl`` as soon as it is done; an interrupted run goes on from there. Seed s simulates virtual study s
of the preset `small` (new people, new scenes) and decides everything random of the fits. Three questions:

``targets``    pooled and token targets of MLIP, CLIP and Gabor energy, z-scored and not, through lite-mind and ridge
``alignment``  MLIP's objective as a loss from brain to tokens; weights by validation inside training, on another study
``layouts``    all tokens, a quarter of them by merging, and the same number by averaging over a 4 x 4 grid

Encoders have spaces of their own, so a score within one says little about another. Comparable are: which of the same
test scenes was seen (by the pooled embedding, z-scored), and what the main object of the scene is, named by the
encoder's own text tower or by the means of training classes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlip_brain_scores import Reached, common_scores, text_means
from mlip_brain_summary import markdown, summarise
from mlip_models import Pair, add_options, describe, pairs
from nsd_size import machine
from virtual_small import read_records, scores_of, sizes

import phosphene as ph
from phosphene.decoders import Decoder
from phosphene.encoders import Targets, given_targets, make_encoder
from phosphene.encoders.mlip.store import read_config
from phosphene.files import digest, write_json
from phosphene.recordings import Study

RESULTS = Path(__file__).parent / "results" / "mlip_brain.json"
BUDGET = {"epochs": 8, "batch_size": 128, "repeats": "single", "patience": 0, "monitor": "top-1"}
GRID = 4  # cells a side of the simple rival of merged tokens
MERGED = {"tokens": 0.25, "restore": False}
GROUPS = ("targets", "alignment", "layouts")

log = logging.getLogger("mlip_brain")


@dataclass(frozen=True)
class Arm:
    """One decoder and what it is fitted to.

    Attributes
    ----------
    encoder : {"mlip", "clip", "gabor"}
    scaled : bool
        Each dimension z-scored over training scenes, as encoders ``z:NAME`` do it.
    kind : {"pooled", "tokens"}
    layout : {"full", "merged", "grid"}
        All tokens, a quarter of them after merging, or means over a grid of 4 x 4 beside the class token.
    decoder : {"lite-mind", "ridge"}
    loss : str
        Which alignment is added to the loss, in the tables.
    training : dict
        Over the budget.
    people : int, optional
        Fitted to and scored on the first so many people only.
    """

    encoder: str
    scaled: bool = True
    kind: str = "pooled"
    decoder: str = "lite-mind"
    layout: str = "full"
    loss: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    people: int | None = None

    @property
    def name(self) -> str:
        """What it is called in tables."""
        target = f"{'z:' if self.scaled else ''}{self.encoder} {self.kind}"
        return ", ".join(filter(None, [self.decoder, target, "" if self.layout == "full" else self.layout, self.loss]))


#: Trials of each loss on the development study: as many for the plain one. Learning rates of the others: the preset's.
_TEMPERATURES = (0.05, 0.1)
_WEIGHTS = (0.1, 0.3, 1.0)
TRIALS: dict[str, list[dict[str, float]]] = {
    "off": [{"temperature": t, "learning_rate": r} for t in _TEMPERATURES for r in (1e-3, 5e-4, 2e-3)],
    **{
        name: [{"temperature": t, **dict.fromkeys(parts, w)} for t in _TEMPERATURES for w in _WEIGHTS]
        for name, parts in (
            ("token", ["token_weight"]),
            ("frequency", ["frequency_weight", "frequency_token_weight"]),
            ("all", ["token_weight", "frequency_weight", "frequency_token_weight"]),
        )
    },
}


def target_arms(encoders: Sequence[str]) -> list[Arm]:
    """Every encoder, z-scored and not, pooled and tokens, through both decoders."""
    return [
        Arm(encoder, scaled, kind, decoder)
        for scaled in (True, False)
        for kind in ("pooled", "tokens")
        for encoder in encoders
        for decoder in ("lite-mind", "ridge")
    ]


def layout_arms() -> list[Arm]:
    """The same tokens in three layouts."""
    return [Arm("mlip", kind="tokens", layout=layout) for layout in ("full", "merged", "grid")]


# -- what is fitted to ---------------------------------------------------------------------------------------------


def study_of(seed: int, work: Path) -> Study:
    """Virtual study of a seed, kept in the work folder."""
    path = work / f"study-{seed}.h5"
    if not path.exists():
        ph.virtual.study("small", seed=seed).save(path)
    return Study.open(path)


def encoded(study: Study, arm: Arm, pair: Pair, work: Path, layout: str = "full") -> Targets:
    """Targets as the encoder gives them, cached in the work folder."""
    settings = {"merge": MERGED} if layout == "merged" else {}
    name = "gabor" if arm.encoder == "gabor" else f"mlip:{pair.folders()[arm.encoder]}"
    return ph.encode(study.stimuli, make_encoder(name, **settings), cache=work / "targets", progress=False)


def on_grid(tokens: np.ndarray, side: int = GRID) -> np.ndarray:
    """Class token and means over ``side x side`` cells of the patches: (n, 1 + patches, width) to fewer."""
    n, count, width = tokens.shape
    old = round((count - 1) ** 0.5)
    cells = tokens[:, 1:].reshape(n, side, old // side, side, old // side, width).mean(axis=(2, 4))
    return np.concatenate([tokens[:, :1], cells.reshape(n, side * side, width)], axis=1)


def reached(study: Study, arm: Arm, pair: Pair, work: Path) -> tuple[Targets, Reached]:
    """Targets of an arm, and the way from a prediction back to the encoder's own pooled embedding."""
    plain, ids = encoded(study, arm, pair, work), study.stimuli.ids
    train = study.split("train").stimulus_ids
    source = encoded(study, arm, pair, work, arm.layout)
    values = np.asarray(source.of(ids, arm.kind), dtype=np.float64)
    if arm.layout == "grid":
        values = on_grid(values)
    known = values[study.stimuli.rows(train)]
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-3)
    factor = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    if not arm.scaled:
        mean, factor = np.zeros_like(mean), np.ones_like(factor)
    made = ((values - mean) * factor).astype(np.float32)
    given = given_targets(ids, **{arm.kind: made}, label=arm.name)
    targets = Targets(ids, given.tokens, given.pooled, given.encoder, train.tolist() if arm.scaled else None)
    # gabor's pooled embedding is its tokens one after the other, MLIP's is the class token
    way = "all" if arm.encoder == "gabor" or arm.kind == "pooled" else "first"
    return targets, Reached(plain.of(ids), mean, factor, way)


# -- one fit -------------------------------------------------------------------------------------------------------


def resolved(arm: Arm, epochs: int) -> dict[str, Any]:
    """Everything but encoder and study that decides a fit."""
    training = None if arm.decoder == "ridge" else {**BUDGET, "epochs": epochs, **arm.training}
    return {"arm": arm.name, "people": arm.people, "layout": arm.layout, "training": training}


def fitted(arm: Arm, study: Study, targets: Targets, seed: int, epochs: int) -> tuple[Decoder, dict[str, Any]]:
    """The decoder, and what is told of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    decoder = ph.fit(
        arm.decoder,
        study,
        targets,
        preset="default" if arm.decoder == "ridge" else "small",
        kind=arm.kind,
        subjects=study.subjects[: arm.people],
        seed=seed,
        progress=False,
        training=resolved(arm, epochs)["training"],
    )
    spent = {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    told = {key: decoder.provenance.get(key) for key in ("best_epoch", "epochs", "validation_best")}
    return decoder, {**spent, **told, "parameters": sizes(decoder), "shape": list(targets.shape(arm.kind))}


def run(arm: Arm, seed: int, pair: Pair, work: Path, epochs: int, test: bool = True) -> dict[str, Any]:
    """Fit one arm and, with `test`, score it."""
    study = study_of(seed, work)
    targets, way = reached(study, arm, pair, work)
    decoder, told = fitted(arm, study, targets, seed, epochs)
    facts = {"arm": arm.name, "seed": seed, "how": resolved(arm, epochs), **told}
    if not test:
        return facts
    people = study.subjects[: arm.people]
    protocols = ["retrieval", "two-way-cosine"]
    card = ph.evaluate(
        decoder, study, targets, subjects=people, rivals=(), protocols=protocols, n_perm=0, progress=False
    )
    own = scores_of(card, card.method)
    part = study.split("test")
    predictions = []
    for person in people:
        ids, responses = part.averaged(person)
        predictions.append((ids, decoder.predict(responses, person)))
    words = None if arm.encoder == "gabor" else text_means(pair.folders()[arm.encoder])
    common = common_scores(study, way, predictions, words)
    return {**facts, "scores": own["scores"], "each": own["each"] | common.pop("each"), **common}


# -- all of them ---------------------------------------------------------------------------------------------------


class Runner:
    """Runs what is not among the records of the work folder yet; `asked` holds what this run is about."""

    def __init__(self, work: Path, models: Sequence[Pair], seeds: Sequence[int], epochs: int) -> None:
        self.work, self.models, self.seeds, self.epochs = work, models, list(seeds), epochs
        self.path = work / "records.jsonl"
        self.done = {record["key"]: record for record in read_records(self.path)}
        self.asked: dict[str, dict[str, Any]] = {}

    def pair(self, seed: int) -> Pair:
        """The models of a seed: one pair after the other, then from the first again."""
        return self.models[(self.seeds.index(seed) if seed in self.seeds else 0) % len(self.models)]

    def __call__(self, arm: Arm, seed: int, test: bool = True) -> dict[str, Any]:
        pair = self.pair(seed)
        weights = "" if arm.encoder == "gabor" else read_config(pair.folders()[arm.encoder])["weights"]
        key = digest(json.dumps([resolved(arm, self.epochs), seed, weights, test], sort_keys=True))[:16]
        if key not in self.done:
            log.info("%s, seed %d", arm.name, seed)
            self.done[key] = {"key": key, **run(arm, seed, pair, self.work, self.epochs, test)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(self.done[key]) + "\n")
        self.asked[key] = self.done[key]
        return self.done[key]

    def chosen(self, arm: Arm, seed: int) -> tuple[Arm, list[dict[str, Any]]]:
        """The best of an arm's trials on the validation stimuli of the development study, and all of them."""
        trials = [replace(arm, training=settings) for settings in TRIALS[arm.loss]]
        found = [self(trial, seed, test=False)["validation_best"] for trial in trials]
        told = [{**trial.training, "validation": score} for trial, score in zip(trials, found, strict=True)]
        return trials[int(np.argmax(found))], told


def run_all(runner: Runner, groups: Sequence[str], development: int, layout: str) -> dict[str, Any]:
    """Records of every group, and what was chosen for the losses."""
    with_clip = all(pair.clip is not None for pair in runner.models)
    encoders = ["mlip", *(["clip"] if with_clip else []), "gabor"]
    found: dict[str, Any] = {}
    if "targets" in groups:
        found["targets"] = [runner(arm, seed) for arm in target_arms(encoders) for seed in runner.seeds]
    if "layouts" in groups:
        found["layouts"] = [runner(arm, seed) for arm in layout_arms() for seed in runner.seeds]
    if "alignment" in groups:
        found["alignment"], found["trials"] = [], {}
        for loss in TRIALS:
            arm = Arm("mlip", kind="tokens", layout=layout, loss=loss, people=1)
            best, found["trials"][loss] = runner.chosen(arm, development)
            found["alignment"] += [runner(best, seed) for seed in runner.seeds]
    return found


def main() -> None:
    """Run what is missing, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of studies, targets and finished records")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--development", type=int, default=10, help="study on which the weights of losses are chosen")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--alignment-layout", choices=["grid", "full"], default="grid", help="'full' takes hours")
    parser.add_argument("--epochs", type=int, default=BUDGET["epochs"])
    parser.add_argument("--json", type=Path, default=RESULTS)
    add_options(parser)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("phosphene").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    if options.development in options.seeds:
        parser.error("the development study must not be among the seeds")
    options.work.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "threads": 1, "seeds": options.seeds, "development": options.development}
    models = pairs(options, options.work)
    facts["models"] = [{name: describe(folder) for name, folder in pair.folders().items()} for pair in models]
    facts["budget"] = {**BUDGET, "epochs": options.epochs}
    runner = Runner(options.work, models, options.seeds, options.epochs)
    found = run_all(runner, options.groups, options.development, options.alignment_layout)
    facts["cpu_seconds_of_fits"] = round(sum(record["cpu_s"] for record in runner.asked.values()))
    result = {**facts, **summarise(found)}
    write_json(options.json, result)
    print(markdown(result))


if __name__ == "__main__":
    sys.exit(main())
