"""Batches of pictures and captions for one process: made ahead in a thread, a pure function of their number."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from phosphene.encoders.mlip import Tokenizer
from phosphene.encoders.mlip.tokenizer import END
from phosphene.errors import InputError
from phosphene.training.prefetch import prefetched

__all__ = ["Chosen", "PairBatch", "PairLoader", "PairSource", "check_lengths", "positives", "unique_texts"]

log = logging.getLogger(__name__)

_AHEAD = 2
_ENDLESS = 2**31  # tokens
_BLOCK = 512  # captions encoded at a time where many are looked at


class PairBatch:
    """What one process needs for one batch; `positive` describes the batch of all processes.

    A plain class on purpose, as `training.data.StepBatch`: Fabric looks into data classes.

    Attributes
    ----------
    pixels : uint8 Tensor (i, size, size, 3)
        Pictures of this process.
    ids, valid : Tensor (c, tokens)
        Captions of this process, those of a picture side by side.
    positive : bool Tensor (I, C)
        Which captions belong to which picture, in the order of the processes.
    images, captions : tuple of int
        Pictures and captions of every process.
    """

    def __init__(
        self,
        pixels: Tensor,
        ids: Tensor,
        valid: Tensor,
        positive: Tensor,
        images: tuple[int, ...],
        captions: tuple[int, ...],
    ) -> None:
        self.pixels, self.ids, self.valid, self.positive = pixels, ids, valid, positive
        self.images, self.captions = images, captions
        self._event: Any = None

    def to(self, device: torch.device) -> PairBatch:
        """The same on another device."""
        pixels, ids, valid, positive = (t.to(device) for t in (self.pixels, self.ids, self.valid, self.positive))
        return PairBatch(pixels, ids, valid, positive, self.images, self.captions)

    def chunks(self, most: int) -> list[PairBatch]:
        """Parts of at most so many pictures, as many in every process; `positive` stays that of the whole batch."""
        count = -(-max(self.images) // most)
        edges = [part * len(self.pixels) // count for part in range(count + 1)]
        each = len(self.ids) // max(len(self.pixels), 1)
        parts = []
        for first, last in pairwise(edges):
            own = slice(first * each, last * each)
            parts.append(
                PairBatch(
                    self.pixels[first:last],
                    self.ids[own],
                    self.valid[own],
                    self.positive,
                    self.images,
                    self.captions,
                )
            )
        return parts

    def mark(self, stream: torch.cuda.Stream) -> PairBatch:
        """Note where on a side stream the batch is complete."""
        self._event = stream.record_event()
        return self

    def wait(self) -> PairBatch:
        """Let the present stream wait for what a side stream still computes."""
        if self._event is not None:
            current = torch.cuda.current_stream(self.pixels.device)
            current.wait_event(self._event)
            for tensor in (self.pixels, self.ids, self.valid, self.positive):
                tensor.record_stream(current)
        return self


@dataclass(frozen=True)
class Chosen:
    """The pictures of one batch over all processes, and their captions.

    Attributes
    ----------
    pictures : object
        What the source needs to show them; indexed by `PairSource.pixels`.
    keys : (I,) int array
        Equal for equal pictures.
    texts : list of (sampled captions) lists of str
    known : list of lists of str
        Every caption that is true of each picture.
    """

    pictures: Any
    keys: np.ndarray
    texts: list[list[str]]
    known: list[list[str]]


class PairSource(Protocol):
    """Where pairs come from."""

    @property
    def batch_size(self) -> int:
        """Pictures a batch, over all processes."""

    def choose(self, number: int) -> Chosen:
        """Pictures and captions of a batch."""

    def pixels(self, pictures: Any, part: slice, device: torch.device) -> Tensor:
        """uint8 pictures (n, size, size, 3) of a part of a batch."""

    def corpus(self) -> Iterable[str]:
        """Captions to learn a vocabulary from."""

    @property
    def identity(self) -> str:
        """Digest of the content, as far as settings do not tell it."""


class PairLoader:
    """Makes the batch of any number for one process; prepares the next ones in a thread.

    Parameters
    ----------
    source : PairSource
    tokenizer : Tokenizer
    context : int
        Most tokens of a caption; `check_lengths` tells of captions that have more, here they are cut.
    rank, processes : int
    device : torch.device
        Where scenes are rendered and batches are left.
    """

    def __init__(
        self,
        source: PairSource,
        tokenizer: Tokenizer,
        context: int,
        rank: int = 0,
        processes: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if source.batch_size < processes:
            raise InputError(f"a batch of {source.batch_size} pictures is too small for {processes} processes")
        self.source, self._tokenizer, self._context = source, tokenizer, context
        self._rank, self._processes = rank, processes
        self._device = torch.device("cpu") if device is None else device
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def batch(self, number: int) -> PairBatch:
        """Batch `number`; every process makes its own part of it."""
        if self._stream is None:
            return self._make(number)
        with torch.cuda.stream(self._stream):
            made = self._make(number).to(self._device)
            made.pixels = made.pixels.clone()  # rendered in inference mode, where tensors know no streams
            return made.mark(self._stream)

    def _make(self, number: int) -> PairBatch:
        chosen = self.source.choose(number)
        edges = [rank * len(chosen.texts) // self._processes for rank in range(self._processes + 1)]
        images = tuple(np.diff(edges).tolist())
        each = len(chosen.texts[0])
        mine = slice(edges[self._rank], edges[self._rank + 1])
        # all captions on every process: padding and positives must be the same everywhere
        texts = [text for several in chosen.texts for text in several]
        ids, valid = self._encoded(texts)
        own = slice(mine.start * each, mine.stop * each)
        pixels = self.source.pixels(chosen.pictures, mine, self._device)
        captions = tuple(size * each for size in images)
        positive = positives(chosen.keys, chosen.texts, chosen.known)
        return PairBatch(pixels, ids[own], valid[own], positive, images, captions)

    def _encoded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions as tokens; the end mark of those that are too long moves to the last place there is."""
        ids, valid = self._tokenizer.encode(texts, _ENDLESS)
        if ids.shape[1] > self._context:
            long = valid[:, self._context]
            ids, valid = ids[:, : self._context].clone(), valid[:, : self._context]
            ids[long, -1] = END
        return ids, valid

    def walk(self, first: int, last: int) -> Generator[PairBatch, None, None]:
        """Batches number `first` to `last` - 1."""
        for batch in prefetched(self.batch, first, last, _AHEAD):
            yield batch.wait()


def check_lengths(captions: Iterable[str], tokenizer: Tokenizer, context: int, cut: bool) -> None:
    """Refuse captions that are longer than the context, or say how many will be cut.

    Raises
    ------
    InputError
        With the longest caption and what could be done.
    """
    texts = list(dict.fromkeys(captions))
    lengths = np.concatenate(
        [
            tokenizer.encode(texts[first : first + _BLOCK], _ENDLESS)[1].sum(dim=1).numpy()
            for first in range(0, len(texts), _BLOCK)
        ]
    )
    long, worst = int((lengths > context).sum()), int(lengths.argmax())
    if not long:
        return
    words = (
        f"{long:,} of {len(texts):,} captions are longer than the context of {context} tokens, up to {lengths[worst]}: "
        f"{texts[worst][:80]!r}"
    )
    if not cut:
        raise InputError(
            f"{words}. Raise model.text_context (or model.vocabulary, for fewer tokens a word), or cut them with "
            "data.long_captions=cut"
        )
    log.warning("%s; they are cut", words)


def positives(keys: np.ndarray, texts: Sequence[Sequence[str]], known: Sequence[Sequence[str]]) -> Tensor:
    """Which captions are true of which picture: of one of which that is known, and of copies of that picture.

    Parameters
    ----------
    keys : (I,) array
        Equal for equal pictures.
    texts, known : I lists of str
        Captions that are looked at, and all that are true of each picture.

    Returns
    -------
    bool Tensor (I, C)
    """
    wordings, column = unique_texts([text for several in texts for text in several])
    number = {text: place for place, text in enumerate(wordings)}
    group = np.unique(keys, return_inverse=True)[1]
    true = np.zeros((int(group.max()) + 1, len(number)), dtype=bool)
    for row, captions in zip(group.tolist(), known, strict=True):
        true[row, [number[text] for text in captions if text in number]] = True
    return torch.from_numpy(true[group][:, column])


def unique_texts(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct texts in order of appearance, and the position of each text among them."""
    number = {text: column for column, text in enumerate(dict.fromkeys(texts))}
    return list(number), np.array([number[text] for text in texts])
