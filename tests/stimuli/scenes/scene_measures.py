"""Measures that the scene tests share."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from phosphene.stimuli.scenes import SceneGraphs, sample_graphs
from phosphene.stimuli.scenes.vocabulary import MATERIALS, SHAPES


def spectral_slope(fields: np.ndarray) -> float:
    """Exponent of the radially averaged power of square fields, from 2 cycles a picture to half the Nyquist limit."""
    size = fields.shape[-1]
    window = np.hanning(size)
    centred = (fields - fields.mean((1, 2), keepdims=True)) * window[:, None] * window
    power = (np.abs(np.fft.fft2(centred)) ** 2).mean(0)
    cycles = np.fft.fftfreq(size) * size
    radius = np.hypot(cycles[:, None], cycles)
    edges = 2 ** np.arange(1.0, np.log2(size / 4) + 0.01, 0.5)
    rings = [power[(radius >= low) & (radius < high)].mean() for low, high in itertools.pairwise(edges)]
    return float(np.polyfit(np.log(edges[:-1]), np.log(rings), 1)[0])


def single(shape: str, material: str = "matte", n: int = 1, **columns: float) -> SceneGraphs:
    """`n` scenes with one object of a kind in the middle; other columns of slot 0 by name."""
    pool = sample_graphs(20 * n + 40, seed=11)
    graphs = pool.take(np.flatnonzero(pool.n_objects == 1)[:n])
    wanted = {"x": 0.0, "y": 0.0, "scale": 0.6, "angle": 0.0, **columns}
    wanted |= {"shape": list(SHAPES).index(shape), "material": list(MATERIALS).index(material)}
    for name, value in wanted.items():
        column = getattr(graphs, name).copy()
        column[:, 0] = value
        graphs = replace(graphs, **{name: column})
    return graphs


def without(graphs: SceneGraphs, slot: int) -> SceneGraphs:
    """The same scenes with one slot empty."""
    shape = graphs.shape.copy()
    shape[:, slot] = -1
    return replace(graphs, shape=shape)
