"""One small file a person: goes back to its own base, under another name too, and to no other base."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from phosphene.errors import InputError
from phosphene.nn.adapter import AdaptedLinear, AdapterBank, LowRank, Person
from phosphene.nn.adapter_file import adapter_state, base_digest, load_adapter, read_adapter, save_adapter
from phosphene.nn.attach import add_person, attach, detach
from phosphene.nn.experts import ExpertLinear, Gates
from phosphene.nn.lora import LoRALinear
from phosphene.nn.router import Router


def _base(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 16), nn.GELU(), nn.Linear(16, 8)).eval()


def _lora(net: nn.Module, rank: int = 2) -> nn.Module:
    attach(net, ["2"], lambda _, linear: LoRALinear(linear, rank))
    return net


def _shake(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter.data)


class _People(nn.Module):
    """A trunk with experts for all, a change of its own for each person, an input layer for each."""

    def __init__(self, *people: str, seed: int = 0) -> None:
        super().__init__()
        self.trunk, self.gates, self.person = _base(seed), Gates(), Person()
        self.inputs = nn.ModuleList([nn.Linear(5, 40) for _ in people])
        self.router = Router(len(people), experts=2)
        attach(self.trunk, ["2"], self._adapted)
        _shake(self.trunk[2].parts)
        for person in people:
            add_person(self, person)
        _shake(self.trunk[2].parts)

    def _adapted(self, _: str, linear: nn.Linear) -> AdaptedLinear:
        layer = ExpertLinear(linear, experts=2, rank=1, gates=self.gates)
        layer.parts["own"] = AdapterBank(self.person, lambda: LowRank(16, 8, rank=2))
        return layer

    def forward(self, x: torch.Tensor, person: str, at: int) -> torch.Tensor:
        with self.person.using(person), self.gates.using(torch.tensor([[0.3, 0.7]])):
            return self.trunk(self.inputs[at](x))


APART = ["inputs.*", "router.people.*"]


def test_digest_of_the_base_does_not_see_adapters():
    net = _base()
    plain = base_digest(net)
    _lora(net)
    _shake(net[2].parts)
    assert base_digest(net) == plain
    net[2].merge()
    assert base_digest(net) == plain
    detach(net)
    assert base_digest(net) == plain
    net[0].weight.data[0, 0] += 1e-6
    assert base_digest(net) != plain


def test_there_and_back_through_a_small_file(tmp_path):
    net, x = _lora(_base()), torch.randn(3, 40)
    _shake(net[2].parts)
    path = save_adapter(tmp_path / "one.safetensors", net, about={"rank": 2, "person": "sub-09"})
    assert path.stat().st_size < 1000 < 4 * sum(parameter.numel() for parameter in net.parameters())
    found = read_adapter(path)
    assert found.about == {"rank": 2, "person": "sub-09"}
    assert set(found.tensors) == {"2.parts.lora.a", "2.parts.lora.b"}
    other = _lora(_base())
    assert not torch.equal(other(x), net(x))
    other[2].merge()
    load_adapter(other, found.tensors, found.base)
    assert torch.equal(other(x), net(x))


def test_another_base_is_refused_and_nothing_is_changed(tmp_path):
    net = _lora(_base())
    _shake(net[2].parts)
    found = read_adapter(save_adapter(tmp_path / "a.safetensors", net))
    other = _lora(_base(seed=1))
    with pytest.raises(InputError, match=f"another base model: to {found.base}, this one is {base_digest(other)}"):
        load_adapter(other, found.tensors, found.base)
    assert bool((other[2].parts["lora"].b == 0).all())


def test_what_the_network_rests_on_itself_counts(tmp_path):
    net = _lora(_base())
    assert base_digest(net, beside=["front"]) != base_digest(net)
    found = read_adapter(save_adapter(tmp_path / "a.safetensors", net, beside=["front"]))
    load_adapter(_lora(_base()), found.tensors, found.base, beside=["front"])
    for beside in ([], ["another"]):
        with pytest.raises(InputError, match="another base model"):
            load_adapter(_lora(_base()), found.tensors, found.base, beside=beside)


def test_places_that_do_not_fit_are_named(tmp_path):
    net = _lora(_base())
    found = read_adapter(save_adapter(tmp_path / "a.safetensors", net))
    with pytest.raises(InputError, match=r"'2\.parts\.lora\.a' has shape \(2, 16\) in the adapter, \(3, 16\) here"):
        load_adapter(_lora(_base(), rank=3), found.tensors, found.base)
    with pytest.raises(InputError, match=r"a tensor too many for this network, '2\.parts\.lora\.a'"):
        load_adapter(_base(), found.tensors, found.base)
    attach(net, ["0"], lambda _, linear: LoRALinear(linear, 2))
    with pytest.raises(InputError, match=r"the adapter lacks '0\.parts\.lora\.a'"):
        load_adapter(net, found.tensors, found.base)
    with pytest.raises(InputError, match=r"no adapters of its own; of people: none"):
        adapter_state(_base())


def test_a_persons_file_holds_what_is_theirs_and_goes_to_another_place(tmp_path):
    net, x = _People("sub-01", "sub-02"), torch.randn(3, 5)
    own = ["inputs.1.*", "router.people.1"]
    path = save_adapter(tmp_path / "p.safetensors", net, "sub-02", own, APART)
    found = read_adapter(path)
    assert set(found.tensors) == {
        "trunk.2.parts.own.a",
        "trunk.2.parts.own.b",
        "inputs.1.weight",
        "inputs.1.bias",
        "router.people.1",
    }
    # the same trunk and experts, other people: as many, one under another name
    other = _People("sub-07", "sub-08")
    _shake(nn.ModuleList([other.trunk[2].parts, other.inputs, other.router]))
    assert not torch.equal(other(x, "sub-08", 1), net(x, "sub-02", 1))
    assert base_digest(other, "sub-08", APART) != found.base  # its experts differ
    with pytest.raises(InputError, match="another base"):
        load_adapter(other, found.tensors, found.base, "sub-08", APART)
    other.trunk[2].parts["experts"].load_state_dict(net.trunk[2].parts["experts"].state_dict())
    shared = {n: each for n, each in net.router.state_dict().items() if not n.startswith("people")}
    other.router.load_state_dict(shared, strict=False)
    before = other(x, "sub-07", 0)
    load_adapter(other, found.tensors, found.base, "sub-08", APART)
    assert torch.equal(other(x, "sub-08", 1), net(x, "sub-02", 1))
    assert torch.equal(other(x, "sub-07", 0), before)


def test_a_persons_base_is_the_same_whoever_else_is_there():
    net = _People("sub-01", "sub-02")
    before = base_digest(net, "sub-01", APART)
    net.inputs.append(nn.Linear(6, 40))
    net.router.add_subject()
    add_person(net, "sub-03")
    assert base_digest(net, "sub-01", APART) == before == base_digest(net, "sub-03", APART)
    assert base_digest(net, "sub-01", APART) != base_digest(net, None, APART)
    with pytest.raises(InputError, match="no adapters of sub-04; of people: sub-01, sub-02, sub-03"):
        adapter_state(net, "sub-04")


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_adapter(tmp_path / "none.safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x80\x04 this is no such file")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_adapter(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="holds no phosphene adapter"):
        read_adapter(path)
    save_file({"a": torch.zeros(2)}, path, metadata={"format": "phosphene-adapter", "base": "0", "about": "{"})
    with pytest.raises(InputError, match="not a readable"):
        read_adapter(path)


def test_facts_must_be_json(tmp_path):
    net = _lora(_base())
    with pytest.raises(ValueError, match="JSON"):
        save_adapter(tmp_path / "a.safetensors", net, about={"loss": float("nan")})
    assert not (tmp_path / "a.safetensors").exists()
    about = {"name": "Zoë", "list": [1, 2]}
    assert read_adapter(save_adapter(tmp_path / "a.safetensors", net, about=about)).about == json.loads(
        json.dumps(about)
    )
