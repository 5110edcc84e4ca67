"""Where pairs of picture and caption come from: which of them meet in a batch is a pure function of its number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phosphene.errors import InputError
from phosphene.files import digest
from phosphene.stimuli import StimulusSet, check_captions
from phosphene.stimuli.scenes import SceneGraphs, chosen_captions, plain_captions, render_tensor
from phosphene.stimuli.scenes.groups import hard_groups
from phosphene.training.pretraining.batches import Chosen
from phosphene.training.pretraining.settings import DataSettings

__all__ = ["ScenePairs", "StimulusPairs", "scene_grammar"]

_FAMILY = 2**42  # added to the seed of training scenes
_BLOCK = 512  # pictures rendered at a time where many are needed
_CORPUS = 4_000  # scenes whose captions teach the vocabulary


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
        Family of the scenes, apart from all that `scene_set` gives for seeds of usual size: virtual studies show none
        of the scenes an encoder was trained on.

    Raises
    ------
    InputError
        For settings of scenes that do not go together.
    """

    def __init__(self, settings: DataSettings, batch_size: int, size: int, seed: int) -> None:
        if settings.sampled > settings.captions:
            raise InputError(f"data.sampled = {settings.sampled} is more than data.captions = {settings.captions}")
        if settings.simple_batches and (settings.pool or settings.sampled > 1):
            raise InputError(
                "data.simple_batches needs new scenes in each step (data.pool = 0) and one caption each "
                "(data.sampled = 1)"
            )
        self.settings, self.batch_size, self.size, self.seed = settings, batch_size, size, _FAMILY + seed
        if settings.pool and settings.pool < batch_size:
            raise InputError(f"data.pool = {settings.pool} scenes are fewer than training.batch_size = {batch_size}")
        self._order = _Endless(settings.pool, seed, settings.group) if settings.pool else None
        self._rendered: Tensor | None = None

    def graphs(self, n: int, start: int = 0, simple: bool = False) -> SceneGraphs:
        """Training scenes number `start` and following; simple ones have one object."""
        data = self.settings.model_copy(update={"objects": 1}) if simple else self.settings
        return hard_groups(
            n,
            self.seed,
            start=start,
            group=data.group,
            colours=data.group_colours,
            materials=data.group_materials,
            share=data.hard_share,
            **scene_grammar(data, "train"),
        )

    @cached_property
    def _pool(self) -> SceneGraphs:
        return self.graphs(self.settings.pool)

    def choose(self, number: int) -> Chosen:
        start = number * self.batch_size
        if number < self.settings.simple_batches:
            graphs = self.graphs(self.batch_size, start, simple=True)
            texts = [[text] for text in plain_captions(graphs)]
            return Chosen(graphs, np.arange(start, start + self.batch_size), texts, texts)
        if self._order is None:
            rows, graphs = np.arange(start, start + self.batch_size), self.graphs(self.batch_size, start)
        else:
            rows = self._order[start : start + self.batch_size]
            graphs = self._pool.take(rows)
        picked = _sampled(self.seed, number, np.full(len(graphs), self.settings.captions), self.settings.sampled)
        written = [chosen_captions(graphs, column) for column in np.stack(picked, axis=1)]
        texts = [list(captions) for captions in zip(*written, strict=True)]
        if self.settings.plain:
            self._make_plain(number, graphs, texts)
        return Chosen(graphs if self._order is None else rows, rows, texts, texts)

    def _make_plain(self, number: int, graphs: SceneGraphs, texts: list[list[str]]) -> None:
        """Put plain captions in the place of some of those of a batch."""
        drawn = np.random.default_rng((self.seed, 3, number)).random((len(texts), len(texts[0])))
        for several, simple, chances in zip(texts, plain_captions(graphs), drawn.tolist(), strict=True):
            several[:] = [
                simple if chance < self.settings.plain else text for text, chance in zip(several, chances, strict=True)
            ]

    def pixels(self, pictures: Any, part: slice, device: torch.device) -> Tensor:
        if self._order is None:
            return render_tensor(pictures.take(part), self.size, device)
        if self._rendered is None:
            for _ in self.render_pool(device):
                pass
        assert self._rendered is not None
        return self._rendered[torch.from_numpy(pictures[part]).to(device)]

    def render_pool(self, device: torch.device) -> Iterator[int]:
        """Render the pool, and tell after each part how many scenes are done; all stay on the device.

        One that is not walked through to its end leaves nothing behind.
        """
        pool, size = self._pool, self.size
        rendered = torch.empty(len(pool), size, size, 3, dtype=torch.uint8, device=device)
        for first in range(0, len(pool), _BLOCK):
            part = slice(first, first + _BLOCK)
            rendered[part] = render_tensor(pool.take(part), size, device)
            yield min(part.stop, len(pool))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # batches are made on a stream of their own
        self._rendered = rendered

    def corpus(self) -> Iterable[str]:
        graphs = self.graphs(min(self.settings.pool or _CORPUS, _CORPUS))
        if self.settings.plain or self.settings.simple_batches:
            yield from plain_captions(graphs)
        for number in range(self.settings.captions if self.settings.plain < 1 else 0):
            yield from chosen_captions(graphs, np.full(len(graphs), number))

    @property
    def identity(self) -> str:
        return f"procedural scenes {_FAMILY}"


def scene_grammar(data: DataSettings, role: str) -> dict[str, Any]:
    """What restricts scenes of a role, as arguments of `sample_graphs`."""
    rule = {} if data.rule == "none" else {"holdout": role, "rule": data.rule}
    return {**rule, "objects": data.objects, "only": data.only or None, "scale": data.scale}


class StimulusPairs:
    """Pictures with captions of a stimulus set, each shown once an epoch.

    Parameters
    ----------
    stimuli : StimulusSet
        Square pictures as `at_size` gives them, all with captions.
    settings : DataSettings
    batch_size : int
        Lowered to the number of pictures where there are fewer.
    seed : int
    keys : array of str
        Equal for equal pictures.

    Raises
    ------
    InputError
        For pictures without captions or with empty ones, naming them; for fewer than two pictures.
    """

    def __init__(
        self, stimuli: StimulusSet, settings: DataSettings, batch_size: int, seed: int, keys: np.ndarray
    ) -> None:
        if len(stimuli) < 2:
            raise InputError(f"pretraining contrasts pictures with one another; found {len(stimuli)} for training")
        check_captions(stimuli)
        self.stimuli, self.settings, self.seed = stimuli, settings, seed
        self.batch_size = min(batch_size, len(stimuli))
        self._names = keys
        self._keys = np.unique(keys, return_inverse=True)[1]
        self._available = np.array([len(captions) for captions in stimuli.captions])
        self._order = _Endless(len(stimuli), seed)

    def choose(self, number: int) -> Chosen:
        start = number * self.batch_size
        rows = self._order[start : start + self.batch_size]
        known = [list(self.stimuli.captions[row]) for row in rows]
        picked = _sampled(self.seed, number, self._available[rows], self.settings.sampled)
        texts = [[captions[place] for place in places] for captions, places in zip(known, picked, strict=True)]
        return Chosen(rows, self._keys[rows], texts, known)

    def pixels(self, pictures: Any, part: slice, device: torch.device) -> Tensor:
        return torch.from_numpy(self.stimuli.pixels(pictures[part])).to(device)

    def corpus(self) -> Iterable[str]:
        for captions in self.stimuli.captions:
            yield from captions

    @property
    def identity(self) -> str:
        rows = zip(self.stimuli.ids.tolist(), self._names.tolist(), self.stimuli.captions, strict=True)
        return digest(*(repr(row) for row in rows))
