"""The Natural Scenes Dataset as it is released: single-trial betas by session, in native volumes or on fsaverage.

What is read, below one root (the tree of the NSD bucket; everything else is ignored)::

    nsddata/experiments/nsd/nsd_expdesign.mat            which image each trial showed
    nsddata/experiments/nsd/nsd_stim_info_merged.csv     COCO ids (needed with captions)
    nsddata/ppdata/subjAA/behav/responses.tsv            optional: checked against the design; runs and trials
    nsddata/ppdata/subjAA/func1pt8mm/roi/*.nii.gz        label volumes (nsdgeneral, prf-visualrois, streams ...)
    nsddata/freesurfer/{subjAA,fsaverage}/label/*.mgz.ctab    names of the labels
    nsddata/freesurfer/fsaverage/label/{lh,rh}.*.mgz     label maps, for the space fsaverage
    nsddata_betas/ppdata/subjAA/SPACE/BETAS/             betas_sessionBB.hdf5 or .nii.gz and ncsnr.nii.gz, or
                                                         {lh,rh}.betas_sessionBB.mgh and {lh,rh}.ncsnr.mgh
    nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5         the 73,000 pictures
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
from PIL import Image

from phosphene.errors import InputError, unknown
from phosphene.files import read_json, scratch_folder
from phosphene.recordings.readers import nsd_layout as layout
from phosphene.recordings.readers.nsd_betas import Grid, masked_session, read_grid
from phosphene.recordings.readers.nsd_surfaces import COARSER, Spheres, coarser_grid, find_spheres
from phosphene.recordings.readers.progress import track
from phosphene.recordings.readers.staging import Staged
from phosphene.recordings.readers.tree import Needs
from phosphene.recordings.store import StudyWriter
from phosphene.stimuli import StimulusSet
from phosphene.table import Table

__all__ = ["CITATION", "LICENCE", "import_nsd", "nsd_splits", "read_coco_captions"]

log = logging.getLogger(__name__)

LICENCE = "NSD Terms and Conditions (agree at naturalscenesdataset.org; no redistribution)"
CITATION = (
    "Allen, St-Yves, Wu et al. A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence. "
    "Nature Neuroscience 25, 116-126 (2022). doi:10.1038/s41593-021-00962-x"
)
HINT = "Which files, from where: docs/readers.md. Read fewer people or sessions with --subject and --sessions."
_PER_CENT = 300.0  # volume files hold per cent signal change times 300 as int16
_EARLY = 37  # sessions of the first release


@dataclass(frozen=True)
class _Person:
    """What is read of one person."""

    number: int
    sessions: list[int]
    files: list[list[Path]]
    ncsnr: list[Path]

    @property
    def name(self) -> str:
        return f"sub-{self.number:02d}"


def import_nsd(
    path: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[int | str] | None = None,
    sessions: int | Sequence[int] | None = None,
    space: str = "func1pt8mm",
    mask: str = "nsdgeneral",
    betas: str = layout.BETAS,
    pictures: bool = True,
    image_size: int | None = None,
    captions: Sequence[str | Path] = (),
    freesurfer: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Read an NSD tree into one study file, session by session.

    Parameters
    ----------
    path : str or Path
        The folder that holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    out : str or Path
        The study file to write. While it is being written, the masked betas of all people wait in a scratch folder
        beside it (0.9 GB a person for ``nsdgeneral``).
    subjects : sequence of int or str, optional
        1 to 8, or ``"subj01"``. Default: every person whose betas are there.
    sessions : int or sequence of int, optional
        The first so many sessions, or these. Default: all that were scanned.
    space : {"func1pt8mm", "fsaverage", "fsaverage6", "fsaverage5"}
        Native volumes of 1.8 mm, the common surface, or the latter made coarser while it is read: means over neighbours
        on the sphere.
    mask : str
        Which voxels: an atlas (all its labels), a label such as ``"V1v"``, ``"streams:ventral"``, or ``"whole"``.
    betas : str
        Version of the betas: the name of their folder.
    pictures : bool
        Whether pictures go into the study.
    image_size : int, optional
        Resize pictures to N x N (they are square).
    captions : sequence of path
        COCO caption files (``captions_train2017.json``, ``captions_val2017.json``).
    freesurfer : str or Path, optional
        Folder that holds ``fsaverage/surf/{lh,rh}.sphere.reg``, for fsaverage6 and 5. Default: ``nsddata/freesurfer``,
        where they are there, else ``SUBJECTS_DIR`` or ``FREESURFER_HOME/subjects``.
    progress : bool
        Show a progress bar (only on a terminal).

    Raises
    ------
    InputError
        With the list of everything that is missing or damaged, before anything is read.
    """
    root = Path(path)
    if space not in layout.SPACES:
        raise unknown("space", space, layout.SPACES)
    stored = "fsaverage" if space in COARSER else space
    people, design = _survey(root, subjects, sessions, stored, betas, pictures, bool(captions))
    spheres = find_spheres(root, space, freesurfer) if space in COARSER else None
    trials = {p.name: _trials(root, p, design) for p in people}
    shown = np.unique(np.concatenate([t["nsd_id"] for t in trials.values()]))
    with scratch_folder(out) as scratch:
        read = {p.name: _stage(root, p, space, mask, spheres, scratch, progress) for p in people}
        recipe = {
            "reader": "nsd",
            "betas": betas,
            "space": space,
            "mask": mask,
            "unit": "per cent signal change",
            "sessions": {p.name: p.sessions for p in people},
            "voxels_left_out": {name: staged.dropped for name, (_, staged) in read.items()},
        }
        file = h5py.File(root / layout.PICTURES, "r") if pictures else None
        try:
            stimuli = _stimuli(root, shown, design, file, image_size, captions)
            with StudyWriter(
                out, name="nsd", scaling="session", licence=LICENCE, citation=CITATION, recipe=recipe
            ) as w:
                w.stimuli(stimuli)
                for name, (grid, staged) in read.items():
                    voxels = grid.voxels.take(staged.keep)
                    recording = w.recording(name, trials[name], voxels, n_voxels=staged.shape[1], **grid.meta)
                    for block in staged.blocks():
                        recording.append(block)
                w.splits(nsd_splits(design, shown))
        finally:
            if file is not None:
                file.close()
    return Path(out)


def nsd_splits(design: layout.Design, shown: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The two published test sets, restricted to images that were shown.

    ``shared1000-40``: test are all shared images, train are all others (MindEye2 and later: 1,000 test images).
    ``shared982-37``: test are the shared images presented at least once in sessions 1 to 37, train are the other images
    presented in those sessions; what came only later has no role. The first release of NSD ended three sessions
    earlier, and 982 of the 1,000 shared images occur in it: MindEye's 8,859 training and 982 test images of a person
    with 40 sessions (24,980 and 2,770 trials).

    Parameters
    ----------
    design : Design
    shown : (n,) ndarray of int
        0-based image numbers.
    """
    shared = np.isin(shown, design.shared)
    seen_early = np.isin(shown, design.images[:, design.order[: _EARLY * layout.TRIALS]])
    ids = layout.stimulus_name(shown)
    return {
        "shared1000-40": {"train": ids[~shared], "test": ids[shared]},
        "shared982-37": {"train": ids[~shared & seen_early], "test": ids[shared & seen_early]},
    }


def _survey(
    root: Path,
    subjects: Sequence[int | str] | None,
    sessions: int | Sequence[int] | None,
    space: str,
    betas: str,
    pictures: bool,
    captions: bool,
) -> tuple[list[_Person], layout.Design]:
    """Look for everything that will be read, and refuse with all that is missing."""
    needs = Needs(root, "NSD", HINT)
    design = needs.file(layout.DESIGN, "which image each trial showed")
    if pictures:
        needs.dataset(layout.PICTURES, "imgBrick", "the pictures; or import without pictures")
    if captions:
        needs.file(layout.STIMULUS_INFO, "the COCO id of each image")
    if subjects is None:
        numbers = [n for n in range(1, 9) if (root / layout.beta_folder(n, space, betas)).is_dir()]
        if not numbers:
            needs.add(
                f"{layout.beta_folder(1, space, betas)} (or another person's: no betas of this version and space)"
            )
    else:
        numbers = sorted({layout.subject_number(subject) for subject in subjects})
    people = [_person(needs, n, layout.chosen_sessions(n, sessions), space, betas) for n in numbers]
    needs.check()
    return people, layout.read_design(design)


def _person(needs: Needs, number: int, sessions: list[int], space: str, betas: str) -> _Person:
    folder = layout.beta_folder(number, space, betas)
    names = ["ncsnr.nii.gz"] if space == "func1pt8mm" else ["lh.ncsnr.mgh", "rh.ncsnr.mgh"]
    ncsnr = [needs.file(f"{folder}/{name}", "noise ceiling, and the grid") for name in names]
    files = [layout.beta_files(needs, number, session, space, betas) for session in sessions]
    for file in (f for several in files for f in several if f.suffix == ".hdf5" and f.is_file()):
        needs.dataset(file.relative_to(needs.root), "betas", "responses")
    if not layout.atlas_files(needs.root, number, space):
        where = (
            f"nsddata/ppdata/subj{number:02d}/func1pt8mm/roi/nsdgeneral.nii.gz"
            if space == "func1pt8mm"
            else "nsddata/freesurfer/fsaverage/label/{lh,rh}.nsdgeneral.mgz"
        )
        needs.add(f"{where} (which voxels are visual cortex)")
    return _Person(number, sessions, files, ncsnr)


def _trials(root: Path, person: _Person, design: layout.Design) -> Table:
    """Session, run, trial, image and repeat of every trial that is read, in order."""
    planned = design.shown(person.number)
    repeat = _repeats(planned)
    run, trial = layout.runs_of_a_session()
    rows = np.concatenate([np.arange((s - 1) * layout.TRIALS, s * layout.TRIALS) for s in person.sessions])
    if rows[-1] >= len(planned):
        raise InputError(f"{layout.DESIGN} plans {len(planned)} trials, session {person.sessions[-1]} lies beyond them")
    _compare_behaviour(root / f"nsddata/ppdata/subj{person.number:02d}/behav/responses.tsv", planned, rows)
    return Table(
        {
            "stimulus_id": layout.stimulus_name(planned[rows]),
            "session": np.repeat(person.sessions, layout.TRIALS),
            "run": np.tile(run, len(person.sessions)),
            "trial": np.tile(trial, len(person.sessions)),
            "repeat": repeat[rows],
            "nsd_id": planned[rows],
        }
    )


def _repeats(shown: np.ndarray) -> np.ndarray:
    order = np.argsort(shown, kind="stable")
    starts = np.flatnonzero(np.diff(shown[order], prepend=-1))
    rank = np.arange(len(shown)) - np.repeat(starts, np.diff([*starts, len(shown)]))
    repeat = np.empty(len(shown), dtype=np.int64)
    repeat[order] = rank
    return repeat


def _compare_behaviour(path: Path, planned: np.ndarray, rows: np.ndarray) -> None:
    """The person's own log names the image of every trial as well: a tree put together wrongly is found here."""
    if not path.is_file():
        return
    log_ = Table.read_tsv(path, required=("SESSION", "73KID"))
    order = (log_["SESSION"].astype(np.int64) - 1) * layout.TRIALS
    for session in np.unique(log_["SESSION"]):
        here = log_["SESSION"] == session
        order[here] += np.arange(here.sum())
    known = np.isin(order, rows)
    wrong = planned[order[known]] != log_["73KID"][known].astype(np.int64) - 1
    if wrong.any():
        raise InputError(
            f"{path}: {wrong.sum()} trials name another image than {layout.DESIGN}, the first is trial "
            f"{order[known][wrong][0] % layout.TRIALS + 1} of session {order[known][wrong][0] // layout.TRIALS + 1}"
        )


def _stage(
    root: Path, person: _Person, space: str, mask: str, spheres: Spheres | None, scratch: Path, progress: bool
) -> tuple[Grid, Staged]:
    grid = read_grid(root, person.number, space if spheres is None else "fsaverage", mask, person.ncsnr)
    weights = None
    if spheres is not None:
        grid, weights = coarser_grid(grid, space, spheres)
    dtype, scale = _storage(person.files[0][0])
    staged = Staged(scratch / person.name, len(grid.voxels), dtype, scale)
    pairs = list(zip(person.sessions, person.files, strict=True))
    for session, files in track(pairs, f"{person.name}: sessions", progress):
        if _storage(files[0]) != (dtype, scale):
            raise InputError(f"{files[0]} is stored in another way than {person.files[0][0]}")
        for block in masked_session(files, grid.masks):
            staged.append(block if weights is None else np.asarray(block, dtype=np.float32) @ weights, session)
    staged.finish()
    if sum(staged.dropped.values()):
        log.info("%s: %s", person.name, staged.words())
    return grid, staged


def _storage(path: Path) -> tuple[str, float]:
    """How a file holds per cent signal change: number type, and what to multiply by."""
    if path.suffix == ".hdf5":
        with h5py.File(path, "r") as file:
            dtype = np.dtype(file["betas"].dtype)
    else:
        image: Any = nibabel.load(path)
        dtype = np.dtype(image.get_data_dtype())
        if dtype.kind in "iu" and image.dataobj.slope != 1.0:  # the header's own scaling has been applied then
            return "float32", 1.0
    return (dtype.newbyteorder("=").name, 1 / _PER_CENT) if dtype.kind in "iu" else ("float32", 1.0)


class _Pictures:
    """Rows of the picture file, resized when they are read."""

    dtype = np.dtype(np.uint8)

    def __init__(self, data: Any, images: np.ndarray, size: int | None) -> None:
        self._data, self._images, self._size = data, images, size
        height, width = (data.shape[1], data.shape[2]) if size is None else (size, size)
        self.shape = (len(images), height, width, 3)

    def __getitem__(self, rows: Any) -> np.ndarray:
        pictures = self._data[self._images[rows]]
        if self._size is None:
            return pictures
        size = (self._size, self._size)
        return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures])


def _stimuli(
    root: Path,
    shown: np.ndarray,
    design: layout.Design,
    file: Any,
    image_size: int | None,
    captions: Sequence[str | Path],
) -> StimulusSet:
    labels: dict[str, Any] = {"nsd_id": shown, "shared1000": np.isin(shown, design.shared).astype(np.int64)}
    texts = None
    if (root / layout.STIMULUS_INFO).is_file():
        info = layout.read_stimulus_info(root / layout.STIMULUS_INFO)
        if len(info) <= shown[-1] or not np.array_equal(info["nsdId"][shown], shown):
            raise InputError(f"{root / layout.STIMULUS_INFO} does not list image {shown[-1]} in its place")
        labels["coco_id"] = info["cocoId"][shown]
        texts = read_coco_captions(captions, labels["coco_id"]) if captions else None
    pixels = None
    if file is not None:
        data = file["imgBrick"]
        if data.ndim != 4 or data.shape[0] <= shown[-1] or data.shape[3] != 3:
            raise InputError(f"{root / layout.PICTURES}: expected (73000, H, W, 3) pictures, found {data.shape}")
        pixels = _Pictures(data, shown, image_size)
    return StimulusSet(layout.stimulus_name(shown), pixels=pixels, captions=texts, labels=labels)


def read_coco_captions(files: Sequence[str | Path], coco_ids: np.ndarray) -> list[list[str]]:
    """Captions of each image, in the order of the files.

    Raises
    ------
    InputError
        When an image has no caption (NSD takes its images from both train2017 and val2017).
    """
    by_id: dict[int, list[str]] = {int(number): [] for number in coco_ids.tolist()}
    for path in files:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise InputError(f"{path} is not a COCO caption file: no list 'annotations'")
        for entry in content["annotations"]:
            if entry["image_id"] in by_id:
                by_id[entry["image_id"]].append(str(entry["caption"]).strip())
    bare = [number for number, several in by_id.items() if not several]
    if bare:
        raise InputError(
            f"{len(bare)} images have no caption in {', '.join(map(str, files))}, such as COCO id "
            f"{', '.join(map(str, bare[:5]))}; give both captions_train2017.json and captions_val2017.json"
        )
    return [by_id[int(number)] for number in coco_ids.tolist()]
