"""Validation inside the training data: loss and retrieval in both directions, in pools of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from phosphene.decoders import Decoder
from phosphene.training.data import PersonSamples, StepBatch, TargetRows
from phosphene.training.objective import Objective, Outputs

__all__ = ["POOL", "retrieval", "validate"]

POOL = 300
"""Largest number of stimuli compared with each other; more are walked through in such pools."""


def retrieval(predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Top-1 and two-way identification by cosine, prediction `i` belonging to target `i`; means of both directions.

    Parameters
    ----------
    predictions, targets : Tensor (n, D), n > 1

    Returns
    -------
    dict
        ``"top-1"`` (chance 1 / n) and ``"two-way"`` (chance 0.5); who ties for a place shares it.

    Examples
    --------
    >>> retrieval(torch.eye(3), torch.eye(3))
    {'top-1': 1.0, 'two-way': 1.0}
    """
    similarity = functional.normalize(predictions.float(), dim=1) @ functional.normalize(targets.float(), dim=1).T
    n, own = len(similarity), similarity.diagonal()
    top, two = 0.0, 0.0
    for against, best in ((similarity, own[:, None]), (similarity.T, own[:, None])):
        better, tied = (against > best).sum(dim=1), (against == best).sum(dim=1) - 1
        top += float(((better == 0) / (1 + tied)).mean()) / 2
        two += float(1 - (better + tied / 2).mean() / (n - 1)) / 2
    return {"top-1": top, "two-way": two}


@torch.no_grad()
def validate(
    decoder: Decoder,
    objective: Objective,
    people: Sequence[PersonSamples],
    targets: TargetRows,
    temperature: float,
    device: torch.device,
) -> dict[str, float]:
    """Loss, top-1 and two-way on validation stimuli, responses averaged over repeats; means over people.

    Parameters
    ----------
    people : sequence of PersonSamples
        Averaged samples, one a stimulus.
    temperature : float
        Scheduled temperature for the loss.
    """
    training = decoder.training
    decoder.eval()
    figures: list[dict[str, float]] = []
    for samples in people:
        sums = {"loss": 0.0, "top-1": 0.0, "two-way": 0.0}
        # pools of equal size: a rest of one stimulus would have nothing to be compared with
        pools = np.array_split(np.arange(len(samples)), max(1, -(-len(samples) // POOL)))
        for pool in pools:
            responses = torch.from_numpy(samples.read(pool)).to(device)
            shown = samples.stimulus[pool]
            outputs = Outputs.of([decoder(responses, samples.subject)], (len(pool),))
            true = torch.from_numpy(targets.read(shown)).to(device).float()
            labels = None if targets.labels is None else torch.from_numpy(targets.labels[shown]).to(device)
            batch = StepBatch([], true, torch.arange(len(pool), device=device), None, None, (len(pool),), labels)
            sums["loss"] += float(objective(outputs, batch, temperature)[0]) * len(pool)
            for name, value in retrieval(outputs.embedding, true).items():
                sums[name] += value * len(pool)
        figures.append({name: value / len(samples) for name, value in sums.items()})
    decoder.train(training)
    return {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
