"""A tiny study and targets for tests of decoders: responses linear in the targets, plus noise."""

import numpy as np

from phosphene.recordings import Recording, Study, StudyView
from phosphene.stimuli import StimulusSet
from phosphene.table import Table


class ArrayTargets:
    """Targets held in an array, with the two methods decoders ask for."""

    def __init__(self, ids, values):
        self.rows = {name: row for row, name in enumerate(ids)}
        self.values = np.asarray(values, dtype=np.float32)

    def of(self, ids, kind=None):
        return self.values[[self.rows[name] for name in np.asarray(ids).tolist()]]

    def shape(self, kind=None):
        return self.values.shape[1:]


def made_view(voxels, target_shape, n_stimuli=60, noise=0.3, seed=0) -> tuple[StudyView, ArrayTargets, Study]:
    """Training view, targets and study; every stimulus is shown once to everybody, the last 20 are for test."""
    rng = np.random.default_rng(seed)
    ids = [f"s{number:03d}" for number in range(n_stimuli + 20)]
    # targets with a few strong directions, and a mean that is not zero
    factors = rng.normal(size=(len(ids), 6)) @ rng.normal(size=(6, int(np.prod(target_shape))))
    values = (factors + 0.1 * rng.normal(size=factors.shape) + 1.0).reshape(len(ids), *target_shape)
    stimuli = StimulusSet(ids, captions=[[name] for name in ids])
    people = []
    for subject, n_voxels in voxels.items():
        weights = rng.normal(size=(factors.shape[1], n_voxels)) / np.sqrt(factors.shape[1])
        responses = factors @ weights + noise * np.std(factors @ weights) * rng.normal(size=(len(ids), n_voxels))
        grid = Table({"i": np.arange(n_voxels), "j": np.arange(n_voxels) % 7, "k": np.arange(n_voxels) % 3})
        trials = Table({"stimulus_id": ids})
        people.append(Recording(subject, responses.astype(np.float32), trials=trials, voxels=grid))
    splits = {"default": {"train": ids[:n_stimuli], "test": ids[n_stimuli:]}}
    study = Study(stimuli, people, splits, scaling="none")
    return study.split("train"), ArrayTargets(ids, values), study
