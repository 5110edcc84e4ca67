"""Log-Gabor energy pyramid: how much of each scale and orientation there is in each part of a picture."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, model_validator

from phosphene.encoders.base import EncodedBatch, EncoderConfig, PixelEncoder
from phosphene.encoders.images import resize

if TYPE_CHECKING:
    import torch

__all__ = ["GaborConfig", "GaborEncoder", "gabor_energy", "log_gabor_filters"]

# ITU-R BT.601 luma
_LUMINANCE = (0.299, 0.587, 0.114)
# energies below this (of a contrast of 1 %, squared) are treated as none: the logarithm has to end somewhere
_FLOOR = 1e-4


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


@lru_cache(maxsize=4)
def _filters(size: int, config: GaborConfig) -> torch.Tensor:
    import torch

    return torch.from_numpy(log_gabor_filters(size, config)).to(torch.complex64)


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
    filters = _filters(size + 2 * margin, config).to(luminance.device)
    # one picture at a time in buffers of its own: fresh memory for channels x size x size complex numbers costs more
    # than the transform itself
    passed, response = torch.empty_like(filters), torch.empty_like(filters)
    inside = response[:, margin : margin + size, margin : margin + size]
    power = torch.empty(inside.shape, device=luminance.device)
    cells = []
    for spectrum in torch.fft.fft2(padded[:, 0].to(torch.float32)):
        torch.fft.ifft2(torch.mul(spectrum, filters, out=passed), out=response)
        torch.mul(inside.real, inside.real, out=power).addcmul_(inside.imag, inside.imag)
        cells.append(torch.nn.functional.avg_pool2d(power, size // config.grid))
    return torch.stack(cells)
