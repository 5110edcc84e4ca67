"""Labels and relations between stimuli as parts of the objective."""

from __future__ import annotations

import pytest
import torch

from phosphene.training import losses
from phosphene.training.data import StepBatch
from phosphene.training.objective import Objective, Outputs
from phosphene.training.settings import TrainingConfig


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)


@pytest.mark.parametrize("form", ["kl", "frobenius"])
def test_relations_are_zero_where_they_agree_and_have_a_gradient_elsewhere(
    form: str, drawn: tuple[torch.Tensor, torch.Tensor]
) -> None:
    predictions, targets = drawn
    rotated = targets @ torch.linalg.qr(torch.randn(5, 5))[0]
    assert float(losses.semantic_relations(3 * rotated, targets, 0.2, form)) == pytest.approx(0, abs=1e-6)
    loss = losses.semantic_relations(predictions, targets, 0.2, form)
    loss.backward()
    assert float(loss.detach()) > 0.01
    assert torch.isfinite(predictions.grad).all()
    assert predictions.grad.abs().sum() > 0


def test_divergence_of_relations_is_that_of_the_naive_sum(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, targets = drawn
    normal = torch.nn.functional.normalize
    total = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        u = torch.stack([normal(targets[i], dim=0) @ normal(targets[j], dim=0) for j in others]).div(0.3).softmax(0)
        z = torch.stack([normal(predictions[i], dim=0) @ normal(predictions[j], dim=0) for j in others])
        total += float((u * (u.log() - z.div(0.3).log_softmax(0))).sum().detach()) / 8
    assert float(losses.semantic_relations(predictions, targets, 0.3).detach()) == pytest.approx(total, rel=1e-5)


def test_labels_of_mixed_responses_are_mixed() -> None:
    config = TrainingConfig(class_weight=2.0, contrastive="none", mse_weight=1.0)
    targets, labels = torch.zeros(2, 3), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    batch = StepBatch(
        [], targets, torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0.75, 0.5]), (2,), labels=labels
    )
    logits = torch.randn(2, 2)
    total, parts = Objective(config)(Outputs(targets, targets, logits), batch, 0.1)
    wanted = losses.multilabel(logits, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    assert float(parts["classes"]) == pytest.approx(float(wanted))
    assert float(total) == pytest.approx(2 * float(wanted))


def test_what_is_compared_and_what_is_regressed_may_be_two_heads() -> None:
    config = TrainingConfig(contrastive="none", mse_weight=1.0, cosine_weight=1.0, semantic_weight=1.0)
    targets = torch.randn(4, 3)
    batch = StepBatch([], targets, torch.arange(4), None, None, (4,))
    parts = Objective(config)(Outputs(torch.randn(4, 3), targets), batch, 0.1)[1]
    assert float(parts["mse"]) == 0.0
    assert float(parts["semantic"]) > 0
