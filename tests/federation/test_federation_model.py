"""The network: what is private, what is shared, and that all of it learns."""

from __future__ import annotations

import pytest
import torch
from federation_sites import AGREEMENT, made_trials, same

from phosphene.errors import InputError
from phosphene.federation.model import PmcmModel
from phosphene.federation.settings import FederationModelConfig

TRUNKS = ("linear", "mlp", "lite-mind")


def model(trunk: str = "mlp", people: dict[str, int] | None = None, adapter: str = "learned", **changes) -> PmcmModel:
    made = PmcmModel(FederationModelConfig(width=16, trunk=trunk, adapter=adapter, **changes), AGREEMENT, seed=5)
    made.add_people({"p1": 40, "p2": 50} if people is None else people)
    return made


@pytest.mark.parametrize("adapter", ["learned", "ridge"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_shapes_and_every_parameter_learns_but_adapters_in_closed_form(trunk, adapter):
    made = model(trunk, adapter=adapter)
    if adapter == "ridge":  # silent until it is fitted
        assert not any(each.any() for each in made.private_state().values())
        made.load_private({name: torch.randn(each.shape) for name, each in made.private_state().items()})
    trials = made_trials(0, {"p1": 40, "p2": 50}, n=6, public=2)
    features = made.encode(trials.inputs)
    assert features.shape == (14, 3, 16)
    fused = made.fuse(features, trials.present, made.tokens.expand(14, 3, 16))
    assert fused.z.shape == (14, 16)
    assert fused.logits.shape == (14, 4)
    assert fused.embedding.shape == (14, 10)
    optimiser = torch.optim.SGD([each for each in made.parameters() if each.requires_grad], 0.05)
    reached = set()
    for step in range(2):
        present = torch.tensor([True, step == 0, step == 1]).expand(14, 3) & trials.present
        present = torch.where(present.any(dim=1, keepdim=True), present, trials.present)
        fused = made.fuse(made.encode(trials.inputs), present, made.tokens.expand(14, 3, 16))
        optimiser.zero_grad()
        (fused.logits.square().sum() + fused.embedding.square().sum()).backward()
        optimiser.step()
        reached |= {name for name, each in made.named_parameters() if each.grad is not None and each.grad.any()}
    fixed = made.private_parameters().values() if adapter == "ridge" else ()
    assert len(reached) == len(list(made.parameters())) - len(fixed)
    assert not any(each.requires_grad for each in fixed)


@pytest.mark.parametrize("adapter", ["learned", "ridge"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_private_and_shared_make_up_everything_and_shared_is_float_parameters_alone(trunk, adapter):
    made = model(trunk, {"p1": 41, "p2": 53}, adapter)
    shared, private = made.shared_parameters(), made.private_parameters()
    assert len(shared) + len(private) == len(list(made.parameters()))
    assert {name.split("/")[0] for name in private} == {"p1", "p2"}
    assert all(tensor.dtype == torch.float32 for tensor in made.shared_state().values())
    beside = made.state_dict().keys() - shared.keys()
    assert all("adapters." in name or "inputs." in name for name in beside), "such a buffer would not be averaged"
    assert not any(41 in tensor.shape or 53 in tensor.shape for tensor in shared.values())


@pytest.mark.parametrize("trunk", TRUNKS)
def test_who_else_is_at_a_site_changes_neither_shared_nor_anybody_elses_weights(trunk):
    one, other = model(trunk), model(trunk, {"p9": 77, "p2": 50})
    assert same(one.shared_state(), other.shared_state())
    second = {name: tensor for name, tensor in one.private_state().items() if name.startswith("p2/")}
    assert second
    assert all(torch.equal(tensor, other.private_state()[name]) for name, tensor in second.items())


def test_state_goes_round():
    one, other = model(), PmcmModel(FederationModelConfig(width=16, adapter="learned"), AGREEMENT, seed=6)
    other.add_people({"p2": 50, "p1": 40})  # another order
    other.load_shared(one.shared_state())
    other.load_private(one.private_state())
    inputs = made_trials(0, {"p1": 40, "p2": 50}, n=3).inputs
    one.eval(), other.eval()
    assert torch.equal(one.encode(inputs), other.encode(inputs))
    with pytest.raises(InputError, match="lack 'tokens'"):
        other.load_shared({name: value for name, value in one.shared_state().items() if name != "tokens"})
    with pytest.raises(InputError, match=r"'tokens' is \(2, 16\), \(3, 16\) here"):
        other.load_shared({**one.shared_state(), "tokens": torch.zeros(2, 16)})


def test_absent_modalities_give_zeros_and_substitutes_stand_in():
    made, trials = model().eval(), made_trials(0, {"p1": 40}, n=5, public=2)
    features = made.encode(trials.inputs)
    assert not features[5:, 0].any()
    stand_in = torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(0))
    one = made.fuse(features, trials.present, stand_in).z
    moved = stand_in.clone()
    moved[:, 1:] += 1  # present: not read
    assert torch.equal(one, made.fuse(features, trials.present, moved).z)
    moved[:, 0] += 1
    assert torch.equal(one[:5], made.fuse(features, trials.present, moved).z[:5])
    assert (one[5:] != made.fuse(features, trials.present, moved).z[5:]).any()


def test_fusion_is_the_papers_formula():
    made = model().eval()
    features = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    normed = torch.cat([torch.nn.functional.layer_norm(features[:, m], (16,)) for m in range(3)], dim=1)
    expected = torch.tanh((normed @ made.fusion.mix.weight.T + made.fusion.mix.bias) / 2)
    torch.testing.assert_close(made.fusion(features), expected)


def test_heads_may_be_left_out():
    made = model(heads=("classification",))
    fused = made.fuse(torch.ones(1, 3, 16), torch.ones(1, 3).bool(), torch.zeros(1, 3, 16))
    assert fused.embedding is None
    assert not any(name.startswith("retrieve") for name in made.shared_state())


def test_strangers_and_other_widths_are_refused():
    made = model()
    with pytest.raises(InputError, match="unknown person of this site: 'p3'"):
        made.encode(made_trials(0, {"p3": 40}, n=2).inputs)
    inputs = made_trials(0, {"p1": 40}, n=2).inputs
    wrong = type(inputs)(inputs.subjects, inputs.responses, inputs.text, inputs.text, inputs.present)
    with pytest.raises(InputError, match="image embeddings have width 7, the sites agreed on 10"):
        made.encode(wrong)
    with pytest.raises(InputError, match="p1 has an adapter already"):
        made.add_people({"p1": 40})
