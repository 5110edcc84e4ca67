"""What training at a site minimises: the task on masked inputs, retrieval, and contrast with the prototypes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from phosphene.federation.library import PARTS, Prototypes
from phosphene.federation.masks import drop_modalities, substitutes
from phosphene.federation.model import PmcmModel
from phosphene.federation.settings import MaskSettings, ObjectiveSettings
from phosphene.federation.trials import IMAGE, Trials
from phosphene.training.losses import infonce

__all__ = ["contrast", "losses", "proximal", "task_loss"]


def task_loss(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    r"""The task on masked inputs ("task-calibrated" in the paper: incomplete trials train fusion and head as well).

    ``bce``: binary cross-entropy over soft labels, summed over classes and averaged over trials, as in the published
    code. ``ce``: cross-entropy with the soft labels normalised to 1; trials without any class are left out.

    Parameters
    ----------
    logits, labels : Tensor (n, C)
    task : {"bce", "ce"}

    Returns
    -------
    Tensor ()
    """
    if task == "bce":
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(logits)
    mass = labels.sum(dim=1)
    per_trial = -(labels * logits.log_softmax(dim=1)).sum(dim=1) / mass.clamp_min(1e-12)
    return per_trial.sum() / (mass > 0).sum().clamp_min(1)


def contrast(
    features: Tensor,
    held: Tensor,
    labels: Tensor,
    vectors: Tensor,
    available: Tensor,
    temperature: float,
    normalise: bool = True,
    candidates: str = "classes",
) -> Tensor:
    r"""Contrast of features with class prototypes: the paper's proximal term.

    .. math:: L = -\frac{1}{|B|} \sum_{n \in B} \sum_c q_n[c] \log
              \frac{\sum_k e^{\langle h_n, P[c,k] \rangle / \tau}}{\sum_{c',k} e^{\langle h_n, P[c',k] \rangle / \tau}}

    over all classes that have a prototype, with `q` the soft labels over those, normalised to 1; classes without one
    are no candidates, and trials whose classes have none are left out. The published code instead has raw products
    (`normalise` False) and, as candidates, the prototypes of the batch's own classes, each as often as it occurs
    ("batch"), with the strongest class alone as the positive.

    Parameters
    ----------
    features : Tensor (n, d)
    held : Tensor (n,) of bool
        Trials that have this feature.
    labels : Tensor (n, C)
    vectors : Tensor (C, K, d)
    available : Tensor (C, K) of bool
    temperature : float
        :math:`\tau`.

    Returns
    -------
    Tensor ()
        0, with a gradient of zeros, where nothing can be compared.
    """
    labels = labels * available.any(dim=1)
    if candidates == "batch":
        strongest = functional.one_hot(labels.argmax(dim=1), labels.shape[1]).to(labels.dtype)
        labels = strongest * (labels.amax(dim=1, keepdim=True) > 0)
    used = held & (labels.sum(dim=1) > 0)
    if not bool(used.any()):
        return features.sum() * 0.0
    rows, target = features[used], labels[used] / labels[used].sum(dim=1, keepdim=True)
    if normalise:
        rows, vectors = functional.normalize(rows, dim=-1), functional.normalize(vectors, dim=-1)
    scores = torch.einsum("nd,ckd->nck", rows, vectors) / temperature
    scores = scores.masked_fill(~available, -torch.inf).logsumexp(dim=2)
    shares = scores if candidates == "classes" else scores + target.sum(dim=0).log()
    log_share = scores - shares.logsumexp(dim=1, keepdim=True)
    return -(target * log_share.masked_fill(target == 0, 0.0)).sum() / len(rows)


def proximal(parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    r"""FedProx's term :math:`\frac{1}{2} \lVert w - w_{global} \rVert^2` over the shared parameters.

    Examples
    --------
    >>> proximal({"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}).item()
    2.0
    """
    return torch.stack([(each - anchor[name]).square().sum() for name, each in parameters.items()]).sum() / 2


def losses(
    model: PmcmModel,
    batch: Trials,
    prototypes: Prototypes,
    masks: MaskSettings,
    objective: ObjectiveSettings,
    with_contrast: bool,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Weighted terms of the objective for a batch, by name; their sum is what is minimised.

    Parameters
    ----------
    model : PmcmModel
    batch : Trials
    prototypes : Prototypes
        The server's, as of the beginning of the round.
    masks, objective : Settings
    with_contrast : bool
        False in the rounds before there is contrast.
    generator : Generator
        Of masks and modality dropout.
    """
    features = model.encode(batch.inputs)
    present = drop_modalities(batch.present, masks.dropout, generator)
    stand_ins = substitutes(features, present, batch.labels, prototypes, model.tokens, masks, generator)
    fused = model.fuse(features, present, stand_ins)
    found: dict[str, Tensor] = {}
    if fused.logits is not None and batch.labels is not None and objective.class_weight:
        found["task"] = objective.class_weight * task_loss(fused.logits, batch.labels, objective.task)
    if with_contrast and batch.labels is not None:
        held = torch.cat([batch.present, torch.ones(len(batch), 1, dtype=torch.bool)], dim=1)
        parts = torch.cat([features, fused.z[:, None]], dim=1)
        for m, (name, weight) in enumerate(zip(PARTS, objective.contrast, strict=True)):
            if weight:
                found[f"contrast {name}"] = weight * contrast(
                    parts[:, m],
                    held[:, m],
                    batch.labels,
                    prototypes.vectors[m],
                    prototypes.available[m],
                    objective.contrast_temperature,
                    objective.normalise,
                    objective.candidates,
                )
    if model.retrieve is not None and objective.retrieval_weight:
        loss = _retrieval(model, batch, features, prototypes, masks, objective, generator)
        if loss is not None:
            found["retrieval"] = objective.retrieval_weight * loss
    return found


def _retrieval(
    model: PmcmModel,
    batch: Trials,
    features: Tensor,
    prototypes: Prototypes,
    masks: MaskSettings,
    objective: ObjectiveSettings,
    generator: torch.Generator,
) -> Tensor | None:
    """InfoNCE from what is seen beside the image to the image's embedding: with the image shown, it would be a copy."""
    beside = batch.present.clone()
    beside[:, IMAGE] = False
    rows = (batch.present[:, IMAGE] & beside.any(dim=1)).nonzero().flatten()
    _, first, stimulus = np.unique(batch.ids[rows.numpy()], return_index=True, return_inverse=True)
    if len(first) < 2:
        return None
    present = drop_modalities(beside[rows], masks.dropout, generator)
    labels = None if batch.labels is None else batch.labels[rows]
    stand_ins = substitutes(features[rows], present, labels, prototypes, model.tokens, masks, generator)
    embedding = model.fuse(features[rows], present, stand_ins).embedding
    assert embedding is not None
    targets = batch.inputs.image[rows[torch.from_numpy(first)]]
    return infonce(embedding, targets, torch.from_numpy(stimulus), objective.retrieval_temperature)
