"""NSD as MindEye2 released it: z-scored nsdgeneral betas in one array a person, trials in webdataset tars.

What is read, below one root::

    betas_all_subj0A_fp32_renorm.hdf5      "betas" (trials, voxels), z-scored; row = trial number of the person
    wds/subj0A/train/N.tar                 one a session: <sample>.behav.npy, 17 numbers a trial
    wds/subj0A/new_test/0.tar              trials of the shared images ("test" holds the older list of 982)
    coco_images_224_float16.hdf5           "images" (73000, 3, 224, 224), 0 to 1
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.files import scratch_folder
from phosphene.recordings.readers import nsd_layout as layout
from phosphene.recordings.readers.nsd import CITATION, LICENCE
from phosphene.recordings.readers.progress import track
from phosphene.recordings.readers.staging import Staged
from phosphene.recordings.readers.tree import Needs
from phosphene.recordings.store import StudyWriter
from phosphene.stimuli import StimulusSet
from phosphene.table import Table

__all__ = ["import_mindeye2"]

PICTURES = "coco_images_224_float16.hdf5"
TESTS = {"new_test": "shared1000-40", "test": "shared982-37"}
HINT = "Which files, from where: docs/readers.md. Read fewer people with --subject, fewer sessions with --sessions."
_BLOCK = 256
_IMAGE, _SESSION, _RUN, _TRIAL, _ROW, _N_COLUMNS = 0, 2, 3, 4, 5, 17


@dataclass(frozen=True)
class _Person:
    """Where one person's data lie."""

    number: int
    betas: Path
    train: list[Path]
    test: list[Path]

    @property
    def name(self) -> str:
        return f"sub-{self.number:02d}"


def import_mindeye2(
    path: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[int | str] | None = None,
    sessions: int | None = None,
    test: str = "new_test",
    pictures: bool = True,
    progress: bool = True,
) -> Path:
    """Read the MindEye2 release into one study file.

    Parameters
    ----------
    path : str or Path
        The folder with ``wds`` and the HDF5 files.
    out : str or Path
        The study file to write.
    subjects : sequence of int or str, optional
        1 to 8. Default: every person whose betas are there.
    sessions : int, optional
        Training trials of the first so many sessions only (1: "one hour"); test trials stay those of all sessions.
    test : {"new_test", "test"}
        Which test list: all 1,000 shared images (split ``shared1000-40``), or the older 982 (``shared982-37``).
    pictures : bool
        Whether the 224 x 224 pictures go into the study.
    progress : bool
        Show a progress bar (only on a terminal).

    Raises
    ------
    InputError
        With the list of everything that is missing or damaged.
    """
    root = Path(path)
    if test not in TESTS:
        raise unknown("test list", test, TESTS)
    people = _survey(root, subjects, sessions, test, pictures)
    trials = {person.name: _trials(person) for person in people}
    roles = _roles(trials)
    shown = np.unique(np.concatenate([t["nsd_id"] for t in trials.values()]))
    with scratch_folder(out) as scratch:
        read = {p.name: _stage(p, trials[p.name], scratch, progress) for p in people}
        recipe = {
            "reader": "mindeye2",
            "mask": "nsdgeneral",
            "unit": "z-scored by the authors of the release",
            "test_list": test,
            "training_sessions": sessions or "all",
            "voxels_left_out": {name: staged.dropped for name, staged in read.items()},
        }
        file = h5py.File(root / PICTURES, "r") if pictures else None
        try:
            pixels = None if file is None else _Pictures(file["images"], shown)
            stimuli = StimulusSet(layout.stimulus_name(shown), pixels=pixels, labels={"nsd_id": shown})
            with StudyWriter(
                out, name="nsd-mindeye2", scaling="none", licence=LICENCE, citation=CITATION, recipe=recipe
            ) as writer:
                writer.stimuli(stimuli)
                for name, staged in read.items():
                    voxels = Table({"voxel": np.flatnonzero(staged.keep)})
                    recording = writer.recording(name, trials[name], voxels, space="func1pt8mm")
                    for block in staged.blocks():
                        recording.append(block)
                writer.splits({TESTS[test]: roles})
        finally:
            if file is not None:
                file.close()
    return Path(out)


def _survey(
    root: Path, subjects: Sequence[int | str] | None, sessions: int | None, test: str, pictures: bool
) -> list[_Person]:
    needs = Needs(root, "MindEye2", HINT)
    if pictures:
        needs.dataset(PICTURES, "images", "the pictures; or import without pictures")
    name = "betas_all_subj{:02d}_fp32_renorm.hdf5"
    if subjects is None:
        numbers = [n for n in range(1, 9) if (root / name.format(n)).is_file()]
        if not numbers:
            needs.add(f"{name.format(1)} (or another person's betas)")
    else:
        numbers = sorted({layout.subject_number(subject) for subject in subjects})
    people = []
    for number in numbers:
        needs.dataset(name.format(number), "betas", "responses")
        # one tar a session, counted from zero
        tars = [session - 1 for session in layout.chosen_sessions(number, sessions)]
        folder = f"wds/subj{number:02d}"
        train = [needs.file(f"{folder}/train/{tar}.tar", f"training trials of session {tar + 1}") for tar in tars]
        people.append(
            _Person(
                number,
                root / name.format(number),
                train,
                [needs.file(f"{folder}/{test}/0.tar", "test trials")],
            )
        )
    needs.check()
    return people


def _trials(person: _Person) -> Table:
    """All trials of a person by their row in the betas."""
    read = [(role, row) for role in ("train", "test") for path in getattr(person, role) for row in _behaviour(path)]
    numbers = np.array([row for _, row in read], dtype=np.int64).reshape(-1, _N_COLUMNS)
    order = np.argsort(numbers[:, _ROW], kind="stable")
    numbers, role = numbers[order], np.array([role for role, _ in read])[order]
    twice = numbers[1:, _ROW][np.diff(numbers[:, _ROW]) == 0]
    if len(twice):
        raise InputError(f"{person.name}: {len(twice)} trials occur more than once in the tars, such as row {twice[0]}")
    with h5py.File(person.betas, "r") as file:
        shape = file["betas"].shape
    if len(shape) != 2 or numbers[0, _ROW] < 0 or numbers[-1, _ROW] >= shape[0]:
        raise InputError(
            f"{person.betas}: the tars name rows {numbers[0, _ROW]} to {numbers[-1, _ROW]}, betas has shape {shape}"
        )
    return Table(
        {
            "stimulus_id": layout.stimulus_name(numbers[:, _IMAGE]),
            "session": numbers[:, _SESSION],
            "run": numbers[:, _RUN],
            "trial": numbers[:, _TRIAL],
            "nsd_id": numbers[:, _IMAGE],
            "row": numbers[:, _ROW],
            "listed_as": role,
        }
    )


def _behaviour(path: Path) -> Iterator[np.ndarray]:
    """The 17 numbers of every sample of a tar (-1 where the release had none)."""
    found = 0
    try:
        with tarfile.open(path, "r") as tar:
            for member in tar:
                if not member.isfile() or not f".{member.name}".endswith(".behav.npy"):
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                values = np.load(io.BytesIO(stream.read()), allow_pickle=False).reshape(-1)
                if len(values) != _N_COLUMNS:
                    raise InputError(f"{path}: {member.name} has {len(values)} numbers, expected {_N_COLUMNS}")
                found += 1
                yield values
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is truncated or damaged: {error}") from error
    if not found:
        raise InputError(f"{path} holds no sample with behav.npy")


def _roles(trials: dict[str, Table]) -> dict[str, np.ndarray]:
    ids = np.concatenate([t["stimulus_id"] for t in trials.values()])
    role = np.concatenate([t["listed_as"] for t in trials.values()])
    roles = {name: np.unique(ids[role == name]) for name in ("train", "test")}
    both = np.intersect1d(roles["train"], roles["test"])
    if len(both):
        raise InputError(f"{len(both)} images are in both train and test tars, such as {', '.join(both[:3])}")
    return roles


def _stage(person: _Person, trials: Table, scratch: Path, progress: bool) -> Staged:
    rows, session = trials["row"], trials["session"]
    with h5py.File(person.betas, "r") as file:
        data = file["betas"]
        staged = Staged(scratch / person.name, data.shape[1])
        cuts = np.flatnonzero((np.diff(session) != 0) | (np.diff(rows // _BLOCK) != 0)) + 1
        for part in track(np.split(np.arange(len(rows)), cuts), f"{person.name}: betas", progress):
            try:
                block = data[rows[part[0]] : rows[part[-1]] + 1][rows[part] - rows[part[0]]]
            except OSError as error:
                raise InputError(f"{person.betas} is truncated or damaged: {error}") from error
            staged.append(block, int(session[part[0]]))
    staged.finish()
    return staged


class _Pictures:
    """Rows of the float16 picture file as uint8, height by width by colour."""

    dtype = np.dtype(np.uint8)

    def __init__(self, data: Any, images: np.ndarray) -> None:
        if data.ndim != 4 or data.shape[1] != 3 or data.shape[0] <= images[-1]:
            raise InputError(f"{PICTURES}: expected (73000, 3, H, W) pictures, found {data.shape}")
        self._data, self._images = data, images
        self.shape = (len(images), *data.shape[2:], 3)

    def __getitem__(self, rows: Any) -> np.ndarray:
        pictures = self._data[self._images[rows]].astype(np.float32)
        return np.clip(np.rint(255 * pictures), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
