"""A small virtual study shared by the tests of this room."""

from __future__ import annotations

import pytest
from tiny_people import tiny_settings

from phosphene.virtual import VirtualStudy, simulate


@pytest.fixture(scope="session")
def tiny() -> VirtualStudy:
    return simulate(tiny_settings(), seed=3)
