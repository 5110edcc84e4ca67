"""The photographs of `mlip_transfer.py`, from the folder of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phosphene.files import data_root
from phosphene.stimuli import StimulusSet
from phosphene.stimuli.folder import ImageFiles
from phosphene.stimuli.labelled import read_class_folders
from phosphene.table import Table

__all__ = ["cifar", "key_frames"]

FOLDS = Path(__file__).parents[1] / "examples" / "actions96_folds.tsv"


def _folder(name: str) -> Path:
    root = data_root()
    if root is None or not (root / name).is_dir():
        raise SystemExit(f"the data set {name} is not at hand: set PHOSPHENE_DATA to the folder that holds {name}/")
    return root / name


def cifar(limit: int | None = None) -> tuple[StimulusSet, np.ndarray]:
    """Pictures of both parts in memory, and which rows are for training; at most `limit` a class in each part."""
    folder = _folder("cifar10_6000")
    packed = next(iter(sorted(folder.glob("*.zip"))), folder)
    parts = {part: read_class_folders(packed, part=part) for part in ("train", "test")}
    parts = {part: stimuli.select(_first(stimuli, limit)) for part, stimuli in parts.items()}
    ids = [f"{part}-{name}" for part, stimuli in parts.items() for name in stimuli.ids.tolist()]
    pixels = np.concatenate([stimuli.pixels() for stimuli in parts.values()])
    classes = np.concatenate([stimuli.labels["category"] for stimuli in parts.values()])
    trained = np.repeat([True, False], [len(stimuli) for stimuli in parts.values()])
    return StimulusSet(ids, pixels, labels={"category": classes}), trained


def _first(stimuli: StimulusSet, limit: int | None) -> Sequence[str]:
    classes, ids = stimuli.labels["category"], stimuli.ids
    return [name for kind in np.unique(classes) for name in ids[classes == kind][:limit].tolist()]


def key_frames(size: int) -> StimulusSet:
    """The 96 key frames of actions96 at `size` pixels a side, with descriptions, action and fold."""
    folder = _folder("actions96")
    with np.load(folder / "betas.npz", allow_pickle=False) as content:
        videos, actions = content["videos"].tolist(), content["actions"].tolist()
    table = Table.read_tsv(FOLDS, required=("action", "fold"))
    fold_of = dict(zip(table["action"].tolist(), table["fold"].tolist(), strict=True))
    told = Table.read_tsv(folder / "descriptions.csv", required=("video", "description"))
    captions: dict[str, list[str]] = {video: [] for video in videos}
    for video, text in zip(told["video"].tolist(), told["description"].tolist(), strict=True):
        if str(text).strip():
            captions[video].append(str(text))
    pixels = ImageFiles([folder / "keyframes" / f"{video}.png" for video in videos], size)
    labels = {"action": actions, "fold": [fold_of[action] for action in actions]}
    return StimulusSet(videos, pixels[:], [captions[video] for video in videos], labels)
