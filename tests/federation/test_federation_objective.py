"""Terms of the objective against slow loops and closed forms."""

from __future__ import annotations

import pytest
import torch
from federation_sites import AGREEMENT, made_trials, settings
from torch.nn import functional

from phosphene.errors import InputError
from phosphene.federation.library import PrototypeLibrary
from phosphene.federation.model import PmcmModel
from phosphene.federation.objective import contrast, losses, model_contrast, proximal, task_loss

N, C, K, D = 8, 4, 2, 5


@pytest.fixture
def given():
    """Features, who has them, soft labels, vectors, which are available: class 3 has none, class 2 one centre."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(N, D, generator=generator, requires_grad=True)
    held = torch.tensor([True] * 6 + [False] * 2)
    labels = torch.rand(N, C, generator=generator) * (torch.rand(N, C, generator=generator) > 0.3)
    labels[0] = torch.tensor([0.0, 0, 0, 1])  # knows only the class without a prototype
    available = torch.ones(C, K).bool()
    available[3], available[2, 1] = False, False
    return features, held, labels, torch.randn(C, K, D, generator=generator), available


def test_contrast_is_that_of_a_slow_loop(given):
    features, held, labels, vectors, available = given
    terms = []
    for n in range(N):
        mass = labels[n, :3].sum()
        if not held[n] or mass == 0:
            continue
        shares = {
            (c, k): torch.exp(functional.cosine_similarity(features[n], vectors[c, k], dim=0) / 0.3)
            for c in range(C)
            for k in range(K)
            if available[c, k]
        }
        total = sum(shares.values())
        for c in range(3):
            own = sum(value for (of, _), value in shares.items() if of == c)
            terms.append(labels[n, c] / mass * torch.log(own / total))
    used = 5
    found = contrast(features, held, labels, vectors, available, 0.3)
    torch.testing.assert_close(found, -sum(terms) / used)


def test_unseen_classes_are_no_candidates_and_gradients_are_finite(given):
    features, held, labels, vectors, available = given
    one = contrast(features, held, labels, vectors, available, 0.3)
    moved = vectors.clone()
    moved[3], moved[2, 1] = 100.0, -100.0
    assert torch.equal(one, contrast(features, held, labels, moved, available, 0.3))
    gradient = torch.autograd.grad(one, features)[0]
    assert torch.isfinite(gradient).all()
    assert gradient[1:6].abs().sum(dim=1).min() > 0
    assert not gradient[0].any()  # its class has no prototype
    assert not gradient[6:].any()


def test_only_directions_count_unless_the_published_form_is_asked_for(given):
    features, held, labels, vectors, available = given
    one = contrast(features, held, labels, vectors, available, 0.3)
    torch.testing.assert_close(one, contrast(features * 7, held, labels, vectors * 3, available, 0.3))
    raw = contrast(features, held, labels, vectors, available, 0.3, normalise=False)
    assert abs(raw - contrast(features * 7, held, labels, vectors, available, 0.3, normalise=False)) > 0.1


def test_candidates_of_the_batch_are_the_published_form(given):
    features, held, _, vectors, _ = given
    classes = torch.tensor([0, 1, 1, 0, 2, 1, 0, 0])
    labels, available = torch.eye(C)[classes], torch.ones(C, 1).bool()
    rows, own = features[held], vectors[classes[held], 0]
    logits = rows @ own.T / 0.5  # candidates: the prototypes of the batch's trials, one a trial
    expected = (logits.logsumexp(dim=1) - logits.diagonal()).mean()
    found = contrast(features, held, labels, vectors[:, :1], available, 0.5, normalise=False, candidates="batch")
    torch.testing.assert_close(found, expected)


def test_nothing_to_compare_is_a_zero_with_a_gradient(given):
    features, held, labels, vectors, available = given
    none = contrast(features, held, labels, vectors, available & False, 0.3)
    assert none.item() == 0
    assert not torch.autograd.grad(none, features)[0].any()


def test_task_losses():
    logits, hard = torch.randn(N, C, generator=torch.Generator().manual_seed(1)), torch.arange(N) % C
    labels = torch.eye(C)[hard]
    torch.testing.assert_close(task_loss(logits, labels, "ce"), functional.cross_entropy(logits, hard))
    bce = functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(task_loss(logits, labels, "bce"), bce * C)
    labels[0] = 0
    torch.testing.assert_close(task_loss(logits, labels, "ce"), functional.cross_entropy(logits[1:], hard[1:]))


def test_proximal_term_pulls_to_the_global_weights_and_not_to_zero():
    weights = {"w": torch.tensor([1.0, 2.0], requires_grad=True)}
    anchor = {"w": torch.tensor([1.0, 5.0])}
    gradient = torch.autograd.grad(proximal(weights, anchor), weights["w"])[0]
    assert gradient.tolist() == [0.0, -3.0]


def terms(**changes):
    chosen = settings(**changes)
    model = PmcmModel(chosen.model, AGREEMENT)
    trials = made_trials(0, {"p1": 9}, n=20)
    model.add_people({"p1": 9})
    model.eval()
    labels = trials.labels
    library = PrototypeLibrary.of(torch.randn(20, 4, 16), torch.ones(20, 4).bool(), labels).release()
    generator = torch.Generator().manual_seed(0)
    found = losses(model, trials, library, chosen.masks, chosen.objective, True, generator)
    return model, trials, library, found


def test_terms_by_name_and_their_weights():
    torch.manual_seed(0)
    _, _, _, found = terms()
    names = {"task", "contrast fmri", "contrast image", "contrast text", "contrast fusion", "retrieval"}
    assert found.keys() == names
    torch.manual_seed(0)
    _, _, _, doubled = terms(objective={"class_weight": 2.0, "contrast_text": 0.3, "retrieval_weight": 0.0})
    torch.testing.assert_close(doubled["task"], found["task"] * 2)
    torch.testing.assert_close(doubled["contrast text"], found["contrast text"] * 3)
    assert "retrieval" not in doubled


def test_retrieval_never_sees_the_image_it_looks_for():
    """The gradient of the retrieval term reaches fMRI and text and not the image's projector."""
    model, _, _, found = terms(masks={"token": 1.0, "dropout": 0.0})
    image = torch.autograd.grad(
        found["retrieval"], list(model.image.parameters()), retain_graph=True, allow_unused=True
    )
    assert all(each is None or not each.any() for each in image)
    text = torch.autograd.grad(found["retrieval"], list(model.text.parameters()), retain_graph=True)
    assert all(each.abs().sum() > 0 for each in text)


def test_no_contrast_before_its_round():
    chosen = settings()
    model, trials, library, _ = terms()
    found = losses(model, trials, library, chosen.masks, chosen.objective, False, torch.Generator().manual_seed(0))
    assert found.keys() == {"task", "retrieval"}


def test_moon_draws_to_the_server_and_away_from_the_last_network():
    towards, away = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    z = torch.tensor([[0.7, 0.7], [1.0, 0.2]], requires_grad=True)
    near, far = functional.cosine_similarity(z, towards), functional.cosine_similarity(z, away)
    expected = -(near / 0.5 - torch.stack([near / 0.5, far / 0.5]).logsumexp(dim=0)).mean()
    found = model_contrast(z, towards, away, 0.5)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    step = z - 0.1 * torch.autograd.grad(found, z)[0]
    assert bool((functional.cosine_similarity(step, towards) > near).all())


def test_the_full_view_is_the_task_without_dropout():
    """Half of the loss is that of what dropout leaves, half that of all that a trial has."""
    hidden, both = (
        {"masks": {"token": 1.0, "dropout": 0.9}, "objective": {"full_view": share}} for share in (0.0, 0.5)
    )
    shown = {"masks": {"token": 1.0, "dropout": 0.0}}
    task = {name: terms(**changes)[3]["task"].item() for name, changes in (("h", hidden), ("b", both), ("s", shown))}
    assert task["h"] != pytest.approx(task["s"], rel=1e-3)
    assert task["b"] == pytest.approx((task["h"] + task["s"]) / 2, rel=1e-5)
    with pytest.raises(InputError, match=r"full_view has no use: masks\.dropout hides nothing"):
        settings(masks={"dropout": 0.0}, objective={"full_view": 0.5})
