"""Costs against counts by hand."""

import math

import torch
from torch import nn

from phosphene.nn.cost import (
    MultiplyAdds,
    Parameters,
    count_parameters,
    fft_multiply_adds,
    multiply_adds,
    with_gradient,
)
from phosphene.nn.spectral import ComplexLinear, FourierAxis


def test_parameters_total_and_trainable():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    assert count_parameters(network) == Parameters(total=26, trainable=10)


def test_linear_and_convolution():
    assert multiply_adds(lambda: nn.Linear(10, 7)(torch.zeros(5, 10))) == 5 * 10 * 7
    assert multiply_adds(lambda: nn.Linear(10, 7, bias=False)(torch.zeros(2, 5, 10))) == 10 * 10 * 7
    assert multiply_adds(lambda: nn.Conv1d(3, 4, 5)(torch.zeros(2, 3, 20))) == 2 * 16 * 4 * 3 * 5
    assert multiply_adds(lambda: torch.bmm(torch.zeros(3, 4, 5), torch.zeros(3, 5, 6))) == 3 * 4 * 5 * 6


def test_fourier_transforms_by_formula():
    x = torch.zeros(6, 16)
    assert multiply_adds(lambda: torch.fft.rfft(x)) == 6 * 1.25 * 16 * 4
    assert multiply_adds(lambda: torch.fft.irfft(torch.fft.rfft(x), n=16)) == 2 * 6 * 1.25 * 16 * 4
    assert multiply_adds(lambda: torch.fft.fft(x.to(torch.complex64), dim=0)) == 16 * 2.5 * 6 * math.log2(6)
    assert fft_multiply_adds(8, transforms=3) == 3 * 1.25 * 8 * 3


def test_complex_products_are_four_real_ones():
    a, b = torch.zeros(3, 4, dtype=torch.complex64), torch.zeros(3, 4, dtype=torch.complex64)
    assert multiply_adds(lambda: a * b) == 48
    assert multiply_adds(lambda: a * b.real) == 24
    assert multiply_adds(lambda: a.real * b.real) == 12
    assert multiply_adds(lambda: a @ b.T) == 4 * 3 * 4 * 3
    assert multiply_adds(lambda: 2.0 * a + b) == 0
    # the same product written out in real numbers: four real products for every complex one
    layer, axis = ComplexLinear(6), FourierAxis(8)
    spectrum = torch.zeros(2, axis.bins, 3, 6)
    assert multiply_adds(lambda: layer(spectrum)) == 4 * 6 * 6 * axis.bins * 3


def test_meta_device_counts_the_same():
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    real = multiply_adds(lambda: network(torch.zeros(3, 8)))
    assert multiply_adds(lambda: network.to("meta")(torch.zeros(3, 8, device="meta"))) == real == 3 * (128 + 64)


def test_operations_are_listed():
    with MultiplyAdds() as count:
        torch.zeros(2, 3) @ torch.zeros(3, 4)
    assert count.by_operation == {"mm": 24.0}


def test_dead_values_are_found():
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    x[:, 1] = 0  # three weights look at a constant zero
    assert with_gradient(network, [lambda: network(x).square().sum()]) == 12
    assert with_gradient(network, [lambda: network(x).square().sum(), lambda: network(x + 1).square().sum()]) == 15
