"""GLMsingle outputs: single-trial betas in HDF5, MATLAB 7.3 or a plain array, with a table of trials.

::

    my-study/                  study.json, stimuli.tsv, captions.tsv, splits.tsv, stimuli/ as in docs/study_folder.md
      sub-01/
        mask.nii.gz            the voxels that were given to GLMsingle (or a part of the volumes that were)
        roi_<NAME>.nii.gz      optional regions on the same grid
        ses-01/                one fit a session; or the two files straight in sub-01/
          TYPED_FITHRF_GLMDENOISE_RR.hdf5 (or .mat of version 7.3, or betasmd.npy)
          trials.tsv           one row a beta, in the order of time: stimulus_id, run, onset ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from phosphene.errors import InputError
from phosphene.files import scratch_folder
from phosphene.recordings.readers.blocks import load_image
from phosphene.recordings.readers.folder import Person, find_nifti, name_events, pack, read_mask, stack_tables
from phosphene.recordings.readers.staging import Staged
from phosphene.recordings.readers.tree import Needs
from phosphene.table import Table

__all__ = ["MODEL", "import_glmsingle"]

MODEL = "TYPED_FITHRF_GLMDENOISE_RR"
PICKLED = (
    "is a Python dictionary in a pickle, which could run any program when it is loaded, so it is never opened here. "
    "Fit again with the GLMsingle option wanthdf5=1, or, if you trust the file, save its betas as a plain array:\n"
    "  python -c \"import numpy as np; np.save('betasmd.npy', "
    "np.load('{name}', allow_pickle=True).item()['betasmd'])\""
)
HINT = "The layout is described in docs/readers.md."


def import_glmsingle(
    path: str | Path,
    out: str | Path,
    *,
    model: str = MODEL,
    image_size: int | None = None,
    folds_column: str | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> Path:
    """Read a folder of GLMsingle outputs into one study file.

    Parameters
    ----------
    path, out : str or Path
        The folder, and the study file to write.
    model : str
        Which of GLMsingle's models: the name of its file without suffix.
    image_size, folds_column, folds, seed
        As of the study folder.

    Raises
    ------
    InputError
        With the list of everything that is missing or damaged.
    """
    root = Path(path)
    needs = Needs(root, "GLMsingle", HINT)
    fits = _survey(needs, model)
    with scratch_folder(out) as scratch:
        people = [_person(root / name, parts, scratch, model) for name, parts in fits.items()]
        return pack(
            root, out, people, "glmsingle", image_size=image_size, folds_column=folds_column, folds=folds, seed=seed
        )


def _survey(needs: Needs, model: str) -> dict[str, list[tuple[int, Path]]]:
    """Session number and file of every fit, by person."""
    root = needs.root
    folders = sorted(f for f in root.glob("sub-*") if f.is_dir())
    if not folders:
        needs.add("sub-01/ (or another person's folder)")
    fits: dict[str, list[tuple[int, Path]]] = {}
    for folder in folders:
        sessions = sorted(f for f in folder.glob("ses-*") if f.is_dir())
        fits[folder.name] = []
        for order, place in enumerate(sessions or [folder], start=1):
            inside = place.relative_to(root)
            if not (place / f"{model}.npy").is_file() or _readable(place, model):
                names = [f"{model}.hdf5", f"{model}.h5", f"{model}.mat", "betasmd.npy"]
                file = needs.one_of([inside / name for name in names], "betas")
                if file.suffix != ".npy" and file.is_file():
                    _look(needs, file)
            else:
                file = place / f"{model}.npy"
                needs.add(f"{inside / file.name} {PICKLED.format(name=file.name)}")
            needs.file(inside / "trials.tsv", "one row a beta")
            number = re.fullmatch(r"ses-0*(\d+)", place.name)
            fits[folder.name].append((int(number[1]) if number else order, file))
    needs.check()
    return fits


def _readable(place: Path, model: str) -> bool:
    return any((place / name).is_file() for name in (f"{model}.hdf5", f"{model}.h5", f"{model}.mat", "betasmd.npy"))


def _look(needs: Needs, file: Path) -> None:
    inside = file.relative_to(needs.root)
    try:
        with h5py.File(file, "r") as opened:
            if not {"betasmd", "modelmd"} & set(opened):
                needs.add(f"{inside}: dataset betasmd or modelmd; the file holds {', '.join(opened) or 'nothing'}")
    except OSError as error:
        advice = "; MATLAB must save it with '-v7.3'" if file.suffix == ".mat" else ""
        needs.add(f"{inside}: not readable HDF5{advice} ({error})")


def _person(folder: Path, fits: list[tuple[int, Path]], scratch: Path, model: str) -> Person:
    path = find_nifti(folder, "mask")
    image = None if path is None else load_image(path)
    mask, voxels = (None, None) if image is None else read_mask(folder, image)
    staged: Staged | None = None
    tables = []
    for session, file in fits:
        trials = name_events(_with_session(Table.read_tsv(file.parent / "trials.tsv"), session, len(fits) > 1))
        with _opened(file) as (array, from_matlab):
            block = session_betas(array, from_matlab, mask, len(trials), str(file))
        if staged is None:
            staged = Staged(scratch / folder.name, block.shape[1])
        # a single fit may span sessions: voxels must be sound in each
        for rows in np.split(np.arange(len(trials)), np.flatnonzero(np.diff(trials["session"])) + 1):
            staged.append(block[rows], int(trials["session"][rows[0]]) if len(rows) else session)
        tables.append(trials)
    assert staged is not None
    staged.finish()
    table = Table({"voxel": np.arange(len(staged.keep))}) if voxels is None else voxels
    meta = {} if image is None else {"affine": image.affine.tolist(), "volume_shape": image.shape[:3]}
    made_from = {"responses": f"GLMsingle {model}", "mask": "mask" if path else "none"}
    return Person(
        folder.name,
        stack_tables(tables),
        table.take(staged.keep),
        {**meta, "made_from": {**made_from, "voxels_left_out": staged.dropped}},
        staged,
    )


def _with_session(trials: Table, session: int, several: bool) -> Table:
    """Trials with ``session`` and ``run``; the folder's session counts where there is one fit a session."""
    ones = np.ones(len(trials), dtype=np.int64)
    if several or "session" not in trials:
        trials = trials.with_columns(session=session * ones)
    return trials if "run" in trials else trials.with_columns(run=ones)


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, bool]]:
    """The betas and whether MATLAB wrote them (axes reversed)."""
    try:
        if file.suffix == ".npy":
            yield np.load(file, mmap_mode="r", allow_pickle=False), False
            return
        with h5py.File(file, "r") as opened:
            data = opened["betasmd"] if "betasmd" in opened else opened["modelmd"]
            yield data, "MATLAB_class" in data.attrs or file.suffix == ".mat"
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise InputError(f"{file} {PICKLED.format(name=file.name)}") from error
        raise InputError(f"{file} is truncated or damaged: {error}") from error


def session_betas(array: Any, from_matlab: bool, mask: np.ndarray | None, n_trials: int, name: str) -> np.ndarray:
    """Betas of one fit, float32 ``(trials, voxels)``, in the order of the mask.

    Parameters
    ----------
    array : array
        ``(X, Y, Z, trials)``, ``(voxels, 1, 1, trials)`` or ``(voxels, trials)``; with all axes reversed from MATLAB.
    from_matlab : bool
        Whether the axes are reversed.
    mask : (X, Y, Z) ndarray of bool or None
        Needed for volumes; flat betas must have as many voxels as it.
    n_trials : int
        Rows of the table of trials.
    name : str
        What to call the betas in errors.
    """
    shape = tuple(array.shape)[::-1] if from_matlab else tuple(array.shape)
    if len(shape) not in (2, 4) or shape[-1] != n_trials:
        raise InputError(
            f"{name}: expected betas of (x, y, z, trials) or (voxels, trials) with the {n_trials} trials of "
            f"trials.tsv, found {shape}"
        )
    flat = len(shape) == 2 or shape[1:3] == (1, 1)
    if flat and mask is not None and mask.sum() != shape[0]:
        raise InputError(f"{name}: {shape[0]} voxels, but mask.nii.gz has {mask.sum()}")
    if not flat and (mask is None or mask.shape != shape[:3]):
        raise InputError(
            f"{name}: volumes of {shape[:3]} need a mask.nii.gz of that grid, found "
            f"{'none' if mask is None else mask.shape}"
        )
    width = shape[0] if flat or mask is None else int(mask.sum())
    betas = np.empty((n_trials, width), dtype=np.float32)
    if from_matlab:  # trials come first on disk
        for start in range(0, n_trials, 25):
            part = array[start : start + 25]
            betas[start : start + 25] = part.reshape(len(part), -1) if flat else part.T[mask].T
    elif flat:
        for start in range(0, width, 4096):
            betas[:, start : start + 4096] = array[start : start + 4096].reshape(-1, n_trials).T
    else:
        assert mask is not None
        at = 0
        for plane, inside in enumerate(mask):
            betas[:, at : at + inside.sum()] = array[plane][inside].T
            at += int(inside.sum())
    return betas
