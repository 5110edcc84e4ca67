"""Scores of predicted embeddings that mean the same for every encoder."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from phosphene.encoders import make_encoder
from phosphene.recordings import Study
from phosphene.stimuli.scenes.vocabulary import COLOURS, MATERIALS, SHAPES

__all__ = ["ATTRIBUTES", "Reached", "common_scores", "text_means", "top_one"]

#: names of the values of the main object's attributes, and the word that prompts use
ATTRIBUTES: dict[str, dict[str, str]] = {
    "shape": {name: entry.nouns[0] for name, entry in SHAPES.items()},
    "colour": {name: entry.words[0] for name, entry in COLOURS.items()},
    "material": {name: entry.words[0] for name, entry in MATERIALS.items()},
}
WAYS = ("brain_to_image", "image_to_brain")


@dataclass(frozen=True)
class Reached:
    """How to get from predicted targets to the encoder's own pooled embedding.

    Attributes
    ----------
    pooled : (n, width) array
        True pooled embeddings of all stimuli of the study, unmerged, as the encoder gives them.
    mean, factor : arrays of the shape of a target
        A target is ``(embedding - mean) * factor``.
    way : {"all", "first"}
        The pooled embedding is the whole target, or its first token.
    """

    pooled: np.ndarray
    mean: np.ndarray
    factor: np.ndarray
    way: Literal["all", "first"]

    def back(self, predictions: np.ndarray) -> np.ndarray:
        """Predicted targets (n, ...) to pooled embeddings (n, width) in the encoder's own units."""
        inverse = np.where(self.factor > 0, 1 / np.where(self.factor > 0, self.factor, 1), 0)
        values = predictions * inverse + self.mean
        return values[:, 0] if self.way == "first" else values.reshape(len(values), -1)


@functools.cache
def text_means(folder: Path) -> dict[str, np.ndarray]:
    """For every attribute the mean text embedding of each of its values, over all values of the others."""
    encoder: Any = make_encoder(f"mlip-text:{folder}")
    shape, colour, material = (list(words.values()) for words in ATTRIBUTES.values())
    texts = [[f"A {m} {c} {s}."] for s, c, m in itertools.product(shape, colour, material)]
    found = encoder.encode_captions(texts).pooled.reshape(len(shape), len(colour), len(material), -1)
    return {
        name: found.mean(axis=tuple(other for other in range(3) if other != axis))
        for axis, name in enumerate(ATTRIBUTES)
    }


def common_scores(
    study: Study,
    way: Reached,
    predictions: Sequence[tuple[np.ndarray, np.ndarray]],
    words: Mapping[str, np.ndarray] | None,
) -> dict[str, Any]:
    """Which scene was seen, and what its main object is, from predictions of every person.

    Parameters
    ----------
    study : Study
    way : Reached
    predictions : sequence of (ids, predicted targets)
        Of the test part, one a person, in the same order of stimuli.
    words : mapping of str to (values, width) array, optional
        As `text_means` gives them; without, attributes are named by the means of training classes alone.

    Returns
    -------
    dict
        ``each``: for every score what each test stimulus got, mean over people; ``reached``: their means;
        ``ceiling``: those of the true embeddings.
    """
    stimuli, ids = study.stimuli, predictions[0][0]
    train = stimuli.rows(study.split("train").stimulus_ids)
    mean, deviation = way.pooled[train].mean(axis=0), way.pooled[train].std(axis=0)
    deviation[deviation == 0] = 1
    rows = stimuli.rows(ids)
    means = {
        name: _class_means((way.pooled[train] - mean) / deviation, _codes(study, name)[train], len(values))
        for name, values in ATTRIBUTES.items()
    }

    def named(found: np.ndarray) -> dict[str, np.ndarray]:
        """Whether each attribute is named rightly, from pooled embeddings of the test stimuli."""
        z, hits = (found - mean) / deviation, {}
        for name in ATTRIBUTES:
            truth = _codes(study, name)[rows]
            hits[f"{name} by class means"] = _named(z, _units(means[name]), truth)
            if words is not None:
                hits[f"{name} by text"] = _named(found, words[name], truth)
        return hits

    people: dict[str, list[np.ndarray]] = {}
    truth = (way.pooled[rows] - mean) / deviation
    for shown, predicted in predictions:
        found = way.back(predicted)[np.argsort(shown)[np.searchsorted(np.sort(shown), ids)]]
        similar = _units((found - mean) / deviation) @ _units(truth).T
        scores = {f"pooled top-1 {WAYS[0]}": top_one(similar), f"pooled top-1 {WAYS[1]}": top_one(similar.T)}
        for name, values in (scores | named(found)).items():
            people.setdefault(name, []).append(values)
    each = {name: np.mean(values, axis=0) for name, values in people.items()}
    return {
        "each": {name: values.round(4).tolist() for name, values in each.items()},
        "reached": {name: float(values.mean()) for name, values in each.items()},
        "ceiling": {name: float(values.mean()) for name, values in named(way.pooled[rows]).items()},
    }


def top_one(similar: np.ndarray) -> np.ndarray:
    """Whether each row's own column (the diagonal) is the most similar; ties count as their share."""
    own = np.diagonal(similar)[:, None]
    ties = (similar == own).sum(axis=1)
    return np.where((similar > own).any(axis=1), 0.0, 1.0 / ties)


def _codes(study: Study, attribute: str) -> np.ndarray:
    place = {name: number for number, name in enumerate(ATTRIBUTES[attribute])}
    return np.array([place[name] for name in study.stimuli.labels[f"{attribute}_0"].tolist()])


def _class_means(values: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Mean of each class; zero, and never named, where training never showed it."""
    found = np.zeros((count, values.shape[1]))
    np.add.at(found, codes, values)
    return found / np.maximum(np.bincount(codes, minlength=count), 1)[:, None]


def _named(found: np.ndarray, classes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    similar = np.where(classes.any(axis=1), _units(found) @ classes.T, -np.inf)
    return (similar.argmax(axis=1) == truth).astype(float)


def _units(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1)
