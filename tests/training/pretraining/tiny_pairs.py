"""The smallest models and data that pretraining can be tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phosphene.encoders.mlip import load_model
from phosphene.settings import merge
from phosphene.stimuli import StimulusSet
from phosphene.training.pretraining import pretrain

SETTINGS: dict[str, Any] = {
    "model": {
        "image_size": 16,
        "patch": 4,
        "width": 16,
        "heads": 2,
        "spectral_blocks": 1,
        "spatial_blocks": 1,
        "embed": 12,
        "token_embed": 8,
        "text_width": 16,
        "text_heads": 2,
        "text_blocks": 1,
        "text_context": 80,
        "vocabulary": 400,
    },
    "training": {"steps": 6, "batch_size": 12, "learning_rate": 0.01, "log_steps": 2, "probe_pictures": 8, "ema": 0.9},
    "data": {
        "group": 6,
        "only": {
            "shape": ["ring", "heart", "star", "box"],
            "colour": ["red", "green", "blue", "white", "yellow", "black"],
            "material": ["matte", "striped"],
        },
    },
}


def tiny(**tables: Any) -> dict[str, Any]:
    """The settings with some of them changed, given as ``table={key: value}``."""
    return merge(SETTINGS, tables)


def coloured(n: int = 24, size: int = 16, seed: int = 0) -> StimulusSet:
    """Pictures of one colour with noise, named by three captions each."""
    rng = np.random.default_rng(seed)
    words = ["red", "green", "blue"]
    kind = np.arange(n) % 3
    pixels = rng.integers(0, 40, (n, size, size, 3), dtype=np.uint8)
    pixels[np.arange(n), :, :, kind] += 200
    captions = [
        [f"a {words[k]} picture number {i}", f"picture {i} is {words[k]}", words[k]] for i, k in enumerate(kind)
    ]
    return StimulusSet(
        [f"p{i:02d}" for i in range(n)], pixels, captions, labels={"paint": [words[k] for k in kind.tolist()]}
    )


PICTURES = coloured(24)


class Counted:
    """Pixels that count how many pictures are read."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels, self.read = pixels, 0
        self.shape, self.dtype = pixels.shape, pixels.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        found = self._pixels[rows]
        self.read += 1 if found.ndim == 3 else len(found)
        return found


def counted(stimuli: StimulusSet) -> tuple[StimulusSet, Counted]:
    """The stimuli, and what counts their reads."""
    pixels = Counted(stimuli.pixels())
    return StimulusSet(stimuli.ids, pixels, stimuli.captions, stimuli.labels), pixels


def run(out: Path, stimuli: StimulusSet | None = PICTURES, seed: int = 0, **tables: Any) -> Path:
    """Pretrain the smallest model into a folder; the folder of the model."""
    options = {key: tables.pop(key) for key in ("held_out", "start", "classes", "tokenizer") if key in tables}
    return pretrain(None, stimuli, out=out, seed=seed, progress=False, settings=tiny(**tables), **options)


def weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a model folder, by name."""
    return load_model(folder)[0].state_dict()


def same(one: Path, two: Path) -> bool:
    """Whether two model folders have the same bits."""
    first, second = weights(one), weights(two)
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())
