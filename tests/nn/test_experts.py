"""Experts: off is the base, the formula sample by sample, merging under a gate, order without meaning."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from phosphene.nn.cost import multiply_adds, with_gradient
from phosphene.nn.experts import ExpertLinear, Gates
from phosphene.nn.router import Router


def _layer(experts: int = 4, batch_axis: int = 0, shaken: bool = True) -> ExpertLinear:
    layer = ExpertLinear(nn.Linear(6, 5), experts, rank=2, gates=Gates(), alpha=3.0, batch_axis=batch_axis)
    if shaken:
        nn.init.normal_(layer.parts["experts"].b)
    return layer


def _by_loop(layer: ExpertLinear, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """One sample, one gate, expert by expert."""
    experts = layer.parts["experts"]
    y = F.linear(x, layer.weight, layer.bias)
    for k, share in enumerate(gate):
        y = y + 1.5 * share * (x @ experts.a[k].T) @ experts.b[k]
    return y


@pytest.mark.parametrize("training", [True, False])
def test_off_and_untrained_are_the_base_bit_for_bit(training):
    torch.manual_seed(0)
    layer, x = _layer(shaken=False).train(training), torch.randn(7, 6)
    base = F.linear(x, layer.weight, layer.bias)
    with layer.gates.using(torch.rand(7, 4)):
        assert torch.equal(layer(x), base)
        nn.init.normal_(layer.parts["experts"].b)
        assert not torch.equal(layer(x), base)
    assert torch.equal(layer(x), base)


def test_off_computes_nothing_but_the_base():
    layer, x = _layer(), torch.randn(7, 6)
    assert multiply_adds(lambda: layer(x)) == 7 * 6 * 5
    with layer.gates.using(torch.rand(7, 4)):
        assert multiply_adds(lambda: layer(x)) > 7 * 6 * 5


def test_each_sample_has_its_own_gates():
    torch.manual_seed(1)
    layer, x, gates = _layer(), torch.randn(3, 6), torch.rand(3, 4)
    with layer.gates.using(gates):
        y = layer(x)
    expected = torch.stack([_by_loop(layer, each, gate) for each, gate in zip(x, gates, strict=True)])
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("per_token", [True, False])
def test_tokens_first_or_samples_first(axis, per_token):
    torch.manual_seed(2)
    samples = tokens = 3  # which axis is which cannot be seen from the shape
    layer, x = _layer(batch_axis=axis), torch.randn(samples, tokens, 6)
    gates = torch.rand(samples, tokens, 4) if per_token else torch.rand(samples, 4)
    with layer.gates.using(gates):
        y = layer(x.transpose(0, 1)).transpose(0, 1) if axis else layer(x)
    for b in range(samples):
        for t in range(tokens):
            gate = gates[b, t] if per_token else gates[b]
            torch.testing.assert_close(y[b, t], _by_loop(layer, x[b, t], gate), atol=1e-5, rtol=1e-5)


def test_one_gate_for_all_samples():
    torch.manual_seed(3)
    layer, x, gate = _layer(batch_axis=1), torch.randn(2, 9, 6), torch.rand(1, 4)
    with layer.gates.using(gate):
        one = layer(x)
    with layer.gates.using(gate.expand(9, 4)):
        torch.testing.assert_close(layer(x), one)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (3, 2, 4), (4,)])
def test_gates_that_do_not_fit_are_refused(shape):
    layer = _layer()
    with layer.gates.using(torch.rand(shape)), pytest.raises(ValueError, match="gates"):
        layer(torch.randn(3, 6))


def test_merged_with_a_gate_it_is_a_plain_layer():
    torch.manual_seed(4)
    layer, x, gate = _layer(), torch.randn(8, 6), torch.rand(4)
    plain = layer.merged_with(gate)
    assert type(plain) is nn.Linear
    with layer.gates.using(gate[None]):
        torch.testing.assert_close(plain(x), layer(x), atol=1e-6, rtol=1e-6)
    assert layer.gates.value is None
    with layer.gates.using(torch.rand(8, 4)), pytest.raises(ValueError, match="one gate"):
        layer.plain(merge=True)


def test_the_order_of_experts_means_nothing():
    torch.manual_seed(5)
    layer, x, gates = _layer(), torch.randn(8, 6), torch.rand(8, 4)
    with layer.gates.using(gates):
        before = layer(x)
    order = torch.tensor([2, 0, 3, 1])
    experts = layer.parts["experts"]
    with torch.no_grad():
        experts.a.copy_(experts.a[order].clone())
        experts.b.copy_(experts.b[order].clone())
    with layer.gates.using(gates[:, order]):
        torch.testing.assert_close(layer(x), before, atol=1e-6, rtol=1e-5)
    with layer.gates.using(gates):
        assert not torch.allclose(layer(x), before)


def test_gradient_reaches_every_expert_and_the_router_within_two_steps():
    torch.manual_seed(6)
    layer, router = _layer(shaken=False), Router(n_subjects=3, experts=4, data=6, id_dropout=0.0)
    net = nn.ModuleList([layer, router])
    x, y, subject = torch.randn(30, 6), torch.randn(30, 5), torch.arange(30) % 3
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.3)

    def loss():
        with layer.gates.using(router(subject, x)):
            return (layer(x) - y).square().mean()

    def stepped():
        loss().backward()
        optimiser.step()
        return loss()

    asked = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    assert with_gradient(net, [loss, stepped]) == asked


def test_people_who_differ_by_low_rank_are_told_apart():
    """Two people, one trunk, opposite rank-one deviations: gates by person remove what the base leaves over."""
    torch.manual_seed(7)
    layer, router = _layer(experts=2, shaken=False), Router(n_subjects=2, experts=2, id_dropout=0.0)
    x, subject = torch.randn(200, 6), torch.arange(200) % 2
    deviation = torch.outer(torch.randn(5), torch.randn(6))
    y = F.linear(x, layer.weight, layer.bias) + (1 - 2 * subject[:, None]) * (x @ deviation.T)
    optimiser = torch.optim.Adam([*layer.parts.parameters(), *router.parameters()], lr=0.02)
    left = []
    for _ in range(200):
        optimiser.zero_grad()
        with layer.gates.using(router(subject)):
            loss = (layer(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        left.append(float(loss.detach()))
    assert left[-1] < 0.05 * left[0]


def test_bf16():
    torch.manual_seed(8)
    layer, x = _layer(), torch.randn(3, 6)
    with layer.gates.using(torch.rand(3, 4)):
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = layer(x)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.05)
        assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="expert"):
        _layer(experts=0)
    with pytest.raises(ValueError, match="axis 0 or 1, found 2"):
        _layer(batch_axis=2)
