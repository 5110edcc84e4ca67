"""The simulator's own filter bank: what early visual cortex computes from a picture, before any voxel pools it.

Gabor energy at frequencies, orientations and phases that no encoder of phosphene uses, and rectified colour-opponent
signals of log light intensity; all normalised by what goes on nearby.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["CHANNELS", "GRID", "SIZE", "Channels", "channel_maps", "one_thread"]

SIZE = 64
GRID = 32
_FREQUENCIES = (0.047, 0.083, 0.146, 0.257)  # cycles per pixel of the 64-pixel view, ratio 1.76
_ORIENTATIONS = np.deg2rad(11.0 + 36.0 * np.arange(5))
_PHASE = np.deg2rad(30.0)
_QUADRATURE = 0.6  # unequal weight of the two phases: not the textbook's phase-blind energy
_BLOCK = 32  # pictures at a time: what the processor cache holds
_OPPONENTS = ("light", "dark", "red", "green", "blue", "yellow")


@dataclass(frozen=True)
class Channels:
    """What each of the C channels prefers.

    Attributes
    ----------
    frequency : (C,) array
        Cycles per pixel; NaN for colour channels.
    orientation : (C,) array
        Radians; NaN for colour channels.
    is_colour : (C,) bool array
    """

    frequency: np.ndarray
    orientation: np.ndarray
    is_colour: np.ndarray

    def __len__(self) -> int:
        return len(self.is_colour)


_n_gabor = len(_FREQUENCIES) * len(_ORIENTATIONS)
CHANNELS = Channels(
    frequency=np.concatenate([np.repeat(_FREQUENCIES, len(_ORIENTATIONS)), np.full(len(_OPPONENTS), np.nan)]),
    orientation=np.concatenate([np.tile(_ORIENTATIONS, len(_FREQUENCIES)), np.full(len(_OPPONENTS), np.nan)]),
    is_colour=np.arange(_n_gabor + len(_OPPONENTS)) >= _n_gabor,
)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch on one thread inside the block.

    The operations are many and small: on a busy machine threads that wait for each other cost several times more
    than they save.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _gabors() -> torch.Tensor:
    """One-sided Gaussian transfer functions (20, SIZE, SIZE): their inverse transforms are complex Gabor filters."""
    import torch

    y, x = np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE), indexing="ij")
    bank = []
    for frequency in _FREQUENCIES:
        for angle in _ORIENTATIONS:
            along = x * np.cos(angle) + y * np.sin(angle)
            across = -x * np.sin(angle) + y * np.cos(angle)
            spread = 0.36 * frequency
            bank.append(np.exp(-0.5 * (((along - frequency) / spread) ** 2 + (across / spread) ** 2)))
    return torch.from_numpy(np.stack(bank)).to(torch.float32)


def _light(pixels: np.ndarray) -> torch.Tensor:
    """Log light intensity (n, 3, SIZE, SIZE) of 8-bit sRGB pictures, resized to the simulator's view."""
    import torch
    from torch.nn.functional import interpolate

    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    if picture.shape[-2:] != (SIZE, SIZE):
        shrunk = interpolate(picture.float(), (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        picture = shrunk.round().clamp(0, 255).to(torch.uint8)
    level = torch.arange(256, dtype=torch.float32) / 255
    return torch.log(level.pow(2.2) + 0.03)[picture.long()]


def _energy(light: torch.Tensor) -> torch.Tensor:
    """Gabor energy (n, 20, GRID, GRID) of the mean over light channels."""
    import torch
    from torch.nn.functional import avg_pool2d

    grey = light.mean(1)
    spectrum = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True))
    turn = complex(np.cos(_PHASE), np.sin(_PHASE))
    maps = torch.empty(len(grey), len(_gabors()), GRID, GRID)
    for number, gabor in enumerate(_gabors()):
        response = torch.view_as_real(torch.fft.ifft2(spectrum * (gabor * turn)))
        maps[:, number] = avg_pool2d(
            (response[..., 0] ** 2).add_(response[..., 1] ** 2, alpha=_QUADRATURE).sqrt_(), SIZE // GRID
        )
    return maps


def _opponents(light: torch.Tensor) -> torch.Tensor:
    """Rectified opponent signals (n, 6, GRID, GRID): lighter or darker than the surround, hue at a place."""
    import torch
    from torch.nn.functional import avg_pool2d

    red, green, blue = avg_pool2d(light, SIZE // GRID).unbind(1)
    grey = (red + green + blue) / 3
    surround = avg_pool2d(grey, 9, stride=1, padding=4, count_include_pad=False)
    signals = torch.stack([grey - surround, red - green, blue - (red + green) / 2], 1)
    both = torch.stack([signals.clamp(min=0), (-signals).clamp(min=0)], 2)
    return torch.sqrt(both + 1e-4).flatten(1, 2) - 0.01


def _normalised(energy: torch.Tensor) -> torch.Tensor:
    r"""Local divisive normalisation: :math:`E_c^{1.5} / (0.35 + \langle E \rangle^{1.5})`.

    The mean is over channels and neighbouring places (Heeger 1992). It is also what keeps linear models of local
    energy from explaining the virtual cortex.
    """
    from torch.nn.functional import avg_pool2d

    neighbours = avg_pool2d(energy.mean(1, keepdim=True), 5, stride=1, padding=2, count_include_pad=False)
    return energy**1.5 / (0.35 + neighbours**1.5)


@lru_cache(maxsize=1)
def _typical() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of every channel (C, 1, 1) over pink-noise pictures, before and after normalisation: one scale for all."""
    rng = np.random.default_rng(20240229)
    y, x = np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(x, y), 1 / SIZE)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((32, 3, SIZE, SIZE))) * amplitude).real
    noise /= noise.std((1, 2, 3), keepdims=True)
    maps = _raw_maps(np.clip(127 + 50 * noise, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
    before = maps.mean((0, 2, 3))[:, None, None]
    return before, _normalised(maps / before).mean((0, 2, 3))[:, None, None]


def _raw_maps(pixels: np.ndarray) -> torch.Tensor:
    import torch

    light = _light(pixels)
    return torch.cat([_energy(light), _opponents(light)], 1)


def channel_maps(pixels: np.ndarray) -> torch.Tensor:
    """What the bank sees in each picture.

    Parameters
    ----------
    pixels : (n, H, W, 3) uint8 array

    Returns
    -------
    (n, C, GRID, GRID) float32 tensor
        Non-negative, about 1 on average for natural spectra; row 0 is the top of the picture.
    """
    import torch

    maps = torch.empty(len(pixels), len(CHANNELS), GRID, GRID)
    with one_thread():
        before, after = _typical()
        for start in range(0, len(pixels), _BLOCK):
            block = slice(start, start + _BLOCK)
            maps[block] = _normalised(_raw_maps(pixels[block]) / before) / after
    return maps
