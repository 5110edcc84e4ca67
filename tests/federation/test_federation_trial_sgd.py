"""Private training per trial: against a loop by hand, and against Opacus' own accountant."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from phosphene.errors import InputError
from phosphene.federation.accounting import Accountant, Release
from phosphene.federation.trial_sgd import TrialSgd, TrialSgdSettings, check_terms

pytest.importorskip("opacus", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")


def toy(n=24, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(n, 6, generator=rng)
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    return x, torch.randint(0, 3, (n,), generator=rng), module


def loss_of(x, y, module):
    return lambda row: functional.cross_entropy(module(x[row : row + 1]), y[row : row + 1])


def flat(module):
    return torch.cat([each.detach().flatten().clone() for each in module.parameters()])


def test_a_step_is_the_mean_of_clipped_gradients():
    x, y, module = toy()
    private = TrialSgd(
        module, torch.optim.SGD(module.parameters(), 1.0),
        TrialSgdSettings(gradient_limit=0.3, noise=1e-9, batch_size=8), len(x), seed=0,
    )  # fmt: skip
    rows = torch.tensor([1, 4, 9, 10, 20])
    wanted = torch.zeros_like(flat(module))
    for row in rows.tolist():
        found = torch.autograd.grad(loss_of(x, y, module)(row), list(module.parameters()))
        gradient = torch.cat([each.flatten() for each in found])
        assert float(gradient.norm()) > 0.3
        wanted += gradient * (0.3 / gradient.norm())
    before = flat(module)
    private.step(rows, loss_of(x, y, module))
    torch.testing.assert_close(before - flat(module), wanted / 8, rtol=1e-4, atol=1e-6)


def test_noise_has_the_stated_deviation_also_in_an_empty_batch():
    module = nn.Linear(200, 50)
    private = TrialSgd(
        module, torch.optim.SGD(module.parameters(), 1.0),
        TrialSgdSettings(gradient_limit=0.5, noise=3.0, batch_size=10), 100, seed=0,
    )  # fmt: skip
    before = flat(module)
    private.step(torch.zeros(0, dtype=torch.int64), lambda row: module.weight.sum())
    moved = flat(module) - before
    assert float(moved.std()) == pytest.approx(3.0 * 0.5 / 10, rel=5 / math.sqrt(2 * len(moved)))


def test_a_parameter_that_a_trial_does_not_touch_gets_noise_and_no_error():
    x, y, module = toy()
    module.register_parameter("idle", nn.Parameter(torch.zeros(500)))
    private = TrialSgd(module, torch.optim.SGD(module.parameters(), 1.0), TrialSgdSettings(), len(x), seed=0)
    private.step(torch.arange(3), loss_of(x, y, module))
    assert float(module.idle.detach().std()) == pytest.approx(1.0 / len(x), rel=0.2)


def test_batches_are_drawn_trial_by_trial():
    _, _, module = toy()
    private = TrialSgd(
        module, torch.optim.SGD(module.parameters(), 1.0), TrialSgdSettings(batch_size=20), 200, seed=1
    )  # fmt: skip
    sizes = torch.tensor([float(len(rows)) for rows in private.batches(epochs=40)])
    assert len(sizes) == 400
    assert float(sizes.mean()) == pytest.approx(20, abs=5 * math.sqrt(18 / 400))
    assert float(sizes.var()) == pytest.approx(18, rel=0.4)  # of a binomial; of fixed batches it is 0


def test_the_same_seed_trains_the_same_weights_and_no_seed_others():
    def trained(seed):
        x, y, module = toy()
        private = TrialSgd(
            module, torch.optim.Adam(module.parameters(), 0.1), TrialSgdSettings(batch_size=6), len(x), ("task",), seed,
            "site-1", 2,
        )  # fmt: skip
        for rows in private.batches(epochs=2):
            private.step(rows, loss_of(x, y, module))
        return flat(module)

    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(None), trained(None))


def test_what_it_costs_is_near_what_opacus_reckons_itself():
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    from opacus.accountants import RDPAccountant

    x, _, module = toy(n=200)
    private = TrialSgd(
        module, torch.optim.SGD(module.parameters(), 1.0), TrialSgdSettings(noise=1.2, batch_size=20), len(x), seed=0
    )  # fmt: skip
    release = private.settings.release(len(x), epochs=5)
    assert len(list(private.batches(epochs=5))) == release.steps
    assert release == Release("gradients", 1.2, steps=50, rate=0.1)
    accountant, theirs = Accountant(1e-5), RDPAccountant()
    accountant.spend("a", [release])
    for _ in range(50):
        theirs.step(noise_multiplier=1.2, sample_rate=0.1)
    assert accountant.epsilon("trial") == pytest.approx(theirs.get_epsilon(1e-5), rel=0.02)


def test_private_training_learns_where_there_is_enough_to_learn():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=rng)
    y = (x[:, 0] > 0).long()
    torch.manual_seed(0)
    module = nn.Linear(6, 2)
    private = TrialSgd(
        module, torch.optim.SGD(module.parameters(), 1.0), TrialSgdSettings(batch_size=100), len(x), seed=0
    )  # fmt: skip
    for rows in private.batches(epochs=4):
        private.step(rows, loss_of(x, y, module))
    assert float((module(x).argmax(dim=1) == y).float().mean()) > 0.85


@pytest.mark.parametrize("term", ["retrieval", "contrast fusion"])
def test_contrastive_losses_are_refused_with_the_reason(term):
    with pytest.raises(InputError, match=rf"not with: {term}.*negative of the others"):
        check_terms(["task", term])
    x, _, module = toy()
    with pytest.raises(InputError, match="classification loss alone"):
        TrialSgd(module, torch.optim.SGD(module.parameters(), 1.0), TrialSgdSettings(), len(x), ["task", term])


def test_what_cannot_be_trained_privately_is_refused():
    mixing = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(InputError, match=r"mix the trials of a batch.*: 1"):
        TrialSgd(mixing, torch.optim.SGD(mixing.parameters(), 1.0), TrialSgdSettings(), 5)
    _, _, module = toy()
    with pytest.raises(InputError, match="optimiser lacks"):
        TrialSgd(module, torch.optim.SGD(module[0].parameters(), 1.0), TrialSgdSettings(), 5)
    optimiser = torch.optim.SGD(module.parameters(), 1.0)
    with pytest.raises(InputError, match="at least one trial"):
        TrialSgd(module, optimiser, TrialSgdSettings(), 0)
    with pytest.raises(InputError, match="at least 1, found 5 and 0"):
        TrialSgdSettings().release(5, epochs=0)
