"""Matching against an exhaustive reference, merging against a loop, and the way back."""

import pytest
import torch

from phosphene.encoders.merging.matching import Matching, match, merge, unmerge, unmerged


def reference_matching(keys, r, protected, guide, strength):
    """Moved tokens (strongest first) and what each goes into, for one image, by going through all pairs."""
    unit = torch.nn.functional.normalize(keys.double(), dim=-1)
    free = range(protected, len(keys))
    first, second = free[::2], free[1::2]
    best = []
    for n in first:
        likeness = [(unit[n] @ unit[m]).item() - strength * (guide[n] + guide[m]).item() / 2 for m in second]
        if likeness:
            best.append((max(likeness), n, second[likeness.index(max(likeness))]))
    best.sort(key=lambda proposal: -proposal[0])  # Python's sort is stable: the first of equals stays first
    return [(n, m) for _, n, m in best[: min(r, len(free) // 2)]]


def merged_by_hand(x, sizes, pairs):
    """Tokens that remain, in order, each the mean of what flows into it."""
    gone = dict(pairs)
    kept = [n for n in range(len(x)) if n not in gone]
    rows, counts = [], []
    for m in kept:
        members = [m, *(n for n in gone if gone[n] == m)]
        counts.append(sizes[members].sum())
        rows.append((sizes[members, None] * x[members]).sum(0) / counts[-1])
    return kept, torch.stack(rows), torch.stack(counts)


def pairs_of(matching: Matching, image):
    into = matching.kept[image][matching.target[image][matching.moved[image]]]
    return list(zip(matching.moved[image].tolist(), into.tolist(), strict=True))


@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_matching_is_that_of_going_through_all_pairs(protected, tied):
    generator = torch.Generator().manual_seed(protected)
    for tokens in range(protected, 13):
        # keys along few axes and guides in quarters are compared without rounding, so that ties are ties
        keys = torch.randn(6, tokens, 5, generator=generator)
        guide = torch.randn(6, tokens, generator=generator)
        if tied:
            keys = 3 * torch.eye(2)[torch.randint(0, 2, (6, tokens), generator=generator)]
            guide = torch.randint(-2, 3, (6, tokens), generator=generator) / 4
        for r in (0, 1, 2, 4, 99):
            for strength in (0.0, 0.5):
                found = match(keys, r, protected=protected, guide=guide, strength=strength)
                for image in range(6):
                    expected = reference_matching(keys[image], r, protected, guide[image], strength)
                    assert pairs_of(found, image) == expected


def test_several_tokens_may_go_into_one():
    keys = torch.tensor([[[1.0, 0], [1, 0.01], [1, 0.03], [0, 1], [1, 0.06], [-1, 0]]])
    assert pairs_of(match(keys, 3), 0) == [(0, 1), (2, 1), (4, 1)]


def test_merged_tokens_are_means_weighted_by_size():
    torch.manual_seed(0)
    x, state = torch.randn(3, 11, 4), unmerged(3, 11)
    for step in range(3):
        matching = match(x + torch.randn_like(x), 3, protected=1)
        after, new = merge(x, state, matching)
        for image in range(3):
            pairs = pairs_of(matching, image)
            kept, rows, sizes = merged_by_hand(x[image], state.sizes[image], pairs)
            assert matching.kept[image].tolist() == kept
            torch.testing.assert_close(after[image], rows, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(new.sizes[image], sizes)
        x, state = after, new
        assert x.shape[1] == (8, 5, 3)[step]


def test_sizes_count_the_tokens_whose_way_back_leads_here():
    torch.manual_seed(0)
    tokens, state = torch.randn(4, 50, 8), unmerged(4, 50)
    x = tokens
    while x.shape[1] > 3:
        x, state = merge(x, state, match(x, 7, protected=2))
        assert (state.sizes.sum(1) == 50).all()
        for image in range(4):
            counts = torch.bincount(state.source[image], minlength=x.shape[1])
            torch.testing.assert_close(state.sizes[image], counts.float())
            means = torch.stack([tokens[image][state.source[image] == n].mean(0) for n in range(x.shape[1])])
            torch.testing.assert_close(x[image], means, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("r", [0, 1, 5, 8, 9, 1000])
@pytest.mark.parametrize("protected", [1, 3])
def test_protected_tokens_are_never_merged(r, protected):
    torch.manual_seed(0)
    x = torch.ones(2, 17, 4) + 0.01 * torch.randn(2, 17, 4)  # all alike: whoever can be merged is
    after, state = merge(x, unmerged(2, 17), match(x, r, protected=protected))
    assert torch.equal(after[:, :protected], x[:, :protected])
    assert (state.sizes[:, :protected] == 1).all()
    assert torch.equal(state.source[:, :protected], torch.arange(protected).expand(2, -1))
    assert after.shape[1] == 17 - min(r, (17 - protected) // 2)


def test_nothing_to_merge_gives_the_same_tokens_back():
    x, state = torch.randn(2, 9, 4), unmerged(2, 9)
    after, new = merge(x, state, match(x, 0))
    assert after is x
    assert new is state
    lone = torch.randn(2, 2, 4)
    assert merge(lone, unmerged(2, 2), match(lone, 5, protected=1))[0] is lone


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="found -1, 0"):
        match(torch.randn(1, 4, 2), -1)
    with pytest.raises(ValueError, match="protected one of the 4"):
        match(torch.randn(1, 4, 2), 1, protected=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_copies_come_back_exactly(dtype):
    torch.manual_seed(0)
    values = torch.randn(2, 6, 16).to(dtype)
    repeats = torch.tensor([7, 1, 2, 3, 12, 5])
    x = values.repeat_interleave(repeats, dim=1)
    after, state = x, unmerged(2, 30)
    for _ in range(4):
        after, state = merge(after, state, match(after, 5))
    assert after.shape[1] == 10
    assert torch.equal(unmerge(after, state), x)


def test_the_state_before_is_left_as_it_was():
    torch.manual_seed(0)
    x, state = torch.randn(2, 10, 4), unmerged(2, 10)._replace(cue=torch.randn(2, 10))
    before = [x.clone(), *(part.clone() for part in state)]
    merge(x, state, match(x, 4))
    for was, now in zip(before, (x, *state), strict=True):
        assert torch.equal(was, now)


def test_the_cue_is_merged_as_the_tokens_are():
    torch.manual_seed(0)
    x = torch.randn(2, 12, 3)
    state = unmerged(2, 12)._replace(cue=x[..., 0].clone())
    for _ in range(2):
        x, state = merge(x, state, match(torch.randn(2, x.shape[1], 5), 4))
    torch.testing.assert_close(state.cue, x[..., 0])


def test_gradients_are_finite_and_pass_through_tokens_only():
    torch.manual_seed(0)
    x = torch.randn(2, 10, 4, requires_grad=True)
    keys = torch.randn(2, 10, 4)
    keys[:, 3] = 0  # a key without direction
    keys.requires_grad_()
    guide = torch.randn(2, 10, requires_grad=True)
    after, state = merge(x, unmerged(2, 10), match(keys, 4, protected=1, guide=guide, strength=0.3))
    (after.square() * torch.rand(after.shape)).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).all()
    assert keys.grad is None
    assert guide.grad is None
    assert not state.sizes.requires_grad


def test_gradient_is_that_of_the_mean():
    torch.manual_seed(0)
    keys, weight = torch.randn(1, 9, 4), torch.randn(6, 5)
    fast = torch.randn(1, 9, 5, requires_grad=True)
    slow = fast.detach().clone().requires_grad_()
    matching = match(keys, 3)
    (merge(fast, unmerged(1, 9), matching)[0][0] * weight).sum().backward()
    rows = merged_by_hand(slow[0], torch.ones(9), pairs_of(matching, 0))[1]
    (rows * weight).sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad)


def test_half_precision_is_matched_and_counted_in_float32():
    torch.manual_seed(0)
    x = torch.randn(2, 600, 8, dtype=torch.bfloat16)
    for found, expected in zip(match(x, 150), match(x.float(), 150), strict=True):
        assert torch.equal(found, expected)
    keys = torch.randn(2, 600, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = match(keys, 150)
    for found, expected in zip(within, match(keys, 150), strict=True):
        assert torch.equal(found, expected)
    after, state = x, unmerged(2, 600)
    while after.shape[1] > 1:
        after, state = merge(after, state, match(after, 300))
        assert after.dtype == torch.bfloat16
    assert state.sizes.dtype == torch.float32
    assert state.sizes.tolist() == [[600.0], [600.0]]  # bfloat16 has no 599 and no 601
    mean = x.float().mean(1)
    assert (after[:, 0].float() - mean).abs().max() < 0.02
