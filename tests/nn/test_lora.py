"""LoRA and Skip-LoRA: start at the base, every parameter trains, the decorrelation loss is attached and never NaN."""

import pytest
import torch
from torch import nn

from phosphene.errors import InputError
from phosphene.nn.cost import count_parameters, with_gradient
from phosphene.nn.lora import ACTIVATIONS, LoRALinear, SkipLoRA, decorrelation


@pytest.mark.parametrize("training", [True, False])
def test_starts_as_the_base_bit_for_bit(training):
    torch.manual_seed(0)
    base, x = nn.Linear(7, 5), torch.randn(3, 4, 7)
    assert torch.equal(LoRALinear(base, rank=3, alpha=9).train(training)(x), base(x))
    assert torch.equal(SkipLoRA(7, 5, rank=2).train(training)(x), torch.zeros(3, 4, 5))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_parameter_gets_a_gradient_within_two_steps(activation):
    torch.manual_seed(1)
    net = nn.ModuleDict({"out": LoRALinear(nn.Linear(6, 5), 2, dropout=0.1), "skip": SkipLoRA(6, 5, 2, 4, activation)})
    x, y = torch.randn(32, 6), torch.randn(32, 5)
    adapters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(adapters, lr=0.1)

    def loss():
        return (net["out"](x) + net["skip"](x) - y).square().mean()

    def stepped():
        loss().backward()
        optimiser.step()
        return loss()

    assert with_gradient(net, [loss, stepped]) == count_parameters(net).trainable == 4 * 11


def test_relu_is_refused_as_it_never_leaves_zero():
    with pytest.raises(InputError, match=r"unknown activation 'relu'.*gelu"):
        SkipLoRA(6, 5, rank=2, activation="relu")


def test_skip_learns_what_a_linear_path_cannot():
    torch.manual_seed(2)
    x = torch.randn(512, 8)
    y = nn.functional.gelu(3 * x @ torch.randn(8, 4))
    left = {}
    for activation in ("gelu", "linear"):
        skip = SkipLoRA(8, 4, rank=4, activation=activation)
        optimiser = torch.optim.Adam(skip.parameters(), lr=0.05)
        for _ in range(150):
            optimiser.zero_grad()
            (skip(x) - y).square().mean().backward()
            optimiser.step()
        left[activation] = float((skip(x) - y).square().mean().detach())
    assert left["gelu"] < 0.2 * left["linear"]


def test_decorrelation_is_the_mean_size_of_pearson():
    torch.manual_seed(3)
    u, s = torch.randn(6, 4, 5), torch.randn(6, 4, 5)
    rows = [abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) for a, b in zip(u, s, strict=True)]
    torch.testing.assert_close(decorrelation(u, s, eps=0.0), torch.stack(rows).mean(), atol=1e-5, rtol=1e-5)
    # no matter in which units, and by how much they are shifted
    torch.testing.assert_close(decorrelation(100 * u, 7 * s + 3), decorrelation(100 * u, 7 * s), atol=1e-4, rtol=1e-3)


def test_decorrelation_is_safe_at_the_start_and_weighs_small_skips_little():
    torch.manual_seed(4)
    u = torch.randn(5, 64)
    sizes = [0.0, 1e-20, 1e-6, 1e-3, 1.0]
    values = []
    for size in sizes:
        linear, skip = u.clone().requires_grad_(), (size * u).requires_grad_()
        loss = decorrelation(linear, skip)
        loss.backward()
        assert bool(torch.isfinite(skip.grad).all())
        assert bool(torch.isfinite(linear.grad).all())
        values.append(float(loss.detach()))
    assert values[0] == 0.0
    assert values == sorted(values)
    assert values[2] < 1e-3 < 0.99 < values[4]


def test_decorrelation_of_constant_paths_is_zero_with_a_finite_gradient():
    linear, skip = torch.ones(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    loss = decorrelation(linear, skip)
    loss.backward()
    assert float(loss.detach()) < 1e-3
    assert bool(torch.isfinite(linear.grad).all())


def test_decorrelation_reaches_the_skip_and_turns_it_away():
    torch.manual_seed(5)
    x = torch.randn(64, 10)
    fixed = nn.Linear(10, 24)
    skip = SkipLoRA(10, 24, rank=6)
    with torch.no_grad():  # a skip that only repeats the linear path
        left, values, right = torch.linalg.svd(fixed.weight, full_matrices=False)
        skip.path.a.copy_(right[:6])
        skip.path.b.copy_(left[:, :6] * values[:6])
    optimiser = torch.optim.Adam(skip.parameters(), lr=0.02)
    u = fixed(x).detach()
    first = decorrelation(u, skip(x)).detach()
    for _ in range(40):
        optimiser.zero_grad()
        decorrelation(u, skip(x)).backward()
        assert all(bool((parameter.grad != 0).any()) for parameter in skip.parameters())
        optimiser.step()
    assert float(first) > 0.5
    assert float(decorrelation(u, skip(x)).detach()) < 0.5 * float(first)


def test_decorrelation_in_half_precision_and_of_other_shapes():
    torch.manual_seed(6)
    u, s = torch.randn(4, 50).bfloat16(), torch.randn(4, 50).bfloat16()
    assert decorrelation(u, s).dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(4, 50\) and \(4, 49\)"):
        decorrelation(u, s[:, :49])


def test_skip_in_bf16_under_autocast():
    torch.manual_seed(7)
    skip, x = SkipLoRA(6, 5, rank=2), torch.randn(3, 6)
    nn.init.normal_(skip.path.b)
    with torch.autocast("cpu", torch.bfloat16):
        y = skip(x)
    torch.testing.assert_close(y.float(), skip(x), atol=0.05, rtol=0.05)
