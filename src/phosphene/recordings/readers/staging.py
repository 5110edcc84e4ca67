"""Responses on their way into a study: masked blocks go to a scratch file, voxels that are not sound are left out.

Which voxels are sound is known only after the last session, and the sources are read once: they are large, compressed
and slow. So the masked responses wait in a plain file beside the study that is being written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.errors import InputError

__all__ = ["Staged"]

_BLOCK_BYTES = 32 * 2**20


class Staged:
    """Responses of one person in a scratch file; reads as an array ``(trials, sound voxels)`` of float32.

    A voxel is sound when no response is NaN or infinite and when its responses vary within every session of at least
    two trials. (A voxel outside of the field of view of one session is stored as zeros or NaN there.)

    Parameters
    ----------
    path : Path
        The scratch file.
    n_voxels : int
        Voxels of every block.
    dtype : str
        How blocks are kept, e.g. ``"int16"``.
    scale : float
        Stored values are multiplied by this on reading.

    Examples
    --------
    >>> import tempfile
    >>> staged = Staged(Path(tempfile.mkdtemp()) / "sub-01", n_voxels=3)
    >>> staged.append(np.array([[1.0, 0.0, np.nan], [2.0, 0.0, 1.0]]), session=1)
    >>> staged.finish()
    >>> staged[0:2].tolist(), staged.dropped
    ([[1.0], [2.0]], {'not_finite': 1, 'constant_in_a_session': 1})
    """

    def __init__(self, path: Path, n_voxels: int, dtype: str = "float32", scale: float = 1.0) -> None:
        self._path, self._dtype, self._scale = path, np.dtype(dtype), scale
        self._width = n_voxels
        self._rows = 0
        self._file = path.open("wb")
        self._bad = np.zeros(n_voxels, dtype=bool)
        self._constant = np.zeros(n_voxels, dtype=bool)
        self._session: int | None = None
        self._first = np.zeros(n_voxels, dtype=self._dtype)
        self._varies = np.zeros(n_voxels, dtype=bool)
        self._in_session = 0
        self.keep = np.ones(n_voxels, dtype=bool)

    @property
    def shape(self) -> tuple[int, int]:
        """Trials and sound voxels."""
        return self._rows, int(self.keep.sum())

    def __len__(self) -> int:
        return self._rows

    @property
    def dropped(self) -> dict[str, int]:
        """How many voxels were left out, and why; a voxel that is both counts as not finite."""
        return {
            "not_finite": int(self._bad.sum()),
            "constant_in_a_session": int((self._constant & ~self._bad).sum()),
        }

    def words(self) -> str:
        """The same in words."""
        bad, constant = self.dropped.values()
        return (
            f"{bad + constant} of {self._width} voxels left out ({bad} with NaN or infinite responses, "
            f"{constant} constant within a session)"
        )

    def append(self, block: np.ndarray, session: int) -> None:
        """Keep the next trials, ``(n, voxels)``; the trials of a session come one after the other."""
        if block.ndim != 2 or block.shape[1] != self._width:
            raise InputError(f"expected blocks of (trials, {self._width} voxels), found shape {block.shape}")
        if len(block) == 0:
            return
        block = np.ascontiguousarray(block, dtype=self._dtype)
        if session != self._session:
            self._end_session()
            self._session, self._first = session, block[0].copy()
        if self._dtype.kind == "f":
            self._bad |= ~np.isfinite(block).all(axis=0)
        self._varies |= (block != self._first).any(axis=0)
        self._in_session += len(block)
        self._file.write(block.data.cast("B"))
        self._rows += len(block)

    def _end_session(self) -> None:
        if self._in_session > 1:
            self._constant |= ~self._varies
        self._varies[:] = False
        self._in_session = 0

    def finish(self) -> None:
        """Everything came: decide which voxels are sound.

        Raises
        ------
        InputError
            When no voxel is.
        """
        self._end_session()
        self._file.close()
        self.keep = ~(self._bad | self._constant)
        if not self.keep.any():
            raise InputError(
                f"none of the {self._width} voxels is usable: {self.dropped['not_finite']} have NaN or infinite "
                f"responses, {self.dropped['constant_in_a_session']} are constant within a session"
            )

    def blocks(self) -> Iterator[np.ndarray]:
        """All trials in order, in blocks of bounded memory."""
        size = max(1, _BLOCK_BYTES // (4 * self._width))
        for start in range(0, self._rows, size):
            yield self[start : start + size]

    def __getitem__(self, rows: Any) -> np.ndarray:
        start, stop, _ = rows.indices(self._rows)
        raw = np.fromfile(
            self._path,
            dtype=self._dtype,
            count=max(0, stop - start) * self._width,
            offset=start * self._width * self._dtype.itemsize,
        )
        block = raw.reshape(-1, self._width)[:, self.keep].astype(np.float32)
        return block if self._scale == 1.0 else block * np.float32(self._scale)
