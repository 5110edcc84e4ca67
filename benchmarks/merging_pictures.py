"""Pictures that token merging is tested on: small objects before clutter, and what is to be said of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phosphene.stimuli.scenes import SceneGraphs, plain_captions, render_tensor, sample_graphs
from phosphene.stimuli.scenes.vocabulary import BACKGROUNDS, COLOURS, MATERIALS, SHAPES

__all__ = ["GRAMMAR", "WORDS", "Pictures", "pictures", "prompts"]

WORDS = {
    "shape": ["ball", "box", "ring", "cross", "heart", "star"],
    "colour": ["red", "yellow", "green", "blue", "purple", "white"],
    "material": ["matte", "glossy", "striped", "dotted"],
}
GRAMMAR: dict[str, Any] = {
    "only": {**WORDS, "background": ["mist", "dead-leaves", "plasma", "bricks", "ripples", "tiles"]},
    "scale": (0.22, 0.4),
}
SCENES = 2**41  # family of the first model's pictures: out of reach of the seeds of training and of the probes
_AT_ONCE = 128


@dataclass(frozen=True)
class Pictures:
    """What a model is tested on: single objects of seen and of unseen compositions, and scenes with two objects."""

    pixels: dict[str, Tensor]
    truth: dict[str, dict[str, np.ndarray]]
    facts: dict[str, dict[str, list[Any]]]
    captions: list[str]
    candidates: int


@functools.lru_cache(maxsize=4)
def pictures(seed: int, n: int, candidates: int, size: int, start: int) -> Pictures:
    """Scenes number `start` and following of a family."""
    pixels, truth, facts = {}, {}, {}
    for part, role in (("seen", "train"), ("unseen", "unseen")):
        graphs = sample_graphs(n, SCENES + seed, start=start, holdout=role, objects=1, **GRAMMAR)
        pixels[part], facts[part] = _rendered(graphs, size), _facts(graphs)
        truth[part] = {name: _positions(name, getattr(graphs, name)[:, 0]) for name in WORDS}
    drawn = sample_graphs(3 * n, SCENES + seed, start=start + 2**20, holdout="train", objects=2, **GRAMMAR)
    pairs = drawn.take(np.flatnonzero(drawn.n_objects == 2)[:n])
    pixels["pairs"], facts["pairs"] = _rendered(pairs, size), _facts(pairs)
    return Pictures(pixels, truth, facts, list(plain_captions(pairs)), candidates)


def _rendered(graphs: SceneGraphs, size: int) -> Tensor:
    return torch.cat(
        [render_tensor(graphs.take(slice(at, at + _AT_ONCE)), size) for at in range(0, len(graphs), _AT_ONCE)]
    )


def _positions(name: str, values: np.ndarray) -> np.ndarray:
    known = list({"shape": SHAPES, "colour": COLOURS, "material": MATERIALS}[name])
    return np.array([WORDS[name].index(known[value]) for value in values.tolist()])


def _facts(graphs: SceneGraphs) -> dict[str, list[Any]]:
    kinds = list(BACKGROUNDS)
    middle = float(np.mean(GRAMMAR["scale"]))
    return {
        "background": [kinds[kind] for kind in graphs.background.tolist()],
        "object": ["smaller" if scale < middle else "larger" for scale in graphs.scale[:, 0].tolist()],
    }


def prompts() -> list[str]:
    """One for every composition, the material varying fastest."""
    nouns = [SHAPES[shape].nouns[0] for shape in WORDS["shape"]]
    return [
        f"A {material} {colour} {noun}."
        for noun in nouns
        for colour in WORDS["colour"]
        for material in WORDS["material"]
    ]
