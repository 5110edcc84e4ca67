"""Rows of targets on disk: one memory-mapped .npy file a kind, and a ledger of which rows are done and sound."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from phosphene.errors import InputError

__all__ = ["cast_rows", "create_rows", "open_rows", "release", "sound_rows", "store_rows"]

_LEDGER = "rows.npy"
# stored arrays up to this size are checked whole on opening; of larger ones, this many rows spread evenly
_CHECK_WHOLE_BYTES = 256 * 2**20
_CHECK_ROWS = 64
# of maps larger than this, the pages that were read are given back at once
_RELEASE_FROM_BYTES = 16 * 2**20


def create_rows(folder: Path, n: int, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """Lay out files for n rows of each kind (sparse where the file system can), none of them done."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = n * sum(int(np.prod(shape)) for shape in shapes.values()) * np.dtype(dtype).itemsize
    # a write into a memory map on a full disk kills the process, so the room is asked for first
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{needed / 2**30:.2f} GiB are needed in {folder.parent} and {free / 2**30:.2f} GiB are free: "
            "make room, choose another folder, or store float16"
        )
    try:
        for kind, shape in shapes.items():
            _allocate(folder / f"{kind}.npy", np.dtype(dtype), (n, *shape))
        _allocate(folder / _LEDGER, np.dtype("<u4"), (n, 1 + len(shapes)))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"the disk is full: no room for {needed / 2**30:.2f} GiB in {folder.parent}") from error
        raise


def _allocate(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        size = stream.tell() + int(np.prod(shape)) * dtype.itemsize
        stream.flush()
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)


def open_rows(
    folder: Path, kinds: list[str], mode: Literal["r", "r+"] = "r"
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Map the arrays and the ledger.

    Returns
    -------
    arrays : dict of kind to memory-mapped array (n, ...)
    ledger : memory-mapped uint32 array (n, 1 + kinds)
        Column 0 is 1 where the row is done, then the CRC-32 of the row in each kind.

    Raises
    ------
    InputError
        For a missing, truncated or unreadable file; nothing but plain arrays is read.
    """
    mapped: dict[str, np.ndarray] = {}
    for name in [*kinds, _LEDGER.removesuffix(".npy")]:
        path = folder / f"{name}.npy"
        try:
            mapped[name] = np.load(path, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise InputError(f"{path} is missing or damaged: {error}") from error
    ledger = mapped.pop(_LEDGER.removesuffix(".npy"))
    lengths = {name: array.shape[:1] for name, array in mapped.items()}
    if ledger.ndim != 2 or ledger.shape[1] != 1 + len(kinds) or set(lengths.values()) != {ledger.shape[:1]}:
        raise InputError(f"{folder}: arrays and ledger do not match: ledger {ledger.shape}, rows {lengths}")
    return mapped, ledger


def store_rows(
    arrays: Mapping[str, np.ndarray], ledger: np.ndarray, rows: np.ndarray, values: Mapping[str, np.ndarray]
) -> None:
    """Write rows, then mark them as done: killed in between, they count as not done."""
    for kind, array in arrays.items():
        array[rows] = cast_rows(values[kind], array.dtype, kind)
        _flush(array)
    checks = [[_crc(array[row]) for array in arrays.values()] for row in rows]
    ledger[rows, 1:] = np.array(checks, dtype=np.uint32)
    ledger[rows, 0] = 1
    _flush(ledger)


def cast_rows(values: np.ndarray, dtype: np.dtype, kind: str) -> np.ndarray:
    """Cast to the storage type; a value beyond float16 is an error, not an infinity."""
    if dtype == np.float16 and values.size and np.abs(values).max() > np.finfo(np.float16).max:
        raise InputError(f"{kind} reach {np.abs(values).max():.3g}, beyond float16: store them as dtype='float32'")
    return np.asarray(values, dtype=dtype)


def sound_rows(arrays: Mapping[str, np.ndarray], ledger: np.ndarray) -> tuple[np.ndarray, bool]:
    """Rows that are done, and whether all of those that were checked hold what was written.

    Returns
    -------
    done : bool array (n,)
    sound : bool
        All done rows are compared with their CRC up to 256 MiB, of larger stores 64 of them spread evenly.
    """
    done = np.asarray(ledger[:, 0]) == 1
    rows = np.flatnonzero(done)
    if sum(array.nbytes for array in arrays.values()) > _CHECK_WHOLE_BYTES:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, _CHECK_ROWS).astype(int))] if len(rows) else rows
    for column, array in enumerate(arrays.values(), start=1):
        whole = all(_crc(array[row]) == ledger[row, column] for row in rows)
        release(array)
        if not whole:
            return done, False
    return done, True


def _crc(row: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(row).view(np.uint8).data)


def _flush(array: np.ndarray) -> None:
    if isinstance(array, np.memmap):
        array.flush()
        release(array)


def release(array: np.ndarray) -> None:
    """Take the pages of a large memory map out of this process; they stay in the system's cache of files.

    Without it every row that was ever read counts as memory of the process until the system runs short.
    """
    pages = getattr(array, "_mmap", None)
    if pages is not None and array.nbytes > _RELEASE_FROM_BYTES and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
