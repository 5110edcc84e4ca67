"""Small studies with a known answer, and fitted decoders to score on them."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.encoders import Targets, make_encoder
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.training import fit


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


@pytest.fixture(scope="session")
def linear():
    return linear_study()


@pytest.fixture(scope="session")
def ridge(linear):
    study, targets = linear
    return fit("ridge", study, targets, progress=False)


@pytest.fixture(scope="session")
def folded():
    study, targets = linear_study(folds=3, n_stimuli=54, noise=4.0)
    decoders = {f"fold-{n}": fit("ridge", study.using(f"fold-{n}"), targets, progress=False) for n in range(3)}
    return study, targets, decoders


@pytest.fixture(scope="session")
def scorecard(linear, ridge):
    from phosphene.evaluation import evaluate

    study, targets = linear
    return evaluate(ridge, study, targets, n_boot=200, n_perm=200, csls=True, name="decoder", progress=False)
