"""A small study in a file, for the tests of the Flower app; without flwr they are skipped, and said to be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from phosphene.virtual import make_settings, simulate

sys.path.append(str(Path(__file__).parents[2] / "examples" / "federated"))  # the deployment is tested as it is shown


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = make_settings(
        None,
        subjects=4,
        sessions=1,
        repeats=1,
        runs=1,
        stimuli={"test": 8, "common": 0, "own": 24, "size": 32, "captions": 1},
        person={"voxels": 50},
    )
    return simulate(settings, 0, progress=False).study.save(tmp_path_factory.mktemp("flower") / "study.h5")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOSPHENE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
