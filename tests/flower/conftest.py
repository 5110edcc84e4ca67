"""A small study in a file, for the tests of the Flower app; without flwr they are skipped, and said to be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples" / "federated"))  # the deployment is tested as it is shown


@pytest.fixture(scope="session")
def study(virtual_people: Callable[..., Path]) -> Path:
    return virtual_people(test=8)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOSPHENE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
