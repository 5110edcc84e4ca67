"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
from tiny_study import tiny_study


@pytest.fixture(scope="session")
def tiny():
    return tiny_study()
