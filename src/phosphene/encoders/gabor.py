"""Log-Gabor energy pyramid: how much of each scale and orientation there is in each part of a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, model_validator
from scipy.fft import next_fast_len

from phosphene.encoders.base import EncodedBatch, EncoderConfig, PixelEncoder
from phosphene.encoders.images import resize

if TYPE_CHECKING:
    import torch

__all__ = ["GaborConfig", "GaborEncoder", "gabor_energy", "log_gabor_filters"]

# ITU-R BT.601 luma
_LUMINANCE = (0.299, 0.587, 0.114)
# energies below this (of a contrast of 1 %, squared) are treated as none: the logarithm has to end somewhere
_FLOOR = 1e-4
# what a filter lets through of a frequency, relative to its peak, below which it is taken to let through nothing
_NEGLIGIBLE = 1e-4
_AT_ONCE = 4  # pictures whose responses stay in the processor's cache


class GaborConfig(EncoderConfig):
    """Settings of the Gabor encoder.

    Attributes
    ----------
    size : int
        Side in pixels to which every picture is brought first.
    scales : int
        Number of octaves.
    orientations : int
        Orientations in equal steps over 180 degrees.
    grid : int
        Cells along each side over which energy is averaged; must divide `size`.
    lowest : float
        Centre frequency of the coarsest scale in cycles per picture; each further scale doubles it.
    bandwidth : float
        Ratio of the Gaussian's standard deviation on the logarithmic frequency axis to the centre frequency: 0.55
        is about two octaves, 0.74 one.
    """

    size: int = Field(128, ge=8, le=1024)
    scales: int = Field(4, ge=1, le=8)
    orientations: int = Field(6, ge=1, le=32)
    grid: int = Field(4, ge=1)
    lowest: float = Field(4.0, gt=0)
    bandwidth: float = Field(0.65, gt=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> GaborConfig:
        if self.size % self.grid:
            raise ValueError(f"grid = {self.grid} does not divide size = {self.size}")
        highest = self.lowest * 2 ** (self.scales - 1)
        if highest > self.size / 2:
            raise ValueError(
                f"the finest scale, {highest:g} cycles per picture, is beyond {self.size / 2:g} at this size"
            )
        return self


class GaborEncoder(PixelEncoder):
    """Logarithm of local log-Gabor energy.

    Tokens are the cells of the grid in reading order, each with one channel a scale and orientation (scale slow,
    orientation fast): (grid^2, scales * orientations), by default (16, 24). Pooled is the flattened grid, by default
    384 values. A picture that is not square is stretched; colour is left out.

    Examples
    --------
    >>> batch = GaborEncoder().encode_pixels(np.zeros((2, 64, 64, 3), np.uint8))
    >>> batch.tokens.shape, batch.pooled.shape
    ((2, 16, 24), (2, 384))
    """

    name: ClassVar[str] = "gabor"
    Config: ClassVar[type[EncoderConfig]] = GaborConfig
    batch_size = 16

    def encode_pixels(self, frames: np.ndarray) -> EncodedBatch:
        import torch

        config = self.config
        rgb = resize(frames, config.size, self.device)
        luminance = (rgb * rgb.new_tensor(_LUMINANCE)[:, None, None]).sum(1)
        with torch.inference_mode():
            energy = gabor_energy(luminance, config)
            tokens = torch.log1p(energy / _FLOOR).flatten(2).transpose(1, 2).contiguous()
        array = tokens.cpu().numpy()
        return EncodedBatch(tokens=array, pooled=array.reshape(len(array), -1))


def log_gabor_filters(size: int, config: GaborConfig) -> np.ndarray:
    r"""Transfer functions of the filters, one-sided so that the response is analytic (even + i odd).

    .. math:: H(f, \theta) = \exp\left(-\frac{\ln^2(f / f_0)}{2 \ln^2 b}\right)
              \exp\left(-\frac{\Delta\theta^2}{2 \sigma^2}\right)

    with centre :math:`f_0`, bandwidth ratio :math:`b` and :math:`\sigma` = 180 degrees / orientations / 1.5
    (Field 1987, J. Opt. Soc. Am. A 4:2379).

    Parameters
    ----------
    size : int
        Side in pixels of the (padded) picture the filters act on.
    config : GaborConfig

    Returns
    -------
    float32 array of shape (scales * orientations, size, size)
        In the frequency order of the discrete Fourier transform; zero at frequency zero.
    """
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1.0
    angle = np.arctan2(fy, fx)
    spread = math.pi / config.orientations / 1.5
    filters = []
    for scale in range(config.scales):
        centre = config.lowest * 2**scale / config.size
        radial = np.exp(-(np.log(radius / centre) ** 2) / (2 * math.log(config.bandwidth) ** 2))
        radial[0, 0] = 0.0
        for step in range(config.orientations):
            away = np.angle(np.exp(1j * (angle - math.pi * step / config.orientations)))
            filters.append(2 * radial * np.exp(-(away**2) / (2 * spread**2)))
    return np.stack(filters).astype(np.float32)


@dataclass(frozen=True)
class _Band:
    """One filter where it is not zero, and what turns its response's power into the mean over every cell.

    The filter is the block of the spectrum (lowest frequency first) at `rows` and `columns`. A response of B
    neighbouring frequencies has a power of 2 B - 1: sampled at as many points along an axis (`sides`), it says the mean
    over any cell exactly, as a weighted sum of the samples (`down`, `across`). The samples of the first axis that weigh
    nothing are left out (`kept`).
    """

    rows: slice
    columns: slice
    transfer: torch.Tensor
    sides: tuple[int, int]
    kept: slice
    down: torch.Tensor
    across: torch.Tensor

    def cells(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Mean power over the cells, ``(n, grid, grid)``, of shifted spectra ``(n, side, side)``."""
        import torch

        passed = spectrum[:, self.rows, self.columns] * self.transfer
        response = torch.fft.ifft(passed, n=self.sides[0], dim=1, norm="forward")[:, self.kept]
        response = torch.fft.ifft(response, n=self.sides[1], dim=2, norm="forward")
        squares = torch.view_as_real(response).flatten(2).square_()  # real and imaginary parts side by side
        return self.down @ squares @ self.across


def _extent(filled: np.ndarray) -> slice:
    where = np.flatnonzero(filled)
    return slice(int(where[0]), int(where[-1]) + 1)


def _cell_weights(n_bands: int, config: GaborConfig) -> np.ndarray:
    """Weights ``(grid, samples)`` that turn evenly spaced samples of a power into its mean over each cell's pixels."""
    margin, cell = config.size // 8, config.size // config.grid
    side = config.size + 2 * margin
    n_samples = next_fast_len(2 * n_bands - 1)
    inside = np.kron(np.eye(config.grid), np.full(cell, 1 / cell))
    pixels = np.pad(inside, ((0, 0), (margin, margin)))
    if n_samples >= side:
        return pixels
    # the power is interpolated between its samples by its own frequencies, which are all below n_bands
    frequency = np.arange(1 - n_bands, n_bands)
    at_pixels = np.exp(2j * np.pi * np.outer(frequency, np.arange(side)) / side)
    at_samples = np.exp(-2j * np.pi * np.outer(frequency, np.arange(n_samples)) / n_samples)
    return (pixels @ at_pixels.T @ at_samples).real / n_samples


@lru_cache(maxsize=4)
def _bands(config: GaborConfig, device: torch.device) -> list[_Band]:
    import torch

    side = config.size + 2 * (config.size // 8)
    bands = []
    for transfer in np.fft.fftshift(log_gabor_filters(side, config), axes=(1, 2)):
        filled = transfer > _NEGLIGIBLE * transfer.max()
        rows, columns = _extent(filled.any(axis=1)), _extent(filled.any(axis=0))
        down, across = (_cell_weights(part.stop - part.start, config) for part in (rows, columns))
        kept = _extent(np.asarray(down.any(axis=0)))
        bands.append(
            _Band(
                rows,
                columns,
                torch.from_numpy(transfer[rows, columns] / side**2).to(device),
                (down.shape[1], across.shape[1]),
                kept,
                torch.from_numpy(down[:, kept].astype(np.float32)).to(device),
                torch.from_numpy(np.repeat(across, 2, axis=1).T.astype(np.float32)).to(device),
            )
        )
    return bands


def gabor_energy(luminance: torch.Tensor, config: GaborConfig) -> torch.Tensor:
    """Squared modulus of the analytic log-Gabor responses, averaged over the cells of the grid.

    Pictures are continued by reflection over an eighth of their side, so that the periodic transform does not mistake
    the frame for an edge.

    Parameters
    ----------
    luminance : float tensor of shape (n, size, size)
        In [0, 1].
    config : GaborConfig

    Returns
    -------
    float tensor of shape (n, scales * orientations, grid, grid)
    """
    import torch

    n, size = len(luminance), config.size
    if n == 0:
        return luminance.new_zeros(0, config.scales * config.orientations, config.grid, config.grid)
    margin = size // 8
    padded = torch.nn.functional.pad(luminance[:, None], (margin,) * 4, mode="reflect")
    bands = _bands(config, luminance.device)
    cells = []
    for few in padded[:, 0].to(torch.float32).split(_AT_ONCE):
        spectra = torch.fft.fftshift(torch.fft.fft2(few), dim=(1, 2))
        cells.append(torch.stack([band.cells(spectra) for band in bands], dim=1))
    return torch.cat(cells)
