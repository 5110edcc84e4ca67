"""Small made-up studies of several people who share stimuli, with a linear code over a few latent features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table

FEATURES = 6


def latents(n: int = 90, seed: int = 0) -> np.ndarray:
    """What the stimuli are about, ``(n, FEATURES)``."""
    return np.random.default_rng(seed).normal(size=(n, FEATURES))


def shared_study(
    voxels: Sequence[int] = (40, 44, 38),
    *,
    n: int = 90,
    repeats: int = 2,
    noise: float = 0.5,
    codes: Sequence[np.ndarray] | None = None,
    tables: Sequence[Table] | None = None,
    space: dict[str, Any] | None = None,
    seed: int = 0,
) -> Study:
    """People who all saw all stimuli `repeats` times; two thirds are for training.

    Parameters
    ----------
    codes : sequence of (FEATURES, V_s) arrays, optional
        Each person's code; by default everybody has a random one of their own.
    tables : sequence of Table, optional
        Voxel tables; by default a line of voxels with template positions, V1 in its first half.
    space : dict, optional
        Constructor words of `Recording`.
    """
    rng = np.random.default_rng((seed, 1))
    latent = latents(n, seed)
    stimuli = StimulusSet([f"s{i:03d}" for i in range(n)], labels={"number": np.arange(n)})
    shown = np.tile(np.arange(n), repeats)
    people = []
    for number, size in enumerate(voxels):
        code = rng.normal(size=(FEATURES, size)) if codes is None else codes[number]
        responses = latent[shown] @ code + noise * rng.normal(size=(len(shown), size))
        table = line_of_voxels(size) if tables is None else tables[number]
        trials = Table({"stimulus_id": stimuli.ids[shown]})
        people.append(
            Recording(
                f"sub-{number + 1:02d}",
                responses.astype(np.float32),
                trials,
                table,
                **({"space": "virtual"} | (space or {})),
            )
        )
    splits = {"default": {"train": stimuli.ids[: 2 * n // 3], "test": stimuli.ids[2 * n // 3 :]}}
    return Study(stimuli, people, splits, name="shared", scaling="none")


def line_of_voxels(size: int) -> Table:
    """Voxels evenly along 100 mm of a sheet."""
    index = np.arange(size)
    along = np.linspace(0, 100, size)
    return Table(
        {
            **{"i": index, "j": 0 * index, "k": 0 * index, "hemisphere": np.full(size, "L")},
            **{"template_u": along, "template_v": np.zeros(size)},
            **{"roi_V1": along < 50, "roi_V2": along >= 50},
        }
    )


def one_grid(size: int = 40) -> dict[str, Any]:
    """Space of people who lie on one grid of `size` voxels in a row."""
    return {"space": "MNI152", "affine": np.eye(4), "volume_shape": (size, 1, 1)}
