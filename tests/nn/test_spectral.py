"""Spectral layers against torch.fft, complex arithmetic and slow loops."""

import math

import pytest
import torch

from phosphene.nn.spectral import ComplexLinear, FilterLibrary, FourierAxis, FrequencyProjector, shrink_modulus


@pytest.mark.parametrize("length", [3, 8, 9, 32, 35])
def test_transform_is_the_orthonormal_rfft(length):
    torch.manual_seed(0)
    axis, x = FourierAxis(length), torch.randn(length, 3, 5)
    real, imaginary = axis(x)
    expected = torch.fft.rfft(x, dim=0, norm="ortho")
    torch.testing.assert_close(torch.complex(real, imaginary), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(axis.inverse(axis(x)), x, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [6, 7])
def test_inverse_equals_irfft_whatever_the_imaginary_part_of_mean_and_nyquist(length):
    torch.manual_seed(0)
    axis = FourierAxis(length)
    spectrum = torch.randn(2, axis.bins, 4)
    expected = torch.fft.irfft(torch.complex(*spectrum), n=length, dim=0, norm="ortho")
    torch.testing.assert_close(axis.inverse(spectrum), expected, atol=2e-6, rtol=1e-5)
    changed = spectrum.clone()
    changed[1, 0] += 7
    torch.testing.assert_close(axis.inverse(changed), axis.inverse(spectrum))


def library_by_hand(library, x):
    """The documented formula, in complex numbers, sample by sample."""
    axis = library.transform
    spectrum = torch.fft.rfft(x, dim=0, norm="ortho")
    power = spectrum.abs() ** 2
    filters = library.filters[: axis.bins].to(torch.complex64)
    filters[axis.free] += 1j * library.filters[axis.bins :]
    out = torch.zeros_like(spectrum)
    for b in range(x.shape[1]):
        level = torch.log1p(power[:, b])
        gates = library.gate(torch.cat([level.mean(0), level.mean(1)])).softmax(0)
        mixed = sum(gates[k] * filters[:, k] for k in range(len(gates)))
        out[:, b] = spectrum[:, b] * power[:, b] / (power[:, b] + library.floor[:, 0].exp()) * mixed
    return torch.fft.irfft(out, n=len(x), dim=0, norm="ortho")


@pytest.mark.parametrize("length", [8, 9])
def test_filter_library_is_its_formula(length):
    torch.manual_seed(1)
    library, x = FilterLibrary(FourierAxis(length), width=6, filters=3), torch.randn(length, 4, 6)
    torch.testing.assert_close(library(x), library_by_hand(library, x), atol=1e-5, rtol=1e-4)


def test_gates_differ_between_samples_and_depend_on_the_power_only():
    torch.manual_seed(2)
    library, x = FilterLibrary(FourierAxis(8), width=6, filters=3), torch.randn(8, 5, 6)
    real, imaginary = library.transform(x)
    gates = library.gates(real**2 + imaginary**2)
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(5))
    assert float(gates.detach().std(dim=0).min()) > 1e-3
    shifted = library.transform(x.roll(3, dims=0))  # a shift changes phases, not the power
    torch.testing.assert_close(library.gates(shifted[0] ** 2 + shifted[1] ** 2), gates, atol=1e-5, rtol=1e-4)


def response_of(library, x):
    """Gain of every bin and channel for every sample."""
    return torch.fft.rfft(library(x), dim=0) / torch.fft.rfft(x, dim=0)


def test_gated_library_does_not_collapse_and_the_constant_one_does():
    torch.manual_seed(3)
    x = torch.randn(9, 6, 4)
    gated = FilterLibrary(FourierAxis(9), 4, filters=3, spectrum="linear")
    constant = FilterLibrary(FourierAxis(9), 4, filters=3, spectrum="linear", gating="cosine")
    assert float(response_of(constant, x).std(dim=1).abs().max()) < 1e-4
    assert float(response_of(gated, x).std(dim=1).abs().mean()) > 5e-3
    weights = [math.cos((2 * k - 1) * math.pi / 6) for k in (1, 2, 3)]
    folded = sum(weight * constant.filters[:5, k] for k, weight in enumerate(weights))
    torch.testing.assert_close(response_of(constant, x)[0, 0].real, folded[0], atol=1e-4, rtol=1e-3)


def test_cube_is_the_complex_cube():
    torch.manual_seed(4)
    library, x = FilterLibrary(FourierAxis(8), 3, 2, spectrum="cube", gating="cosine"), torch.randn(8, 2, 3)
    plain = FilterLibrary(FourierAxis(8), 3, 2, spectrum="linear", gating="cosine")
    plain.load_state_dict(library.state_dict())
    cubed = torch.fft.irfft(torch.fft.rfft(x, dim=0, norm="ortho") ** 3, n=8, dim=0, norm="ortho")
    # the imaginary part of bins 0 and n / 2 is zero in both, so the plain library of the cube is the cubing library
    torch.testing.assert_close(library(x), plain(cubed), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_complex_linear_is_complex_matrix_product(groups):
    torch.manual_seed(5)
    layer, spectrum = ComplexLinear(6, groups), torch.randn(2, 4, 3, 6)
    torch.nn.init.normal_(layer.bias)
    each = 6 // groups
    expected = torch.zeros(4, 3, 6, dtype=torch.complex64)
    for g in range(groups):
        matrix = torch.complex(layer.weight[g, :, :each], layer.weight[g, :, each:])
        channels = slice(g * each, (g + 1) * each)
        expected[..., channels] = torch.complex(*spectrum)[..., channels] @ matrix
    expected = expected + torch.complex(*layer.bias)
    torch.testing.assert_close(torch.complex(*layer(spectrum)), expected, atol=1e-5, rtol=1e-4)


def test_shrinkage_keeps_phases_and_shortens():
    torch.manual_seed(6)
    spectrum = torch.randn(2, 50, 4)
    before, after = torch.complex(*spectrum), torch.complex(*shrink_modulus(spectrum, torch.tensor(0.7)))
    torch.testing.assert_close(after.abs(), (before.abs() - 0.7).clamp_min(0), atol=1e-5, rtol=1e-4)
    kept = after.abs() > 1e-3
    torch.testing.assert_close(after.angle()[kept], before.angle()[kept], atol=1e-4, rtol=1e-4)


def test_dense_projector_mixes_channels_and_the_diagonal_one_does_not():
    torch.manual_seed(7)
    for groups, mixes in ((1, True), (8, False)):
        projector = FrequencyProjector(FourierAxis(8), 8, groups)
        projector.norm = torch.nn.Identity()
        x = torch.randn(8, 1, 8)
        changed = x.clone()
        changed[:, :, 0] += torch.randn(8, 1)
        others = (projector(changed) - projector(x))[..., 1:].abs().max()
        assert (float(others) > 1e-3) == mixes


@pytest.mark.parametrize("length", [8, 9])
def test_every_value_of_every_parameter_gets_gradient(length):
    torch.manual_seed(8)
    axis = FourierAxis(length)
    network = torch.nn.Sequential(FilterLibrary(axis, 6, 3), FrequencyProjector(axis, 6))
    network(torch.randn(length, 64, 6)).pow(3).sum().backward()
    for name, parameter in network.named_parameters():
        assert bool((parameter.grad != 0).all()), name


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="at least 3 tokens, found 2"):
        FourierAxis(2)
    with pytest.raises(ValueError, match="at least 2 filters, found 1"):
        FilterLibrary(FourierAxis(4), 3, filters=1)
    with pytest.raises(ValueError, match="divide the width 6, found 4"):
        ComplexLinear(6, groups=4)
