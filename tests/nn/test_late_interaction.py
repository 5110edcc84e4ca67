"""Late interaction against the naive form: values, gradients, memory, and what must not change it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from phosphene.nn import late_interaction as home
from phosphene.nn.late_interaction import late_interaction


def tokens(n_images=5, n_texts=6, n=7, t=4, e=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n_images, n, e, generator=generator, dtype=dtype, requires_grad=True)
    words = torch.randn(n_texts, t, e, generator=generator, dtype=dtype, requires_grad=True)
    mask = torch.rand(n_texts, t, generator=generator) < 0.6
    mask[:, 1] = True
    mask[0] = torch.tensor([False, True] + [False] * (t - 2))
    sizes = torch.randint(1, 5, (n_images, n), generator=generator).to(dtype)
    return image, words, mask, sizes


def naive(image, words, mask, sizes=None, top=None):
    """The equations, pair by pair."""
    image, words = functional.normalize(image, dim=2), functional.normalize(words, dim=2)
    sizes = torch.ones(image.shape[:2], dtype=image.dtype) if sizes is None else sizes
    to_text, to_image = [], []
    for tokens_i, size in zip(image, sizes, strict=True):
        for words_c, valid in zip(words, mask, strict=True):
            similar = tokens_i[size > 0] @ words_c[valid].T
            best, weight = similar.max(dim=1).values, size[size > 0]
            if top is not None:
                chosen = best.argsort(descending=True)[:top]
                best, weight = best[chosen], weight[chosen]
            to_text.append((best * weight).sum() / weight.sum())
            to_image.append(similar.max(dim=0).values.mean())
    shape = len(image), len(words)
    return torch.stack(to_text).view(shape), torch.stack(to_image).view(shape)


def gradients(function, image, words, *args, **kwargs):
    """Scores, and the gradient of something uneven in them."""
    to_text, to_image = function(image, words, *args, **kwargs)
    weights = torch.linspace(-1, 2, to_text.numel(), dtype=to_text.dtype).view(to_text.shape).to(to_text.device)
    total = (weights * to_text).sum() + (weights.flip(0) * to_image.exp()).sum()
    return (to_text, to_image, *torch.autograd.grad(total, (image, words)))


def test_numbers_worked_out_by_hand():
    # two images of two tokens; three captions of one or two words, one padded
    a, b = [1.0, 0.0], [0.0, 2.0]
    image = torch.tensor([[a, b], [a, a]])
    words = torch.tensor([[a, b], [[3.0, 4.0], [9.0, 9.0]], [b, [-1.0, 0.0]]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    to_text, to_image = late_interaction(image, words, mask)
    torch.testing.assert_close(to_text, torch.tensor([[1.0, 0.7, 0.5], [1.0, 0.6, 0.0]]))
    torch.testing.assert_close(to_image, torch.tensor([[1.0, 0.8, 0.5], [0.5, 0.6, -0.5]]))
    to_text, _ = late_interaction(image, words, mask, sizes=torch.tensor([[3.0, 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(to_text[0], torch.tensor([1.0, 0.65, 0.25]))
    to_text, _ = late_interaction(image, words, mask, top=1)
    torch.testing.assert_close(to_text, torch.tensor([[1.0, 0.8, 1.0], [1.0, 0.6, 0.0]]))


@pytest.mark.parametrize("top", [None, 3, 100])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
@pytest.mark.parametrize("way", ["_shared", "_indexed"])
def test_values_and_gradients_are_those_of_the_naive_form(top, weighted, chunk, way, monkeypatch):
    monkeypatch.setattr(home, "_shared", getattr(home, way))  # what a GPU does, done on the CPU
    image, words, mask, sizes = tokens()
    sizes = sizes if weighted else None
    expected = gradients(naive, image, words, mask, sizes=sizes, top=top)
    found = gradients(late_interaction, image, words, mask, sizes=sizes, top=top, chunk=chunk)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_any_layout_in_memory_will_do():
    image, words, mask, _ = tokens()
    plain = gradients(late_interaction, image, words, mask)
    strange = [each.detach().permute(2, 1, 0).clone().permute(2, 1, 0).requires_grad_() for each in (image, words)]
    for one, other in zip(gradients(late_interaction, *strange, mask), plain, strict=True):
        torch.testing.assert_close(one, other)


def test_single_precision_is_exact_to_five_digits():
    image, words, mask, sizes = tokens(12, 9, 16, 11, 24, dtype=torch.float32)
    expected = gradients(naive, image, words, mask, sizes=sizes)
    for one, other in zip(gradients(late_interaction, image, words, mask, sizes=sizes), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_padding_never_changes_anything():
    image, words, mask, sizes = tokens()
    plain = gradients(late_interaction, image, words, mask, sizes=sizes)
    noise = torch.full((6, 3, 3), 7.0, dtype=torch.float64)
    more_words = torch.cat([noise, words.detach(), noise], dim=1).requires_grad_()
    more_mask = functional.pad(mask, (3, 3))
    more_image = torch.cat([image.detach(), -noise[:5], words.detach()[:5]], dim=1).requires_grad_()
    more_sizes = functional.pad(sizes, (0, 7))
    for top in (None, 6):
        plain = gradients(late_interaction, image, words, mask, sizes=sizes, top=top)
        padded = gradients(late_interaction, more_image, more_words, more_mask, sizes=more_sizes, top=top)
        for one, other in zip(padded[:2], plain[:2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(padded[2][:, :7], plain[2])
        torch.testing.assert_close(padded[3][:, 3:7], plain[3])
        assert not padded[2][:, 7:].any()
        assert not padded[3][:, :3].any()
        assert not padded[3][:, 7:].any()


def test_order_does_not_matter():
    image, words, mask, sizes = tokens()
    rows, columns, inner = torch.randperm(5), torch.randperm(6), torch.randperm(7)
    to_text, to_image = late_interaction(image, words, mask, sizes=sizes)
    shuffled = late_interaction(image[rows][:, inner], words[columns], mask[columns], sizes=sizes[rows][:, inner])
    torch.testing.assert_close(shuffled[0], to_text[rows][:, columns])
    torch.testing.assert_close(shuffled[1], to_image[rows][:, columns])


def test_merged_copies_count_as_often_as_they_are():
    image, words, mask, _ = tokens()
    copies = torch.cat([image, image[:, :2], image[:, :1]], dim=1)
    sizes = torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]).expand(5, 7)
    for one, other in zip(
        late_interaction(image, words, mask, sizes=sizes), late_interaction(copies, words, mask), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_equal_maxima_share_the_gradient():
    image = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    words = torch.tensor([[[1.0, 1.0]]], dtype=torch.float64)
    _, to_image = late_interaction(image, words, torch.ones(1, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(to_image.sum(), image)
    # each of the three turns towards the word, with a third of the pull
    torch.testing.assert_close(gradient[0].norm(dim=1), torch.full((3,), 0.5**0.5 / 3, dtype=torch.float64))


def saved_elements(function):
    """Result of a call and the number of elements autograd keeps for its backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, sum(kept.values())


def test_nothing_of_the_size_of_all_pairs_is_kept():
    image, words, mask, _ = tokens(64, 64, 16, 12, 4, dtype=torch.float32)
    pairs = 64 * 64 * 16 * 12
    _, kept = saved_elements(lambda: late_interaction(image, words, mask))
    assert kept < pairs / 25
    units = functional.normalize(image, dim=2), functional.normalize(words, dim=2)
    _, naively = saved_elements(lambda: torch.einsum("ine,cme->icnm", *units).exp().amax(3).sum())
    assert naively > pairs


def test_blocks_bound_the_largest_tensor():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    image, words, mask, _ = tokens(24, 24, 16, 12, 8, dtype=torch.float32)
    mask[:] = True
    with Watch():
        to_text, to_image = late_interaction(image, words, mask, chunk=2)
        (to_text + to_image).sum().backward()
    assert max(sizes) == 2 * 24 * 16 * 12


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(frozen):
    image, words, mask, _ = tokens()
    both = gradients(late_interaction, image, words, mask)
    sides = [image, words]
    sides[frozen] = sides[frozen].detach()
    to_text, to_image = late_interaction(*sides, mask)
    weights = torch.linspace(-1, 2, 30, dtype=torch.float64).view(5, 6)
    ((weights * to_text).sum() + (weights.flip(0) * to_image.exp()).sum()).backward()
    torch.testing.assert_close(sides[1 - frozen].grad, both[2 + 1 - frozen])
    assert sides[frozen].grad is None


def test_bfloat16_under_autocast_is_near():
    image, words, mask, sizes = tokens(12, 9, 16, 11, 24, dtype=torch.float32)
    exact = gradients(late_interaction, image, words, mask, sizes=sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = gradients(late_interaction, image, words, mask, sizes=sizes)
    assert near[0].dtype == torch.float32
    for one, other in zip(near[:2], exact[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.01)
        assert (one != other).any()
    for one, other in zip(near[2:], exact[2:], strict=True):
        assert functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: tokens on CPU and GPU are not compared")
@pytest.mark.parametrize("top", [None, 6])
def test_a_gpu_gives_the_same(top):
    image, words, mask, sizes = tokens(12, 9, 16, 11, 24, dtype=torch.float32)
    expected = gradients(late_interaction, image, words, mask, sizes=sizes, top=top)
    inputs = [each.detach().cuda().requires_grad_() for each in (image, words)]
    found = gradients(late_interaction, *inputs, mask.cuda(), sizes=sizes.cuda(), top=top, chunk=5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        near = gradients(late_interaction, *inputs, mask.cuda(), sizes=sizes.cuda(), top=top)
    torch.testing.assert_close(near[0].cpu(), expected[0], rtol=0, atol=0.02)
    assert functional.cosine_similarity(near[2].cpu().flatten(), expected[2].flatten(), dim=0) > 0.98


def test_wrong_input_is_named():
    image, words, mask, sizes = tokens()
    with pytest.raises(ValueError, match=r"\(5, 7, 3\) and \(6, 4, 2\)"):
        late_interaction(image, words[:, :, :2], mask)
    with pytest.raises(ValueError, match=r"mask \(C, T\) of bool"):
        late_interaction(image, words, mask.float())
    with pytest.raises(ValueError, match=r"sizes \(I, N\) are needed, found \(5, 6\)"):
        late_interaction(image, words, mask, sizes=sizes[:, :6])
    with pytest.raises(ValueError, match="top counts tokens, from 1, found 0"):
        late_interaction(image, words, mask, top=0)
    mask[2] = False
    with pytest.raises(ValueError, match="caption 2 has no words"):
        late_interaction(image, words, mask)
