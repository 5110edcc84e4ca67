"""Pretraining of MLIP models on procedural scenes and on pictures with captions."""

from phosphene.training.pretraining.loop import PairStep
from phosphene.training.pretraining.pretrain import pretrain
from phosphene.training.pretraining.probes import Probe, Score, held_out_probes, scene_probes
from phosphene.training.pretraining.settings import PretrainSettings, pretrain_settings, run_settings

__all__ = [
    "PairStep",
    "PretrainSettings",
    "Probe",
    "Score",
    "held_out_probes",
    "pretrain",
    "pretrain_settings",
    "run_settings",
    "scene_probes",
]
