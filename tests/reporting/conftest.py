"""The made-up page, written once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from phosphene.reporting import write

sys.path.insert(0, str(Path(__file__).parent))
import made


@pytest.fixture(scope="session")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(made.full_page(), tmp_path_factory.mktemp("report") / "full.html")


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(made.full_page(with_pixels=False, hostile=True), tmp_path_factory.mktemp("report") / "hostile.html")
