"""The transform over a grid of tokens and the filters on it, against torch.fft and against a direct convolution."""

from __future__ import annotations

import itertools

import pytest
import torch

from phosphene.nn.spectral import (
    FilterLibrary,
    FourierAxis,
    FourierGrid,
    FrequencyProjector,
    GlobalFilter,
    RadialFilter,
)

GRIDS = [(3, 3), (4, 4), (5, 4), (3, 6), (8, 8), (7, 7)]


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_grid_is_an_orthonormal_fft(height: int, width: int) -> None:
    grid = FourierGrid(height, width)
    x = torch.randn(height * width, 2, 3)
    spectrum = grid(x)
    reference = torch.fft.fft2(x.view(height, width, 2, 3), dim=(0, 1), norm="ortho").reshape(height * width, 2, 3)
    found = torch.complex(spectrum[0], spectrum[1]).reshape(grid.bins, -1)
    rows = [torch.view_as_real(values.flatten(1)).flatten(1) for values in (found, reference)]
    distance = torch.cdist(*rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(dim=1).values.max() < 1e-4  # every bin is one of the FFT's
    assert len(set(distance.argmin(dim=1).tolist())) == grid.bins
    weights = torch.ones(grid.bins)
    weights[grid.free] = 2.0
    assert torch.allclose((spectrum.square().sum(0).flatten(1).sum(1) * weights).sum(), x.square().sum(), rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_inverse_undoes_and_counts_match(height: int, width: int) -> None:
    grid = FourierGrid(height, width)
    x = torch.randn(grid.length, 2, 3)
    assert torch.allclose(grid.inverse(grid(x)), x, atol=1e-5)
    free = len(range(*grid.free.indices(grid.bins)))
    assert grid.bins + free == grid.length  # as many real numbers as tokens: nothing is stored twice
    own = grid(x)[1]
    own[grid.free] = 0
    assert own.abs().max() < 1e-5
    assert grid.frequencies.min() == 0
    assert grid.frequencies.max() <= 1.0 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5)])
def test_global_filter_is_a_circular_convolution(height: int, width: int) -> None:
    grid = FourierGrid(height, width)
    layer = GlobalFilter(grid, 2, spread=1.0)
    impulse = torch.zeros(grid.length, 1, 2)
    impulse[0] = 1.0
    kernel = layer(impulse).detach().view(height, width, 2)
    x = torch.randn(height, width, 2)
    direct = torch.zeros(height, width, 2)
    for y, z, dy, dz in itertools.product(range(height), range(width), range(height), range(width)):
        direct[y, z] += kernel[dy, dz] * x[(y - dy) % height, (z - dz) % width]
    assert torch.allclose(layer(x.view(-1, 1, 2)).view(height, width, 2), direct, atol=1e-4)


def test_a_unit_filter_is_the_identity() -> None:
    grid = FourierGrid(5, 4)
    layer = GlobalFilter(grid, 3)
    with torch.no_grad():
        layer.filter.zero_()
        layer.filter[: grid.bins] = 1.0
    x = torch.randn(20, 2, 3)
    assert torch.allclose(layer(x), x, atol=1e-5)


@pytest.mark.parametrize("transform", [FourierAxis(7), FourierAxis(8), FourierGrid(3, 4)])
def test_every_layer_takes_either_transform(transform: FourierAxis | FourierGrid) -> None:
    layers = [
        FilterLibrary(transform, 4),
        FrequencyProjector(transform, 4),
        GlobalFilter(transform, 4),
        RadialFilter(transform, 4, "lowpass"),
        RadialFilter(transform, 4, "highpass"),
    ]
    x = torch.randn(transform.length, 3, 4)
    for layer in layers:
        out = layer(x)
        out.square().sum().backward()
        assert out.shape == x.shape
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_radial_filters_split_the_frequencies() -> None:
    grid = FourierGrid(8, 8)
    low, high = RadialFilter(grid, 1, "lowpass"), RadialFilter(grid, 1, "highpass")
    with torch.no_grad():
        low.gain.fill_(1.0)
        high.gain.fill_(1.0)
    x = torch.randn(64, 2, 1)
    assert torch.allclose(low(x) + high(x), x, atol=1e-5)
    flat, chequered = torch.ones(64, 1, 1), torch.tensor([(-1.0) ** (i // 8 + i % 8) for i in range(64)]).view(64, 1, 1)
    assert low(flat).norm() > 50 * high(flat).norm()
    assert high(chequered).norm() > 50 * low(chequered).norm()


def test_grids_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 x 3 tokens, found 2 x 8"):
        FourierGrid(2, 8)
