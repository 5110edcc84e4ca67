"""Training masks: what stands in, for whom, and what gradient reaches."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from phosphene.federation.library import PrototypeLibrary, Prototypes
from phosphene.federation.masks import drop_modalities, substitutes
from phosphene.federation.retrieval import assign_centres, prototypes_of, similarity, soft_prototypes
from phosphene.federation.settings import MaskSettings

N, C, D = 40, 3, 6


@pytest.fixture
def prototypes() -> Prototypes:
    """Of three classes; class 2 has no text."""
    generator = torch.Generator().manual_seed(1)
    held = torch.ones(3, 4).bool()
    held[2, 2] = False
    return PrototypeLibrary.of(torch.randn(3, 4, D, generator=generator), held, torch.eye(3)).release()


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(N, 3, D, generator=torch.Generator().manual_seed(2), requires_grad=True)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(3, D, generator=torch.Generator().manual_seed(3), requires_grad=True)


LABELS = torch.eye(C)[torch.arange(N) % C]
PRESENT = torch.tensor([[True, False, False], [False, True, True]]).repeat(N // 2, 1)


def made(features, prototypes, tokens, labels=LABELS, **mask):
    kinds = {"token": 0.0} | mask
    return substitutes(
        features, PRESENT, labels, prototypes, tokens, MaskSettings(**kinds), torch.Generator().manual_seed(0)
    )


def test_label_mask_is_the_prototype_of_the_true_class(features, prototypes, tokens):
    found = made(features, prototypes, tokens, label=1.0)
    for row in range(N):
        c = row % C
        for m in range(3):
            expected = tokens[m] if (c, m) == (2, 2) else prototypes.vectors[m, c, 0]
            assert torch.equal(found[row, m], expected)


def test_label_mask_falls_back_without_a_label(features, prototypes, tokens):
    assert torch.equal(made(features, prototypes, tokens, labels=None, label=1.0), tokens.expand(N, 3, D))
    none = LABELS.clone()
    none[5] = 0
    found = made(features, prototypes, tokens, labels=none, label=1.0, fallback="zero")
    assert not found[5].any()
    assert torch.equal(found[4, 0], prototypes.vectors[0, 1, 0])
    assert not found[2, 2].any()  # class 2 has no text


def test_retrieval_is_a_softmax_over_what_is_observed(features, prototypes, tokens):
    found = made(features, prototypes, tokens, retrieval=1.0, temperature=0.2)
    row = 1  # has image and text
    for m in range(3):
        classes = [0, 1] if m == 2 else [0, 1, 2]
        scores = []
        for c in classes:
            seen = [1] if c == 2 else [1, 2]
            each = [functional.cosine_similarity(features[row, o], prototypes.vectors[o, c, 0], dim=0) for o in seen]
            scores.append(torch.stack(each).mean() / 0.2)
        weights = torch.stack(scores).softmax(dim=0)
        expected = sum(w * prototypes.vectors[m, c, 0] for w, c in zip(weights, classes, strict=True))
        torch.testing.assert_close(found[row, m], expected)


def test_retrieval_sees_no_label(features, prototypes, tokens):
    one = made(features, prototypes, tokens, retrieval=1.0)
    assert torch.equal(one, made(features, prototypes, tokens, labels=LABELS.flip(0), retrieval=1.0))
    assert torch.equal(one, made(features, prototypes, tokens, labels=None, retrieval=1.0))


def test_stop_gradient_is_what_it_says(features, prototypes, tokens):
    def gradient(stop: bool) -> torch.Tensor | None:
        found = made(features, prototypes, tokens, retrieval=1.0, stop_gradient=stop)
        if not found.requires_grad:
            return None
        return torch.autograd.grad(found.square().sum(), features, allow_unused=True)[0]

    stopped, open_ = gradient(True), gradient(False)
    assert stopped is None or not stopped.any()
    assert open_ is not None
    assert open_[PRESENT].abs().sum() > 0
    assert torch.isfinite(open_).all()


def test_label_masks_carry_no_gradient_and_tokens_do(features, prototypes, tokens):
    found = made(features, prototypes, tokens, label=1.0, fallback="zero")
    assert not found.requires_grad or not torch.autograd.grad(found.sum(), features, allow_unused=True)[0]
    found = made(features, prototypes, tokens, token=1.0)
    assert torch.equal(torch.autograd.grad(found.sum(), tokens)[0], torch.full((3, D), float(N)))


def test_zero_and_random_masks(features, prototypes, tokens):
    assert not made(features, prototypes, tokens, zero=1.0).any()
    noise = made(features, prototypes, tokens, random=1.0)
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(noise, made(features, prototypes, tokens, random=1.0))


def test_mixtures_give_each_trial_one_kind_by_its_share(prototypes, tokens):
    n = 3000
    features = torch.ones(n, 3, D)
    settings = MaskSettings(label=1.0, token=2.0, zero=1.0)
    labels, present = torch.eye(C)[torch.zeros(n, dtype=torch.int64)], torch.tensor([True, False, False]).expand(n, 3)
    found = substitutes(features, present, labels, prototypes, tokens, settings, torch.Generator().manual_seed(0))
    kinds = {
        "label": prototypes.vectors[:3, 0, 0],
        "token": tokens,
        "zero": torch.zeros(3, D),
    }
    shares = {name: float((found == value).all(dim=2).all(dim=1).float().mean()) for name, value in kinds.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["token"] == pytest.approx(0.5, abs=0.04)
    assert shares["label"] == pytest.approx(0.25, abs=0.04)


def test_modality_dropout_hides_at_its_rate_and_leaves_one():
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]]).repeat(2000, 1)
    kept = drop_modalities(present, 0.4, torch.Generator().manual_seed(0))
    assert not (kept & ~present).any()
    assert kept.any(dim=1).all()
    assert torch.equal(kept[2::3], present[2::3])
    full = kept[::3].float().mean(dim=0)  # kept: 0.6, and a third of the 0.064 that would have lost all
    torch.testing.assert_close(full, torch.full((3,), 0.6 + 0.064 / 3), atol=0.03, rtol=0)
    assert torch.equal(drop_modalities(present, 0.0, torch.Generator()), present)


def test_nothing_available_means_fallback_everywhere(features, tokens):
    nothing = PrototypeLibrary.empty(C, D).release()
    for kind in ("label", "retrieval"):
        assert torch.equal(made(features, nothing, tokens, **{kind: 1.0}), tokens.expand(N, 3, D))


def test_similarity_averages_over_shared_modalities(features, prototypes):
    score, comparable = similarity(features, PRESENT, prototypes)
    assert comparable.all()
    only = functional.cosine_similarity(features[0, 0], prototypes.vectors[0, 1, 0], dim=0)
    torch.testing.assert_close(score[0, 1, 0], only)
    text_alone = torch.tensor([[False, False, True]]).expand(N, 3)
    assert similarity(features, text_alone, prototypes)[1][0, :, 0].tolist() == [True, True, False]


def test_centres_of_a_class_are_chosen_by_what_is_seen_and_pair_up():
    """Two kinds of trials in one class: image and text of a kind belong together."""
    kinds = torch.eye(D)[:2]  # kind of image 0 or 1
    vectors = torch.stack([kinds, kinds, kinds.flip(1), kinds])[:, None]  # text has other vectors than image
    both = Prototypes(vectors, torch.ones(4, 1, 2).bool(), torch.ones(4, 1, 2))
    features = torch.stack([kinds, kinds, kinds.flip(1)], dim=1)
    seen = torch.tensor([False, True, False]).expand(2, 3)
    found, _ = prototypes_of(torch.zeros(2, dtype=torch.int64), features, seen, both)
    assert torch.equal(found[:, 2], kinds.flip(1))
    assert assign_centres(features, seen, both, torch.zeros(2, D)).tolist() == [[0], [1]]
    nothing = PrototypeLibrary.empty(1, D, 2).release()
    assert assign_centres(features, seen, nothing, kinds.flip(0)).tolist() == [[1], [0]]
    assert not soft_prototypes(features, seen, nothing, 0.1)[1].any()
