"""`encode` and the one target cache: rows by encoder identity and stimulus hash, resumed, checked, shared."""

from __future__ import annotations

import copy
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from phosphene.encoders.arrays import cast_rows, create_rows, open_rows, sound_rows, store_rows
from phosphene.encoders.base import EncodedBatch, Encoder
from phosphene.encoders.registry import make_encoder
from phosphene.encoders.targets import RowView, Targets
from phosphene.errors import InputError, unknown
from phosphene.files import FolderFormat, cache_root, digest, read_json, write_json

if TYPE_CHECKING:
    from phosphene.stimuli import StimulusSet

__all__ = ["StorageType", "checked_device", "encode"]

StorageType = Literal["auto", "float32", "float16"]

_LOGGER = logging.getLogger(__name__)
_FILES = ("index.json", "tokens.npy", "pooled.npy", "rows.npy")
_PART = FolderFormat("a part of the target cache", None, _FILES, keys=("keys", "kinds"))
# "auto" stores float16 from this many values a stimulus on: 257 x 768 tokens do, 256 x 48 do not
_HALF_FROM = 65536


def encode(
    stimuli: StimulusSet,
    encoder: str | Encoder,
    *,
    fit_on: Sequence[str] | np.ndarray | None = None,
    cache: str | Path | Literal[False] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: StorageType = "auto",
    progress: bool = True,
) -> Targets:
    """Encode stimuli, or take from the cache what was encoded before.

    Parameters
    ----------
    stimuli : StimulusSet
    encoder : str or Encoder
        A name for `make_encoder`, or an encoder.
    fit_on : sequence of str, optional
        Ids of the training stimuli, demanded by encoders that learn (TF-IDF, labels) and not yet fitted; a copy of
        the encoder is fitted. Of no consequence for encoders that learn nothing, so that one call serves them all.
    cache : path, None or False
        Folder of the cache; None is ``targets`` in `phosphene.files.cache_root`; False keeps everything in memory.
    batch_size : int, optional
        Stimuli encoded at once; the encoder's own default if left out.
    device : str, optional
        Set as the encoder's ``device``, for those that compute with torch: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    dtype : {"auto", "float32", "float16"}
        Type of storage; `Targets.of` always gives float32. "auto" is float16 from 65,536 values a stimulus on.
        It does not enter the identity.
    progress : bool
        Show a progress bar (only on a terminal).

    Returns
    -------
    Targets
        In the order of `stimuli`; memory-mapped where there is a cache.

    Raises
    ------
    InputError
        For an unknown encoder, an encoder that must be fitted and has no `fit_on`, stimuli lacking what it reads.

    Notes
    -----
    Interrupted at any moment, what was done is kept and the next call goes on from there. A changed stimulus has
    another hash and a changed encoder another identity, so that neither is ever served an old row. A damaged part of
    the cache is noticed by its checksums, reported with a warning, and encoded again.

    Examples
    --------
    >>> from phosphene.stimuli import StimulusSet
    >>> stimuli = StimulusSet(["a", "b"], pixels=np.zeros((2, 8, 8, 3), np.uint8))
    >>> encode(stimuli, "pixels", cache=False).of(["b"]).shape
    (1, 768)
    """
    if dtype not in ("auto", "float32", "float16"):
        raise unknown("storage type", dtype, ("auto", "float32", "float16"))
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")
    if len(stimuli) == 0:
        raise InputError("there are no stimuli to encode")
    encoder = _ready(make_encoder(encoder) if isinstance(encoder, str) else encoder, stimuli, fit_on)
    if device is not None:
        encoder.device = checked_device(device)
    work = _Work(stimuli, encoder, batch_size or encoder.batch_size, dtype, progress)
    if cache is False:
        arrays = _encode_to_memory(work)
        return Targets(stimuli.ids, arrays.get("tokens"), arrays["pooled"], encoder, encoder.remembered(stimuli))
    root = cache_root() / "targets" if cache is None else Path(cache)
    return _encode_to_cache(work, root / encoder.identity)


def _ready(encoder: Encoder, stimuli: StimulusSet, fit_on: Sequence[str] | np.ndarray | None) -> Encoder:
    """The encoder, fitted; a copy where it had to be fitted here."""
    if not encoder.needs_fit:
        return encoder
    if encoder.is_fitted:
        if fit_on is not None and frozenset(map(str, fit_on)) != encoder.fitted_on:
            raise InputError(
                f"encoder {encoder.label!r} is fitted on {len(encoder.fitted_on or ())} stimuli, other ones than "
                "fit_on names: leave fit_on out, or give the encoder by name"
            )
        return encoder
    if fit_on is None:
        raise InputError(
            f"encoder {encoder.label!r} learns from data and must see training stimuli only: say which with "
            "fit_on=ids, e.g. encode(study.stimuli, ..., fit_on=study.split('train').stimuli.ids)"
        )
    return copy.deepcopy(encoder).fit(stimuli.select(fit_on))


def checked_device(device: str) -> str:
    """The name of a device that torch knows and sees, else an `InputError`."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; known: cpu, cuda, cuda:0 ...") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was asked for and this torch sees no CUDA GPU; use 'cpu'")
    return device


@dataclass
class _Work:
    """What is to be encoded, and how."""

    stimuli: StimulusSet
    encoder: Encoder
    batch_size: int
    dtype: StorageType
    progress: bool

    def batches(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, EncodedBatch]]:
        """Encode rows of the stimuli batch by batch."""
        with _progress_bar(self.encoder.label, len(rows), self.progress) as advance:
            for start in range(0, len(rows), self.batch_size):
                chosen = rows[start : start + self.batch_size]
                yield chosen, self.encoder.encode(self.stimuli, chosen)
                advance(len(chosen))

    def storage(self, shapes: dict[str, tuple[int, ...]]) -> str:
        """The type of storage, with "auto" decided."""
        largest = max(int(np.prod(shape)) for shape in shapes.values())
        return self.dtype if self.dtype != "auto" else "float16" if largest >= _HALF_FROM else "float32"


@contextmanager
def _progress_bar(label: str, total: int, wanted: bool) -> Iterator[Any]:
    """A bar on the terminal; yields a function that advances it."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"encoding with {label}", total=total)
        yield lambda count: bar.advance(task, count)


def _shapes(batch: EncodedBatch) -> dict[str, tuple[int, ...]]:
    return {kind: tuple(array.shape[1:]) for kind, array in batch.kinds().items()}


def _encode_to_memory(work: _Work) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for rows, batch in work.batches(np.arange(len(work.stimuli))):
        if not arrays:
            dtype = work.storage(_shapes(batch))
            arrays = {k: np.empty((len(work.stimuli), *shape), dtype) for k, shape in _shapes(batch).items()}
        for kind, values in batch.kinds().items():
            arrays[kind][rows] = cast_rows(values, arrays[kind].dtype, kind)
    return arrays


class _Part:
    """One folder of the cache: rows laid out together, some of them done.

    Raises `InputError` where it is damaged.
    """

    def __init__(self, folder: Path, mode: Literal["r", "r+"] = "r") -> None:
        index = read_json(folder / "index.json")
        try:
            self.keys, self.kinds = [str(key) for key in index["keys"]], list(index["kinds"])
        except (TypeError, KeyError) as error:
            raise InputError(f"{folder / 'index.json'} is damaged: missing {error}") from error
        if self.kinds not in (["pooled"], ["tokens", "pooled"]):
            raise InputError(f"{folder / 'index.json'} is damaged: kinds {self.kinds}")
        self.arrays, self.ledger = open_rows(folder, self.kinds, mode)
        if len(self.ledger) != len(self.keys):
            raise InputError(f"{folder} holds {len(self.ledger)} rows for {len(self.keys)} stimuli")
        self.done, sound = sound_rows(self.arrays, self.ledger)
        if not sound:
            raise InputError(f"{folder}: rows do not match their checksums")


def _encode_to_cache(work: _Work, folder: Path) -> Targets:
    keys = work.encoder.keys(work.stimuli)
    store = _stored(folder, work)
    parts, damaged = _read_parts(store) if store else ([], [])
    if damaged or not set(keys.tolist()) <= set(_locations(parts)):
        with _lock(folder):
            store, parts = _fill(work, folder, keys)
    where = _locations(parts)
    part, row = np.array([where[key] for key in keys.tolist()], dtype=np.int64).T
    views = {kind: _in_order([p.arrays[kind] for p in parts], part, row) for kind in parts[0].kinds}
    remembered = work.encoder.remembered(work.stimuli, folder.parent)
    return Targets(work.stimuli.ids, views.get("tokens"), views["pooled"], work.encoder, remembered)


def _in_order(arrays: list[np.ndarray], part: np.ndarray, row: np.ndarray) -> np.ndarray | RowView:
    """The array itself where one part holds exactly these rows in this order, else a view."""
    if len(arrays) == 1 and np.array_equal(row, np.arange(len(arrays[0]))):
        return arrays[0]
    return RowView(arrays, part, row)


def _stored(folder: Path, work: _Work) -> Path | None:
    """The folder of parts for the wanted type of storage, where the shapes are known already."""
    try:
        shapes = {kind: tuple(shape) for kind, shape in read_json(folder / "shapes.json").items()}
        return folder / work.storage(shapes)
    except (InputError, AttributeError, TypeError, ValueError):
        return None


def _read_parts(store: Path) -> tuple[list[_Part], list[Path]]:
    """Sound parts, and the folders of damaged ones."""
    parts, damaged = [], []
    for folder in sorted(store.glob("part-*")):
        try:
            parts.append(_Part(folder))
        except InputError as error:
            _LOGGER.warning("a part of the target cache is damaged and will be encoded again: %s", error)
            damaged.append(folder)
    return parts, damaged


def _locations(parts: list[_Part]) -> dict[str, tuple[int, int]]:
    """Where each finished stimulus lies: key -> (part, row)."""
    return {
        key: (number, row) for number, part in enumerate(parts) for row, key in enumerate(part.keys) if part.done[row]
    }


def _fill(work: _Work, folder: Path, keys: np.ndarray) -> tuple[Path, list[_Part]]:
    """Encode what is missing; the caller holds the lock. Unfinished parts are finished before a new one is begun."""
    store = _stored(folder, work)
    if store:
        for damaged in _read_parts(store)[1]:
            shutil.rmtree(damaged)
        for path in sorted(store.glob("part-*")):
            part = _Part(path, mode="r+")
            pending = {part.keys[row]: int(row) for row in np.flatnonzero(~part.done)}
            rows = _first_rows(keys, set(pending))
            for chosen, batch in work.batches(rows):
                places = np.array([pending[key] for key in keys[chosen].tolist()])
                store_rows(part.arrays, part.ledger, places, batch.kinds())
    found = set(_locations(_read_parts(store)[0])) if store else set()
    rows = _first_rows(keys, set(keys.tolist()) - found)
    if len(rows):
        store = _new_part(work, folder, keys, rows)
    assert store is not None
    return store, _read_parts(store)[0]


def _first_rows(keys: np.ndarray, wanted: set[str]) -> np.ndarray:
    """First row of each wanted key, in increasing order: equal stimuli are encoded once."""
    first: dict[str, int] = {}
    for row, key in enumerate(keys.tolist()):
        if key in wanted:
            first.setdefault(key, row)
    return np.array(sorted(first.values()), dtype=np.int64)


def _new_part(work: _Work, folder: Path, keys: np.ndarray, rows: np.ndarray) -> Path:
    """Lay out a part for these rows, once the first batch has shown the shapes, and fill it."""
    part: _Part | None = None
    for start, (chosen, batch) in zip(range(0, len(rows), work.batch_size), work.batches(rows), strict=True):
        if part is None:
            shapes = _shapes(batch)
            store = folder / work.storage(shapes)
            path = store / f"part-{digest(*keys[rows].tolist())}"
            with _PART.written(path) as temporary:
                create_rows(temporary, len(rows), shapes, work.storage(shapes))
                write_json(temporary / "index.json", {"keys": keys[rows].tolist(), "kinds": list(shapes)})
            write_json(folder / "shapes.json", {kind: list(shape) for kind, shape in shapes.items()})
            part = _Part(path, mode="r+")
        store_rows(part.arrays, part.ledger, np.arange(start, start + len(chosen)), batch.kinds())
    return store


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One writer at a time for each encoder; readers never wait. Released by the system if the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("a")
    except OSError as error:
        raise InputError(f"cannot write to the target cache {folder.parent}: {error.strerror or error}") from error
    with stream:
        try:
            import fcntl
        except ImportError:  # not a POSIX system: a second writer is not kept out, its rows are still its own part
            yield
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOGGER.info("another process encodes with the same encoder; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
