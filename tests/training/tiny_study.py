"""A tiny study, targets and decoders to try training on; also imported by the processes that tests start."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from phosphene.decoders import DECODERS, Decoder, DecoderConfig
from phosphene.encoders import Targets, make_encoder
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table


class TinyConfig(DecoderConfig):
    width: int = 16
    dropout: float = 0.0


class Tiny(Decoder):
    """One linear layer a person, a shared hidden layer, dropout."""

    name: ClassVar[str] = "tiny"
    Config: ClassVar[type[DecoderConfig]] = TinyConfig

    def __init__(self, config, subjects, target_shape):
        super().__init__(config, subjects, target_shape)
        self.inputs = nn.ModuleList()
        people = [next(iter(subjects.items()))] if config.pool_subjects else subjects.items()
        for subject, n_voxels in people:
            self._add_input(subject, n_voxels)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.width, self.n_outputs)

    def _add_input(self, subject, n_voxels):
        self.inputs.append(nn.Linear(n_voxels, self.config.width))

    def _decode(self, responses, subject):
        layer = self.inputs[0 if self.subject_free else self.index(subject)]
        return self.output(self.dropout(torch.nn.functional.gelu(self.norm(layer(responses)))))


DECODERS["tiny"] = Tiny


def tiny_study(n_stimuli=40, n_test=10, repeats=2, voxels=(12, 9), width=6, noise=0.5, seed=0, sessions=1):
    """Stimuli with random embeddings; voxels are linear in them. The test part is NaN: reading it would be noticed."""
    rng = np.random.default_rng(seed)
    ids = [f"stim-{i:03d}" for i in range(n_stimuli)]
    latent = rng.standard_normal((n_stimuli, width)).astype(np.float32)
    groups = [f"group-{i % 8}" for i in range(n_stimuli)]
    recordings = []
    for person, n_voxels in enumerate(voxels):
        shown = np.tile(np.arange(n_stimuli), repeats)
        rng.shuffle(shown)
        responses = latent[shown] @ rng.standard_normal((width, n_voxels))
        responses += noise * rng.standard_normal(responses.shape)
        responses[shown < n_test] = np.nan
        trials = {"stimulus_id": [ids[i] for i in shown], "session": 1 + np.arange(len(shown)) % sessions}
        table = Table({axis: np.arange(n_voxels) for axis in "ijk"})
        recordings.append(Recording(f"sub-{person + 1:02d}", responses.astype("float32"), Table(trials), table))
    stimuli = StimulusSet(ids, captions=[[f"thing {i}"] for i in ids], labels=Table({"group": groups}))
    splits = {"default": {"train": ids[n_test:], "test": ids[:n_test]}}
    study = Study(stimuli, recordings, splits, scaling="none")
    tokens = latent.reshape(n_stimuli, 2, width // 2)
    return study, Targets(ids, tokens, latent, make_encoder("gabor"))


QUICK = {"epochs": 4, "batch_size": 16, "learning_rate": 1e-2, "accelerator": "cpu"}
