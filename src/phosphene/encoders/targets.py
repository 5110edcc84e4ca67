"""`Targets`: what an encoder makes of stimuli, looked up by stimulus id, read from disk when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from phosphene.encoders.arrays import create_rows, open_rows, release, sound_rows, store_rows
from phosphene.encoders.base import FOLDER as ENCODER
from phosphene.encoders.base import Encoder
from phosphene.errors import InputError, unknown
from phosphene.files import FolderFormat, digest, read_json, write_json

__all__ = ["Kind", "RowView", "Targets"]

Kind = Literal["tokens", "pooled"]

FORMAT = 1
_OWN = ("targets.json", "tokens.npy", "pooled.npy", "rows.npy")
FOLDER = FolderFormat("targets", FORMAT, (*_OWN, *ENCODER.within("encoder")), keys=("identity", "kinds", "checksum"))
_BLOCK_BYTES = 32 * 2**20


class RowView:
    """Rows of one or several stored arrays in an order of one's own, read when asked for.

    Behaves as an array as far as ``shape``, ``dtype``, ``len``, indexing by rows and ``numpy.asarray`` go.

    Parameters
    ----------
    parts : sequence of arrays (n_p, ...)
        Usually memory-mapped; equal in dtype and in shape apart from the first axis.
    part, row : int arrays (n,)
        Where each row of the view lies.
    """

    def __init__(self, parts: Sequence[np.ndarray], part: np.ndarray, row: np.ndarray) -> None:
        self.parts = list(parts)
        self._part = np.asarray(part)
        self._row = np.asarray(row)
        self.dtype = self.parts[0].dtype
        self.shape = (len(self._row), *self.parts[0].shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the whole view would take in memory."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, rows: Any) -> np.ndarray:
        index, rest = (rows[0], rows[1:]) if isinstance(rows, tuple) else (rows, ())
        chosen = np.arange(len(self))[index]
        flat = np.atleast_1d(chosen)
        out = np.empty((len(flat), *self.shape[1:]), dtype=self.dtype)
        for number, array in enumerate(self.parts):
            here = self._part[flat] == number
            out[here] = array[self._row[flat[here]]]
            release(array)
        result = out[0] if np.ndim(chosen) == 0 else out
        return (
            result[(..., *rest)] if np.ndim(chosen) == 0 and rest else result[(slice(None), *rest)] if rest else result
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a view over stored rows can only be copied into an array")
        read = self[:]
        return read if dtype is None else read.astype(dtype, copy=False)


class Targets:
    """Tokens and pooled embeddings of stimuli under one encoder.

    Parameters
    ----------
    ids : sequence of str
        Unique stimulus ids.
    tokens : array-like of shape (n, tokens, width), optional
        Array, memory map or `RowView`.
    pooled : array-like of shape (n, width)
    encoder : Encoder
        What made them; saved with them.
    fitted_on : iterable of str, optional
        Ids of the stimuli the encoder has learned from, by default those it remembers; None where it learnt nothing.
        Audits hold them against the test part.

    Examples
    --------
    >>> from phosphene.encoders.gabor import GaborEncoder
    >>> targets = Targets(["a", "b"], None, np.eye(2, dtype=np.float32), GaborEncoder())
    >>> targets.of(["b"]).tolist()
    [[0.0, 1.0]]
    """

    def __init__(
        self,
        ids: Sequence[str] | np.ndarray,
        tokens: Any,
        pooled: Any,
        encoder: Encoder,
        fitted_on: Iterable[str] | None = None,
    ) -> None:
        self.ids = np.asarray(ids, dtype=str)
        self._arrays: dict[str, Any] = {"pooled": pooled} if tokens is None else {"tokens": tokens, "pooled": pooled}
        self.encoder = encoder
        self.fitted_on: frozenset[str] | None = encoder.trained_on if fitted_on is None else frozenset(fitted_on)
        self._row_of = {name: row for row, name in enumerate(self.ids.tolist())}
        if len(self._row_of) < len(self.ids):
            raise InputError("targets need unique stimulus ids")
        for kind, array in self._arrays.items():
            axes = {"tokens": 3, "pooled": 2}[kind]
            if len(array.shape) != axes or array.shape[0] != len(self.ids):
                raise InputError(f"{kind} must have {axes} axes and {len(self.ids)} rows, found shape {array.shape}")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{kind} {self.shape(kind)}" for kind in self.kinds)
        return f"<{len(self)} targets of {self.encoder.label}: {shapes}>"

    @property
    def tokens(self) -> Any:
        """Stored tokens (n, tokens, width), or None."""
        return self._arrays.get("tokens")

    @property
    def pooled(self) -> Any:
        """Stored pooled embeddings (n, width)."""
        return self._arrays["pooled"]

    @property
    def kinds(self) -> tuple[str, ...]:
        """``("tokens", "pooled")`` or ``("pooled",)``."""
        return tuple(self._arrays)

    @property
    def identity(self) -> str:
        """Identity of the encoder that made them."""
        return self.encoder.identity

    def shape(self, kind: str | None = None) -> tuple[int, ...]:
        """Shape of one stimulus's target: ``(tokens, width)`` or ``(width,)``; of the default kind if None."""
        return tuple(int(side) for side in self._array(kind).shape[1:])

    def of(self, ids: Sequence[str] | np.ndarray, kind: str | None = None) -> np.ndarray:
        """Targets of stimuli, in the order asked, repeats allowed.

        Parameters
        ----------
        ids : sequence of str
        kind : {"tokens", "pooled"}, optional
            "pooled" if left out.

        Returns
        -------
        float32 array of shape (len(ids), tokens, width) or (len(ids), width)

        Raises
        ------
        InputError
            For a stimulus without targets (named) or a kind the encoder does not give.
        """
        array = self._array(kind)
        found = np.asarray(array[self.rows(ids)], dtype=np.float32)
        release(array)
        return found

    def rows(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Row of each stimulus.

        Raises
        ------
        InputError
            Naming up to five ids without targets.
        """
        names = np.asarray(ids, dtype=str).tolist()
        missing = [name for name in names if name not in self._row_of]
        if missing:
            raise InputError(
                f"{len(missing)} stimuli have no targets of encoder {self.encoder.label!r}, such as "
                f"{', '.join(missing[:5])}; {len(self)} have: encode them with the same encoder"
            )
        return np.array([self._row_of[name] for name in names], dtype=np.int64)

    def select(self, ids: Sequence[str] | np.ndarray) -> Targets:
        """Targets of these stimuli only, in this order; nothing is read."""
        rows = self.rows(ids)
        views = {kind: _view(array, rows) for kind, array in self._arrays.items()}
        return Targets(self.ids[rows], views.get("tokens"), views["pooled"], self.encoder, self.fitted_on)

    def require(self, encoder: Encoder | str, holder: str = "the decoder") -> None:
        """Refuse targets of another encoder than the one something was trained for.

        Parameters
        ----------
        encoder : Encoder or str
            The encoder, or its identity.
        holder : str
            What was trained for it, named in the error.

        Raises
        ------
        InputError
            When the identities differ.
        """
        identity = encoder if isinstance(encoder, str) else encoder.identity
        if identity != self.identity:
            name = "another encoder" if isinstance(encoder, str) else f"encoder {encoder.label!r}"
            raise InputError(
                f"{holder} was made for {name} (identity {identity[:12]}), these targets are of "
                f"{self.encoder.label!r} (identity {self.identity[:12]}): same name is not enough, "
                "settings, weights and fitted state must agree"
            )

    def _array(self, kind: str | None) -> Any:
        if kind is not None and kind not in self._arrays:
            raise unknown(f"kind of target (encoder {self.encoder.label!r})", kind, self._arrays)
        return self._arrays[kind or "pooled"]

    def save(self, path: str | Path) -> None:
        """Write a folder that needs nothing else: ``targets.json``, one .npy a kind, ``encoder/``. Atomic, streamed."""
        with FOLDER.written(path) as temporary:
            shapes = {kind: self.shape(kind) for kind in self.kinds}
            dtype = np.dtype(self.pooled.dtype).name
            create_rows(temporary, len(self), shapes, dtype)
            arrays, ledger = open_rows(temporary, list(self.kinds), mode="r+")
            row_bytes = sum(int(np.prod(shape)) for shape in shapes.values()) * np.dtype(dtype).itemsize
            block = max(1, _BLOCK_BYTES // max(row_bytes, 1))
            for start in range(0, len(self), block):
                rows = np.arange(start, min(start + block, len(self)))
                store_rows(arrays, ledger, rows, {kind: array[rows] for kind, array in self._arrays.items()})
            self.encoder.save(temporary / "encoder")
            write_json(
                temporary / "targets.json",
                {
                    "format": FORMAT,
                    "encoder": self.encoder.label,
                    "identity": self.identity,
                    "kinds": list(self.kinds),
                    "ids": self.ids.tolist(),
                    "fitted_on": None if self.fitted_on is None else sorted(self.fitted_on),
                    "checksum": _checksum(self.identity, self.ids.tolist(), ledger),
                },
            )

    @classmethod
    def open(cls, path: str | Path) -> Targets:
        """Open a folder written by `save`; arrays stay on disk.

        Stores up to 256 MiB are checked whole, of larger ones 64 rows spread evenly.

        Raises
        ------
        InputError
            For a missing or damaged folder, or one whose encoder is not the one that made the targets.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path} is not a folder of targets (a folder with targets.json)")
        content = read_json(path / "targets.json")
        _check_content(path, content)
        encoder = Encoder.load(path / "encoder")
        if encoder.identity != content["identity"]:
            raise InputError(
                f"{path}: the targets were made by an encoder of identity {content['identity'][:12]}, encoder/ holds a "
                f"checkpoint of another encoder ({encoder.label!r}, {encoder.identity[:12]})"
            )
        arrays, ledger = open_rows(path, content["kinds"])
        done, sound = sound_rows(arrays, ledger)
        if not (sound and done.all() and content["checksum"] == _checksum(encoder.identity, content["ids"], ledger)):
            raise InputError(f"{path}: the stored targets do not match their checksums; encode the stimuli again")
        return cls(content["ids"], arrays.get("tokens"), arrays["pooled"], encoder, content["fitted_on"])


def _view(array: Any, rows: np.ndarray) -> RowView:
    if isinstance(array, RowView):
        return RowView(array.parts, array._part[rows], array._row[rows])
    return RowView([array], np.zeros(len(rows), dtype=np.int64), rows)


def _checksum(identity: str, ids: Sequence[str], ledger: np.ndarray) -> str:
    return digest(identity, *ids, np.asarray(ledger, dtype="<u4"))


def _check_content(path: Path, content: Mapping[str, Any]) -> None:
    needed = {"format", "identity", "kinds", "ids", "fitted_on", "checksum"}
    missing = needed - set(content) if isinstance(content, dict) else needed
    if missing:
        raise InputError(f"{path / 'targets.json'} is not that of targets: missing {', '.join(sorted(missing))}")
    if content["format"] != FORMAT:
        raise InputError(f"{path} has targets format {content['format']}, this version reads {FORMAT}")
    if content["kinds"] not in (["pooled"], ["tokens", "pooled"]):
        raise InputError(
            f"{path / 'targets.json'}: kinds must be pooled or tokens and pooled, found {content['kinds']}"
        )
