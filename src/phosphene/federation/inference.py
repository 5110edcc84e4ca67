"""Inference with any subset of modalities: no function of this module has a way in for labels.

Neither can a label come with the data: `Inputs` has no field for them. What a network scores when the mask is chosen
by the true label is a leak; it is computed in the evaluation alone, under a name that says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from phosphene.errors import InputError, unknown
from phosphene.federation.library import FUSION, PrototypeLibrary, Prototypes
from phosphene.federation.model import PmcmModel
from phosphene.federation.retrieval import prototypes_of, similarity, soft_prototypes
from phosphene.federation.settings import InferenceSettings, Rule
from phosphene.federation.trials import MODALITIES, Inputs

__all__ = ["Predicted", "infer", "predict"]


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of some trials.

    Attributes
    ----------
    logits : Tensor (n, C), optional
        Of the classification head; softmax or sigmoid as it was trained.
    embedding : Tensor (n, D_i), optional
        Predicted image embeddings, of norm 1.
    z : Tensor (n, d)
        The fusion's features.
    """

    logits: Tensor | None
    embedding: Tensor | None
    z: Tensor


@torch.no_grad()
def predict(
    model: PmcmModel,
    inputs: Inputs,
    library: PrototypeLibrary,
    settings: InferenceSettings | None = None,
    min_count: float = 0.0,
    batch_size: int = 1024,
) -> Predicted:
    """Predictions of trials with whatever modalities they have, in evaluation mode.

    Parameters
    ----------
    model : PmcmModel
    inputs : Inputs
    library : PrototypeLibrary
        The server's.
    settings : InferenceSettings, optional
    min_count : float
        Prototypes of fewer trials are not used.
    """
    if not len(inputs):
        raise InputError("there is no trial to predict")
    settings = settings or InferenceSettings()
    prototypes, was = library.release(min_count), model.training
    model.eval()
    try:
        parts = []
        for rows in torch.arange(len(inputs)).split(batch_size):
            piece = inputs.select(rows)
            parts.append(
                infer(model, model.encode(piece), piece.present, prototypes, settings.rule, settings.temperature)
            )
    finally:
        model.train(was)
    z = torch.cat([part.z for part in parts])
    return Predicted(_joined([part.logits for part in parts]), _joined([part.embedding for part in parts]), z)


@torch.no_grad()
def infer(
    model: PmcmModel,
    features: Tensor,
    present: Tensor,
    prototypes: Prototypes,
    rule: Rule = "soft",
    temperature: float = 0.1,
) -> Predicted:
    """Predictions from encoded features.

    Parameters
    ----------
    model : PmcmModel
    features : Tensor (n, 3, d)
        Of `PmcmModel.encode`.
    present : Tensor (n, 3) of bool
    prototypes : Prototypes
    rule : {"soft", "nearest", "match", "token", "zero", "mean"}
        What stands in for a missing modality: prototypes weighted by their similarity to what is observed; those of
        the most similar class; those of the class whose masked fusion lies nearest to its fusion prototype
        (enumerate and match); a learned vector; zeros; the mean of all prototypes. Where a rule finds no prototype,
        the learned vector stands.
    temperature : float
        Of "soft".

    Raises
    ------
    InputError
        For an unknown rule.
    """
    if rule not in get_args(Rule):
        raise unknown("rule of inference", rule, get_args(Rule))
    token = model.tokens.expand_as(features)
    if rule == "match":
        chosen, found = _matched(model, features, present, prototypes, token)
    elif rule == "soft":
        chosen, found = soft_prototypes(features, present, prototypes, temperature)
    elif rule == "nearest":
        chosen, found = _nearest(features, present, prototypes)
    elif rule == "mean":
        chosen, found = _mean(features, prototypes)
    else:
        chosen = token if rule == "token" else torch.zeros_like(features)
        found = torch.ones_like(present)
    fused = model.fuse(features, present, torch.where(found[..., None], chosen, token))
    embedding = None if fused.embedding is None else functional.normalize(fused.embedding, dim=1)
    return Predicted(fused.logits, embedding, fused.z)


def _nearest(features: Tensor, present: Tensor, prototypes: Prototypes) -> tuple[Tensor, Tensor]:
    """Prototypes of the class most similar to what is observed."""
    score, comparable = similarity(features, present, prototypes)
    score = score.masked_fill(~comparable, -torch.inf)
    nearest = score.amax(dim=2).argmax(dim=1)
    vectors, found = prototypes_of(nearest, features, present, prototypes)
    return vectors, found & comparable.flatten(1).any(dim=1)[:, None]


def _matched(
    model: PmcmModel, features: Tensor, present: Tensor, prototypes: Prototypes, token: Tensor
) -> tuple[Tensor, Tensor]:
    """Prototypes of the class under whose masks the fusion comes nearest to the class's fusion prototype."""
    best = torch.full((len(features),), -torch.inf)
    winner = torch.zeros(len(features), dtype=torch.int64)
    for c in prototypes.available[FUSION].any(dim=1).nonzero().flatten().tolist():
        vectors, found = prototypes_of(torch.full_like(winner, c), features, present, prototypes)
        z = model.fuse(features, present, torch.where(found[..., None], vectors, token)).z
        anchors = prototypes.vectors[FUSION, c][prototypes.available[FUSION, c]]
        score = (functional.normalize(z, dim=1) @ functional.normalize(anchors, dim=1).T).amax(dim=1)
        # a class that lacks what the trial misses would win by the trial's own token
        score = score.masked_fill(~(found | present).all(dim=1), -torch.inf)
        winner, best = torch.where(score > best, c, winner), torch.maximum(score, best)
    vectors, found = prototypes_of(winner, features, present, prototypes)
    return vectors, found & torch.isfinite(best)[:, None]


def _mean(features: Tensor, prototypes: Prototypes) -> tuple[Tensor, Tensor]:
    """Mean of all prototypes of a modality, weighted by their trials."""
    counts = prototypes.counts[:FUSION, ..., None]
    total = counts.sum(dim=(1, 2))
    mean = (prototypes.vectors[:FUSION] * counts).sum(dim=(1, 2)) / total.clamp_min(1e-12)
    return mean.expand_as(features), (total.flatten() > 0).expand(len(features), len(MODALITIES))


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None
