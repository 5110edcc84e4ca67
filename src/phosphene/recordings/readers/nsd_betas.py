"""Voxels and single-trial betas of one NSD person: which voxels, their names, and the responses session by session."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.recordings.readers import nsd_layout as layout
from phosphene.recordings.readers.blocks import load_image
from phosphene.recordings.recording import ROI_PREFIX
from phosphene.table import Table

__all__ = ["Grid", "masked_session", "read_grid"]

log = logging.getLogger(__name__)

WHOLE = "whole"
_NIFTI_TRIALS = 25  # a block of whole volumes: 0.7 million voxels x 25 trials x 2 bytes = 35 MB
_FIRST = ("nsdgeneral", "prf-visualrois", "floc-faces", "floc-bodies", "floc-places", "floc-words", "streams")


@dataclass(frozen=True)
class Grid:
    """The voxels that are read.

    Attributes
    ----------
    masks : list of ndarray of bool
        One volume ``(X, Y, Z)``, or one ``(vertices,)`` a hemisphere.
    voxels : Table
        Volumes in the order of slices (``k``, then ``j``, then ``i``), surfaces left before right.
    meta : dict
        ``space``, ``affine``, ``volume_shape``, ``n_vertices`` of the recording.
    """

    masks: list[np.ndarray]
    voxels: Table
    meta: dict[str, Any]


def read_grid(root: Path, subject: int, space: str, mask: str, ncsnr: Sequence[Path]) -> Grid:
    """Choose voxels by `mask` and describe them: place, named regions, ``ncsnr``.

    Parameters
    ----------
    root : Path
        The NSD tree.
    subject : int
        1 to 8.
    space : {"func1pt8mm", "fsaverage"}
    mask : str
        An atlas (all its labels above zero), the name of a label, ``"<atlas>:<label>"``, or ``"whole"``.
    ncsnr : sequence of Path
        The ncsnr maps, which also tell the grid.
    """
    maps = [_numbers(path) for path in ncsnr]
    image: Any = load_image(ncsnr[0])
    atlases = {name: layout.read_labels(files) for name, files in layout.atlas_files(root, subject, space).items()}
    for name, labels in atlases.items():
        for part, like in zip(labels, maps, strict=True):
            if part.shape != like.shape:
                raise InputError(f"subj{subject:02d}: atlas {name} has shape {part.shape}, ncsnr has {like.shape}")
    names = {name: layout.label_names(root, subject, name) for name in atlases}
    masks = _mask(root, subject, space, mask, atlases, names, maps)
    if not any(part.any() for part in masks):
        raise InputError(f"subj{subject:02d}: the mask {mask!r} holds no voxel")
    if space == "func1pt8mm":
        columns = _volume_columns(masks[0], image.affine)
        meta = {"space": space, "affine": image.affine.tolist(), "volume_shape": maps[0].shape}
    else:
        vertex = [np.flatnonzero(part) for part in masks]
        side = np.repeat(["L", "R"], [len(part) for part in vertex])
        columns = {"vertex": np.concatenate(vertex), "hemisphere": side}
        meta = {"space": space, "n_vertices": [len(part) for part in maps]}
    columns["ncsnr"] = _inside(maps, masks)
    columns |= _regions(atlases, names, masks)
    return Grid(masks, Table(columns), meta)


def _numbers(path: Path) -> np.ndarray:
    image: Any = load_image(path)
    try:
        values = np.asanyarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return values.reshape(-1) if path.suffix in (".mgh", ".mgz") else values.reshape(values.shape[:3])


def _inside(parts: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    """Values within the masks, in voxel order: volumes by slice, as the scanner lists them."""
    return np.concatenate([part.T[mask.T] for part, mask in zip(parts, masks, strict=True)])


def _volume_columns(mask: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    index = np.argwhere(mask.T)[:, ::-1]  # slice by slice
    mm = nibabel.affines.apply_affine(affine, index)
    return {axis: index[:, n] for n, axis in enumerate("ijk")} | {axis: mm[:, n] for n, axis in enumerate("xyz")}


def _mask(
    root: Path,
    subject: int,
    space: str,
    mask: str,
    atlases: dict[str, list[np.ndarray]],
    names: dict[str, dict[int, str]],
    maps: list[np.ndarray],
) -> list[np.ndarray]:
    if mask == WHOLE:
        brain = root / f"nsddata/ppdata/subj{subject:02d}/{space}/brainmask.nii.gz"
        return [_numbers(brain) > 0] if brain.is_file() else [np.ones(part.shape, dtype=bool) for part in maps]
    if mask in atlases:
        return [part > 0 for part in atlases[mask]]
    known = [WHOLE, *atlases]
    for atlas in _ordered(atlases):
        for number, label in names[atlas].items():
            if number > 0:
                known.append(label)
                if mask in (label, f"{atlas}:{label}"):
                    return [part == number for part in atlases[atlas]]
    raise unknown(f"mask of subj{subject:02d} in {space}:", mask, known)


def _ordered(atlases: dict[str, Any]) -> list[str]:
    return sorted(atlases, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def _regions(
    atlases: dict[str, list[np.ndarray]], names: dict[str, dict[int, str]], masks: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """A boolean column for every label that occurs; a name that two atlases use carries the atlas in the later one."""
    columns: dict[str, np.ndarray] = {}
    for atlas in _ordered(atlases):
        inside = _inside(atlases[atlas], masks)
        present = np.unique(inside[inside > 0]).tolist()
        if present and not names[atlas] and present != [1]:
            log.warning("atlas %s has no colour table: its labels are named %s_<number>", atlas, atlas)
        for number in present:
            label = names[atlas].get(number, atlas if present == [1] else f"{atlas}_{number}").replace("/", "-")
            column = f"{ROI_PREFIX}{label}"
            columns[column if column not in columns else f"{ROI_PREFIX}{atlas}.{label}"] = inside == number
    return columns


def masked_session(files: Sequence[Path], masks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Responses of one session within the masks, in blocks ``(trials, voxels)`` as they are stored.

    Never more than one session of masked voxels and a few whole volumes is in memory.

    Raises
    ------
    InputError
        For a truncated file, or one whose trials or grid are not those expected.
    """
    try:
        if files[0].suffix == ".hdf5":
            yield from _from_hdf5(files[0], masks[0])
        elif len(files) == 1:
            yield from _from_nifti(files[0], masks[0])
        else:
            yield from _from_surfaces(files, masks)
    except (OSError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{files[0]} is truncated or damaged: {error}") from error


def _check_shape(path: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(found) != tuple(expected):
        raise InputError(f"{path}: expected shape {expected}, found {tuple(found)}")


def _from_hdf5(path: Path, mask: np.ndarray) -> Iterator[np.ndarray]:
    """``betas`` reads as (trials, Z, Y, X): MATLAB wrote it, with the axes in its own order."""
    by_slice = mask.T
    with h5py.File(path, "r") as file:
        data = file["betas"]
        _check_shape(path, data.shape, (layout.TRIALS, *by_slice.shape))
        used = np.flatnonzero(by_slice.any(axis=(1, 2)))
        if data.chunks is None or data.chunks[1] == data.shape[1]:  # stored volume by volume
            step = max(1, data.chunks[0]) if data.chunks else _NIFTI_TRIALS
            for start in range(0, layout.TRIALS, step):
                yield data[start : start + step][:, by_slice]
            return
        # stored with all trials of a place together: slice by slice, then the whole session at once
        rows, columns = (np.flatnonzero(by_slice.any(axis=axes)) for axes in ((0, 2), (0, 1)))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        session = np.empty((layout.TRIALS, int(mask.sum())), dtype=data.dtype)
        at, step = 0, data.chunks[1]
        for start in range(used[0] - used[0] % step, used[-1] + 1, step):
            part = by_slice[start : start + step, *box]
            session[:, at : at + part.sum()] = data[:, start : start + step, *box][:, part]
            at += int(part.sum())
        yield session


def _from_nifti(path: Path, mask: np.ndarray) -> Iterator[np.ndarray]:
    image: Any = nibabel.load(path, keep_file_open=True)  # else every block would unpack the file from its start
    _check_shape(path, image.shape, (*mask.shape, layout.TRIALS))
    for start in range(0, layout.TRIALS, _NIFTI_TRIALS):
        part = image.dataobj[..., start : start + _NIFTI_TRIALS]
        yield part.T[:, mask.T]


def _from_surfaces(files: Sequence[Path], masks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    images: list[Any] = [nibabel.load(path) for path in files]
    for path, image, mask in zip(files, images, masks, strict=True):
        _check_shape(path, image.shape, (len(mask), 1, 1, layout.TRIALS))
    for start in range(0, layout.TRIALS, _NIFTI_TRIALS):
        parts = [image.dataobj[:, 0, 0, start : start + _NIFTI_TRIALS] for image in images]
        yield np.concatenate([part[mask] for part, mask in zip(parts, masks, strict=True)]).T
