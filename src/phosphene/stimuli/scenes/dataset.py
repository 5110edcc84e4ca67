"""Procedural scenes as a `StimulusSet` whose pixels are rendered when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from phosphene.files import digest
from phosphene.stimuli.scenes.captions import captions as write_captions
from phosphene.stimuli.scenes.grammar import SceneGraphs, sample_graphs
from phosphene.stimuli.scenes.render import check_render, render
from phosphene.stimuli.scenes.restrictions import Allowed, allowed_masks
from phosphene.stimuli.stimulus_set import StimulusSet

__all__ = ["RENDERING", "ScenePixels", "scene_set"]

# Part of every content hash: to be raised whenever a change alters pictures (a test holds pictures to this number).
RENDERING = 1


class ScenePixels:
    """Array-like uint8 pixels ``(n, size, size, 3)`` that are rendered row by row when indexed.

    Parameters
    ----------
    graphs : SceneGraphs
        The scenes.
    size : int
        Pixels a side.
    device : str
        Where to render.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, graphs: SceneGraphs, size: int = 64, device: str = "cpu") -> None:
        check_render(graphs, size)
        self.graphs = graphs
        self._size, self._device = int(size), device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, size, size, 3)."""
        return (len(self), self._size, self._size, 3)

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rendered rows by slice, index array, mask (4-D result) or integer (3-D result)."""
        chosen = np.arange(len(self))[rows]
        pictures = render(self.graphs.take(np.atleast_1d(chosen)), self._size, self._device)
        return pictures[0] if chosen.ndim == 0 else pictures


def _marked(name: str, *marks: str) -> str:
    family, number = name.rsplit("-", 1)
    return "-".join([family, *filter(None, marks), number])


def _restriction_marks(
    n: int, objects: int | None, only: Mapping[str, Allowed] | None, scale: tuple[float, float] | None
) -> list[str]:
    """What each scene was restricted to, as six digits of a digest; "" without restrictions."""
    if objects is None and not only and scale is None:
        return [""] * n
    masks = allowed_masks(only or {}, n)
    columns = np.concatenate([np.zeros((n, 0), dtype=bool), *(masks[name] for name in sorted(masks))], axis=1)
    rows, which = np.unique(np.packbits(columns, axis=1), axis=0, return_inverse=True)
    words = f"{objects} {sorted(masks)} {None if scale is None else tuple(map(float, scale))}"
    return np.array([digest(words, row)[:6] for row in rows])[which.ravel()].tolist()


def scene_set(
    n: int,
    seed: int = 0,
    size: int = 64,
    start: int = 0,
    holdout: str | None = None,
    captions: int = 5,
    *,
    rule: str = "shape-colour",
    device: str = "cpu",
    objects: int | None = None,
    only: Mapping[str, Allowed] | None = None,
    scale: tuple[float, float] | None = None,
) -> StimulusSet:
    """Procedural scenes with captions and labels; nothing is rendered before it is read.

    Parameters
    ----------
    n, seed, start, holdout, rule, objects, only, scale
        As in :func:`sample_graphs`.
    size : int
        Pixels a side, 16 to 512.
    captions : int
        Captions a scene, 0 to 20.
    device : str
        Where pictures are rendered; they do not depend on it.

    Returns
    -------
    StimulusSet
        Ids ``scene-<seed>-<number>`` (with a hold-out: ``scene-<seed>-<rule>-<role>-<number>``; where objects, words or
        scale are restricted, six digits that stand for the restriction come before the number), lazy pixels,
        captions, and the labels of :meth:`SceneGraphs.to_table`. Content hashes come from the graph, the captions,
        the size and the renderer's version, so that hashing renders nothing.

    Examples
    --------
    >>> scenes = scene_set(4, seed=7)
    >>> scenes.pixels([2]).shape, len(scenes.captions[0])
    ((1, 64, 64, 3), 5)
    """
    graphs = sample_graphs(n, seed, start=start, holdout=holdout, rule=rule, objects=objects, only=only, scale=scale)
    pixels, texts, labels = ScenePixels(graphs, size, device), write_captions(graphs, captions), graphs.to_table()
    role = [] if holdout is None else [rule, holdout]
    marks = _restriction_marks(n, objects, only, scale)
    ids = [_marked(name, *role, mark) for name, mark in zip(graphs.ids.tolist(), marks, strict=True)]
    rows = zip(graphs.index.tolist(), texts, *(labels[name].tolist() for name in labels.columns), strict=True)
    version = f"scene {RENDERING} {graphs.seed} {pixels.shape[1:]}"
    return StimulusSet(ids, pixels, texts, labels, hashes=[digest(version, repr(row)) for row in rows])
