"""Objectives against slow loops and torch's own cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from phosphene.training import losses


def batch(n=7, d=5, n_stimuli=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randn(n, d, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(n_stimuli, d, generator=generator, dtype=torch.float64)
    stimulus = torch.arange(n) % n_stimuli
    partner = stimulus[torch.randperm(n, generator=generator)]
    share = torch.rand(n, generator=generator, dtype=torch.float64)
    share[0] = 1.0
    return predictions, targets, stimulus, partner, share


def similarity(predictions, targets, temperature):
    return functional.normalize(predictions, dim=1) @ functional.normalize(targets, dim=1).T / temperature


def slow_weighted(s, weights):
    """The equation of `bimixco`, pair by pair; row sums of `weights` are one."""
    s = s.detach()
    n, n_stimuli = s.shape
    total = 0.0
    for i in range(n):
        for u in range(n_stimuli):
            if weights[i, u] == 0:
                continue
            to_image = math.exp(s[i, u]) / sum(math.exp(s[i, v]) for v in range(n_stimuli))
            others = sum(math.exp(s[k, u]) for k in range(n) if weights[k, u] == 0)
            to_brain = math.exp(s[i, u]) / (math.exp(s[i, u]) + others)
            total += weights[i, u] * (math.log(to_image) + math.log(to_brain))
    return -total / (2 * n)


def test_infonce_is_clip_loss_when_every_stimulus_occurs_once():
    predictions, targets, *_ = batch(n=6, n_stimuli=6)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    logits = similarity(predictions, targets[order], 0.1)
    expected = (
        functional.cross_entropy(logits, torch.arange(6)) + functional.cross_entropy(logits.T, torch.arange(6))
    ) / 2
    torch.testing.assert_close(losses.infonce(predictions, targets, order, 0.1), expected)


def test_infonce_with_repeats_matches_the_slow_loop():
    predictions, targets, stimulus, *_ = batch()
    weights = functional.one_hot(stimulus, 4).double()
    expected = slow_weighted(similarity(predictions, targets, 0.2), weights)
    assert losses.infonce(predictions, targets, stimulus, 0.2).item() == pytest.approx(float(expected), rel=1e-9)


def test_trials_of_one_stimulus_do_not_push_each_other_away():
    targets = torch.eye(2, dtype=torch.float64)
    stimulus = torch.tensor([0, 0, 1])
    perfect = targets[stimulus]
    loss = losses.infonce(perfect, targets, stimulus, 0.05)
    assert float(loss) < 1e-6
    # the naive loss treats the second trial as a negative and cannot go below log(2) in these rows
    naive = functional.cross_entropy(similarity(perfect, perfect, 0.05), torch.arange(3))
    assert float(naive) > 0.4


def test_bimixco_matches_the_slow_loop_and_is_infonce_without_mixing():
    predictions, targets, stimulus, partner, share = batch()
    weights = torch.zeros(7, 4, dtype=torch.float64)
    for i in range(7):
        weights[i, stimulus[i]] += share[i]
        weights[i, partner[i]] += 1 - share[i]
    expected = slow_weighted(similarity(predictions, targets, 0.2), weights)
    loss = losses.bimixco(predictions, targets, stimulus, 0.2, partner, share)
    assert loss.item() == pytest.approx(float(expected), rel=1e-9)
    plain = losses.bimixco(predictions, targets, stimulus, 0.2, partner, torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(plain, losses.infonce(predictions, targets, stimulus, 0.2))


def test_softclip_matches_soft_labels_over_trials():
    predictions, targets, stimulus, *_ = batch(n=6, n_stimuli=6)
    stimulus = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    logits, labels = (
        similarity(predictions, targets[stimulus], 0.3),
        similarity(targets[stimulus], targets[stimulus], 0.3),
    )
    expected = (
        functional.cross_entropy(logits, labels.softmax(1)) + functional.cross_entropy(logits.T, labels.softmax(1))
    ) / 2
    torch.testing.assert_close(losses.softclip(predictions, targets, stimulus, 0.3), expected)


def test_softclip_with_repeats_has_its_minimum_where_repeats_agree():
    _, targets, stimulus, *_ = batch(n=8, d=4, n_stimuli=4)
    predictions = targets[stimulus].clone().requires_grad_()
    losses.softclip(predictions, targets, stimulus, 0.5).backward()
    assert float(predictions.grad.abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["infonce", "softclip", "bimixco"])
def test_gradients_are_right_and_finite(name):
    predictions, targets, stimulus, partner, share = batch()
    more = (partner, share) if name == "bimixco" else ()
    assert torch.autograd.gradcheck(lambda p: getattr(losses, name)(p, targets, stimulus, 0.5, *more), predictions)
    # a batch of one stimulus has no negatives at all: no information, no NaN
    one = torch.zeros(3, dtype=torch.long)
    lone = predictions.detach()[:3].clone().requires_grad_()
    more = (one, torch.full((3,), 0.5, dtype=torch.float64)) if name == "bimixco" else ()
    getattr(losses, name)(lone, targets[:1], one, 0.5, *more).backward()
    assert torch.isfinite(lone.grad).all()


def test_learned_temperature_gets_a_gradient_but_not_through_soft_labels():
    predictions, targets, stimulus, *_ = batch(n=4)
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.softclip(predictions, targets, stimulus, temperature), temperature)
    fixed = losses.softclip(predictions, targets, stimulus, 0.5)
    logits, labels = similarity(predictions, targets, 1.0), similarity(targets, targets, 0.5)
    free = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    scaled = logits / free
    by_hand = functional.cross_entropy(scaled, labels.softmax(1)) + functional.cross_entropy(
        scaled.T, labels.softmax(1)
    )
    (expected,) = torch.autograd.grad(by_hand / 2, free)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(fixed, by_hand.detach() / 2)


def test_regression_terms():
    _, targets, stimulus, partner, share = batch()
    aligned = losses.mixed_targets(targets, stimulus, partner, share)
    for i in range(7):
        expected = share[i] * targets[stimulus[i]] + (1 - share[i]) * targets[partner[i]]
        torch.testing.assert_close(aligned[i], expected)
    assert float(losses.mse(aligned, aligned)) == 0
    everything = torch.randn(1000, 8, dtype=torch.float64)
    mean, variance = everything.mean(0).expand(1000, 8), everything.var(0, unbiased=False).mean()
    assert float(losses.mse(mean, everything, variance)) == pytest.approx(1.0)
    assert float(losses.cosine(3 * aligned, aligned)) == pytest.approx(0.0, abs=1e-9)
    assert float(losses.cosine(-aligned, aligned)) == pytest.approx(2.0)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 5\)"):
        losses.infonce(torch.zeros(3, 4), torch.zeros(2, 5), torch.zeros(3, dtype=torch.long), 0.1)
