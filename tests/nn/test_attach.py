"""Attaching by name: to what, with what error, and off again without a trace."""

import pytest
import torch
from torch import nn

from phosphene.decoders.lite_mind import LiteMind, LiteMindConfig
from phosphene.decoders.mindeye_mlp import MindEyeMLP, MindEyeMLPConfig
from phosphene.errors import InputError
from phosphene.nn.adapter import AdaptedLinear, AdapterBank, LowRank, Person
from phosphene.nn.attach import add_person, attach, batch_axes, detach, matching
from phosphene.nn.experts import ExpertLinear, Gates
from phosphene.nn.lora import LoRALinear

PEOPLE = {"sub-01": 30, "sub-02": 31}


def _mlp() -> MindEyeMLP:
    return MindEyeMLP(MindEyeMLPConfig(width=8, blocks=2, projector=6), PEOPLE, (3, 4)).eval()


def _lite(pooled: bool = False) -> LiteMind:
    config = LiteMindConfig(patches=3, width=4, hidden=8, heads=2, blocks=1, linear_rank=2)
    return LiteMind(config, PEOPLE, (5,) if pooled else (3, 4)).eval()


def _lora(_: str, linear: nn.Linear) -> LoRALinear:
    return LoRALinear(linear, rank=2)


def _shake(module: nn.Module) -> None:
    for each in module.modules():
        if isinstance(each, AdaptedLinear):
            for parameter in each.parts.parameters():
                nn.init.normal_(parameter.data, std=0.3)


def test_lists_what_it_matched_on_the_mlp():
    names = attach(_mlp(), ["*"], _lora, but=["inputs.*"])
    assert names == ["blocks.0.branch.0", "blocks.1.branch.0", "out", "projector.2", "projector.5", "projector.8"]


def test_on_lite_mind_only_linear_layers_are_there_to_adapt():
    names = attach(_lite(), ["*"], _lora, but=["linear.people.*"])
    block = ["blocks.0.library.gate", "blocks.0.mixer.branch.1", "blocks.0.mixer.branch.4"]
    assert names == [*block, "readout.mixer.lift", "readout.out"]


def test_a_pattern_that_fits_nothing_is_named_with_what_there_is():
    with pytest.raises(InputError, match=r"named like 'block\.\*'; there are: blocks\.0\.branch\.0, "):
        attach(_mlp(), ["out", "block.*"], _lora)
    with pytest.raises(InputError, match="leaves no linear layer"):
        attach(_mlp(), ["inputs.*"], _lora, but=["*"])
    with pytest.raises(InputError, match="there are: none"):
        attach(nn.Sequential(nn.GELU()), ["*"], _lora)


def test_layers_whose_owner_bypasses_them_and_adapted_ones_are_not_matched():
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "out": nn.Linear(4, 4)})
    assert matching(net, ["*"]) == ["out"]
    attach(net, ["out"], _lora)
    with pytest.raises(InputError, match="there are: none"):
        attach(net, ["out"], _lora)


@pytest.mark.parametrize("build", [_mlp, _lite])
def test_attached_and_untrained_it_decodes_as_before_bit_for_bit(build):
    torch.manual_seed(0)
    decoder, x = build(), torch.randn(5, 30)
    before, state = decoder(x, "sub-01").embedding, {n: t.clone() for n, t in decoder.state_dict().items()}
    attach(decoder, ["*"], _lora)
    assert torch.equal(decoder(x, "sub-01").embedding, before)
    _shake(decoder)
    assert not torch.equal(decoder(x, "sub-01").embedding, before)
    assert all(torch.equal(decoder.state_dict()[name], tensor) for name, tensor in state.items())
    detach(decoder)
    assert list(decoder.state_dict()) == list(state)
    assert torch.equal(decoder(x, "sub-01").embedding, before)
    assert all(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.parametrize("build", [_mlp, _lite])
def test_detached_and_merged_it_decodes_as_adapted_for_the_person_of_the_moment(build):
    torch.manual_seed(1)
    decoder, person, gates, x = build(), Person(), Gates(), torch.randn(5, 30)
    names = matching(decoder, ["*"], but=["inputs.*", "linear.*"])
    axes = batch_axes(decoder, names, lambda n: decoder(torch.zeros(n, 30), "sub-01"))

    def make(name: str, linear: nn.Linear) -> AdaptedLinear:
        layer = ExpertLinear(linear, experts=3, rank=1, gates=gates, batch_axis=axes[name])
        layer.parts["own"] = AdapterBank(person, lambda: LowRank(linear.in_features, linear.out_features, rank=1))
        return layer

    assert attach(decoder, names, make) == names
    add_person(decoder, "sub-01")
    _shake(decoder)
    with person.using("sub-01"), gates.using(torch.rand(1, 3)):
        adapted = decoder(x, "sub-01").embedding
        assert detach(decoder, merge=True) == names
    torch.testing.assert_close(decoder(x, "sub-01").embedding, adapted, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(each, AdaptedLinear) for each in decoder.modules())


def test_a_layer_in_two_places_stays_one():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.GELU(), shared)
    assert attach(net, ["*"], _lora) == ["0", "2"]
    assert net[0] is net[2]
    assert detach(net) == ["0", "2"]
    assert net[0] is net[2]


@pytest.mark.parametrize("pooled", [True, False])
def test_finds_the_axis_of_the_samples(pooled):
    decoder = _lite(pooled)
    names = matching(decoder, ["*"], but=["linear.people.1"])
    axes = batch_axes(decoder, names, lambda n: decoder(torch.zeros(n, 30), "sub-01"))
    tokens_first = {name for name in names if "mixer" in name}
    assert {name for name, axis in axes.items() if axis == 1} == tokens_first
    assert len(tokens_first) == 3


def test_with_its_axis_each_sample_of_lite_mind_feels_its_own_gate_only():
    torch.manual_seed(2)
    decoder, gates, x = _lite(), Gates(), torch.randn(3, 30)  # as many samples as patches and tokens
    names = matching(decoder, ["*"], but=["linear.*"])
    axes = batch_axes(decoder, names, lambda n: decoder(torch.zeros(n, 30), "sub-01"))
    attach(decoder, names, lambda name, linear: ExpertLinear(linear, 2, 1, gates, batch_axis=axes[name]))
    _shake(decoder)
    both = torch.rand(3, 2)
    with gates.using(both):
        together = decoder(x, "sub-01").embedding
    for sample in range(3):
        with gates.using(both[sample : sample + 1]):
            alone = decoder(x[sample : sample + 1], "sub-01").embedding
        torch.testing.assert_close(together[sample : sample + 1], alone, atol=1e-5, rtol=1e-5)


def test_a_readout_in_pieces_refuses_gates_of_the_whole_batch_until_it_takes_it_whole():
    torch.manual_seed(3)
    decoder, gates, x = _lite(), Gates(), torch.randn(40, 30)
    attach(decoder, ["readout.out"], lambda _, linear: ExpertLinear(linear, 2, 1, gates))
    _shake(decoder)
    with gates.using(torch.rand(40, 2)):
        expected = decoder(x, "sub-01").embedding
        with torch.no_grad(), pytest.raises(ValueError, match=r"gates.*found \(40, 2\)"):
            decoder(x, "sub-01")
        decoder.readout.piece = 40
        with torch.no_grad():
            torch.testing.assert_close(decoder(x, "sub-01").embedding, expected)


def test_layers_that_are_never_reached_are_named():
    decoder = _mlp()
    with pytest.raises(InputError, match=r"inputs\.1\.0 is not reached"):
        batch_axes(decoder, ["out", "inputs.1.0"], lambda n: decoder(torch.zeros(n, 30), "sub-01"))

    net = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 2))
    with pytest.raises(InputError, match="no axis of samples"):
        batch_axes(net, ["1"], lambda n: net(torch.zeros(n, 5, 4)))
    assert net.training
    assert not net[1]._forward_pre_hooks


def test_people_are_added_once_to_every_bank():
    decoder, person = _mlp(), Person()
    with pytest.raises(InputError, match="no banks"):
        add_person(decoder, "sub-03")
    attach(
        decoder,
        ["blocks.*"],
        lambda _, linear: AdaptedLinear(linear, own=AdapterBank(person, lambda: LowRank(8, 8, 1))),
    )
    add_person(decoder, "sub-03")
    assert sum("of_sub-03" in name for name in decoder.state_dict()) == 4
    with pytest.raises(InputError, match="'sub-03' has adapters"):
        add_person(decoder, "sub-03")
