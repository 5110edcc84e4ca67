"""What the benchmarks of MLIP's pretraining share: small runs as records that can be taken up, scores by picture.

A run is `phosphene.training.pretraining.pretrain` in a folder of its own; its record is a line of JSON with the hits of
every picture, so that differences can be paired and resampled afterwards.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from phosphene.encoders.mlip import MLIP, ImageFeatures, TextFeatures, Tokenizer, load_model
from phosphene.encoders.mlip.similarity import SCORES, similarities
from phosphene.files import digest, read_json, write_json
from phosphene.settings import merge
from phosphene.stimuli.scenes import SceneGraphs, render_tensor
from phosphene.stimuli.scenes.vocabulary import COLOURS, MATERIALS, SHAPES
from phosphene.training.loop import TrainingError
from phosphene.training.optimise import adamw
from phosphene.training.pretraining import PairStep, PretrainSettings, pretrain, pretrain_settings
from phosphene.training.pretraining.batches import PairLoader, unique_texts
from phosphene.training.pretraining.objective import MLIPObjective, ObjectiveSettings
from phosphene.training.pretraining.sources import ScenePairs
from phosphene.training.settings import MACHINE_KEYS

__all__ = [
    "BASE",
    "LARGEST",
    "SCORES",
    "Arm",
    "Gallery",
    "Question",
    "finished",
    "keep",
    "looks",
    "pictures_of",
    "read_records",
    "run_record",
    "sentence",
    "step_ratio",
    "wanted_words",
]

LARGEST = 500_000  # parameters of an arm
_TOGETHER = "all together"
_BATCH = 128
SMALL_POOL = {"data": {"pool": 256}}

#: settings of every arm; `training.steps` and `data.only` come from the benchmark
BASE: dict[str, Any] = {
    "model": {
        "image_size": 64,
        "patch": 8,
        "stem": "conv",
        "width": 64,
        "heads": 4,
        "embed": 128,
        "token_embed": 32,
        "text_width": 64,
        "text_heads": 4,
        "text_blocks": 2,
        "text_context": 32,
        "vocabulary": 480,
    },
    "training": {
        "batch_size": 128,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "warmup": 0.05,
        "ema": 0.99,
        "precision": "32-true",
        "accelerator": "cpu",
    },
    "data": {"hard_share": 0.75, "rule": "shape-colour"},
}

log = logging.getLogger("mlip_study")


@dataclass(frozen=True)
class Arm:
    """One thing that is trained and scored.

    Attributes
    ----------
    name : str
    settings : dict
        Tables over `BASE`.
    trials : tuple of dict
        Candidate settings over those, of which development chooses one; as many for every arm.
    like : str
        Another arm whose chosen settings it takes: the same thing, trained longer.
    over : dict
        Lies over the chosen settings: what a control has alike with another arm.
    times : float or None
        Steps over those of the other arms; None: as many as make it cost what the arm with all losses costs.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    trials: tuple[dict[str, Any], ...] = ()
    like: str = ""
    over: dict[str, Any] = field(default_factory=dict)
    times: float | None = 1.0


# -- records ------------------------------------------------------------------------------------------------------


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Records of earlier runs by key; a line that was cut off is left out."""
    records = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            records[record["key"]] = record
    return records


def finished(work: Path, key: str) -> dict[str, Any] | None:
    """The record of a key, read anew: other processes may write to the same folder."""
    return read_records(work / "records.jsonl").get(key)


def keep(work: Path, record: Mapping[str, Any]) -> None:
    """Add a record to those of the work folder."""
    with (work / "records.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(record) + "\n")


def run_record(
    work: Path,
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int,
    questions: Callable[[], Sequence[Question | Gallery]],
    pictures: int,
) -> dict[str, Any]:
    """Train, score and keep one run, or return its record where there is one.

    Parameters
    ----------
    work : Path
    facts : mapping
        What the run is called, copied into the record.
    settings : mapping
        Of `pretrain`, all tables.
    seed : int
    questions : callable
        Makes what the finished model is asked; `pictures` says how many it shows.
    """
    # what was asked for, not what the library fills in: a new setting with a default does not undo hours of runs
    training = {name: value for name, value in settings["training"].items() if name not in MACHINE_KEYS}
    key = digest(json.dumps([dict(facts), seed, {**settings, "training": training}, pictures], sort_keys=True))[:16]
    if (known := finished(work, key)) is not None:
        return known
    log.info("%s, seed %d", ", ".join(str(value) for value in facts.values()), seed)
    folder = work / "runs" / key
    record: dict[str, Any] = {"key": key, **facts, "seed": seed, "settings": dict(settings)}
    try:
        with _clock(folder) as clock:
            model_folder = pretrain(None, out=folder, seed=seed, progress=True, settings=settings)
    except TrainingError as error:
        record |= {"failed": str(error), "cpu_s": read_json(clock)["cpu_s"]}
    else:
        model, tokenizer = load_model(model_folder)
        record |= read_json(clock)
        record["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        if record["parameters"] > LARGEST:
            raise SystemExit(f"{folder} has {record['parameters']:,} parameters, more than {LARGEST:,}")
        record["curve"] = _curve(folder, settings)
        record["answers"] = _ask(model, tokenizer, pretrain_settings(None, settings).objective, questions())
    keep(work, record)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return record


@contextlib.contextmanager
def _clock(folder: Path) -> Any:
    """Adds up processor and wall time of the sittings of a run in ``spent.json``, whose path it gives."""
    path = folder / "spent.json"
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        yield path
    finally:
        before = read_json(path) if path.exists() else {"cpu_s": 0.0, "wall_s": 0.0}
        folder.mkdir(parents=True, exist_ok=True)
        spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        write_json(path, {name: round(before[name] + value, 1) for name, value in spent.items()})


def _curve(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Probes of the averaged weights while they were trained, spatial embedding alone, by the pairs seen."""
    batch = settings["training"]["batch_size"]
    points, path = [], folder / "log.jsonl"  # which is not there where a short run has no probes
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        event = json.loads(line)
        if event.get("event") == "probe":
            points.append({"pairs": event["step"] * batch, "scores": event["scores"]})
    card = read_json(folder / "scorecard.json")
    last = {f"{one['task']}, {one['part']}": one["value"] for one in card["scores"] if one["score"] == SCORES[0]}
    return [*points, {"pairs": settings["training"]["steps"] * batch, "scores": last}]


# -- what a model is asked ----------------------------------------------------------------------------------------


class Question(NamedTuple):
    """Pictures to be named by the most similar of some prompts.

    `prompts` are all combinations of values, the last attribute varying fastest; `truth` gives the position of the
    right value of each attribute, `sizes` how many values each has.
    """

    part: str
    pixels: Tensor
    prompts: Sequence[str]
    truth: Mapping[str, np.ndarray]
    sizes: Sequence[int]


class Gallery(NamedTuple):
    """Pictures and captions to find one another; equal captions are all right."""

    part: str
    pixels: Tensor
    texts: Sequence[str]


def pictures_of(graphs: SceneGraphs, size: int) -> Tensor:
    """Scenes as uint8 pictures (n, size, size, 3)."""
    return torch.cat([render_tensor(graphs.take(slice(at, at + _BATCH)), size) for at in range(0, len(graphs), _BATCH)])


def wanted_words(only: Mapping[str, Sequence[str]]) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Of shape, colour and material: positions of the allowed values in the vocabulary, and their first words."""
    known: dict[str, dict[str, list[str]]] = {
        "shape": {name: [entry.nouns[0]] for name, entry in SHAPES.items()},
        "colour": {name: [entry.words[0]] for name, entry in COLOURS.items()},
        "material": {name: [entry.words[0]] for name, entry in MATERIALS.items()},
    }
    found = {}
    for name, words in known.items():
        positions = [at for at, value in enumerate(words) if value in only.get(name, words)]
        found[name] = (np.array(positions), [list(words.values())[at][0] for at in positions])
    return found


def looks(part: str, graphs: SceneGraphs, pixels: Tensor, only: Mapping[str, Sequence[str]]) -> Question:
    """Shape, colour and material of single objects."""
    words = wanted_words(only)
    prompts = [
        sentence(f"{material} {colour} {noun}")
        for noun in words["shape"][1]
        for colour in words["colour"][1]
        for material in words["material"][1]
    ]
    truth = {name: np.searchsorted(words[name][0], getattr(graphs, name)[:, 0]) for name in words}
    return Question(part, pixels, prompts, truth, [len(words[name][0]) for name in words])


def sentence(phrase: str) -> str:
    """A phrase with its article and a full stop, as captions have them."""
    return f"{'An' if phrase[0] in 'aeiou' else 'A'} {phrase}."


@torch.no_grad()
def _ask(
    model: MLIP, tokenizer: Tokenizer, objective: ObjectiveSettings, questions: Sequence[Question | Gallery]
) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    images: dict[int, ImageFeatures] = {}
    for one in questions:
        if id(one.pixels) not in images:
            images[id(one.pixels)] = _embed_images(model, one.pixels)
        texts = one.prompts if isinstance(one, Question) else one.texts
        similar = similarities(
            images[id(one.pixels)],
            _embed_texts(model, tokenizer, texts),
            pool_tokens=objective.pool_tokens,
            top_tokens=objective.top_tokens,
        )
        answers += _named(one, similar) if isinstance(one, Question) else _found(one, similar)
    return answers


def _named(question: Question, similar: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    hits: dict[str, dict[str, np.ndarray]] = {}
    chances = {name: 1 / size for name, size in zip(question.truth, question.sizes, strict=True)}
    for score, matrix in similar.items():
        grid = matrix.unflatten(1, tuple(question.sizes))
        for axis, (name, truth) in enumerate(question.truth.items(), start=1):
            others = [other for other in range(1, grid.ndim) if other != axis]
            alone = grid.amax(dim=others)
            hits.setdefault(name, {})[score] = _hits(alone, np.arange(alone.shape[1]) == truth[:, None])
        right = np.ravel_multi_index(list(question.truth.values()), tuple(question.sizes))
        hits.setdefault(_TOGETHER, {})[score] = _hits(matrix, np.arange(matrix.shape[1]) == right[:, None])
    chances[_TOGETHER] = 1 / matrix.shape[1]
    return [_answer(question.part, task, chances[task], scores) for task, scores in hits.items()]


def _found(gallery: Gallery, similar: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    wording = unique_texts(gallery.texts)[1]
    right = wording[:, None] == wording[None]
    ways = {
        "image to text": {score: _hits(matrix, right) for score, matrix in similar.items()},
        "text to image": {score: _hits(matrix.T, right) for score, matrix in similar.items()},
    }
    return [_answer(gallery.part, task, float(right.mean()), scores) for task, scores in ways.items()]


def _answer(part: str, task: str, chance: float, hits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    packed = {score: np.packbits(values).tobytes().hex() for score, values in hits.items()}
    n = len(next(iter(hits.values())))
    return {"part": part, "task": task, "chance": chance, "n": n, "hits": packed}


def _hits(similar: Tensor, right: np.ndarray) -> np.ndarray:
    """Which rows have a right best column; where several are best, all must be."""
    values = similar.numpy()
    best = values == values.max(axis=1, keepdims=True)
    hit: np.ndarray = ~(best & ~right).any(axis=1)
    return hit


def _embed_images(model: MLIP, pixels: Tensor) -> ImageFeatures:
    parts = [model.encode_image(model.prepare(block)) for block in pixels.split(_BATCH)]
    return ImageFeatures(*_joined(parts))


def _embed_texts(model: MLIP, tokenizer: Tokenizer, texts: Sequence[str]) -> TextFeatures:
    ids, valid = tokenizer.encode(texts, model.config.text_context)
    parts = [model.encode_text(*block) for block in zip(ids.split(_BATCH), valid.split(_BATCH), strict=True)]
    return TextFeatures(*_joined(parts))


def _joined(parts: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]


# -- what a step costs --------------------------------------------------------------------------------------------


def step_ratio(dear: Mapping[str, Any], cheap: Mapping[str, Any], rounds: int = 15) -> dict[str, Any]:
    """Processor time of a step of one arm over that of another: one thread, alternating, median over rounds."""
    steps = [_stepper(pretrain_settings(None, merge(dict(settings), SMALL_POOL))) for settings in (dear, cheap)]
    for step in steps:
        step()
        step()
    times = [[_seconds(step) for step in steps] for _ in range(rounds)]
    return {
        "ratio": round(statistics.median(first / second for first, second in times), 3),
        "step_cpu_s": [round(min(column), 4) for column in zip(*times, strict=True)],
        "rounds": rounds,
    }


def _seconds(step: Callable[[], None]) -> float:
    before = time.process_time()
    step()
    return time.process_time() - before


def _stepper(settings: PretrainSettings) -> Callable[[], None]:
    """One optimiser step on a batch that is at hand."""
    source = ScenePairs(settings.data, settings.training.batch_size, settings.model.image_size, seed=0)
    tokenizer = Tokenizer.train(source.corpus(), settings.model.vocabulary)
    batch = PairLoader(source, tokenizer, settings.model.text_context).batch(0)
    torch.manual_seed(0)
    module = PairStep(MLIP(settings.model), MLIPObjective(settings.objective))
    optimizer = adamw(module, settings.training)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        module(batch)[0].backward()
        nn.utils.clip_grad_norm_(module.parameters(), settings.training.gradient_clip)
        optimizer.step()

    return step
