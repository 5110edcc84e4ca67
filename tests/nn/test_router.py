"""Router: gates from any sum of inputs, a balance term that trains, collapse that is named."""

import math

import pytest
import torch

from phosphene.errors import InputError
from phosphene.nn.router import Router, balance, collapsed, information


@pytest.mark.parametrize("kind", ["dense", "top-k"])
def test_gates_are_shares(kind):
    torch.manual_seed(0)
    router = Router(3, experts=5, data=7, anatomy=4, kind=kind, top=2).eval()
    gates = router(torch.tensor([0, 2, -1, 1]), torch.randn(4, 7), torch.randn(1, 4))
    assert gates.shape == (4, 5)
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(4))
    assert ((gates > 0).sum(dim=1) == (5 if kind == "dense" else 2)).all()


def test_top_k_keeps_the_strongest():
    torch.manual_seed(1)
    router, data = Router(0, experts=5, data=7).eval(), torch.randn(6, 7)
    dense = router(data=data)
    router.kind, router.top = "top-k", 2
    top = router(data=data)
    kept = dense.topk(2, dim=1).indices
    assert torch.equal(top.topk(2, dim=1).indices, kept)
    torch.testing.assert_close(top.gather(1, kept), torch.softmax(dense.log().gather(1, kept), dim=1))


def test_per_token_gates_follow_the_tokens():
    torch.manual_seed(2)
    router, tokens = Router(2, experts=3, data=6, kind="per-token").eval(), torch.randn(4, 5, 6)
    gates = router(torch.tensor([1]), tokens)
    assert gates.shape == (4, 5, 3)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(router(torch.tensor([1]), tokens[:, order]), gates[:, order])


def test_one_person_alone_has_one_gate_and_temperature_sharpens_it():
    torch.manual_seed(3)
    router = Router(2, experts=4).eval()
    gate = router(torch.tensor([1]))
    assert gate.shape == (1, 4)
    router.temperature = 0.1
    assert bool(router(torch.tensor([1])).max() > gate.max())


def test_without_an_id_the_other_inputs_decide():
    torch.manual_seed(4)
    router, data = Router(2, experts=4, data=6).eval(), torch.randn(3, 6)
    without = router(None, data)
    torch.testing.assert_close(router(torch.full((3,), -1), data), without)
    assert not torch.allclose(without[0], without[1])
    assert not torch.allclose(router(torch.tensor([0, 0, 0]), data), without)


def test_ids_are_dropped_in_training_only_and_the_other_path_learns():
    torch.manual_seed(5)
    router = Router(1, experts=4, data=6, id_dropout=0.3)
    data, subject = torch.zeros(4000, 6), torch.zeros(4000, dtype=torch.long)
    nobody = router(None, data[:1])
    share = float((router(subject, data) - nobody).abs().sum(dim=1).lt(1e-6).float().mean())
    assert abs(share - 0.3) < 0.03
    assert not (router.eval()(subject, data) - nobody).abs().sum(dim=1).lt(1e-6).any()


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(6)
    router = Router(3, experts=4, data=6, anatomy=5)
    gates = router(torch.arange(30) % 3, torch.randn(30, 6), torch.randn(30, 5))
    (gates * torch.randn(30, 4)).sum().backward()
    assert all(bool((parameter.grad != 0).all()) for parameter in router.parameters())


def test_a_person_more_leaves_the_others_gates_bit_for_bit():
    torch.manual_seed(7)
    router = Router(2, experts=4).eval()
    before, names = router(torch.tensor([0, 1, -1])), list(router.state_dict())
    assert router.add_subject() == 2
    assert torch.equal(router(torch.tensor([0, 1, -1])), before)
    assert set(router.state_dict()) == {*names, "people.2"}
    assert not torch.allclose(router(torch.tensor([2])), before[2:])
    with pytest.raises(ValueError, match="without people"):
        Router(0, experts=4, data=3).add_subject()


def test_router_under_autocast_gives_float32_shares():
    torch.manual_seed(8)
    router, data = Router(2, experts=4, data=6).eval(), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        gates = router(torch.tensor([0, 1, 0]), data)
    assert gates.dtype == torch.float32
    torch.testing.assert_close(gates, router(torch.tensor([0, 1, 0]), data), atol=0.02, rtol=0.05)


def test_inputs_that_do_not_fit():
    with pytest.raises(ValueError, match="needs an input"):
        Router(0, experts=4)
    with pytest.raises(ValueError, match="needs data"):
        Router(2, experts=4, kind="per-token")
    with pytest.raises(ValueError, match="1 to 4 experts, found 5"):
        Router(2, experts=4, kind="top-k", top=5)
    with pytest.raises(ValueError, match="temperature"):
        Router(2, experts=4, temperature=0.0)
    with pytest.raises(InputError, match="unknown kind of router 'sparse'"):
        Router(2, experts=4, kind="sparse")
    with pytest.raises(ValueError, match="built with data"):
        Router(2, experts=4, data=3)(torch.tensor([0]))
    with pytest.raises(ValueError, match="built without anatomy"):
        Router(2, experts=4)(torch.tensor([0]), anatomy=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="3 axes"):
        Router(0, experts=4, data=3, kind="per-token")(data=torch.zeros(2, 3))


def test_balance_is_minus_the_mutual_information():
    torch.manual_seed(9)
    gates = torch.randn(20, 5).softmax(dim=1).double()
    joint = gates / 20
    expected = (joint * (joint / (joint.sum(0) * joint.sum(1, keepdim=True))).log()).sum()
    torch.testing.assert_close(balance(gates, sharpness=1), -expected)
    torch.testing.assert_close(balance(gates.view(4, 5, 5)), balance(gates))
    torch.testing.assert_close(balance(gates[:, torch.randperm(5)]), balance(gates))


def _balanced(router: Router, steps: int = 200, **settings: float) -> torch.Tensor:
    """Gates of six people after nothing but the balance loss."""
    everyone = torch.arange(6)
    optimiser = torch.optim.Adam(router.parameters(), lr=0.05)
    for step in range(steps):
        optimiser.zero_grad()
        balance(router(everyone), **settings).backward()
        asked = [router.of_person.weight, router.constant, *router.people]
        assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in asked)
        assert step or all(bool((parameter.grad != 0).any()) for parameter in asked)
        optimiser.step()
    return router(everyone).detach()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_balance_trains_the_router_to_share_out_the_experts(seed):
    torch.manual_seed(seed)
    router = Router(6, experts=6, id_dropout=0.0)
    before = information(router(torch.arange(6)), range(6))
    after = _balanced(router)
    assert before < 0.4
    assert information(after, range(6)) > 1.2
    assert not collapsed(after)
    # equal use alone leaves people alike
    assert information(_balanced(Router(6, experts=6, id_dropout=0.0), sharpness=0.0), range(6)) < 0.6


def test_balance_has_a_finite_gradient_where_gates_are_zero():
    torch.manual_seed(10)
    router = Router(6, experts=6, kind="top-k", top=2, id_dropout=0.0)
    before = balance(router(torch.arange(6))).detach()
    assert float(balance(_balanced(router))) < float(before) - 0.2


def test_balance_revives_an_expert_that_all_have_left():
    torch.manual_seed(11)
    router = Router(6, experts=6, id_dropout=0.0)
    router.constant.data[0] = -6.0
    assert collapsed(router(torch.arange(6))).unused == (0,)
    assert not collapsed(_balanced(router))


def test_collapse_fires_on_a_rigged_router_and_names_the_expert():
    torch.manual_seed(12)
    router = Router(3, experts=4)
    assert not collapsed(router(torch.tensor([0, 1, 2])))
    router.constant.data[2] = 12.0
    found = collapsed(router(torch.tensor([0, 1, 2])))
    assert found
    assert found.dominant == 2
    assert found.unused == (0, 1, 3)
    assert "expert 2 has 100% of all gates" in str(found)
    assert not collapsed(torch.ones(5, 1))
    assert "all 4 experts are used" in str(collapsed(torch.eye(4)))


def test_information_between_experts_and_people():
    people = ["a", "b", "c", "d"]
    assert math.isclose(information(torch.eye(4), people), math.log(4), rel_tol=1e-6)
    assert information(torch.full((4, 4), 0.25), people) < 1e-9
    # people of many trials count no more than others
    uneven = torch.eye(2)[[0, 0, 0, 0, 0, 1]]
    assert math.isclose(information(uneven, ["a"] * 5 + ["b"]), math.log(2), rel_tol=1e-6)
    # experts that differ within people only say nothing of who they are
    assert information(torch.eye(2)[[0, 1, 0, 1]], ["a", "a", "b", "b"]) < 1e-9
    assert information(torch.eye(2)[[0, 1]][:, None].expand(2, 3, 2), ["a", "b"]) > 0.69
    with pytest.raises(ValueError, match="found 2 for 4"):
        information(torch.eye(4), ["a", "b"])
