"""Fixtures of the training tests."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_study import tiny_study

from phosphene import virtual
from phosphene.encoders import Targets, encode
from phosphene.recordings import Study


@pytest.fixture(scope="session")
def tiny():
    return tiny_study()


@pytest.fixture(scope="session")
def study() -> Study:
    """Three virtual people in three sessions, warped, one with more voxels; no two lie on one grid."""
    plan: dict[str, Any] = {
        "subjects": 3,
        "sessions": 3,
        "repeats": 2,
        "stimuli": {"test": 20, "common": 30, "own": 30, "size": 32, "captions": 1},
        "person": {"voxels": 120, "warp": 2.0},
        "people": {"sub-02": {"voxels": 140}},
    }
    return virtual.study(seed=3, **plan)


@pytest.fixture(scope="session")
def targets(study: Study) -> Targets:
    """Their training targets, standardised."""
    train = study.split("train").stimulus_ids
    return encode(study.stimuli, "z:gabor", fit_on=train, cache=False, progress=False)
