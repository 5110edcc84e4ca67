"""Simple rivals, fitted on the training part under the protocol of the decoder they are held against.

``mean``     the mean training target, whatever the response: what a score gives for nothing
``nearest``  the target of the training stimulus whose response pattern correlates best: copying from training
``ridge``    ``phosphene.fit("ridge", ...)`` of one person: the linear answer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from phosphene.errors import InputError
from phosphene.evaluation.metrics import similarity
from phosphene.training import fit

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["RIVALS", "Predictor", "Rival", "fit_mean", "fit_nearest", "fit_ridge", "target_blocks"]

#: responses (n, V) -> predicted embeddings (n, D)
Predictor = Callable[[np.ndarray], np.ndarray]
#: (study with the split set, subject, targets, kind) -> Predictor
Rival = Callable[["Study", str, "Targets", str], Predictor]

_BLOCK_VALUES = 2**24


def target_blocks(targets: Targets, ids: np.ndarray, kind: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Walk through flattened targets in bounded memory: pairs of rows and (rows, D) float32."""
    width = int(np.prod(targets.shape(kind)))
    size = max(1, _BLOCK_VALUES // width)
    for start in range(0, len(ids), size):
        rows = slice(start, min(start + size, len(ids)))
        yield rows, targets.of(ids[rows], kind).reshape(-1, width)


def fit_mean(study: Study, subject: str, targets: Targets, kind: str) -> Predictor:
    """The mean target of the training stimuli this person saw."""
    ids = _seen(study.split("train"), subject)
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in target_blocks(targets, ids, kind)) / len(ids)
    answer = np.asarray(mean)
    return lambda responses: np.broadcast_to(answer, (len(responses), len(answer)))


def fit_nearest(study: Study, subject: str, targets: Targets, kind: str) -> Predictor:
    """The target of the training stimulus whose (standardised, averaged) response correlates best."""
    view = study.split("train")
    _seen(view, subject)
    ids, responses = view.averaged(subject)
    mean, deviation = responses.mean(axis=0), responses.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    known = (responses - mean) / scale

    def predict(new: np.ndarray) -> np.ndarray:
        best = similarity((new - mean) / scale, known, "pearson").argmax(axis=1)
        return targets.of(ids[best], kind).reshape(len(new), -1)

    return predict


def fit_ridge(study: Study, subject: str, targets: Targets, kind: str) -> Predictor:
    """Ridge fitted on this person alone."""
    decoder = fit("ridge", study, targets, subjects=[subject], kind=kind, progress=False)
    return lambda responses: decoder.predict(responses, subject).reshape(len(responses), -1)


def _seen(view: StudyView, subject: str) -> np.ndarray:
    ids = np.unique(view.trials(subject)["stimulus_id"])
    if len(ids) == 0:
        raise InputError(f"{subject} has no trials in the {view.role} part of split {view.split_name!r}")
    return ids


RIVALS: dict[str, Rival] = {"mean": fit_mean, "nearest": fit_nearest, "ridge": fit_ridge}
