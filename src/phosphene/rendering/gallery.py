"""`Gallery`: embeddings of things that could have been seen, searched exactly, or with FAISS when there are many."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from phosphene.errors import InputError, require, unknown
from phosphene.files import FolderFormat, read_json, write_json

if TYPE_CHECKING:
    from phosphene.encoders import Encoder
    from phosphene.stimuli import StimulusSet

__all__ = ["EXACT_UP_TO", "Gallery", "exact_search", "gallery_stimuli"]

log = logging.getLogger(__name__)

#: galleries larger than this are searched with FAISS
EXACT_UP_TO = 100_000
FORMAT = "phosphene-gallery/1"
FOLDER = FolderFormat("a gallery", FORMAT, ("gallery.json", "embeddings.npy", "index.faiss"))
_BLOCK_VALUES = 2**25
_FEWEST_PROBES = 8
_POINTS_PER_CELL = 64  # training vectors of an inverted file, a cell


def exact_search(
    queries: np.ndarray, items: np.ndarray, top: int, lengths: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar items by cosine, in bounded memory.

    Parameters
    ----------
    queries : (q, D) array
    items : (n, D) array or memory map
    top : int
        At most n.
    lengths : (n,) array, optional
        Norms of the items, where they are known.

    Returns
    -------
    similarities : (q, top) float32, from the largest down
    rows : (q, top) int64
        Of equal similarities the earlier row comes first.
    """
    directions = _directions(queries)
    lengths = item_lengths(items) if lengths is None else lengths
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    size = max(1, _BLOCK_VALUES // items.shape[1])
    for start in range(0, len(items), size):
        part = slice(start, start + size)
        block = directions @ np.asarray(items[part], dtype=np.float32).T * scale[part]
        found, where = torch.from_numpy(block).topk(min(top, block.shape[1]), dim=1)
        best, rows = torch.cat([best, found], dim=1), torch.cat([rows, where + start], dim=1)
        if best.shape[1] > top:
            best, rows = _leading(best, rows, top)
    best, rows = _leading(best, rows, top)
    return best.numpy(), rows.numpy()


def _leading(best: torch.Tensor, rows: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    by_row = rows.argsort(dim=1)
    best, rows = best.gather(1, by_row), rows.gather(1, by_row)
    order = best.argsort(dim=1, descending=True, stable=True)[:, :top]
    return best.gather(1, order), rows.gather(1, order)


def item_lengths(items: np.ndarray) -> np.ndarray:
    """Norms of the items, float32 (n,), read in blocks."""
    size = max(1, _BLOCK_VALUES // items.shape[1])
    parts = [np.linalg.norm(items[start : start + size], axis=1) for start in range(0, len(items), size)]
    return np.concatenate(parts).astype(np.float32)


def _directions(vectors: np.ndarray) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


@contextmanager
def gallery_stimuli(path: str | Path, image_size: int | None = None) -> Iterator[StimulusSet | None]:
    """What the items of a gallery look like, while the block lasts; None for a folder written by `Gallery.save`.

    Parameters
    ----------
    path, image_size
        As of `Gallery.from_path`.
    """
    from phosphene.recordings import Study
    from phosphene.stimuli.folder import read_folder

    path = Path(path)
    if (path / "gallery.json").exists():
        yield None
    elif path.is_dir():
        yield read_folder(path, image_size, fit=True)
    else:
        with Study.open(path) as study:
            yield study.stimuli


class Gallery:
    """Items with ids, embeddings and captions, searched by cosine.

    Parameters
    ----------
    ids : sequence of str
        Unique names.
    embeddings : (n, D) array or memory map
        One vector an item: pooled, or flattened tokens.
    captions : sequence of sequence of str, optional
        Any number an item.
    encoder : str, optional
        Identity of the encoder that made the embeddings; held against that of a decoder.
    search : {"auto", "exact", "faiss"}
        ``"auto"``: FAISS (extra ``search``) for more than `EXACT_UP_TO` items. FAISS looks only into the parts of the
        gallery nearest to a query, so that it may miss an item; what it finds has its exact similarity.
    probes : int, optional
        Parts FAISS looks into, out of about ``sqrt(n)``; default one in 16, at least 8.

    Raises
    ------
    InputError
        For duplicated ids, lengths that differ, values that are not finite.

    Examples
    --------
    >>> gallery = Gallery(["cat", "dog"], np.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> similarities, rows = gallery.search(np.array([[0.1, 2.0]]), top=1)
    >>> gallery.ids[rows[0, 0]]
    np.str_('dog')
    """

    def __init__(
        self,
        ids: Sequence[str] | np.ndarray,
        embeddings: np.ndarray,
        captions: Sequence[Sequence[str]] | None = None,
        *,
        encoder: str | None = None,
        search: Literal["auto", "exact", "faiss"] = "auto",
        probes: int | None = None,
    ) -> None:
        self.ids = np.asarray(ids, dtype=str)
        self.embeddings = embeddings
        self.captions = tuple(() for _ in self.ids) if captions is None else tuple(tuple(c) for c in captions)
        self.encoder = encoder
        if embeddings.ndim != 2 or len(embeddings) != len(self.ids) or len(self.captions) != len(self.ids):
            raise InputError(
                f"a gallery needs one embedding and one list of captions an item: {len(self.ids)} ids, embeddings of "
                f"shape {embeddings.shape}, {len(self.captions)} captions"
            )
        if len(self.ids) == 0:
            raise InputError("a gallery needs at least one item")
        if len(np.unique(self.ids)) < len(self.ids):
            raise InputError("gallery ids must be unique")
        if search not in ("auto", "exact", "faiss"):
            raise unknown("search", search, ("auto", "exact", "faiss"))
        self.method = search if search != "auto" else "faiss" if len(self.ids) > EXACT_UP_TO else "exact"
        self.probes = probes
        self._index: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Gallery({len(self)} items of width {self.embeddings.shape[1]}, {self.method} search)"

    @classmethod
    def from_stimuli(
        cls, stimuli: StimulusSet, encoder: Encoder, kind: str = "pooled", progress: bool = True, **options: Any
    ) -> Gallery:
        """Encode stimuli and make them a gallery.

        Parameters
        ----------
        stimuli : StimulusSet
        encoder : Encoder
            Fitted: that of the decoder (``decoder.encoder``).
        kind : {"pooled", "tokens"}
            ``decoder.target_kind``; tokens are flattened.
        progress : bool
        **options
            `search` and `probes`.
        """
        from phosphene.encoders import encode

        targets = encode(stimuli, encoder, progress=progress)
        embeddings = targets.of(stimuli.ids, kind).reshape(len(stimuli), -1)
        return cls(stimuli.ids, embeddings, stimuli.captions, encoder=targets.identity, **options)

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        encoder: Encoder,
        kind: str = "pooled",
        progress: bool = True,
        *,
        image_size: int | None = None,
        **options: Any,
    ) -> Gallery:
        """A gallery from a folder of pictures (or clips), a study file, or a folder written by `save`.

        Pictures of a folder are centre-cropped and resized to ``image_size`` where it is given, and where they differ
        in size (then to the median of their shorter sides).
        """
        path = Path(path)
        if (path / "gallery.json").exists():
            gallery = cls.open(path, **options)
            gallery.require(encoder)
            return gallery
        with gallery_stimuli(path, image_size) as stimuli:
            assert stimuli is not None
            return cls.from_stimuli(stimuli, encoder, kind, progress, **options)

    def require(self, encoder: Encoder | None) -> None:
        """Refuse a gallery of another encoder; nothing is said where either is unknown."""
        if encoder is not None and self.encoder is not None and encoder.identity != self.encoder:
            raise InputError(
                f"the gallery was encoded by an encoder of identity {self.encoder[:12]}, the decoder predicts for "
                f"{encoder.label!r} (identity {encoder.identity[:12]}): encode it with the decoder's own encoder"
            )

    def search(self, queries: np.ndarray, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Most similar items of every query.

        Parameters
        ----------
        queries : (q, D) array
        top : int
            How many; at most the number of items is given.

        Returns
        -------
        similarities : (q, top) float32
            Cosine, from the largest down.
        rows : (q, top) int64
            Rows of `ids`; -1 where FAISS found fewer.

        Raises
        ------
        InputError
            For another width, or values that are not finite.
        """
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise InputError(f"queries must be (q, {self.embeddings.shape[1]}), found shape {queries.shape}")
        if not np.isfinite(queries).all():
            raise InputError("queries hold NaN or infinite values")
        if top < 1:
            raise InputError(f"top must be at least 1, found {top}")
        top = min(top, len(self))
        if self.method == "exact":
            return exact_search(queries, self.embeddings, top, self.lengths)
        squares, rows = self.index.search(_directions(queries), top)
        return np.where(rows >= 0, 1.0 - squares / 2.0, -1.0).astype(np.float32), rows

    @cached_property
    def lengths(self) -> np.ndarray:
        """Norms of the items, float32 (n,)."""
        return item_lengths(self.embeddings)

    @property
    def index(self) -> Any:
        """The FAISS index, built when first needed: an inverted file of exact vectors."""
        if self._index is None:
            self._index = self._built()
        return self._index

    def _built(self) -> Any:
        faiss = require("faiss", "search", f"searching a gallery of {len(self):,} items")
        n, width = self.embeddings.shape
        # of unit vectors, |a - b|^2 = 2 - 2 cos: the same order, and cells by distance miss fewer first matches
        cells = max(1, round(np.sqrt(n)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, cells, faiss.METRIC_L2)
        index.cp.seed, index.cp.niter = 0, 10
        picked = np.sort(np.random.default_rng(0).choice(n, min(n, _POINTS_PER_CELL * cells), replace=False))
        log.info("building a FAISS index of %d items in %d cells", n, cells)
        index.train(_directions(self.embeddings[picked]))
        size = max(1, _BLOCK_VALUES // width)
        for start in range(0, n, size):
            index.add(_directions(self.embeddings[start : start + size]))
        index.nprobe = self.probes or max(min(cells, _FEWEST_PROBES), cells // 16)
        return index

    def save(self, path: str | Path) -> Path:
        """Write as a folder: ``gallery.json``, ``embeddings.npy`` and, where it was built, the index. Atomic."""
        with FOLDER.written(path) as temporary:
            np.save(temporary / "embeddings.npy", np.asarray(self.embeddings, dtype=np.float32), allow_pickle=False)
            write_json(
                temporary / "gallery.json",
                {
                    "format": FORMAT,
                    "encoder": self.encoder,
                    "ids": self.ids.tolist(),
                    "captions": [list(texts) for texts in self.captions],
                },
            )
            if self._index is not None:
                require("faiss", "search", "writing a gallery index").write_index(
                    self._index, str(temporary / "index.faiss")
                )
        return Path(path)

    @classmethod
    def open(cls, path: str | Path, **options: Any) -> Gallery:
        """Open what `save` wrote; embeddings stay on disk.

        Raises
        ------
        InputError
            For a missing or damaged folder.
        """
        path = Path(path)
        content = read_json(path / "gallery.json")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path} is not a gallery of format {FORMAT!r}")
        try:
            embeddings = np.load(path / "embeddings.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path / 'embeddings.npy'} is not a readable array: {error}") from error
        gallery = cls(content["ids"], embeddings, content["captions"], encoder=content["encoder"], **options)
        if gallery.method == "faiss" and (path / "index.faiss").exists():
            faiss = require("faiss", "search", "reading a gallery index")
            try:
                gallery._index = faiss.read_index(str(path / "index.faiss"))
            except RuntimeError as error:
                raise InputError(f"{path / 'index.faiss'} is not a readable FAISS index") from error
            if (gallery._index.ntotal, gallery._index.d) != embeddings.shape:
                raise InputError(f"{path / 'index.faiss'} does not belong to the embeddings beside it")
            if gallery.probes is not None:
                gallery._index.nprobe = gallery.probes
        return gallery
