"""Procedural scenes as a `StimulusSet` whose pixels are rendered when they are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from phosphene.files import digest
from phosphene.stimuli.scenes.captions import captions as write_captions
from phosphene.stimuli.scenes.grammar import SceneGraphs, sample_graphs
from phosphene.stimuli.scenes.render import check_render, render
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


def _role_id(name: str, rule: str, role: str) -> str:
    family, number = name.rsplit("-", 1)
    return f"{family}-{rule}-{role}-{number}"


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
) -> StimulusSet:
    """Procedural scenes with captions and labels; nothing is rendered before it is read.

    Parameters
    ----------
    n, seed, start, holdout, rule
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
        Ids ``scene-<seed>-<number>`` (with a hold-out: ``scene-<seed>-<rule>-<role>-<number>``), lazy pixels,
        captions, and the labels of :meth:`SceneGraphs.to_table`. Content hashes come from the graph, the captions,
        the size and the renderer's version, so that hashing renders nothing.

    Examples
    --------
    >>> scenes = scene_set(4, seed=7)
    >>> scenes.pixels([2]).shape, len(scenes.captions[0])
    ((1, 64, 64, 3), 5)
    """
    graphs = sample_graphs(n, seed, start=start, holdout=holdout, rule=rule)
    pixels, texts, labels = ScenePixels(graphs, size, device), write_captions(graphs, captions), graphs.to_table()
    ids = graphs.ids if holdout is None else [_role_id(name, rule, holdout) for name in graphs.ids]
    rows = zip(graphs.index.tolist(), texts, *(labels[name].tolist() for name in labels.columns), strict=True)
    version = f"scene {RENDERING} {graphs.seed} {pixels.shape[1:]}"
    return StimulusSet(ids, pixels, texts, labels, hashes=[digest(version, repr(row)) for row in rows])
