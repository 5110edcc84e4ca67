"""Attention over sized tokens against repeated tokens and a plain softmax."""

import math

import pytest
import torch
from torch.nn import functional as F

from phosphene.encoders.merging.attention import attention


def heads(tokens, width, queries=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 3, queries or tokens, width, generator=generator)
    k, v = (torch.randn(2, 3, tokens, width, generator=generator) for _ in range(2))
    sizes = torch.randint(1, 40, (2, tokens), generator=generator).float()
    return q.to(dtype), k.to(dtype), v.to(dtype), sizes


@pytest.mark.parametrize("how", ["auto", "bias", "channel"])
@pytest.mark.parametrize(("tokens", "width", "queries"), [(9, 7, None), (12, 8, 1), (10, 64, None), (5, 104, 4)])
def test_sizes_act_as_that_many_copies(how, tokens, width, queries):
    q, k, v, sizes = heads(tokens, width, queries)
    found = attention(q, k, v, sizes, how=how)
    for image in range(2):
        repeats = sizes[image].long()
        copies = [part[image].repeat_interleave(repeats, dim=1) for part in (k, v)]
        expected = F.scaled_dot_product_attention(q[image], *copies)
        torch.testing.assert_close(found[image], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [7, 8, 63, 64, 80])
def test_the_two_forms_agree_in_value_and_gradient(width):
    gradients = []
    outputs = []
    for how in ("bias", "channel"):
        q, k, v, sizes = heads(11, width)
        inputs = [part.requires_grad_() for part in (q, k, v)]
        outputs.append(attention(*inputs, sizes, how=how))
        outputs[-1].square().sum().backward()
        gradients.append([part.grad for part in inputs])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_channel_form_hands_a_kernel_no_mask_and_heads_of_a_multiple_of_eight(monkeypatch):
    seen = {}

    def spy(q, k, v, **options):
        seen.update(options, widths={part.shape[-1] for part in (q, k, v)})
        return kernel(q, k, v, **options)

    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention(*heads(6, 64), how="channel")
    assert seen == {"widths": {72}, "scale": 1 / math.sqrt(64)}


def test_without_sizes_it_is_the_plain_function():
    q, k, v, sizes = heads(8, 16)
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(attention(q, k, v, torch.ones_like(sizes)), attention(q, k, v), atol=1e-6, rtol=1e-5)
    assert (attention(q, k, v, sizes) - attention(q, k, v)).abs().max() > 0.1


@pytest.mark.parametrize("how", ["bias", "channel"])
def test_half_precision(how):
    q, k, v, sizes = heads(20, 64, dtype=torch.bfloat16)
    found = attention(q, k, v, sizes, how=how)
    assert found.dtype == torch.bfloat16
    logits = (q.float() @ k.float().mT) / 8 + sizes.log()[:, None, None]
    torch.testing.assert_close(found.float(), logits.softmax(-1) @ v.float(), atol=0.03, rtol=0.03)
