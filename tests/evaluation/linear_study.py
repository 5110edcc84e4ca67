"""A small study with a known answer."""

from __future__ import annotations

import numpy as np

from phosphene.encoders import Targets, make_encoder
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table


def linear_study(
    n_stimuli=60, n_test=15, repeats=3, people=2, n_voxels=30, width=8, noise=0.7, seed=0, folds=0, shared=True
):
    """Voxels are linear in random embeddings; stimuli come in pairs ("group"), four classes in turn ("label")."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"stim-{i:03d}" for i in range(n_stimuli)])
    group = np.array([f"group-{i // 2:03d}" for i in range(n_stimuli)])
    kind = (np.arange(n_stimuli) // 2) % 4
    prototypes = 1.5 * rng.standard_normal((4, width))
    latent = (prototypes[kind] + rng.standard_normal((n_stimuli, width))).astype(np.float32)
    shared_mixing = rng.standard_normal((width, n_voxels))
    recordings = []
    for person in range(people):
        shown = np.tile(np.arange(n_stimuli), repeats)
        mixing = shared_mixing if shared else rng.standard_normal((width, n_voxels))
        responses = latent[shown] @ mixing + noise * np.sqrt(width) * rng.standard_normal((len(shown), n_voxels))
        trials = Table({"stimulus_id": ids[shown], "session": 1 + np.repeat(np.arange(repeats), n_stimuli) % 2})
        voxels = Table({axis: np.arange(n_voxels) for axis in "ijk"})
        recordings.append(Recording(f"sub-{person + 1:02d}", responses.astype(np.float32), trials, voxels))
    labels = Table({"group": group, "label": np.array(["cat", "dog", "house", "tree"])[kind]})
    stimuli = StimulusSet(ids, captions=[[f"thing number {i}"] for i in range(n_stimuli)], labels=labels)
    splits = {"default": {"train": ids[n_test:], "test": ids[:n_test]}}
    for fold in range(folds):
        inside = (np.arange(n_stimuli) // 2) % folds == fold
        splits[f"fold-{fold}"] = {"train": ids[~inside], "test": ids[inside]}
    study = Study(stimuli, recordings, splits, name="linear", scaling="none")
    return study, Targets(ids, None, latent, make_encoder("gabor"))
