"""Textured backgrounds: each kind gives a light and a tint field, which a palette turns into colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from phosphene.stimuli.scenes.grammar import SceneGraphs
from phosphene.stimuli.scenes.patterns import natural_noise, to_device, wave
from phosphene.stimuli.scenes.randoms import scene_keys, uniforms
from phosphene.stimuli.scenes.vocabulary import BACKGROUNDS, PALETTES

__all__ = ["FIELDS", "dead_leaves", "paint_background"]

_LEAVES = 140
_LIGHT, _TINT = 0.105, 0.085  # how far one unit of the fields moves the colour
_SHADE = 0.20  # darkening of the side away from the light


class _Canvas:
    """What a background kind draws with: coordinates, and the random numbers and noise fields of its scenes."""

    def __init__(self, seed: int, index: np.ndarray, noise: Tensor, soft: Tensor) -> None:
        self.seed, self.index, self.noise, self.soft = seed, index, noise, soft
        self.size, self.device = noise.shape[-1], noise.device
        centres = (np.arange(self.size) + 0.5) / self.size * 2.0 - 1.0
        self.u = to_device(centres, self.device)[None, None, :]
        self.v = to_device(-centres, self.device)[None, :, None]
        self.random = uniforms(seed, index, "background", 8)

    def scalar(self, values: np.ndarray) -> Tensor:
        """One number a scene, ready to meet (n, height, width)."""
        return to_device(values, self.device)[:, None, None]

    def turned(self, angle: np.ndarray, frequency: np.ndarray, shift: np.ndarray) -> Tensor:
        """Coordinate along a direction, scaled and shifted: (n, size, size)."""
        across = self.scalar(np.cos(angle) * frequency) * self.u + self.scalar(shift)
        return across + self.scalar(np.sin(angle) * frequency) * self.v


Fields = tuple[Tensor, Tensor]


def _mist(canvas: _Canvas) -> Fields:
    return canvas.noise * 1.1, canvas.soft


def _gradient(canvas: _Canvas) -> Fields:
    angle = 2 * np.pi * canvas.random[:, 0]
    strength = 1.3 + 0.6 * canvas.random[:, 1]
    along = canvas.turned(angle, strength, canvas.random[:, 2] - 0.5)
    across = canvas.turned(angle + np.pi / 2, strength, canvas.random[:, 3] - 0.5)
    return along + canvas.noise * 0.3, across


def _grating(canvas: _Canvas) -> Fields:
    along = canvas.turned(np.pi * canvas.random[:, 0], 1.5 + 3.0 * canvas.random[:, 1], canvas.random[:, 2])
    bars = wave(along + canvas.soft * 0.06)
    return bars * 0.95 + canvas.noise * 0.4, canvas.soft + bars * 0.5


def _tiles(canvas: _Canvas) -> Fields:
    angle, frequency = np.pi / 2 * canvas.random[:, 0], 1.0 + 1.3 * canvas.random[:, 1]
    one = wave(canvas.turned(angle, frequency, canvas.random[:, 2]))
    two = wave(canvas.turned(angle + np.pi / 2, frequency, canvas.random[:, 3]))
    squares = (one * two * 6.0).clamp(-1.0, 1.0)
    return squares * 0.9 + canvas.noise * 0.4, canvas.soft + squares * 0.4


def _plasma(canvas: _Canvas) -> Fields:
    soft = canvas.soft
    first = canvas.turned(2 * np.pi * canvas.random[:, 0], 0.5 + 0.5 * canvas.random[:, 1], canvas.random[:, 2])
    second = canvas.turned(2 * np.pi * canvas.random[:, 3], 0.5 + 0.5 * canvas.random[:, 4], canvas.random[:, 5])
    light = wave(first + soft * 0.45)
    return light * 1.1 + canvas.noise * 0.3, wave(second + light * 0.3 - soft * 0.25) * 1.6


def _wood(canvas: _Canvas) -> Fields:
    angle = np.where(canvas.random[:, 0] < 0.5, 0.0, np.pi / 2) + 0.3 * (canvas.random[:, 1] - 0.5)
    frequency = 2.5 + 2.5 * canvas.random[:, 2]
    grain = wave(canvas.turned(angle, frequency, canvas.random[:, 3]) + canvas.soft * 0.55)
    fibres = wave(canvas.turned(angle, frequency * 3.3, canvas.random[:, 4]) + canvas.noise * 0.35)
    return grain * 0.75 + fibres * 0.3 + canvas.noise * 0.35, grain * 0.5 + canvas.soft * 0.5


def _horizon(canvas: _Canvas) -> Fields:
    soft, noise = canvas.soft, canvas.noise
    height = canvas.v - canvas.scalar(0.7 * (canvas.random[:, 0] - 0.5)) - soft * 0.05
    sky = (height * 14.0).clamp(-1.0, 1.0)
    light = sky * 0.9 + height * 0.5 + noise * (0.5 - sky * 0.3)
    return light, sky * -1.2 + soft * 0.4


def _bricks(canvas: _Canvas) -> Fields:
    courses = (canvas.v * canvas.scalar(2.4 + 1.4 * canvas.random[:, 0]) + canvas.scalar(canvas.random[:, 1])).expand(
        -1, canvas.size, canvas.size
    )
    level = torch.floor(courses)
    along = canvas.u * canvas.scalar(1.1 + 0.7 * canvas.random[:, 2]) + canvas.scalar(canvas.random[:, 3]) + level * 0.5
    column = torch.floor(along)
    edge = torch.minimum(0.5 - (courses - level - 0.5).abs(), (0.5 - (along - column - 0.5).abs()) * 2.0)
    brick = (edge * 9.0 - 0.6).clamp(0.0, 1.0)
    shade = wave(level * 0.37 + column * 0.23)
    return brick * (shade * 0.4 - 1.1) + 0.8 + canvas.noise * 0.4, brick * 1.3 - 0.6 + shade * 0.3


def _ripples(canvas: _Canvas) -> Fields:
    across = canvas.u - canvas.scalar(1.6 * (canvas.random[:, 0] - 0.5))
    up = canvas.v - canvas.scalar(1.6 * (canvas.random[:, 1] - 0.5))
    radius = torch.sqrt(across * across + up * up)
    rings = wave(
        radius * canvas.scalar(2.0 + 2.0 * canvas.random[:, 2]) + canvas.scalar(canvas.random[:, 3]) + canvas.soft * 0.1
    )
    return rings * 0.95 + canvas.noise * 0.4, canvas.soft * 0.8 - rings * 0.4


def dead_leaves(seed: int, index: np.ndarray, size: int, device: torch.device) -> Tensor:
    """Dead-leaves pictures: opaque discs of power-law radius (density r^-3) on top of one another (Lee et al. 2001).

    Returns
    -------
    (n, 2, size, size) float32 tensor
        Two fields, constant on every leaf, values in [-1.6, 1.6].
    """
    u = uniforms(seed, index, "leaves", 5 * _LEAVES).reshape(len(index), 5, _LEAVES)
    smallest, largest = 0.05, 0.75
    radius = (smallest**-2 + u[:, 0] * (largest**-2 - smallest**-2)) ** -0.5
    x, y = ((1 + largest / 2) * (2 * u[:, k] - 1) for k in (1, 2))
    centres = (np.arange(size) + 0.5) / size * 2.0 - 1.0
    # (r^2 - d^2) / 2r is the distance to the edge; half a pixel either way is blended. A row and a column part add up.
    softness = size / (4 * radius)

    across = to_device((radius[..., None] ** 2 - (centres - x[..., None]) ** 2) * softness[..., None] + 0.5, device)
    down = to_device((centres + y[..., None]) ** 2 * softness[..., None], device)
    paint = to_device(1.6 * (2 * u[:, 3:5] - 1), device)
    fields = torch.zeros(len(index), 2, size, size, device=device)
    for leaf in range(_LEAVES):
        cover = (across[:, leaf, None, :] - down[:, leaf, :, None]).clamp_(0.0, 1.0)[:, None]
        fields += (paint[:, :, leaf, None, None] - fields).mul_(cover)
    return fields


def _leaves(canvas: _Canvas) -> Fields:
    fields = dead_leaves(canvas.seed, canvas.index, canvas.size, canvas.device)
    return fields[:, 0] * 1.1 + canvas.noise * 0.3, fields[:, 1]


FIELDS: dict[str, Callable[[_Canvas], Fields]] = {
    "mist": _mist,
    "dead-leaves": _leaves,
    "gradient": _gradient,
    "grating": _grating,
    "tiles": _tiles,
    "plasma": _plasma,
    "wood": _wood,
    "horizon": _horizon,
    "bricks": _bricks,
    "ripples": _ripples,
}
if list(FIELDS) != list(BACKGROUNDS):
    raise AssertionError("every background of the vocabulary needs its fields, in the same order")


def paint_background(graphs: SceneGraphs, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Paint the backgrounds of scenes under their light.

    Returns
    -------
    picture : (n, 3, size, size) float32 tensor
        sRGB, not yet clipped to [0, 1].
    noise : (n, size, size) float32 tensor
        The natural noise of the scenes, for materials that need texture.
    """
    keys = (to_device(scene_keys(graphs.seed, graphs.index, name), device) for name in ("light", "tint"))
    noise = natural_noise(next(keys), size, rise=1.1, grain=0.8)
    soft = natural_noise(next(keys), size, finest=8, rise=0.8)
    light, tint = torch.empty_like(noise), torch.empty_like(noise)
    for kind, fields in enumerate(FIELDS.values()):
        rows = np.flatnonzero(graphs.background == kind)
        if len(rows):
            here = torch.from_numpy(rows).to(device)
            light[here], tint[here] = fields(_Canvas(graphs.seed, graphs.index[rows], noise[here], soft[here]))
    canvas = _Canvas(graphs.seed, graphs.index, noise, soft)
    every = np.ones(len(graphs))
    shade = canvas.turned(np.deg2rad(graphs.light_angle), _SHADE * every, every)
    palettes = np.array([(entry.base, entry.light, entry.tint) for entry in PALETTES.values()])[graphs.palette]
    base, towards_light, towards_tint = (
        to_device(palettes[:, part] * step, device)[:, :, None, None] for part, step in enumerate((1.0, _LIGHT, _TINT))
    )
    picture = (light[:, None] * towards_light).add_(base).add_(tint[:, None] * towards_tint)
    return picture.mul_(shade[:, None]), noise
