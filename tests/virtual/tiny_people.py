"""Settings of virtual studies small enough for every test."""

from __future__ import annotations

from typing import Any

from phosphene.virtual import VirtualSettings, make_settings


def tiny_settings(**changes: Any) -> VirtualSettings:
    """Two people of 150 voxels, 8 test and 30 training scenes, two repeats."""
    base: dict[str, Any] = {
        "subjects": 2,
        "sessions": 2,
        "repeats": 2,
        "runs": 2,
        "stimuli": {"test": 8, "common": 6, "own": 12, "size": 32, "captions": 1},
        "person": {"voxels": 150},
    }
    return make_settings(None, **{**base, **changes})
