"""Adapted layers: off is the base bit for bit, merging is undone exactly, people do not touch each other."""

import copy

import pytest
import torch
from torch import nn

from phosphene.nn.adapter import AdaptedLinear, AdapterBank, LowRank, Person
from phosphene.nn.experts import ExpertLinear, Gates
from phosphene.nn.lora import LoRALinear


def _shaken(module: nn.Module) -> nn.Module:
    """Adapters that do something: no parameter is zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter.data, std=0.5)
    return module


def _banked(*people: str) -> tuple[AdaptedLinear, Person]:
    person = Person()
    layer = AdaptedLinear(nn.Linear(5, 4), own=AdapterBank(person, lambda: LowRank(5, 4, rank=2)))
    for name in people:
        layer.parts["own"].add(name)
    return layer, person


def test_low_rank_is_its_formula_and_its_matrix():
    torch.manual_seed(0)
    change, x = _shaken(LowRank(6, 3, rank=2, alpha=5.0)), torch.randn(4, 6)
    torch.testing.assert_close(change(x), 2.5 * x @ change.a.T @ change.b.T)
    torch.testing.assert_close(change(x), x @ change.delta().T)


def test_dropout_is_of_the_input_and_of_training_only():
    torch.manual_seed(1)
    change, x = _shaken(LowRank(200, 3, rank=2, dropout=0.5)), torch.randn(4, 200)
    assert not torch.allclose(change(x), x @ change.delta().T)
    torch.testing.assert_close(change.eval()(x), x @ change.delta().T, atol=1e-5, rtol=1e-4)


def test_it_holds_the_parameters_of_the_base_under_their_names():
    base = nn.Linear(5, 4)
    layer = LoRALinear(base, rank=2)
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert [name for name in layer.state_dict() if "parts" not in name] == list(base.state_dict())
    assert not base.weight.requires_grad
    back = layer.plain(merge=False)
    assert type(back) is nn.Linear
    assert back.weight is base.weight
    assert back.weight.requires_grad


def test_a_base_that_was_frozen_comes_back_frozen_and_one_without_bias_without():
    base = nn.Linear(5, 4, bias=False).requires_grad_(False)
    back = LoRALinear(base, rank=2).plain(merge=True)
    assert back.bias is None
    assert not back.weight.requires_grad


def test_merging_computes_the_same_and_is_undone_exactly():
    torch.manual_seed(2)
    layer, x = _shaken(LoRALinear(nn.Linear(32, 16), rank=3, alpha=6.0)).eval(), torch.randn(64, 32)
    weight, apart, stored = layer.weight.clone(), layer(x), set(layer.state_dict())
    layer.merge()
    assert not torch.equal(layer.merged, weight)
    torch.testing.assert_close(layer(x), apart, atol=1e-5, rtol=1e-6)
    assert torch.equal(layer.weight, weight)
    assert set(layer.state_dict()) == stored
    layer.unmerge()
    assert torch.equal(layer(x), apart)


def test_training_and_loading_end_a_merge():
    layer = _shaken(LoRALinear(nn.Linear(5, 4), rank=2)).eval()
    layer.merge()
    assert layer.train().merged is None
    layer.eval().merge()
    layer.load_state_dict(layer.state_dict())
    assert layer.merged is None


def test_a_merge_leaves_conditional_parts_at_work():
    torch.manual_seed(3)
    person, gates = Person(), Gates()
    layer = ExpertLinear(nn.Linear(5, 4), 3, 2, gates)
    layer.parts["lora"] = LowRank(5, 4, rank=1)
    layer.parts["own"] = AdapterBank(person, lambda: LowRank(5, 4, rank=2))
    layer.parts["own"].add("sub-01")
    _shaken(layer.eval())
    x, gate = torch.randn(6, 5), torch.rand(6, 3)
    with person.using("sub-01"), gates.using(gate):
        apart = layer(x)
        layer.merge()
        torch.testing.assert_close(layer(x), apart, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layer(x), apart)


def test_nobody_in_particular_and_people_without_an_adapter_get_the_base_bit_for_bit():
    torch.manual_seed(4)
    layer, person = _banked("sub-01")
    _shaken(layer)
    x = torch.randn(6, 5)
    base = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), base)
    with person.using("sub-02"):
        assert torch.equal(layer(x), base)
        assert torch.equal(layer.plain(merge=True)(x), base)
    with person.using("sub-01"):
        assert not torch.equal(layer(x), base)
        torch.testing.assert_close(layer.plain(merge=True)(x), layer(x), atol=1e-5, rtol=1e-5)


def test_a_person_more_leaves_the_others_untouched_bit_for_bit():
    torch.manual_seed(5)
    layer, person = _banked("sub-01")
    _shaken(layer)
    x = torch.randn(6, 5)
    with person.using("sub-01"):
        before = layer(x)
        layer.parts["own"].add("sub-02")
        with person.using("sub-02"):
            _shaken(layer.parts["own"].current())
            assert not torch.equal(layer(x), before)
        assert torch.equal(layer(x), before)
    layer.parts["own"].remove("sub-01")
    with person.using("sub-01"):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("name", ["forward", "sub.01", "training", "100%", "of_x", ""])
def test_people_may_be_called_anything(name):
    layer, person = _banked(name, name + "2")
    with person.using(name):
        assert layer(torch.zeros(1, 5)).shape == (1, 4)
    with pytest.raises(ValueError, match="already"):
        layer.parts["own"].add(name)


def test_copies_of_a_network_listen_to_their_own_holder():
    layer, person = _banked("sub-01")
    net = nn.Module()
    net.layer, net.person = _shaken(layer), person
    twin, x = copy.deepcopy(net), torch.randn(3, 5)
    with twin.person.using("sub-01"):
        assert torch.equal(net.layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert not torch.equal(twin.layer(x), net.layer(x))


@pytest.mark.parametrize("kind", ["parameters", "autocast", "mixed"])
def test_bf16(kind):
    torch.manual_seed(7)
    layer, x = _shaken(LoRALinear(nn.Linear(16, 8), rank=2)), torch.randn(4, 16)
    expected = layer(x)
    if kind == "parameters":
        y = layer.to(torch.bfloat16)(x.to(torch.bfloat16))
    elif kind == "mixed":  # a base in half precision, its adapter in full
        layer.weight.data, layer.bias.data = layer.weight.data.bfloat16(), layer.bias.data.bfloat16()
        assert layer.parts["lora"].a.dtype == torch.float32
        y = layer(x.to(torch.bfloat16))
    else:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=0.1, rtol=0.05)
    y.sum().backward()
    assert bool((layer.parts["lora"].b.grad != 0).all())
    layer.eval().merge()
    assert layer.merged.dtype == layer.weight.dtype


def test_a_rank_counts_from_one():
    with pytest.raises(ValueError, match="counts from 1, found 0"):
        LowRank(4, 4, rank=0)


class _Net(nn.Module):
    """Holders set inside what is compiled, as a decoder does it."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()
        banked, self.person = _banked("sub-01", "sub-02")
        self.layers = nn.Sequential(ExpertLinear(nn.Linear(5, 5), 3, 2, self.gates), nn.GELU(), banked)

    def forward(self, x: torch.Tensor, gate: torch.Tensor, name: str | None) -> torch.Tensor:
        with self.gates.using(gate), self.person.using(name):
            return self.layers(x)


def test_compiles_without_a_break():
    torch.manual_seed(8)
    net = _shaken(_Net())
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for samples, name in ((4, "sub-01"), (7, "sub-02"), (7, None)):
        x, gate = torch.randn(samples, 5), torch.rand(samples, 3)
        torch.testing.assert_close(compiled(x, gate, name), net(x, gate, name))
    assert net.gates.value is None
