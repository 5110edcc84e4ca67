"""Training: objectives, the loop, checkpoints, and the public `fit`."""

from __future__ import annotations

from phosphene.training.adapt import adapt
from phosphene.training.alike import fit_alike
from phosphene.training.arms import ARMS
from phosphene.training.estimator import DecoderRegressor
from phosphene.training.fit import fit
from phosphene.training.loop import TrainingError, TrainingInterrupted
from phosphene.training.newcomer import add_subject
from phosphene.training.pivot import Pivot, fit_pivot
from phosphene.training.settings import TrainingConfig

__all__ = [
    "ARMS",
    "DecoderRegressor",
    "Pivot",
    "TrainingConfig",
    "TrainingError",
    "TrainingInterrupted",
    "adapt",
    "add_subject",
    "fit",
    "fit_alike",
    "fit_pivot",
]
