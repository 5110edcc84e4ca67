"""Contrast with several positives against slow loops, torch's cross-entropy and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from phosphene.training import losses
from phosphene.training.contrast import contrast, cosines, instance


def logits(n_images=5, n_texts=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(n_images, n_texts, generator=generator, dtype=torch.float64, requires_grad=True)
    two = torch.randn(n_images, n_texts, generator=generator, dtype=torch.float64, requires_grad=True)
    positive = torch.rand(n_images, n_texts, generator=generator) < 0.3
    positive[0] = False
    positive[1, :2] = True
    ignore = torch.rand(n_images, n_texts, generator=generator) < 0.2
    return one, two, positive, ignore


def slow_softmax(s, positive, ignore):
    """Rows only."""
    rows = []
    for i in range(len(s)):
        negatives = sum(math.exp(s[i, k]) for k in range(s.shape[1]) if not positive[i, k] and not ignore[i, k])
        shares = [
            -math.log(math.exp(s[i, c]) / (math.exp(s[i, c]) + negatives))
            for c in range(s.shape[1])
            if positive[i, c] and not ignore[i, c]
        ]
        if shares:
            rows.append(sum(shares) / len(shares))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("ignoring", [False, True])
def test_softmax_matches_the_slow_loop(ignoring):
    one, two, positive, ignore = logits()
    outside = ignore if ignoring else torch.zeros_like(ignore)
    expected = (slow_softmax(one.detach(), positive, outside) + slow_softmax(two.detach().T, positive.T, outside.T)) / 2
    loss = contrast(one, two, positive, ignore=outside if ignoring else None)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ignoring", [False, True])
def test_sigmoid_matches_the_slow_loop(ignoring):
    one, two, positive, ignore = logits()
    bias = torch.tensor(-1.5, dtype=torch.float64)
    expected = 0.0
    for s in (one, two):
        for i in range(5):
            for c in range(7):
                if ignoring and ignore[i, c]:
                    continue
                z = 1 if positive[i, c] else -1
                expected -= math.log(1 / (1 + math.exp(-z * (s[i, c].item() + bias.item())))) / 5 / 2
    loss = contrast(one, two, positive, "sigmoid", bias, ignore if ignoring else None)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    again = contrast(one, one.clone(), positive, "sigmoid", bias)
    torch.testing.assert_close(contrast(one, one, positive, "sigmoid", bias), again)


def test_one_positive_each_is_the_loss_of_clip_and_of_infonce():
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    positive = order[:, None] == torch.arange(6)
    s = cosines(image, text) / 0.1
    expected = (functional.cross_entropy(s, order) + functional.cross_entropy(s.T, order.argsort())) / 2
    loss = instance(image, text, positive, 0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss, losses.infonce(image, text, order, 0.1))


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_gradients_are_right_and_finite(form):
    one, two, positive, ignore = logits()
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-0.5, dtype=torch.float64, requires_grad=form == "sigmoid")
    inputs = (one, two, temperature, bias) if form == "sigmoid" else (one, two, temperature)
    assert torch.autograd.gradcheck(
        lambda a, b, t, *c: contrast(a / t, b / t, positive, form, *(c or (0.0,)), ignore), inputs
    )
    # all positive, none positive, everything left out: no information, no NaN
    for all_of, out in ((True, False), (False, False), (True, True)):
        s = one.detach().clone().requires_grad_()
        contrast(s, s, torch.full_like(positive, all_of), form, 0.0, torch.full_like(positive, out)).backward()
        assert torch.isfinite(s.grad).all()
        if out:
            assert not s.grad.any()


def test_other_captions_of_an_image_are_not_negatives():
    images, owners = torch.tensor([0, 1]), torch.tensor([0, 0, 1])
    positive = images[:, None] == owners
    image = torch.eye(2)
    perfect = image[owners]
    assert float(instance(image, perfect, positive, 0.05)) < 1e-6
    diagonal = torch.eye(2, 3, dtype=torch.bool)  # the second caption of the first image as a negative
    diagonal[1] = torch.tensor([False, False, True])
    assert float(instance(image, perfect, diagonal, 0.05)) > 0.15


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_order_does_not_matter(form):
    one, two, positive, ignore = logits()
    rows, columns = torch.randperm(5), torch.randperm(7)
    shuffled = (tensor[rows][:, columns] for tensor in (one, two, positive))
    torch.testing.assert_close(
        contrast(*shuffled, form, -1.0, ignore[rows][:, columns]), contrast(one, two, positive, form, -1.0, ignore)
    )


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 3\), \(3, 2\)"):
        contrast(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        cosines(torch.zeros(2, 3), torch.zeros(2, 4))
