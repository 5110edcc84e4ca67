"""Tarhan & Konkle's 96 action videos as a plain study folder, split in five folds by action.

    python examples/actions96.py OUT [--data FOLDER]
    phosphene import folder OUT --out actions96.h5

FOLDER holds ``betas.npz``, ``descriptions.csv`` and ``keyframes/``; the default is the data root of phosphene. Folds
are read from ``actions96_folds.tsv`` beside this script: both videos of an action are on one side, for every person.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from phosphene.files import data_root, write_json
from phosphene.table import Table

FOLDS = Path(__file__).with_name("actions96_folds.tsv")


def build(source: Path, out: Path) -> Path:
    """Write stimuli, captions, splits and one folder a person; returns the folder."""
    data = np.load(source / "betas.npz", allow_pickle=False)
    videos, actions = data["videos"], data["actions"]
    (out / "stimuli").mkdir(parents=True, exist_ok=True)
    for video in videos:
        shutil.copyfile(source / "keyframes" / f"{video}.png", out / "stimuli" / f"{video}.png")
    category = [action.split("_")[0] for action in actions.tolist()]
    labels = {"action": actions, "category": category, "exemplar": data["exemplar"]}
    Table({"stimulus_id": videos, **labels}).write_tsv(out / "stimuli.tsv")
    described = Table.read_tsv(source / "descriptions.csv", required=("video", "description"))
    Table({"stimulus_id": described["video"], "caption": described["description"]}).write_tsv(out / "captions.tsv")
    _folds(videos, actions).write_tsv(out / "splits.tsv")

    i, j, k = data["voxel_ijk"].T
    for subject, betas in zip(data["subjects"], data["betas"], strict=True):
        person = out / f"sub-{subject:02d}"
        person.mkdir(exist_ok=True)
        np.save(person / "responses.npy", betas)
        Table({"stimulus_id": videos}).write_tsv(person / "trials.tsv")
        Table({"i": i, "j": j, "k": k, "x": 3.0 * i, "y": 3.0 * j, "z": 3.0 * k}).write_tsv(person / "voxels.tsv")
        affine = np.diag([3.0, 3.0, 3.0, 1.0]).tolist()
        write_json(person / "recording.json", {"space": "unknown", "affine": affine, "volume_shape": [58, 40, 46]})
    write_json(
        out / "study.json",
        {
            "name": "actions96",
            "licence": "MIT (Leyla Tarhan 2020, 2021); key frames from third-party videos, not to be published",
            "citation": "Tarhan & Konkle 2020, Nature Communications 11:3002; NeuroImage 207:116350",
            "unit": "action",
        },
    )
    return out


def _folds(videos: np.ndarray, actions: np.ndarray) -> Table:
    table = Table.read_tsv(FOLDS, required=("action", "fold"))
    fold_of = dict(zip(table["action"].tolist(), table["fold"].tolist(), strict=True))
    folds = np.array([fold_of[action] for action in actions.tolist()])
    columns = {f"fold-{n}": np.where(folds == n, "test", "train") for n in np.unique(folds)}
    return Table({"stimulus_id": videos, **columns})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the data set")
    arguments = parser.parse_args()
    root = data_root()
    source = arguments.data or (root / "actions96" if root else None)
    if source is None:
        parser.error("no data root found: name the folder with --data or set PHOSPHENE_DATA")
    print(build(source, arguments.out))


if __name__ == "__main__":
    main()
