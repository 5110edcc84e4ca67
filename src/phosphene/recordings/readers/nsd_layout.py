"""The Natural Scenes Dataset on disk: where its files are, its experiment design, its atlases with their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.recordings.readers.blocks import load_image
from phosphene.recordings.readers.tree import Needs
from phosphene.table import Table

__all__ = [
    "BETAS",
    "DESIGN",
    "PICTURES",
    "SESSIONS",
    "SPACES",
    "STIMULUS_INFO",
    "TRIALS",
    "Design",
    "atlas_files",
    "beta_files",
    "beta_folder",
    "chosen_sessions",
    "label_names",
    "read_design",
    "read_labels",
    "read_stimulus_info",
    "runs_of_a_session",
    "stimulus_name",
    "subject_number",
]

log = logging.getLogger(__name__)

BETAS = "betas_fithrf_GLMdenoise_RR"
SPACES = ("func1pt8mm", "fsaverage", "fsaverage6", "fsaverage5")
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)  # scanned sessions of subj01 to subj08
TRIALS = 750  # of a session: 12 runs, the odd ones of 63 trials, the even ones of 62
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIMULUS_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
PICTURES = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
_HEMISPHERES = ("lh", "rh")


@dataclass(frozen=True)
class Design:
    """What was shown when.

    Attributes
    ----------
    order : (30000,) ndarray of int
        For every trial, the place (0-based) of its image in a person's list of 10,000; the same for everybody.
    images : (8, 10000) ndarray of int
        Every person's list, as 0-based numbers among the 73,000 images.
    shared : (1000,) ndarray of int
        The images all people saw, as 0-based numbers.
    """

    order: np.ndarray
    images: np.ndarray
    shared: np.ndarray

    def shown(self, subject: int) -> np.ndarray:
        """The image (0-based among 73,000) of each of the person's 30,000 planned trials."""
        return self.images[subject - 1, self.order]

    def shared_until(self, session: int) -> np.ndarray:
        """Shared images presented at least once in sessions 1 to `session`; the same for everybody.

        The order of presentation is common and the shared images take the same places in every person's list.
        """
        return np.intersect1d(self.shared, self.shown(1)[: session * TRIALS])


def read_design(path: Path) -> Design:
    """Read ``nsd_expdesign.mat``; its numbers count from one.

    Raises
    ------
    InputError
        For a damaged file, a missing variable or numbers out of range.
    """
    import scipy.io

    names = ("masterordering", "subjectim", "sharedix")
    try:
        content = scipy.io.loadmat(path, variable_names=names)
    except Exception as error:  # scipy reports damage in many ways
        raise InputError(f"{path} is not a readable MATLAB file: {error}") from error
    missing = [name for name in names if name not in content]
    if missing:
        raise InputError(f"{path}: missing variable {', '.join(missing)}")
    order, images, shared = (np.asarray(content[name]).astype(np.int64) - 1 for name in names)
    order, shared = order.ravel(), shared.ravel()
    if images.ndim != 2 or len(images) != len(SESSIONS) or order.max() >= images.shape[1] or order.min() < 0:
        raise InputError(
            f"{path}: expected subjectim (8, images) and masterordering within it, found {images.shape} and "
            f"{order.min() + 1} to {order.max() + 1}"
        )
    return Design(order, images, np.sort(shared))


def stimulus_name(images: np.ndarray) -> np.ndarray:
    """Stimulus ids of 0-based image numbers (``nsdId``): ``nsd-00013``."""
    return np.array([f"nsd-{number:05d}" for number in np.asarray(images).tolist()], dtype=str)


def subject_number(subject: int | str) -> int:
    """1 to 8 from ``1``, ``"1"``, ``"subj01"`` or ``"sub-01"``."""
    match = re.fullmatch(r"(?:subj|sub-)?0?([1-8])", str(subject))
    if match is None:
        raise unknown("NSD subject", subject, [f"subj{number:02d}" for number in range(1, 9)])
    return int(match[1])


def chosen_sessions(subject: int, sessions: int | Sequence[int] | None) -> list[int]:
    """Sessions to read: all scanned ones, the first so many, or those listed (and scanned)."""
    scanned = range(1, SESSIONS[subject - 1] + 1)
    if sessions is None:
        return list(scanned)
    if isinstance(sessions, int):
        sessions = range(1, sessions + 1)
    chosen = sorted(set(sessions) & set(scanned))
    if not chosen or min(sessions) < 1 or max(sessions) > max(SESSIONS):
        raise InputError(f"subj{subject:02d} has sessions 1 to {scanned[-1]}, asked for {list(sessions)}")
    return chosen


def runs_of_a_session() -> tuple[np.ndarray, np.ndarray]:
    """Run (1 to 12) and trial in the run (from 1) of the 750 trials of a session."""
    lengths = [63, 62] * 6
    run = np.repeat(np.arange(1, 13), lengths)
    return run, np.concatenate([np.arange(1, length + 1) for length in lengths])


def beta_folder(subject: int, space: str, betas: str) -> str:
    """Folder of a person's betas, below the root."""
    return f"nsddata_betas/ppdata/subj{subject:02d}/{space}/{betas}"


def beta_files(needs: Needs, subject: int, session: int, space: str, betas: str) -> list[Path]:
    """The file(s) of one session: one volume file, or one a hemisphere."""
    folder = beta_folder(subject, space, betas)
    words = f"responses of session {session}"
    if space == "fsaverage":
        return [needs.file(f"{folder}/{side}.betas_session{session:02d}.mgh", words) for side in _HEMISPHERES]
    stem = f"{folder}/betas_session{session:02d}"
    return [needs.one_of([f"{stem}.hdf5", f"{stem}.nii.gz"], words)]


def atlas_files(root: Path, subject: int, space: str) -> dict[str, list[Path]]:
    """Atlases by name: one label volume, or one label map a hemisphere."""
    if space == "func1pt8mm":
        folder = root / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm/roi"
        found = sorted(folder.glob("*.nii.gz")) if folder.is_dir() else []
        # lh. and rh. files repeat what the joint files say
        return {f.name[: -len(".nii.gz")]: [f] for f in found if not f.name.startswith(("lh.", "rh."))}
    folder = root / "nsddata/freesurfer/fsaverage/label"
    left = sorted(folder.glob("lh.*.mgz")) if folder.is_dir() else []
    pairs = {f.name[3 : -len(".mgz")]: [f, f.with_name("rh" + f.name[2:])] for f in left}
    return {name: pair for name, pair in pairs.items() if pair[1].is_file()}


def label_names(root: Path, subject: int, atlas: str) -> dict[int, str]:
    """Names of an atlas's labels, from its colour table (``number name ...`` a line); empty where there is none."""
    places = [
        root / f"nsddata/freesurfer/subj{subject:02d}/label/{atlas}.mgz.ctab",
        root / f"nsddata/freesurfer/fsaverage/label/{atlas}.mgz.ctab",
        root / f"nsddata/templates/{atlas}.ctab",
    ]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    names: dict[int, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not words[0].lstrip("-").isdigit():
            raise InputError(f"{path}, line {number}: expected a label number and its name, found {line!r}")
        names[int(words[0])] = words[1]
    return names


def read_labels(files: Sequence[Path]) -> list[np.ndarray]:
    """Label numbers of an atlas, one integer array a file (volumes as they are, surfaces flattened)."""
    arrays = []
    for path in files:
        image: Any = load_image(path)
        try:
            values = np.asanyarray(image.dataobj)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        values = values.reshape(-1) if path.suffix == ".mgz" else values.reshape(values.shape[:3])
        arrays.append(np.nan_to_num(values).round().astype(np.int64))
    return arrays


def read_stimulus_info(path: Path) -> Table:
    """``nsd_stim_info_merged.csv``: at least ``nsdId`` and ``cocoId``, in the order of ``nsdId``."""
    table = Table.read_tsv(path, required=("nsdId", "cocoId"))
    return table.take(np.argsort(table["nsdId"]))
