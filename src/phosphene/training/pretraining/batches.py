"""Batches of pictures and captions as pure functions of seed and number: nothing to save, nothing to restore."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from phosphene.encoders.images import resize
from phosphene.encoders.mlip import Tokenizer
from phosphene.encoders.mlip.tokenizer import END
from phosphene.errors import InputError
from phosphene.files import digest
from phosphene.stimuli import StimulusSet
from phosphene.stimuli.scenes import SceneGraphs, chosen_captions, render_tensor
from phosphene.stimuli.scenes.groups import hard_groups
from phosphene.training.prefetch import prefetched
from phosphene.training.pretraining.settings import DataSettings

__all__ = ["Chosen", "PairBatch", "PairLoader", "PairSource", "ScenePairs", "StimulusPairs"]

log = logging.getLogger(__name__)

_AHEAD = 2
_ENDLESS = 2**31  # tokens
_BLOCK = 512  # pictures rendered or resized at a time where many are needed
_TOKENIZER_SCENES = 20_000


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


def _sampled(seed: int, number: int, available: np.ndarray, count: int) -> list[np.ndarray]:
    """Which captions of each picture take part in a batch: `count` different ones where there are as many."""
    generator = np.random.default_rng((seed, 1, number))
    order = np.argsort(generator.random((len(available), int(available.max()))), axis=1, kind="stable")
    picked = []
    for row, most in zip(order, available.tolist(), strict=True):
        allowed = row[row < most]
        picked.append(np.resize(allowed, count))
    return picked


class _Endless:
    """Rows 0 to n - 1 in a new order each epoch, one epoch after the other; blocks of rows stay together."""

    def __init__(self, n: int, seed: int, block: int = 1) -> None:
        self.n, self._seed, self._block = n, seed, block
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def _rows(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            blocks = np.random.default_rng((self._seed, 2, epoch)).permutation(-(-self.n // self._block))
            rows = (blocks[:, None] * self._block + np.arange(self._block)).ravel()
            self._epoch, self._order = epoch, rows[rows < self.n]
        return self._order

    def __getitem__(self, span: slice) -> np.ndarray:
        parts, start, stop = [], span.start, span.stop
        while start < stop:
            epoch, first = divmod(start, self.n)
            part = self._rows(epoch)[first : first + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)


class ScenePairs:
    """Procedural scenes of the training role, rendered when their batch is due, or from a pool.

    Parameters
    ----------
    settings : DataSettings
    batch_size : int
    size : int
        Pixels a side.
    seed : int
        Family of the scenes.
    """

    def __init__(self, settings: DataSettings, batch_size: int, size: int, seed: int) -> None:
        self.settings, self.batch_size, self.size, self.seed = settings, batch_size, size, seed
        if settings.pool and settings.pool < batch_size:
            raise InputError(f"data.pool = {settings.pool} scenes are fewer than training.batch_size = {batch_size}")
        self._order = _Endless(settings.pool, seed, settings.group) if settings.pool else None
        self._rendered: Tensor | None = None

    def graphs(self, n: int, start: int = 0) -> SceneGraphs:
        """Training scenes number `start` and following."""
        data = self.settings
        return hard_groups(
            n,
            self.seed,
            start=start,
            group=data.group,
            colours=data.group_colours,
            materials=data.group_materials,
            share=data.hard_share,
            **_grammar(data, "train"),
        )

    @cached_property
    def _pool(self) -> SceneGraphs:
        return self.graphs(self.settings.pool)

    def choose(self, number: int) -> Chosen:
        start = number * self.batch_size
        if self._order is None:
            rows, graphs = np.arange(start, start + self.batch_size), self.graphs(self.batch_size, start)
        else:
            rows = self._order[start : start + self.batch_size]
            graphs = self._pool.take(rows)
        picked = _sampled(self.seed, number, np.full(len(graphs), self.settings.captions), self.settings.sampled)
        written = [chosen_captions(graphs, column) for column in np.stack(picked, axis=1)]
        texts = [list(captions) for captions in zip(*written, strict=True)]
        return Chosen(graphs if self._order is None else rows, rows, texts, texts)

    def pixels(self, pictures: Any, part: slice, device: torch.device) -> Tensor:
        if self._order is None:
            return render_tensor(pictures.take(part), self.size, device)
        return self._pool_pixels(device)[torch.from_numpy(pictures[part]).to(device)]

    def _pool_pixels(self, device: torch.device) -> Tensor:
        if self._rendered is None:
            pool, size = self._pool, self.size
            self._rendered = torch.empty(len(pool), size, size, 3, dtype=torch.uint8, device=device)
            for first in range(0, len(pool), _BLOCK):
                part = slice(first, first + _BLOCK)
                self._rendered[part] = render_tensor(pool.take(part), size, device)
        return self._rendered

    def corpus(self) -> Iterable[str]:
        graphs = self.graphs(min(self.settings.pool or _TOKENIZER_SCENES, _TOKENIZER_SCENES))
        for number in range(self.settings.captions):
            yield from chosen_captions(graphs, np.full(len(graphs), number))

    @property
    def identity(self) -> str:
        return "procedural scenes"


def _grammar(data: DataSettings, role: str) -> dict[str, Any]:
    """What restricts scenes of a role, as arguments of `sample_graphs`."""
    rule = {} if data.rule == "none" else {"holdout": role, "rule": data.rule}
    return {**rule, "objects": data.objects, "only": data.only or None, "scale": data.scale}


class StimulusPairs:
    """Pictures with captions of a stimulus set, each shown once an epoch.

    Parameters
    ----------
    stimuli : StimulusSet
        Pictures (of clips the middle frame) that all have captions.
    settings : DataSettings
    batch_size : int
        Lowered to the number of pictures where there are fewer.
    size : int
        Pixels a side, to which pictures are resized.
    seed : int
    memory_gb : float
        Largest memory for resized pictures.
    keys : array of str, optional
        Equal for equal pictures (default: the stimulus ids).

    Raises
    ------
    InputError
        For stimuli without pixels, and for pictures without captions or with empty ones, naming them.
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        settings: DataSettings,
        batch_size: int,
        size: int,
        seed: int,
        memory_gb: float = 1.0,
        keys: np.ndarray | None = None,
    ) -> None:
        check_pairs(stimuli)
        if len(stimuli) < 2:
            raise InputError(f"pretraining contrasts pictures with one another; found {len(stimuli)} for training")
        self.stimuli, self.settings, self.size, self.seed = stimuli, settings, size, seed
        self.batch_size = min(batch_size, len(stimuli))
        self.keys = np.unique(stimuli.ids if keys is None else keys, return_inverse=True)[1]
        self._available = np.array([len(captions) for captions in stimuli.captions])
        self._order = _Endless(len(stimuli), seed)
        self._keep = len(stimuli) * size * size * 3 <= memory_gb * 1e9
        self._held: Tensor | None = None

    def choose(self, number: int) -> Chosen:
        start = number * self.batch_size
        rows = self._order[start : start + self.batch_size]
        known = [list(self.stimuli.captions[row]) for row in rows]
        picked = _sampled(self.seed, number, self._available[rows], self.settings.sampled)
        texts = [[captions[place] for place in places] for captions, places in zip(known, picked, strict=True)]
        return Chosen(rows, self.keys[rows], texts, known)

    def pixels(self, pictures: Any, part: slice, device: torch.device) -> Tensor:
        rows = pictures[part]
        if not self._keep:
            return resized(self.stimuli.frames(rows), self.size).to(device)
        if self._held is None:
            self._held = torch.cat(
                [
                    resized(self.stimuli.frames(np.arange(len(self.stimuli))[first : first + _BLOCK]), self.size)
                    for first in range(0, len(self.stimuli), _BLOCK)
                ]
            ).to(device)
        return self._held[torch.from_numpy(rows).to(device)]

    def corpus(self) -> Iterable[str]:
        for captions in self.stimuli.captions:
            yield from captions

    @property
    def identity(self) -> str:
        return digest(*(part for pair in zip(self.stimuli.ids, self.stimuli.hashes, strict=True) for part in pair))


def resized(frames: np.ndarray, size: int) -> Tensor:
    """uint8 pictures (n, height, width, 3) as uint8 pictures (n, size, size, 3); the aspect is not kept."""
    if frames.shape[1:3] == (size, size):
        return torch.from_numpy(np.array(frames))
    return resize(frames, size).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def check_pairs(stimuli: StimulusSet) -> None:
    """Refuse stimuli without pictures, and pictures without captions or with empty ones."""
    if not stimuli.has_pixels:
        raise InputError("pretraining needs pictures, and these stimuli have no pixels")
    for what, wrong in (
        ("have no captions", [not captions for captions in stimuli.captions]),
        ("have an empty caption", [any(not text.strip() for text in captions) for captions in stimuli.captions]),
    ):
        names = stimuli.ids[np.array(wrong, dtype=bool)].tolist()
        if names:
            raise InputError(f"{len(names)} of {len(stimuli)} pictures {what}, such as {', '.join(names[:5])}")


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
            return self._make(number).to(self._device).mark(self._stream)

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
        return PairBatch(pixels, ids[own], valid[own], _positive(chosen), images, captions)

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


def _positive(chosen: Chosen) -> Tensor:
    """(I, C): a caption belongs to every picture of which it is known to be true, and to copies of that picture."""
    texts = [text for several in chosen.texts for text in several]
    number = {text: column for column, text in enumerate(dict.fromkeys(texts))}
    group = np.unique(chosen.keys, return_inverse=True)[1]
    true = np.zeros((int(group.max()) + 1, len(number)), dtype=bool)
    for row, known in zip(group.tolist(), chosen.known, strict=True):
        true[row, [number[text] for text in known if text in number]] = True
    return torch.from_numpy(true[group][:, [number[text] for text in texts]])


def unique_texts(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct texts in order of appearance, and the position of each text among them."""
    number = {text: column for column, text in enumerate(dict.fromkeys(texts))}
    return list(number), np.array([number[text] for text in texts])
