"""Accuracy against compression: plain and guided token merging on cluttered pictures.

Run: ``OMP_NUM_THREADS=1 python benchmarks/merging_accuracy.py --work FOLDER`` (about an hour of one core; ``--quick``
to see that everything runs). Every evaluation is a line in ``FOLDER/records.jsonl`` as soon as it is done, every
training a run folder; an interrupted run goes on from there.

Pictures: scenes with a small object, or two, before cluttered backgrounds. Tasks: zero-shot by the prompts of all 144
compositions (shape, colour, material and all together; compositions that training showed, and others), retrieval of
scenes with two objects by their captions in both directions. Score: the spatial embedding alone. Towers: `attention`
(a plain CLIP, four blocks that all merge) and `sequential` (two spectral blocks, then three that merge), three seeds
each, trained here; the shipped `pocket` where it is there; or ``--models FOLDER...``, taken as several trainings of one
thing. Each seed has its own training and its own test scenes.

Guides are compared with plain merging on the same pictures at the same schedule. Their strength is chosen on
development scenes, of as many for each guide, once for all rates and seeds. The guide by text gets the prompts of all
compositions; `query` gets the caption that is searched for, for every candidate picture alike (text to image only):
neither knows what is in a picture. "Trained with merging": the attention tower continued with and, as control, without
merging, for as many steps on the same scenes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from merging_accuracy_summary import CONTROL, DEV, OFF_THE_SHELF, POOLED, QUERY, TASKS, TRAINED, markdown, summarise
from merging_pictures import GRAMMAR, WORDS, Pictures, pictures, prompts
from nsd_size import machine
from torch import Tensor
from torch.nn import functional

from phosphene.encoders.merging import MergeSettings
from phosphene.encoders.mlip import MLIP, load_model
from phosphene.encoders.mlip.encoder import SHIPPED, find_mlip
from phosphene.encoders.mlip.image import tower_shape
from phosphene.encoders.mlip.store import read_config
from phosphene.errors import InputError
from phosphene.files import digest, read_json, write_json
from phosphene.training.pretraining import pretrain

RESULTS = Path(__file__).parent / "results" / "merging_accuracy.json"
RATES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9)
DEV_RATES = (0.5, 0.7, 0.8, 0.9)
STRENGTHS = (0.03, 0.1, 0.3, 1.0)
GUIDES = ("spatial", "frequency", "both", "text", "query")
CONTINUED = ("none", "spatial", "frequency", "both")
CONTINUED_TOKENS = 0.4
BATCH = 128
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # as `pretrain` chooses it

log = logging.getLogger("merging_accuracy")


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes
    ----------
    steps, continued, batch, pool : int
        Steps of a training and of its continuation, pictures a step, and the scenes they are taken from.
    pictures, candidates : int
        Test pictures of each part, and those among which a query searches.
    dev_pictures, dev_candidates : int
        The same of development scenes.
    """

    steps: int = 1200
    continued: int = 120
    batch: int = 96
    pool: int = 12_800
    pictures: int = 512
    candidates: int = 96
    dev_pictures: int = 192
    dev_candidates: int = 40


QUICK = Sizes(2, 1, 64, 256, 24, 6, 12, 4)


# -- models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A model on disk: what tower, how it came to be, by which seed."""

    tower: str
    way: str
    seed: int
    folder: Path
    guide: str = "none"

    @property
    def identity(self) -> str:
        """Hash of its weights."""
        return str(read_config(self.folder)["weights"])


def training_settings(tower: str, sizes: Sizes) -> dict[str, Any]:
    """Tables for `pretrain`: small towers, plain captions of one or two objects."""
    model: dict[str, Any] = {
        "width": 64,
        "embed": 64,
        "token_heads": False,
        "text_width": 64,
        "text_blocks": 2,
        "text_context": 48,
        "vocabulary": 400,
    }
    objective = {"frequency_weight": 0.5, "spatial_token_weight": 0.0, "frequency_token_weight": 0.0}
    if tower == "attention":
        model |= {"spectral_blocks": 0, "spatial_blocks": 4, "frequency_head": False}
        objective["frequency_weight"] = 0.0
    else:
        model |= {"spectral_blocks": 2, "spatial_blocks": 3}
    data = {**GRAMMAR, "objects": 2, "captions": 1, "plain": 1.0, "hard_share": 0.5, "pool": sizes.pool}
    training = {"steps": sizes.steps, "batch_size": sizes.batch, "learning_rate": 2e-3, "warmup": 0.05}
    training |= {"weight_decay": 0.05, "ema": 0.99, "precision": "32-true", "probe_pictures": 128}
    return {"model": model, "objective": objective, "training": training, "data": data}


def run_folder(work: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """A folder for each training; other settings get another one."""
    return work / f"{name}-{digest(json.dumps(settings, sort_keys=True, default=str))[:8]}"


def trained(tower: str, seed: int, sizes: Sizes, work: Path) -> Trained:
    """A tower trained from scratch without merging."""
    settings = training_settings(tower, sizes)
    out = run_folder(work, f"{tower}-{seed}", settings)
    return Trained(tower, OFF_THE_SHELF, seed, pretrain(None, out=out, seed=seed, progress=False, settings=settings))


def continued(base: Trained, guide: str, strength: float, sizes: Sizes, work: Path) -> tuple[Trained, float]:
    """A trained tower continued with merging, or without as control; and seconds of processor time that took."""
    merge = MergeSettings.build()
    if guide != CONTROL:
        merge = MergeSettings(tokens=CONTINUED_TOKENS, guide=guide, strength=strength)
    settings = {key: value for key, value in training_settings(base.tower, sizes).items() if key != "model"}
    settings["training"] |= {"steps": sizes.continued, "learning_rate": 5e-4}
    settings["data"] |= {"pool": sizes.pool // 2}
    told = {**settings, "merge": merge.model_dump(), "start": base.identity}
    out = run_folder(work, f"{base.tower}-{base.seed}-{guide}".replace(" ", "-"), told)
    settings["model"] = {"merge": merge.model_dump()}
    spent = out.with_name(f"{out.name}-spent.json")
    before, begun = read_json(spent)["cpu_s"] if spent.exists() else 0.0, time.process_time()
    if not (out / "model").exists():
        try:
            pretrain(None, out=out, start=base.folder, seed=1000 + base.seed, progress=False, settings=settings)
        finally:  # an interrupted training goes on in another call
            write_json(spent, {"cpu_s": before + time.process_time() - begun})
    return Trained(base.tower, TRAINED, base.seed, out / "model", guide), read_json(spent)["cpu_s"]


def given(folders: list[str], name: str) -> list[Trained]:
    """Models that are there already."""
    return [Trained(name, OFF_THE_SHELF, number, find_mlip(folder)) for number, folder in enumerate(folders)]


def shipped() -> list[Trained]:
    """The shipped model, where it is there."""
    found = []
    for name in SHIPPED:
        folder = find_mlip(name)
        if (folder / "config.json").is_file():
            found.append(Trained(name, OFF_THE_SHELF, 0, folder))
    return found


# -- one evaluation -----------------------------------------------------------------------------------------------


class Eyes:
    """A model that can be looked through at any rate of merging."""

    def __init__(self, model: Trained) -> None:
        self.model, self.tokenizer = load_model(model.folder, MergeSettings.build())
        self.model.to(DEVICE)
        self.prompts = self.texts(prompts())

    def merged(self, merge: MergeSettings) -> MLIP:
        """The same weights with other merge settings."""
        twin = MLIP(self.model.config.model_copy(update={"merge": merge}))
        twin.load_state_dict(self.model.state_dict())
        return twin.to(DEVICE).eval().requires_grad_(False)

    def share(self, merge: MergeSettings) -> float:
        """Share of the operations that is left."""
        return tower_shape(self.model.config).plan(merge).flops

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings of texts (texts, embed)."""
        encoded = self.tokenizer.encode(texts, self.model.config.text_context)
        parts = zip(*(one.to(DEVICE).split(BATCH) for one in encoded), strict=True)
        return functional.normalize(torch.cat([self.model.encode_text(*part, tokens=False).pooled for part in parts]))


@torch.inference_mode()
def looked(network: MLIP, pixels: Tensor, texts: Tensor | None = None) -> Tensor:
    """Unit spatial embeddings of pictures (n, embed)."""
    parts = [
        network.encode_image(network.prepare(some.to(DEVICE)), tokens=False, texts=texts).spatial
        for some in pixels.split(BATCH)
    ]
    return functional.normalize(torch.cat(parts))


def hits(similar: Tensor, right: np.ndarray) -> str:
    """For each row 1 where the best column is right (where several are best, all of them)."""
    best = (similar == similar.max(dim=1, keepdim=True).values).cpu().numpy()
    return "".join("01"[int(good)] for good in ~(best & ~right).any(axis=1))


def evaluate(eyes: Eyes, shown: Pictures, merge: MergeSettings, guide: str) -> dict[str, str]:
    """Hits of every picture in every task, by task."""
    network = eyes.merged(merge)
    if guide == "query":
        return {QUERY: _searched(eyes, network, shown)}
    texts = eyes.prompts if guide == "text" else None
    found = {}
    for part, truth in shown.truth.items():
        grid = (looked(network, shown.pixels[part], texts) @ eyes.prompts.T).unflatten(
            1, [len(w) for w in WORDS.values()]
        )
        for axis, (name, right) in enumerate(truth.items(), start=1):
            alone = grid.amax(dim=[other for other in (1, 2, 3) if other != axis])
            found[f"{name}, {part}"] = hits(alone, np.arange(alone.shape[1])[None] == right[:, None])
        together = np.ravel_multi_index(list(truth.values()), grid.shape[1:])
        found[f"{POOLED}, {part}"] = hits(grid.flatten(1), np.arange(144)[None] == together[:, None])
    similar = looked(network, shown.pixels["pairs"], texts) @ eyes.texts(shown.captions).T
    right, few = _same(shown.captions), shown.candidates
    found["image to text"], found["text to image"] = hits(similar, right), hits(similar.T, right)
    found[QUERY] = hits(similar.T[:few, :few], right[:few, :few])
    return found


def _searched(eyes: Eyes, network: MLIP, shown: Pictures) -> str:
    """Text to image among a few, each query guiding the merging of all candidates."""
    few = shown.candidates
    queries, candidates = eyes.texts(shown.captions[:few]), shown.pixels["pairs"][:few]
    similar = torch.stack([looked(network, candidates, query[None]) @ query for query in queries])
    return hits(similar, _same(shown.captions)[:few, :few])


def _same(captions: list[str]) -> np.ndarray:
    texts = np.array(captions)
    return texts[:, None] == texts[None]


# -- all of them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One evaluation: a model, a guide at a strength, a rate, on development or test scenes."""

    model: Trained
    guide: str
    strength: float
    rate: float
    role: str

    @property
    def merge(self) -> MergeSettings:
        """Settings of the tower."""
        if not self.rate:
            return MergeSettings.build()
        guide: Any = "text" if self.guide == "query" else self.guide
        return MergeSettings(tokens=1 - self.rate, guide=guide, strength=self.strength)

    def key(self, sizes: Sizes) -> str:
        """What its record is found by: everything that decides it."""
        shown = [sizes.dev_pictures, sizes.dev_candidates] if self.role == DEV else [sizes.pictures, sizes.candidates]
        told = [self.model.identity, self.model.seed, self.guide, self.strength, self.rate, self.role, shown, GRAMMAR]
        return digest(json.dumps([*told, self.model.tower, self.model.way, self.model.guide], sort_keys=True))[:16]


class Records:
    """Finished evaluations in a file, one a line."""

    def __init__(self, path: Path, sizes: Sizes) -> None:
        self.path, self.sizes, self.by_key = path, sizes, {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # a line that was cut off
                self.add(json.loads(line))

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record in memory."""
        self.by_key[record["key"]] = record

    def run(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """Do what is missing; returns the records of all jobs within reach."""
        eyes: tuple[Trained, Eyes] | None = None
        found = []
        for job in jobs:
            if (key := job.key(self.sizes)) not in self.by_key:
                if eyes is None or eyes[0] != job.model:
                    log.info("%s, %s, seed %d, %s scenes", job.model.tower, job.model.way, job.model.seed, job.role)
                    eyes = job.model, Eyes(job.model)
                if (share := _reached(eyes[1], job)) is not None:
                    self._save({"key": key, **self._record(job, eyes[1], share)})
            if key in self.by_key:
                found.append(self.by_key[key])
        return found

    def _record(self, job: Job, eyes: Eyes, share: float) -> dict[str, Any]:
        sizes, development, begun = self.sizes, job.role == DEV, time.process_time()
        n = (sizes.dev_pictures, sizes.dev_candidates) if development else (sizes.pictures, sizes.candidates)
        shown = pictures(job.model.seed, *n, eyes.model.config.image_size, 2**22 if development else 0)
        facts = {
            "tower": job.model.tower,
            "way": job.model.way,
            "trained_guide": job.model.guide,
            "seed": job.model.seed,
        }
        told = {
            "guide": job.guide,
            "strength": job.strength,
            "rate": job.rate,
            "role": job.role,
            "flops": round(share, 4),
        }
        each = evaluate(eyes, shown, job.merge, job.guide)
        record = {**facts, **told, "hits": each, "cpu_s": round(time.process_time() - begun, 2)}
        return record if job.rate else {**record, "pictures": shown.facts}

    def _save(self, record: dict[str, Any]) -> None:
        self.add(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(record) + "\n")


def _reached(eyes: Eyes, job: Job) -> float | None:
    """Share of the operations, or None where a tower of so few blocks cannot merge so much."""
    try:
        return eyes.share(job.merge)
    except InputError as error:
        log.info("%s: %s", job.model.tower, error)
        return None


def dev_jobs(model: Trained) -> Iterator[Job]:
    """Every guide at every strength on development scenes, beside plain merging."""
    for rate in DEV_RATES:
        yield Job(model, "none", 0.0, rate, DEV)
        for guide in GUIDES:
            yield from (Job(model, guide, strength, rate, DEV) for strength in STRENGTHS)


def test_jobs(model: Trained, strengths: Mapping[str, float], guides: tuple[str, ...]) -> Iterator[Job]:
    """No merging, then every rate with each guide."""
    yield Job(model, "none", 0.0, 0.0, "test")
    for rate in RATES:
        yield from (Job(model, guide, strengths.get(guide, 0.0), rate, "test") for guide in guides)


def choose(records: list[dict[str, Any]], tower: str) -> dict[str, float]:
    """For each guide the strength that is best on development scenes, mean over seeds, rates and tasks."""
    chosen = {}
    for guide in GUIDES:
        score: dict[float, list[float]] = {}
        for record in records:
            if record["tower"] == tower and record["guide"] == guide:
                tasks = [record["hits"][name] for name in ((QUERY,) if guide == "query" else TASKS)]
                score.setdefault(record["strength"], []).append(np.mean([t.count("1") / len(t) for t in tasks]))
        chosen[guide] = max(sorted(score), key=lambda strength: np.mean(score[strength]))
    return chosen


def own_guides(model: Trained) -> tuple[str, ...]:
    """A model trained with a guide is tested with it; the guides by text, which training has not, on plain merging."""
    if model.guide == CONTROL:
        return ("none",)
    return ("none", "text", "query") if model.guide == "none" else (model.guide,)


def run_all(options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """Train, choose, test."""
    records = Records(options.work / "records.jsonl", sizes)
    if options.models:
        models = given(options.models, options.name)
    else:
        models = [trained(tower, seed, sizes, options.work) for tower in options.towers for seed in options.seeds]
        models += shipped()
    found = records.run([job for model in models for job in dev_jobs(model)])
    names = list(dict.fromkeys(model.tower for model in models))
    strengths = {name: choose(found, name) for name in names}
    found += records.run([job for m in models for job in test_jobs(m, strengths[m.tower], ("none", *GUIDES))])
    costs: dict[str, list[float]] = {}
    for base in [model for model in models if model.tower == "attention" and not options.models]:
        for guide in (CONTROL, *CONTINUED):
            model, seconds = continued(base, guide, strengths["attention"].get(guide, 0.0), sizes, options.work)
            costs.setdefault(guide, []).append(round(seconds, 1))
            found += records.run(list(test_jobs(model, strengths["attention"], own_guides(model))))
    return {"strengths": strengths, "cpu_seconds_of_continued": costs, **summarise(found)}


def main() -> None:
    """Run what is missing, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of trainings and finished records")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--towers", nargs="+", default=["attention", "sequential"], choices=["attention", "sequential"])
    parser.add_argument("--models", nargs="+", metavar="FOLDER", help="test these models in place of trained ones")
    parser.add_argument("--name", default="given", help="what the models of --models are called")
    parser.add_argument("--steps", type=int, help=f"of each training from scratch, default {Sizes().steps}")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that everything runs")
    parser.add_argument("--json", type=Path, help=f"default: {RESULTS.name} beside the other results; quick: none")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, steps=options.steps or sizes.steps)
    facts = {"benchmark": "merging_accuracy", "machine": machine(), "threads": 1, "seeds": options.seeds}
    facts |= {"sizes": asdict(sizes), "trials_of_each_guide": list(STRENGTHS)}
    begun = time.process_time()
    result = {**facts, **run_all(options, sizes), "cpu_seconds_of_this_call": round(time.process_time() - begun)}
    path = options.json or (None if options.quick else RESULTS)
    if path is not None:
        write_json(path, result)
    print(markdown(result))


if __name__ == "__main__":
    sys.exit(main())
