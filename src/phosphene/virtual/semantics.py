"""What a stimulus means to the virtual higher areas: facts of the scene graph, else labels, else caption words.

Never the output of an encoder: what a decoder predicts must not be what made the brain respond.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from phosphene.stimuli import StimulusSet
from phosphene.virtual.fields import stream

__all__ = ["DIMENSIONS", "GROUPS", "direction", "facts", "semantic_features", "source_of"]

DIMENSIONS = 96
GROUPS = ("shape", "surface", "size", "scene", "layout", "meaning")
_SLOTS = 3
_STOPWORDS = frozenset(
    (
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "and",
        "or",
        "is",
        "are",
        "with",
        "by",
        "from",
        "near",
        "it",
        "its",
        "this",
        "that",
        "there",
        "as",
        "into",
        "over",
        "under",
        "one",
    )
)

Fact = tuple[str, str, float]  # group, fact, weight


@lru_cache(maxsize=100_000)
def direction(fact: str) -> np.ndarray:
    """The fixed random direction of a fact: about unit length, the same in every study."""
    return stream(0, "fact", fact).standard_normal(DIMENSIONS) / np.sqrt(DIMENSIONS)


def source_of(stimuli: StimulusSet) -> str:
    """Where meaning is taken from: "scene graph", "labels", "captions" or "nothing"."""
    if "shape_0" in stimuli.labels:
        return "scene graph"
    if any(stimuli.labels[name].dtype.kind in "Ub" for name in stimuli.labels.columns):
        return "labels"
    return "captions" if any(stimuli.captions) else "nothing"


def facts(stimuli: StimulusSet) -> list[list[Fact]]:
    """Facts about each stimulus, as (group, fact, weight).

    Of a scene: the group of its main object; each object's shape, colour, material and size; the conjunctions of
    shape with colour, material and place; background, light, number of objects and relation. Of other stimuli: one
    fact a text or true/false label, else one a distinct caption word; longer captions are not louder.
    """
    source = source_of(stimuli)
    if source == "scene graph":
        return [list(_scene_facts(record)) for record in stimuli.labels.to_records()]
    if source == "labels":
        names = [name for name in stimuli.labels.columns if stimuli.labels[name].dtype.kind in "Ub"]
        weight = 1.5 / np.sqrt(len(names))
        columns = [stimuli.labels[name].tolist() for name in names]
        return [
            [("meaning", f"{name}={value}", weight) for name, value in zip(names, row, strict=True)]
            for row in zip(*columns, strict=True)
        ]
    bags = [sorted(_words(captions)) for captions in stimuli.captions]
    return [[("meaning", word, 1.5 / np.sqrt(len(bag))) for word in bag] for bag in bags]


def _words(captions: tuple[str, ...]) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", " ".join(captions).lower())) - _STOPWORDS


def _scene_facts(record: dict[str, Any]) -> Iterator[Fact]:
    for key, weight in (("background", 1.0), ("light", 0.7)):
        if key in record:
            yield "scene", f"{key}={record[key]}", weight
    for key in ("n_objects", "relation"):
        if key in record:
            yield "layout", f"{key}={record[key]}", 0.8
    if "group" in record:
        yield "shape", f"group={record['group']}", 0.9
    for slot in range(_SLOTS):
        shape = record.get(f"shape_{slot}", "none")
        if shape == "none":
            continue
        # the first object is the one that is looked at
        attention = 1.0 if slot == 0 else 0.6
        colour, size, material = (record.get(f"{key}_{slot}", "none") for key in ("colour", "size", "material"))
        side = "left" if float(record.get(f"x_{slot}", 0.0)) < 0 else "right"
        yield "shape", f"shape={shape}", attention
        yield "surface", f"colour={colour}", 0.7 * attention
        yield "surface", f"material={material}", 0.7 * attention
        yield "size", f"size={size}", 0.6 * attention
        yield "shape", f"shape={shape} colour={colour}", 0.4 * attention
        yield "shape", f"shape={shape} material={material}", 0.4 * attention
        yield "layout", f"shape={shape} side={side}", 0.4 * attention


def semantic_features(stimuli: StimulusSet) -> np.ndarray:
    """Sum of the directions of the facts, by group: (n, len(GROUPS), DIMENSIONS) float32."""
    features = np.zeros((len(stimuli), len(GROUPS), DIMENSIONS), dtype=np.float32)
    for row, known in enumerate(facts(stimuli)):
        for group, fact, weight in known:
            features[row, GROUPS.index(group)] += weight * direction(fact)
    return features
