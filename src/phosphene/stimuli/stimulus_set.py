"""`StimulusSet`: what was shown, by stimulus id; pixels are read when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from phosphene.errors import InputError
from phosphene.files import digest
from phosphene.table import Table

__all__ = ["PixelSource", "StimulusSet"]

_BLOCK = 64  # stimuli read at a time where all are walked through


class PixelSource(Protocol):
    """Anything that looks like a uint8 array over stimuli: an array, an HDF5 dataset, image files, a renderer."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


class StimulusSet:
    """Stimuli with lazy pixels, captions and labels.

    Parameters
    ----------
    ids : sequence of str
        Unique stimulus ids.
    pixels : PixelSource, optional
        uint8, ``(n, H, W, 3)`` pictures or ``(n, frames, H, W, 3)`` clips; indexed with increasing row numbers.
    captions : sequence of sequence of str, optional
        Any number of captions a stimulus.
    labels : Table or mapping, optional
        One row a stimulus; text or number columns such as ``category``.
    fps : float, optional
        Frames a second of clips.
    hashes : sequence of str, optional
        Content hashes, where they are known already; else computed when first asked for.

    Raises
    ------
    InputError
        For duplicated or empty ids, lengths that differ, pixels of another type or shape.

    Examples
    --------
    >>> s = StimulusSet(["cat", "dog"], captions=[["a cat"], ["a dog", "a puppy"]])
    >>> s.select(["dog"]).captions
    (('a dog', 'a puppy'),)
    """

    def __init__(
        self,
        ids: Sequence[str] | np.ndarray,
        pixels: PixelSource | None = None,
        captions: Sequence[Sequence[str]] | None = None,
        labels: Table | Mapping[str, Any] | None = None,
        fps: float | None = None,
        hashes: Sequence[str] | np.ndarray | None = None,
    ) -> None:
        self.ids = np.asarray(ids, dtype=str)
        n = len(self.ids)
        _check_ids(self.ids)
        self.captions: tuple[tuple[str, ...], ...] = (
            tuple(() for _ in range(n)) if captions is None else tuple(tuple(c) for c in captions)
        )
        if labels is None:
            labels = Table({}, rows=n)
        self.labels = labels if isinstance(labels, Table) else Table(labels, rows=n)
        for name, length in (("captions", len(self.captions)), ("labels", len(self.labels))):
            if length != n:
                raise InputError(f"{name} must have one row a stimulus: {n} ids, {length} rows")
        if pixels is not None:
            shape = tuple(pixels.shape)
            if len(shape) not in (4, 5) or shape[0] != n or shape[-1] != 3:
                raise InputError(
                    f"pixels must be (n, H, W, 3) or (n, frames, H, W, 3) with n = {n}, found shape {shape}"
                )
            kind = getattr(pixels, "dtype", np.dtype(np.uint8))
            if np.dtype(kind) != np.uint8:
                raise InputError(f"pixels must be uint8 (0 to 255), found {kind}")
        self._pixels = pixels
        self.fps = fps
        self._row_of = {stimulus: row for row, stimulus in enumerate(self.ids.tolist())}
        if hashes is not None:
            self.__dict__["hashes"] = np.asarray(hashes, dtype=str)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        shown = "no pixels" if self.frame_shape is None else "x".join(map(str, self.frame_shape))
        return f"StimulusSet({len(self)} stimuli, {shown}, {sum(map(len, self.captions))} captions)"

    @property
    def has_pixels(self) -> bool:
        """Whether there is anything to look at."""
        return self._pixels is not None

    @property
    def frame_shape(self) -> tuple[int, ...] | None:
        """``(H, W, 3)``, ``(frames, H, W, 3)`` or None."""
        return None if self._pixels is None else tuple(self._pixels.shape[1:])

    @property
    def is_clips(self) -> bool:
        """Whether the stimuli move."""
        return self.frame_shape is not None and len(self.frame_shape) == 4

    def rows(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Row numbers of stimulus ids.

        Raises
        ------
        InputError
            Naming up to five ids that are not in the set.
        """
        names = np.asarray(ids, dtype=str).tolist()
        missing = [name for name in names if name not in self._row_of]
        if missing:
            raise InputError(f"{len(missing)} stimulus ids are not in the set, such as {', '.join(missing[:5])}")
        return np.array([self._row_of[name] for name in names], dtype=np.int64)

    def pixels(self, rows: Any = None) -> np.ndarray:
        """Read pixels, uint8 ``(n, H, W, 3)`` or ``(n, frames, H, W, 3)``, in the order of `rows` (default all)."""
        if self._pixels is None:
            raise InputError("these stimuli have no pixels; only captions and labels can be encoded")
        wanted = np.arange(len(self))[slice(None) if rows is None else rows]
        # sources such as HDF5 want increasing rows without repeats
        increasing, back = np.unique(wanted, return_inverse=True)
        if len(increasing) and increasing[-1] - increasing[0] + 1 == len(increasing):
            read = self._pixels[slice(int(increasing[0]), int(increasing[-1]) + 1)]
        else:
            read = self._pixels[increasing]
        return np.asarray(read)[back]

    def frames(self, rows: Any = None) -> np.ndarray:
        """One still a stimulus, uint8 ``(n, H, W, 3)``: the picture, or the middle frame of a clip."""
        pixels = self.pixels(rows)
        return pixels[:, pixels.shape[1] // 2] if self.is_clips else pixels

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
        """Walk through all pixels: pairs of rows and pixels."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.pixels(rows)

    @property
    def hashes_known(self) -> bool:
        """Whether the content hashes are there already, given or computed before."""
        return "hashes" in self.__dict__

    @cached_property
    def hashes(self) -> np.ndarray:
        """Content hash of each stimulus: pixels, frame rate, captions and labels."""
        picture = [""] * len(self)
        if self._pixels is not None:
            for rows, pixels in self.blocks():
                picture[rows] = [digest(p) for p in pixels]
        columns = [self.labels[name].tolist() for name in self.labels.columns]
        bare = self._pixels is None and not columns
        words = zip(self.ids.tolist(), self.captions, picture, strict=True)
        return np.array(
            [
                digest(
                    # where nothing at all is known of a stimulus, its name must tell it from the others
                    name if bare and not captions else shown,
                    repr(self.fps),
                    repr(captions),
                    repr([(label, c[row]) for label, c in zip(self.labels.columns, columns, strict=True)]),
                )
                for row, (name, captions, shown) in enumerate(words)
            ],
            dtype=str,
        )

    def spread(self, most: int) -> np.ndarray:
        """Rows of at most so many stimuli, evenly taken from the whole set.

        Examples
        --------
        >>> StimulusSet(["a", "b", "c", "d", "e"]).spread(3).tolist()
        [0, 2, 4]
        """
        return np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int))

    def select(self, ids: Sequence[str] | np.ndarray) -> StimulusSet:
        """The stimuli with these ids, in this order; pixels stay lazy."""
        rows = self.rows(ids)
        return StimulusSet(
            self.ids[rows],
            pixels=None if self._pixels is None else _Rows(self, rows),
            captions=[self.captions[row] for row in rows],
            labels=self.labels.take(rows),
            fps=self.fps,
            hashes=self.hashes[rows] if self.hashes_known else None,
        )

    def with_captions(self, captions: Sequence[Sequence[str]]) -> StimulusSet:
        """The same stimuli with other captions; pixels stay lazy, content hashes are new."""
        return StimulusSet(self.ids, pixels=self._pixels, captions=captions, labels=self.labels, fps=self.fps)


class _Rows:
    """Pixels of chosen rows of another set, read when asked for."""

    dtype = np.dtype(np.uint8)

    def __init__(self, parent: StimulusSet, rows: np.ndarray) -> None:
        self._parent = parent
        self._rows = rows
        self.shape = (len(rows), *(parent.frame_shape or ()))

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._parent.pixels(self._rows[rows])


def _check_ids(ids: np.ndarray) -> None:
    if ids.ndim != 1:
        raise InputError(f"stimulus ids must be one-dimensional, found shape {ids.shape}")
    unique, counts = np.unique(ids, return_counts=True)
    if np.any(counts > 1):
        twice = unique[counts > 1]
        raise InputError(f"{len(twice)} stimulus ids occur more than once, such as {', '.join(twice[:5])}")
    if "" in unique:
        raise InputError(f"the stimulus id in row {int(np.flatnonzero(ids == '')[0])} is empty")
