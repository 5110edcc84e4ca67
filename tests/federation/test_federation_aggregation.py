"""Aggregation of named tensors: against closed forms and slow loops, and what is refused."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from phosphene.errors import InputError
from phosphene.federation.aggregation import (
    FedAdam,
    FedAdamSettings,
    added,
    clip_norm,
    difference,
    fedavg,
    median,
    total_norm,
    trimmed_mean,
)


def made(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [
        {"a.weight": torch.randn(3, 4, generator=rng), "a.bias": torch.randn(4, generator=rng)} for _ in range(count)
    ]


def test_fedavg_is_the_weighted_mean_and_barely_knows_an_order():
    updates, weights = made(5), [1, 2, 3, 0, 10]
    mean = fedavg(updates, weights)
    for name in updates[0]:
        wanted = np.average([u[name].numpy().astype(float) for u in updates], axis=0, weights=weights)
        np.testing.assert_allclose(mean[name].numpy(), wanted, rtol=1e-6)
        assert mean[name].dtype == torch.float32
    turned = fedavg(updates[::-1], weights[::-1])
    assert all(torch.allclose(mean[name], turned[name], rtol=1e-6, atol=1e-9) for name in mean)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_the_median_is_that_of_the_standard_library(count):
    updates = made(count, seed=count)
    found = median(updates)["a.bias"]
    wanted = [statistics.median(float(u["a.bias"][i]) for u in updates) for i in range(4)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("count", "beta"), [(5, 0.2), (10, 0.3), (7, 0.4)])
def test_the_trimmed_mean_is_that_of_scipy(count, beta):
    updates = made(count, seed=count)
    wanted = trim_mean(np.stack([u["a.weight"].numpy().astype(float) for u in updates]), beta, axis=0)
    np.testing.assert_allclose(trimmed_mean(updates, beta)["a.weight"].numpy(), wanted, rtol=1e-5)


def test_robust_rules_withstand_what_a_mean_does_not():
    updates = made(5)
    poisoned = [*updates[:4], {name: tensor * 1e6 for name, tensor in updates[4].items()}]
    assert total_norm(fedavg(poisoned, [1] * 5)) > 1e5
    assert total_norm(median(poisoned)) < 5
    assert total_norm(trimmed_mean(poisoned, 0.2)) < 5


def test_robust_rules_say_how_many_sites_they_need():
    with pytest.raises(InputError, match="below 3 updates, found 2"):
        median(made(2))
    with pytest.raises(InputError, match="at least 10 sites"):
        trimmed_mean(made(9), 0.1)
    with pytest.raises(InputError, match=r"\(0, 0.5\), found 0.5"):
        trimmed_mean(made(9), 0.5)


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e9])
def test_a_clipped_update_keeps_its_direction_and_its_limit(limit):
    update = made(1)[0]
    clipped, norm = clip_norm(update, limit)
    whole = torch.cat([tensor.flatten().double() for tensor in update.values()])
    assert norm == pytest.approx(float(whole.norm()), rel=1e-12)
    assert total_norm(clipped) <= limit
    assert total_norm(clipped) == pytest.approx(min(norm, limit), rel=1e-5)
    kept = torch.cat([tensor.flatten().double() for tensor in clipped.values()])
    assert float(torch.cosine_similarity(whole, kept, dim=0)) == pytest.approx(1)


def test_clipped_updates_of_many_seeds_never_pass_the_limit():
    assert all(total_norm(clip_norm(made(1, seed=seed)[0], 0.37)[0]) <= 0.37 for seed in range(200))


def test_difference_and_sum_undo_each_other():
    before, after = made(2)
    back = added(before, difference(after, before))
    assert all(torch.allclose(back[name], after[name], atol=1e-6) for name in after)


def test_fedadam_follows_the_paper_number_by_number():
    settings = FedAdamSettings(learning_rate=0.1, beta1=0.8, beta2=0.9, tau=0.01)
    server, weights, moments = FedAdam(settings), {"w": torch.tensor([1.0])}, None
    x, m, v = 1.0, 0.0, 0.01**2
    for update in (0.5, -0.2, 0.3):
        before = weights["w"].clone()
        given = weights
        weights, moments = server.step(weights, {"w": torch.tensor([update])}, moments)
        assert torch.equal(given["w"], before)
        m, v = 0.8 * m + 0.2 * update, 0.9 * v + 0.1 * update**2
        x += 0.1 * m / (math.sqrt(v) + 0.01)
        assert float(weights["w"]) == pytest.approx(x, rel=1e-5)
    assert set(moments) == {"mean.w", "square.w"}


def test_fedadam_refuses_moments_of_other_weights():
    with pytest.raises(InputError, match=r"lacks 'mean\.w'"):
        FedAdam().step({"w": torch.zeros(2)}, {"w": torch.zeros(2)}, {"square.w": torch.zeros(2)})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda u: u.pop("a.bias"), "update 1 lacks 'a.bias'"),
        (lambda u: u.update(b=torch.zeros(1)), "update 1 has one tensor too many, 'b'"),
        (lambda u: u.update({"a.bias": torch.zeros(5)}), r"shape \(5,\) in update 1"),
        (lambda u: u.update({"a.bias": torch.zeros(4).double()}), "float64 in update 1"),
        (lambda u: u.update({"a.bias": torch.full((4,), torch.nan)}), "not finite in update 1"),
    ],
)
def test_updates_that_do_not_belong_together_are_refused(spoil, words):
    updates = made(4)
    spoil(updates[1])
    for rule in (lambda: fedavg(updates, [1] * 4), lambda: median(updates), lambda: trimmed_mean(updates, 0.25)):
        with pytest.raises(InputError, match=words):
            rule()


@pytest.mark.parametrize("weights", [[1, 1], [0, 0, 0], [1, -1, 3], [1, math.nan, 1]])
def test_weights_that_are_no_weights_are_refused(weights):
    with pytest.raises(InputError, match="weights"):
        fedavg(made(3), weights)


def test_nothing_to_aggregate_and_no_limit_are_refused():
    with pytest.raises(InputError, match="no update"):
        fedavg([], [])
    for limit in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="above 0"):
            clip_norm(made(1)[0], limit)


def test_a_norm_does_not_depend_on_the_order_of_names() -> None:
    generator = torch.Generator().manual_seed(0)
    update = {str(at): torch.randn(7, generator=generator) * 10.0**at for at in range(-6, 6)}
    turned = dict(reversed(update.items()))
    assert total_norm(update) == total_norm(turned)
    plain = sum(float(tensor.double().square().sum()) for tensor in update.values())
    assert total_norm(update) == pytest.approx(plain**0.5, rel=1e-12)
    assert not np.isfinite(total_norm({"a": torch.tensor([1.0, float("nan")])}))
