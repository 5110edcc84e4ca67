"""Betas in the manner of fMRIPrep derivatives: one NIfTI or one pair of GIFTI files a run, with its table of trials.

::

    derivatives/                 study.json, stimuli.tsv, captions.tsv, splits.tsv, stimuli/ as in docs/study_folder.md
      sub-01/[ses-01/][func/]
        sub-01_ses-01_task-x_run-1_space-T1w_desc-glm_betas.nii.gz        (x, y, z, trials); or ..._statmap.nii.gz
        sub-01_ses-01_task-x_run-1_hemi-L_space-fsaverage5_betas.func.gii  one array a trial; and hemi-R
        sub-01_ses-01_task-x_run-1_trials.tsv (or _events.tsv)            one row a beta
        sub-01_ses-01_task-x_run-1_space-T1w_desc-brain_mask.nii.gz
      sub-01/mask.nii.gz, roi_<NAME>.nii.gz    optional: used instead of the masks of the runs
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.files import scratch_folder
from phosphene.recordings.readers.blocks import load_image, without_rest
from phosphene.recordings.readers.folder import (
    Person,
    find_nifti,
    name_events,
    pack,
    read_mask,
    stack_tables,
    voxel_columns,
)
from phosphene.recordings.readers.staging import Staged
from phosphene.recordings.readers.tree import Needs
from phosphene.recordings.surfaces import mesh_of_count
from phosphene.table import Table

__all__ = ["import_fmriprep"]

log = logging.getLogger(__name__)

HINT = "The layout is described in docs/readers.md."
_BETAS = re.compile(r"_(betas|statmap)\.(nii|nii\.gz|func\.gii|shape\.gii|gii)$")
_KEY = ("ses", "task", "run")


@dataclass
class _Run:
    """One run: its betas (a volume, or by hemisphere) and its table of trials."""

    name: str
    session: int
    run: int
    files: dict[str, Path] = field(default_factory=dict)
    trials: Path | None = None


def import_fmriprep(
    path: str | Path,
    out: str | Path,
    *,
    space: str | None = None,
    desc: str | None = None,
    events: str | Path | None = None,
    image_size: int | None = None,
    folds_column: str | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> Path:
    """Read a derivatives folder with betas into one study file.

    Parameters
    ----------
    path, out : str or Path
        The folder, and the study file to write.
    space : str, optional
        Which ``space-`` entity; needed where there are several.
    desc : str, optional
        Which ``desc-`` entity; needed where a run has several files of betas.
    events : str or Path, optional
        Where the tables of trials are, if not beside the betas (the raw BIDS folder).
    image_size, folds_column, folds, seed
        As of the study folder.

    Raises
    ------
    InputError
        With the list of everything that is missing or damaged.
    """
    root = Path(path)
    needs = Needs(root, "fMRIPrep-style", HINT)
    space = _space(root, space)
    people = _survey(needs, space, desc, root if events is None else Path(events))
    with scratch_folder(out) as scratch:
        read = [_person(root / name, runs, space, scratch) for name, runs in people.items()]
        return pack(
            root, out, read, "fmriprep", image_size=image_size, folds_column=folds_column, folds=folds, seed=seed
        )


def entities(path: Path) -> dict[str, str]:
    """The ``key-value`` parts of a file name.

    Examples
    --------
    >>> entities(Path("sub-01_task-rest_run-2_space-T1w_betas.nii.gz"))
    {'sub': '01', 'task': 'rest', 'run': '2', 'space': 'T1w'}
    """
    return dict(re.findall(r"(?:^|_)([a-zA-Z]+)-([a-zA-Z0-9+]+)", path.name))


def _beta_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if _BETAS.search(f.name) and f.is_file())


def _space(root: Path, wanted: str | None) -> str:
    found = sorted({entities(f).get("space", "unknown") for f in _beta_files(root)} if root.is_dir() else set())
    if not found:
        raise InputError(f"{root} holds no *_betas.nii.gz, *_statmap.nii.gz or *_betas.func.gii. {HINT}")
    if wanted is None and len(found) > 1:
        raise InputError(f"{root} holds betas in several spaces: {', '.join(found)}; choose one (--space)")
    if wanted is not None and wanted not in found:
        raise unknown("space", wanted, found)
    return wanted or found[0]


def _survey(needs: Needs, space: str, desc: str | None, events: Path) -> dict[str, list[_Run]]:
    """Runs of every person, in order; all that does not fit together is noted."""
    tables = _tables(events)
    people: dict[str, list[_Run]] = {}
    for folder in sorted(f for f in needs.root.glob("sub-*") if f.is_dir()):
        runs: dict[tuple[str, ...], _Run] = {}
        sessions = sorted({entities(f).get("ses", "") for f in _beta_files(folder)})
        for file in _beta_files(folder):
            words = entities(file)
            if words.get("space", "unknown") != space or (desc is not None and words.get("desc") != desc):
                continue
            key = tuple(words.get(name, "") for name in _KEY)
            if key not in runs:
                number = int(words["run"]) if words.get("run", "").isdigit() else len(runs) + 1
                session = int(key[0]) if key[0].isdigit() else sessions.index(key[0]) + 1
                name = "_".join([folder.name, *(f"{k}-{v}" for k, v in zip(_KEY, key, strict=True) if v)])
                runs[key] = _Run(name, session, number, trials=tables.get((folder.name, *key)))
            side = words.get("hemi", "")
            if side in runs[key].files:
                needs.add(
                    f"{runs[key].name}: more than one file of betas ({runs[key].files[side].name}, {file.name}); "
                    "choose with --desc"
                )
            runs[key].files[side] = file
        if runs:
            people[folder.name] = sorted(runs.values(), key=lambda run: (run.session, run.run, run.name))
            _note_missing(needs, folder, people[folder.name], space)
    if not people:
        needs.add(f"betas with space-{space}" + (f" and desc-{desc}" if desc else ""))
    needs.check()
    return people


def _tables(folder: Path) -> dict[tuple[str, ...], Path]:
    """Tables of trials by person, session, task and run; trials.tsv before events.tsv."""
    found: dict[tuple[str, ...], Path] = {}
    for suffix in ("events", "trials"):
        for file in sorted(folder.rglob(f"sub-*_{suffix}.tsv")):
            words = entities(file)
            found[f"sub-{words['sub']}", *(words.get(name, "") for name in _KEY)] = file
    return found


def _note_missing(needs: Needs, folder: Path, runs: list[_Run], space: str) -> None:
    surface = any(set(run.files) - {""} for run in runs)
    for run in runs:
        if run.trials is None:
            needs.add(f"{run.name}_trials.tsv or _events.tsv (one row a beta)")
        wanted = {"L", "R"} if surface else {""}
        for side in sorted(wanted - set(run.files)):
            needs.add(f"{run.name}: betas of {f'hemi-{side}' if side else 'the volume'}")
        for side in sorted(set(run.files) - wanted):
            needs.add(f"{run.name}: {run.files[side].name} beside files of another kind")
    if not surface and find_nifti(folder, "mask") is None and not _masks(folder, space):
        needs.add(f"{folder.name}/mask.nii.gz, or *_space-{space}_desc-brain_mask.nii.gz (which voxels are used)")


def _masks(folder: Path, space: str) -> list[Path]:
    found = [f for f in sorted(folder.rglob("*_mask.nii*")) if entities(f).get("space", "unknown") == space]
    return [f for f in found if entities(f).get("desc", "brain") == "brain"]


def _person(folder: Path, runs: list[_Run], space: str, scratch: Path) -> Person:
    surface = "L" in runs[0].files
    if surface:
        sizes = [_surface(runs[0].files[side]).shape[1] for side in "LR"]
        space = _true_space(folder.name, space, sizes)
        table = Table(
            {
                "vertex": np.concatenate([np.arange(size) for size in sizes]),
                "hemisphere": np.repeat(["L", "R"], sizes),
            }
        )
        meta: dict[str, Any] = {"space": space, "n_vertices": sizes}
    else:
        mask, table, affine = _grid(folder, runs[0].files[""], space)
        meta = {"space": space, "affine": affine.tolist(), "volume_shape": mask.shape}
    staged = Staged(scratch / folder.name, len(table))
    tables = []
    for run in runs:
        assert run.trials is not None
        trials = without_rest(Table.read_tsv(run.trials))
        block = (
            np.concatenate([_surface(run.files[side]) for side in "LR"], axis=1)
            if surface
            else _volumes(run.files[""], mask, affine)
        )
        if len(block) != len(trials):
            raise InputError(
                f"{run.name}: {len(block)} betas, but {run.trials.name} has {len(trials)} trials (without rest)"
            )
        ones = np.ones(len(trials), dtype=np.int64)
        tables.append(name_events(trials.with_columns(session=run.session * ones, run=run.run * ones)))
        staged.append(block, run.session)
    staged.finish()
    made_from = {
        "responses": f"betas of {len(runs)} runs",
        "mask": "all vertices" if surface else "mask",
        "voxels_left_out": staged.dropped,
    }
    return Person(folder.name, stack_tables(tables), table.take(staged.keep), {**meta, "made_from": made_from}, staged)


def _true_space(person: str, space: str, sizes: list[int]) -> str:
    """The mesh by its number of vertices: names of files have said fsaverage6 of what was fsaverage.

    Raises
    ------
    InputError
        When the hemispheres are of two meshes.
    """
    meshes = [mesh_of_count(size) for size in sizes]
    if meshes[0] != meshes[1]:
        raise InputError(f"{person}: the hemispheres have {sizes[0]} and {sizes[1]} vertices, which are two meshes")
    if not space.startswith("fsaverage"):
        return space
    if meshes[0] is None:
        log.warning("%s: the files say %s, but no mesh of that family has %d vertices", person, space, sizes[0])
        return space
    if meshes[0] != space:
        log.warning("%s: the files say %s, their %d vertices are those of %s", person, space, sizes[0], meshes[0])
    return meshes[0]


def _grid(folder: Path, first: Path, space: str) -> tuple[np.ndarray, Table, np.ndarray]:
    """The person's own mask, or the voxels that are in the mask of every run."""
    image: Any = load_image(first)
    own = find_nifti(folder, "mask")
    if own is not None:
        mask, table = read_mask(folder, image)
    else:
        masks = [np.asanyarray(load_image(path).dataobj) > 0 for path in _masks(folder, space)]
        if any(part.shape != masks[0].shape for part in masks):
            raise InputError(f"{folder}: the brain masks of space {space} have different grids")
        mask = np.logical_and.reduce(masks)
        table = Table(voxel_columns(mask, image.affine))
    if mask.shape != image.shape[:3]:
        raise InputError(f"{first}: expected the mask's grid {mask.shape}, found {image.shape[:3]}")
    if not mask.any():
        raise InputError(f"{folder}: no voxel is in the masks of all runs of space {space}")
    return mask, table, np.asarray(image.affine)


def _volumes(path: Path, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    image: Any = load_image(path)
    if image.shape[:3] != mask.shape or not np.allclose(image.affine, affine, atol=1e-3):
        raise InputError(f"{path}: its grid differs from that of the first run ({mask.shape} and its affine)")
    try:
        values = np.asanyarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is truncated or damaged: {error}") from error
    return values.reshape(*mask.shape, -1)[mask].T


def _surface(path: Path) -> np.ndarray:
    """Betas of one hemisphere, ``(trials, vertices)``."""
    try:
        image: Any = nibabel.load(path)
        arrays = [np.asarray(array.data, dtype=np.float32) for array in image.darrays]
    except Exception as error:  # a damaged GIFTI fails in the parser of XML, in base64 or in zlib
        raise InputError(f"{path} is not a readable GIFTI file: {error}") from error
    if not arrays or any(array.shape != arrays[0].shape for array in arrays):
        raise InputError(f"{path}: expected arrays of one length, found {[array.shape for array in arrays]}")
    return arrays[0].T if len(arrays) == 1 and arrays[0].ndim == 2 else np.stack(arrays)
