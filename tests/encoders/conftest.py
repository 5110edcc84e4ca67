"""Stimuli small enough for every encoder, and a cache that never touches the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoder_stimuli import make_stimuli

from phosphene.stimuli import StimulusSet


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stimuli() -> StimulusSet:
    return make_stimuli()
