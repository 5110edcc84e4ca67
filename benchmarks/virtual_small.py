"""Accuracy on virtual studies of the preset `small`: lite-mind, its rivals, its parts taken out one by one.

Run: ``OMP_NUM_THREADS=1 python benchmarks/virtual_small.py --work FOLDER``. Every (arm, seed) is a line in
``FOLDER/records.jsonl`` as soon as it is done; an interrupted run goes on from there. Seed s simulates study s (new
people, new scenes) and decides everything random of the fits. Targets are ``z:pocket``, or those of ``--encoder`` (the
figures on Gabor energy: ``--encoder z:gabor --json benchmarks/results/virtual_small_gabor.json``). Test stimuli are
scored once, by the weights that were best on validation stimuli inside the training part; mindeye-mlp's size is chosen
there too. All trained arms get the same data, samples (single trials), epochs and batches; the learning rate of each
network was chosen on the validation stimuli of another study (seed 10, not in the table), with ``z:gabor`` as targets.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lite_mind_published import PublishedLiteMind
from nsd_size import machine
from pydantic import Field
from torch import Tensor, nn
from virtual_small_summary import (
    ALMOST_LINEAR,
    MORE_DROPOUT,
    RANDOM_START,
    WHOLE,
    WITHOUT_LINEAR,
    draw,
    markdown,
    summarise,
)

import phosphene as ph
from phosphene.decoders import DECODERS, Decoder, DecoderConfig
from phosphene.encoders import Targets
from phosphene.files import digest, write_json
from phosphene.recordings import Study
from phosphene.settings import load_preset, merge
from phosphene.training import losses

RESULTS = Path(__file__).parent / "results" / "virtual_small.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "accuracy_parameters.svg"
BUDGET = {"epochs": 12, "batch_size": 128, "repeats": "single", "patience": 0, "monitor": "top-1"}
PUBLISHED = "lite-mind-published"

log = logging.getLogger("virtual_small")


class PublishedConfig(DecoderConfig):
    """Settings of the released layout, made smaller: 15.7 million parameters a person are for 15,724 voxels."""

    patches: int = Field(8, ge=2)
    widths: tuple[int, int, int] = (96, 48, 24)
    dropout: float = 0.1
    drop_path: float = 0.15


class PublishedDecoder(Decoder):
    """The released layout under the decoder contract: one whole network a person, as it is trained."""

    name = PUBLISHED
    Config = PublishedConfig

    def __init__(self, config: PublishedConfig, subjects: dict[str, int], target_shape: tuple[int, ...]) -> None:
        super().__init__(config, subjects, target_shape)
        self.inputs = nn.ModuleList()
        for subject, n_voxels in self.subjects.items():
            self._add_input(subject, n_voxels)

    def _add_input(self, subject: str, n_voxels: int) -> None:
        config: Any = self.config
        shape = (self.target_shape[0], self.target_shape[1])
        rates = {"dropout": config.dropout, "drop_path": config.drop_path}
        patch = n_voxels // config.patches
        self.inputs.append(PublishedLiteMind(n_voxels, shape, patch, widths=config.widths, **rates))

    def _decode(self, responses: Tensor, subject: str | None) -> Tensor:
        output: Tensor = self.inputs[self.index(str(subject))](responses)
        return output


DECODERS[PUBLISHED] = PublishedDecoder


def published_loss(predictions: Tensor, targets: Tensor, stimulus: Tensor, temperature: Tensor | float) -> Tensor:
    """InfoNCE from image to brain only, every other trial a negative, as the released code has it."""
    images = nn.functional.normalize(targets[stimulus], dim=1)
    logits = images @ nn.functional.normalize(predictions, dim=1).T / temperature
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)))


@functools.cache
def preset_of(decoder: str, name: str) -> dict[str, Any]:
    """A preset as it was when the run began."""
    return load_preset("decoders", decoder, name)


@dataclass(frozen=True)
class Arm:
    """One thing that is fitted and scored.

    Attributes
    ----------
    name, group : str
        What it is called, and the table it stands in.
    decoder : str
    kind : {"pooled", "tokens"}
    settings, training : dict
        Over those of the preset `small`, and of the common budget.
    one_direction : bool
        Trained with `published_loss` in place of the symmetric one.
    people : int, optional
        Fitted to and scored on the first so many people only.
    """

    name: str
    group: str
    decoder: str
    kind: str = "pooled"
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    one_direction: bool = False
    people: int | None = None

    def resolved(self) -> dict[str, Any]:
        """Everything that decides the fit: preset, budget and own settings."""
        name = {"ridge": "default", PUBLISHED: None}.get(self.decoder, "small")
        preset = preset_of(self.decoder, name) if name else {}
        training = {} if self.decoder == "ridge" else merge(preset.get("training", {}), {**BUDGET, **self.training})
        return {
            **({} if self.people is None else {"people": self.people}),
            "decoder": self.decoder,
            "kind": self.kind,
            "settings": merge(preset.get("decoder", {}), self.settings),
            "training": training,
            "one_direction": self.one_direction,
        }


#: the least network there can be beside the linear path
TINY = {
    "patches": 3,
    "width": 1,
    "blocks": 1,
    "filters": 2,
    "hidden": 1,
    "heads": 1,
    "queries": 1,
    "projector_groups": 0,
}
ABLATION_EPOCHS = 8
ALONE = {"linear_rank": 0}
ALONE_TRAINING = {"learning_rate": 3e-3}
LONGER = {"width": 512, "blocks": 2, "dropout": 0.5}
OWN_LOSS = {
    "temperature": math.exp(-8),
    "mse_weight": 0.0,
    "weight_decay": 0.1,
    "gradient_clip": 0.0,
    "learning_rate": 1e-3,
}
OUR_TRAINING = {"temperature": 0.05, "mse_weight": 1.0, "weight_decay": 0.05, "learning_rate": 3e-3}


def arms() -> list[Arm]:
    """All arms, in the order in which they are run."""
    grid = [
        Arm(f"mindeye-mlp {w}x{b} d{d}", "grid", "mindeye-mlp", settings={"width": w, "blocks": b, "dropout": d})
        for w, b, d in [(256, 2, 0.3), (512, 1, 0.3), (512, 2, 0.3), (512, 2, 0.5), (512, 4, 0.3), (1024, 2, 0.3)]
    ]
    brief = {**ALONE_TRAINING, "epochs": ABLATION_EPOCHS}
    parts = [
        Arm(name, "ablation", "lite-mind", settings={**ALONE, **settings}, training={**brief, **training}, people=1)
        for name, settings, training in ABLATIONS
    ]
    return [
        Arm("ridge", "main", "ridge"),
        Arm("lite-mind", "main", "lite-mind"),
        *grid,
        Arm(WITHOUT_LINEAR, "main", "lite-mind", settings=ALONE, training=ALONE_TRAINING),
        Arm("lite-mind, tokens", "tokens", "lite-mind", "tokens"),
        Arm(f"{WITHOUT_LINEAR}, tokens", "tokens", "lite-mind", "tokens", ALONE, ALONE_TRAINING),
        Arm("ridge, tokens", "tokens", "ridge", "tokens"),
        Arm(ALMOST_LINEAR, "linear", "lite-mind", settings=TINY),
        *parts,
        Arm(RANDOM_START, "linear", "lite-mind", settings={"linear_start": "random"}, training=ALONE_TRAINING),
        Arm(MORE_DROPOUT, "linear", "lite-mind", settings={"dropout": 0.5, "drop_path": 0.3}),
        Arm("lite-mind-published, our training", "tokens", PUBLISHED, "tokens", training=OUR_TRAINING),
        Arm("lite-mind-published, own loss", "tokens", PUBLISHED, "tokens", training=OWN_LOSS, one_direction=True),
        Arm("mindeye-mlp 512x2 d0.5, 40 epochs", "longer", "mindeye-mlp", settings=LONGER, training={"epochs": 40}),
    ]


#: (name, settings, training) over lite-mind without its linear path, which comes first
ABLATIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (WHOLE, {}, {}),
    ("2 filters", {"filters": 2}, {}),
    ("constant gates (library collapses)", {"gating": "cosine"}, {}),
    ("spectrum linear", {"spectrum": "linear"}, {}),
    ("spectrum cubed", {"spectrum": "cube"}, {}),
    ("no projector", {"projector_groups": 0}, {}),
    ("diagonal projector", {"projector_groups": 64}, {}),
    ("voxels by ROI", {"order": "roi"}, {}),
    ("voxels along a curve", {"order": "curve"}, {}),
    ("voxels at random", {"order": "random"}, {}),
    ("SoftCLIP", {}, {"contrastive": "softclip"}),
    ("BiMixCo, then InfoNCE", {}, {"mixing_fraction": 0.33}),
    ("squared error only", {}, {"contrastive": "none"}),
    ("InfoNCE only", {}, {"mse_weight": 0.0}),
]


# -- one fit ------------------------------------------------------------------------------------------------------


def study_of(seed: int, work: Path, encoder: str) -> tuple[Study, Targets]:
    """Virtual study and its targets, kept in the work folder."""
    path, encoded = work / f"study-{seed}.h5", work / f"targets-{seed}-{digest(encoder)[:8]}"
    if not path.exists():
        ph.virtual.study("small", seed=seed).save(path)
    study = Study.open(path)
    if not encoded.exists():
        train = study.split("train").stimulus_ids
        ph.encode(study.stimuli, encoder, fit_on=train, progress=False).save(encoded)
    return study, Targets.open(encoded)


def sizes(decoder: Decoder) -> dict[str, int]:
    """Numbers that were fitted: shared by all people, and of one person (the mean); buffers of closed forms count."""
    own = ("inputs.", "linear.people.", "weight_", "intercept_")
    fitted = dict(decoder.named_parameters())
    if decoder.closed_form:
        fitted = {name: one for name, one in decoder.named_buffers() if name.startswith(own)}
    personal = sum(one.numel() for name, one in fitted.items() if name.startswith(own))
    total = sum(one.numel() for one in fitted.values())
    return {"total": total, "shared": total - personal, "a_person": personal // len(decoder.subjects)}


@contextlib.contextmanager
def direction(arm: Arm) -> Iterator[None]:
    """The published loss in place of ours, where an arm asks for it."""
    with mock.patch.object(losses, "infonce", published_loss) if arm.one_direction else contextlib.nullcontext():
        yield


def run(arm: Arm, seed: int, work: Path, encoder: str) -> list[dict[str, Any]]:
    """Fit and score one arm; of ridge the records of the mean and the nearest training stimulus come along."""
    study, targets = study_of(seed, work, encoder)
    how = arm.resolved()
    people = study.subjects[: arm.people]
    wall, cpu = time.perf_counter(), time.process_time()
    with direction(arm):
        decoder = ph.fit(
            arm.decoder,
            study,
            targets,
            kind=arm.kind,
            subjects=people,
            seed=seed,
            progress=False,
            training=how["training"] or None,
            **how["settings"],
        )
    spent = {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    simple = ("mean", "nearest") if arm.name == "ridge" else ()
    protocols = ["retrieval", "two-way-cosine"]
    card = ph.evaluate(
        decoder, study, targets, subjects=people, rivals=simple, protocols=protocols, n_perm=0, progress=False
    )
    facts = {"group": arm.group, "key": key_of(arm, seed, encoder), "seed": seed, "kind": arm.kind, "how": how}
    told = {key: decoder.provenance.get(key) for key in ("best_epoch", "epochs", "validation_best")}
    records = [
        {**facts, "arm": arm.name, **scores_of(card, card.method), "parameters": sizes(decoder), **spent, **told}
    ]
    for name in simple:
        records.append({**facts, "arm": name, **scores_of(card, name), "parameters": None})
    return records


def scores_of(card: Any, method: str) -> dict[str, Any]:
    """Top-1 and two-way in both directions, with intervals, and what each stimulus got (mean over people)."""
    values: dict[str, Any] = {}
    for metric in ("top-1", "two-way"):
        for way in ("brain_to_image", "image_to_brain"):
            score = card.get(metric, way, method=method)
            values[f"{metric} {way}"] = {"value": score.value, "interval": score.interval, "chance": score.chance}
    each: dict[str, Any] = {}
    people = [one for one in card.stimuli if one["method"] == method]
    for way in ("brain_to_image", "image_to_brain"):
        rank, ties = ([np.array(one[what][way], dtype=float) for one in people] for what in ("rank", "ties"))
        candidates = np.array([one["candidates"] for one in people], dtype=float).reshape(len(people), -1)
        top = [np.clip((1 - (r - 1 - t / 2)) / (t + 1), 0, 1) for r, t in zip(rank, ties, strict=True)]
        two = [(m - r) / (m - 1) for r, m in zip(rank, candidates, strict=True)]
        each[f"top-1 {way}"] = np.mean(top, axis=0).round(4).tolist()
        each[f"two-way {way}"] = np.mean(two, axis=0).round(5).tolist()
    return {"scores": values, "each": each}


# -- all of them --------------------------------------------------------------------------------------------------


def key_of(arm: Arm, seed: int, encoder: str) -> str:
    """What a record is found by: everything that decides it."""
    return digest(json.dumps([arm.name, seed, encoder, arm.resolved()], sort_keys=True))[:16]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of earlier runs; a line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def run_all(seeds: list[int], groups: list[str], work: Path, encoder: str) -> list[dict[str, Any]]:
    """Every arm for every seed that is not in the work folder yet; returns the records of all."""
    path = work / "records.jsonl"
    plan = [(arm, seed) for arm in arms() if arm.group in groups for seed in seeds]
    done = {record["key"] for record in read_records(path)}
    for number, (arm, seed) in enumerate(plan, start=1):
        if key_of(arm, seed, encoder) not in done:
            log.info("%d of %d: %s, seed %d", number, len(plan), arm.name, seed)
            lines = [json.dumps(record) for record in run(arm, seed, work, encoder)]
            with path.open("a", encoding="utf-8") as file:
                file.write("\n" + "\n".join(lines) + "\n")
    wanted = {key_of(arm, seed, encoder) for arm, seed in plan}
    return list({(r["arm"], r["seed"]): r for r in read_records(path) if r["key"] in wanted}.values())


def main() -> None:
    """Run what is missing, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of studies and finished records")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", default=["main", "grid", "tokens", "linear", "ablation", "longer"])
    parser.add_argument("--encoder", default="z:pocket")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "threads": 1, "seeds": options.seeds, "encoder": options.encoder, "budget": BUDGET}
    records = run_all(options.seeds, options.groups, options.work, options.encoder)
    facts["cpu_seconds_of_fits"] = round(sum(record.get("cpu_s", 0.0) for record in records))
    facts["wall_seconds_of_fits"] = round(sum(record.get("wall_s", 0.0) for record in records))
    seeds = " ".join(map(str, options.seeds))
    facts["command"] = f"python benchmarks/virtual_small.py --work FOLDER --seeds {seeds} --encoder {options.encoder}"
    result = {**facts, **summarise(records)}
    write_json(options.json, result)
    print(markdown(result))
    if options.figure is not None:
        draw(records, result, options.figure)


if __name__ == "__main__":
    sys.exit(main())
