"""The Gabor pyramid against a slow loop and against what it claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from phosphene.encoders.gabor import GaborConfig, GaborEncoder, gabor_energy, log_gabor_filters

SMALL = GaborConfig(size=32, scales=2, orientations=3, grid=2, lowest=4.0)


def _grating(size: int, cycles: float, degrees: float, contrast: float = 0.5) -> np.ndarray:
    """A grating whose brightness changes along the direction `degrees` (0: along x)."""
    y, x = np.mgrid[:size, :size] / size
    turn = math.radians(degrees)
    wave = 0.5 + contrast / 2 * np.cos(2 * np.pi * cycles * (x * math.cos(turn) + y * math.sin(turn)))
    return np.repeat((wave * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def _slow_energy(luminance: np.ndarray, config: GaborConfig) -> np.ndarray:
    """Spatial convolution with each kernel, sample by sample, then the mean over each cell."""
    margin = config.size // 8
    padded = np.pad(luminance, margin, mode="reflect").astype(np.float64)
    side = len(padded)
    cell = config.size // config.grid
    out = np.zeros((config.scales * config.orientations, config.grid, config.grid))
    for channel, transfer in enumerate(log_gabor_filters(side, config).astype(np.float64)):
        kernel = np.fft.ifft2(transfer)
        for y in range(config.size):
            for x in range(config.size):
                response = 0j
                for ky in range(side):
                    source = padded[(y + margin - ky) % side]
                    response += (kernel[ky] * source[(x + margin - np.arange(side)) % side]).sum()
                out[channel, y // cell, x // cell] += abs(response) ** 2 / cell**2
    return out


def test_energy_equals_slow_convolution() -> None:
    config = GaborConfig(size=16, scales=1, orientations=2, grid=2, lowest=3.0)
    luminance = np.random.default_rng(0).random((2, 16, 16))
    fast = gabor_energy(torch.from_numpy(luminance), config).numpy()
    for picture, expected in zip(fast, luminance, strict=True):
        np.testing.assert_allclose(picture, _slow_energy(expected, config), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [GaborConfig(), GaborConfig(size=96, scales=3, orientations=4, grid=3), GaborConfig(size=64, lowest=2.0, grid=1)],
    ids=["default", "three cells", "one cell"],
)
def test_narrow_bands_on_coarse_samples_lose_nothing(config: GaborConfig) -> None:
    """Natural spectra (1/f) and noise, against transforms of the whole plane at every pixel in double precision."""
    rng = np.random.default_rng(0)
    margin, cell = config.size // 8, config.size // config.grid
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(config.size)] * 2)) + 1 / config.size
    noise = rng.random((5, config.size, config.size))
    natural = np.fft.ifft2(np.fft.fft2(noise[:3] - 0.5) / frequency).real
    pictures = np.concatenate([0.5 + 0.15 * natural / natural.std(), noise[3:]])
    padded = np.pad(pictures, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    filters = log_gabor_filters(padded.shape[1], config).astype(np.float64)
    response = np.fft.ifft2(np.fft.fft2(padded)[:, None] * filters)[..., margin:-margin, margin:-margin]
    power = np.abs(response) ** 2
    expected = power.reshape(*power.shape[:2], config.grid, cell, config.grid, cell).mean((3, 5))
    np.testing.assert_allclose(gabor_energy(torch.from_numpy(pictures), config), expected, rtol=1e-3, atol=1e-8)


def test_filters_match_the_formula_point_by_point() -> None:
    filters = log_gabor_filters(40, SMALL)
    spread = math.pi / SMALL.orientations / 1.5
    for scale, step, row, column in [(0, 0, 3, 5), (1, 2, 37, 9), (0, 1, 0, 39), (1, 1, 20, 20)]:
        fy, fx = np.fft.fftfreq(40)[row], np.fft.fftfreq(40)[column]
        away = math.atan2(fy, fx) - math.pi * step / 3
        away = (away + math.pi) % (2 * math.pi) - math.pi
        centre = 4.0 * 2**scale / 32
        radial = math.exp(-(math.log(math.hypot(fx, fy) / centre) ** 2) / (2 * math.log(SMALL.bandwidth) ** 2))
        expected = 2 * radial * math.exp(-(away**2) / (2 * spread**2))
        assert filters[scale * 3 + step, row, column] == pytest.approx(expected, rel=1e-5)
    assert (filters[:, 0, 0] == 0).all()


@pytest.mark.parametrize(("cycles", "scale"), [(4, 0), (8, 1), (16, 2), (32, 3)])
@pytest.mark.parametrize(("degrees", "orientation"), [(0, 0), (60, 2), (150, 5)])
def test_a_grating_is_found_at_its_scale_and_orientation(
    cycles: float, scale: int, degrees: float, orientation: int
) -> None:
    tokens = GaborEncoder().encode_pixels(_grating(128, cycles, degrees)[None]).tokens
    assert tokens is not None
    assert set(tokens[0].argmax(axis=1)) == {scale * 6 + orientation}


def test_energy_stays_in_its_cell() -> None:
    picture = np.full((128, 128, 3), 128, np.uint8)
    picture[64:, :64] = _grating(128, 16, 0)[64:, :64]
    tokens = GaborEncoder().encode_pixels(picture[None]).tokens
    assert tokens is not None
    strength = tokens[0, :, 12].reshape(4, 4)
    assert strength[2:, :2].min() > 2 * strength[:2, 2:].max()


def test_a_plain_picture_has_no_energy_and_a_frame_makes_none() -> None:
    batch = GaborEncoder().encode_pixels(np.full((1, 128, 128, 3), 200, np.uint8))
    assert np.abs(batch.pooled).max() < 1e-3


def test_phase_does_not_matter_and_contrast_does() -> None:
    encoder = GaborEncoder()
    base = _grating(128, 16, 0)
    there = encoder.encode_pixels(np.stack([base, np.roll(base, 4, axis=1), _grating(128, 16, 0, contrast=0.1)])).pooled
    assert np.abs(there[0] - there[1]).max() < 0.15
    assert there[0, 12] > there[2, 12] + 1


@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (37, 90), (300, 200)])
def test_pictures_of_any_size(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.uint8)
    batch = GaborEncoder().encode_pixels(frames)
    assert batch.tokens is not None
    assert batch.tokens.shape == (2, 16, 24)
    np.testing.assert_array_equal(batch.pooled, batch.tokens.reshape(2, -1))


def test_resolution_hardly_matters() -> None:
    encoder = GaborEncoder()
    fine, coarse = (encoder.encode_pixels(_grating(side, 8, 30)[None]).pooled for side in (512, 128))
    assert np.corrcoef(fine[0], coarse[0])[0, 1] > 0.99
