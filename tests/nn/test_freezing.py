"""Training adapters alone: what asks for gradients, what is counted where, and an audit that catches a change."""

import pytest
import torch
from torch import nn

from phosphene.decoders.lite_mind import LiteMind, LiteMindConfig
from phosphene.decoders.mindeye_mlp import MindEyeMLP, MindEyeMLPConfig
from phosphene.errors import InputError
from phosphene.nn.adapter import AdaptedLinear, AdapterBank, LowRank, Person
from phosphene.nn.attach import add_person, attach
from phosphene.nn.cost import count_parameters
from phosphene.nn.freezing import (
    adapter_names,
    frozen,
    state_digest,
    tensor_digest,
    train_only,
    trainable,
    twin,
)
from phosphene.nn.lora import LoRALinear, SkipLoRA


class _Net(MindEyeMLP):
    """An MLP for two people, each with low-rank changes of the shared layers and a skip; tiny."""

    def __init__(self) -> None:
        super().__init__(MindEyeMLPConfig(width=8, blocks=1, projector=0), {"sub-01": 30, "sub-02": 31}, (3, 4))
        self.person = Person()
        attach(self, ["blocks.*", "out"], self._adapted)
        self.skip = AdapterBank(self.person, lambda: SkipLoRA(8, 12, rank=1))
        for person in self.subjects:
            add_person(self, person)

    def _adapted(self, _: str, linear: nn.Linear) -> AdaptedLinear:
        sizes = (linear.in_features, linear.out_features)
        return AdaptedLinear(linear, own=AdapterBank(self.person, lambda: LowRank(*sizes, rank=1)))

    def _decode(self, responses: torch.Tensor, subject: str | None) -> torch.Tensor:
        h = self.inputs[self.index(str(subject))](responses)
        with self.person.using(subject):
            return self.out(self.blocks(h)) + self.skip(h)


def _step(net: nn.Module) -> None:
    torch.manual_seed(1)
    # all parameters are handed over: weight decay must not find those that are frozen
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        net(torch.randn(6, 30), "sub-01").embedding.square().sum().backward()
        optimiser.step()


def test_only_the_adapters_of_one_person_are_trained_and_all_of_them():
    net = _Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    chosen = train_only(net, "sub-01", own=["inputs.0.0.*"])
    _step(net)
    changed = [name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])]
    assert sorted(changed) == sorted(chosen)
    assert len(chosen) == 2 * 3 + 2
    assert all("of_sub-01" in name or name.startswith("inputs.0.0") for name in chosen)


def test_another_person_decodes_as_before_bit_for_bit():
    torch.manual_seed(0)
    net, x = _Net().eval(), torch.randn(4, 31)
    before = net(x, "sub-02").embedding
    train_only(net, "sub-01")
    _step(net)
    assert torch.equal(net(x, "sub-02").embedding, before)


def test_nothing_to_train_is_an_error():
    net = _Net()
    with pytest.raises(InputError, match="no adapters of sub-03"):
        train_only(net, "sub-03")
    with pytest.raises(InputError, match="no adapters of the network"):
        train_only(net, own=["input.*"])
    assert train_only(net, own=["inputs.1.0.bias"]) == ["inputs.1.0.bias"]


def test_names_tell_adapters_their_people_and_the_base_apart():
    net = _Net()
    names = adapter_names(net)
    assert names["skip.of_sub-02.path.a"] == ("sub-02", "skip.path.a")
    assert names["out.parts.own.of_sub-01.b"] == ("sub-01", "out.parts.own.b")
    assert len(names) == 12
    assert "out.weight" not in names
    lone = LoRALinear(nn.Linear(3, 2), rank=1)
    assert adapter_names(lone) == {name: (None, name) for name in ("parts.lora.a", "parts.lora.b")}
    assert set(adapter_names(SkipLoRA(3, 2, rank=1))) == {"path.a", "path.b"}


def test_what_is_trained_is_counted_by_whose_it_is():
    net = _Net()
    apart = ["inputs.*"]
    train_only(net, "sub-01", own=["inputs.0.*"])
    report = trainable(net, apart)
    assert sum(report.adapters.values()) == 8 + 8 + 8 + 12 + 8 + 12  # rank one on 8 x 8, on 8 x 12, and the skip
    assert sum(report.own.values()) == count_parameters(net.inputs[0]).total
    assert report.base == {}
    assert report.shared == 8 * 8 + 8 + 16 + 8 * 12 + 12
    assert report.share == 56 / 196
    assert "56 values of adapters (28.57% of 196 shared)" in str(report)
    net.out.weight.requires_grad_(True)
    assert trainable(net, apart).base == {"out.weight": 96}


def test_complex_parameters_count_twice_as_elsewhere():
    net = LiteMind(LiteMindConfig(patches=4, width=4, hidden=8, heads=2, blocks=1), {"sub-01": 30}, (5,))
    report = trainable(net)
    assert report.shared == sum(report.base.values()) == count_parameters(net).total


def test_audit_passes_a_run_that_trains_adapters_only():
    net = _Net()
    chosen = train_only(net, "sub-01", own=["inputs.0.*"])
    with frozen(net, own=["inputs.0.*"]) as loose:
        _step(net)
    assert sorted(loose) == sorted(chosen)


def test_audit_refuses_a_base_that_asks_for_gradients():
    net = _Net()
    train_only(net, "sub-01")
    net.blocks[0].branch[1].bias.requires_grad_(True)
    with pytest.raises(InputError, match=r"asks for gradients in: blocks\.0\.branch\.1\.bias$"), frozen(net):
        pass


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("out.weight", lambda net: net.out.weight.data[0, 0].mul_(1 + 1e-6)),
        ("standardisers.0.mean", lambda net: net.standardisers[0].mean.add_(1)),
        ("skip.of_sub-02.path.b", lambda net: net.skip._modules["of_sub-02"].path.b.data.add_(1)),
        ("blocks.0.branch.0.bias", lambda net: setattr(net.blocks[0].branch[0], "bias", nn.Parameter(torch.ones(8)))),
    ],
)
def test_audit_names_whatever_else_changed(name, change):
    net = _Net()
    train_only(net, "sub-01")

    def run() -> None:
        with frozen(net):
            _step(net)
            change(net)

    with pytest.raises(RuntimeError, match=f"frozen: {name}$"):
        run()


def test_audit_does_not_hide_an_error_of_the_training():
    net = _Net()
    train_only(net, "sub-01")

    def run() -> None:
        with frozen(net):
            net.out.weight.data.zero_()
            1 / 0

    with pytest.raises(ZeroDivisionError):
        run()


def test_digests_see_bits_type_and_shape():
    x = torch.randn(4, 3)
    assert tensor_digest(x) == tensor_digest(x.clone().T.contiguous().T)
    others = [x.bfloat16(), x.double(), x.T, x[:, :2], x.view(3, 4), -x, torch.complex(x, x), torch.tensor(1.0)]
    assert len({tensor_digest(each) for each in [x, *others]}) == 1 + len(others)
    assert tensor_digest(torch.tensor([0.0])) != tensor_digest(torch.tensor([-0.0]))


def test_a_twin_shares_memory_and_nothing_else():
    net, encoder = _Net(), object()
    net.encoder, net.twice = encoder, net.out
    flags, before = [each.requires_grad for each in net.parameters()], state_digest(net)
    other = twin(net, encoder)
    assert other.encoder is encoder
    assert other.twice is other.out is not net.out
    pairs = list(zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(one.data_ptr() == two.data_ptr() for one, two in pairs)
    with other.person.using("sub-01"):
        assert net.person.value is None
    other.requires_grad_(False).train()
    add_person(other, "sub-03")
    for each in other.parameters():
        each.data = each.data + 1  # as when a network is moved to another device
    assert [each.requires_grad for each in net.parameters()] == flags
    assert state_digest(net) == before != state_digest(other)
