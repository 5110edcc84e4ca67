"""What training at a site minimises: the task on masked inputs, retrieval, contrast with prototypes; rivals' terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from phosphene.federation.library import PARTS, Prototypes
from phosphene.federation.masks import drop_modalities, substitutes
from phosphene.federation.model import Fused, PmcmModel
from phosphene.federation.settings import MaskSettings, ObjectiveSettings
from phosphene.federation.trials import IMAGE, Inputs, Trials
from phosphene.training.losses import infonce

__all__ = ["Anchors", "contrast", "losses", "model_contrast", "proximal", "task_loss"]


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


def model_contrast(fusions: Tensor, towards: Tensor, away: Tensor, temperature: float) -> Tensor:
    r"""MOON's term (Li et al., CVPR 2021): fusions are drawn to the server's network and away from the site's last one.

    .. math:: L = -\frac{1}{|B|} \sum_n \log \frac{e^{\cos(z_n, z^{server}_n) / \tau}}
              {e^{\cos(z_n, z^{server}_n) / \tau} + e^{\cos(z_n, z^{last}_n) / \tau}}

    Parameters
    ----------
    fusions, towards, away : Tensor (n, d)
        Of the network in training, the server's, and the one that the site was left with after its last round.
    temperature : float
        :math:`\tau`.

    Examples
    --------
    >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> bool(model_contrast(one, one, other, 0.5) < model_contrast(one, other, one, 0.5))
    True
    """
    scores = [functional.cosine_similarity(fusions, anchor, dim=1) / temperature for anchor in (towards, away)]
    return -torch.stack(scores, dim=1).log_softmax(dim=1)[:, 0].mean()


@dataclass(frozen=True, eq=False)
class Anchors:
    """The networks of MOON's term, both with the people's adapters as they are when the round begins.

    Attributes
    ----------
    server, last : PmcmModel
        With the weights that were received, and those after the last training here; in evaluation mode.
    """

    server: PmcmModel
    last: PmcmModel

    @torch.no_grad()
    def fusions(self, inputs: Inputs, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fusions ``(n, d)`` by both of what is shown, with their learned tokens for the rest."""
        first, second = (
            model.fuse(features, present, model.tokens.expand_as(features)).z
            for model in (self.server.eval(), self.last.eval())
            for features in [model.encode(inputs)]
        )
        return first, second


def losses(
    model: PmcmModel,
    batch: Trials,
    prototypes: Prototypes,
    masks: MaskSettings,
    objective: ObjectiveSettings,
    with_contrast: bool,
    generator: torch.Generator,
    anchors: Anchors | None = None,
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
    anchors : Anchors, optional
        For MOON's term; there is none without them.
    """
    features = model.encode(batch.inputs)
    present = drop_modalities(batch.present, masks.dropout, generator)

    def fused_from(shown: Tensor) -> Fused:
        stand_ins = substitutes(features, shown, batch.labels, prototypes, model.tokens, masks, generator)
        return model.fuse(features, shown, stand_ins)

    fused = fused_from(present)
    found: dict[str, Tensor] = {}
    if objective.class_weight and batch.labels is not None and fused.logits is not None:
        task = task_loss(fused.logits, batch.labels, objective.task)
        if objective.full_view and masks.dropout:
            whole = fused_from(batch.present).logits
            assert whole is not None
            share = objective.full_view
            task = (1 - share) * task + share * task_loss(whole, batch.labels, objective.task)
        found["task"] = objective.class_weight * task
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
    if anchors is not None:
        seen = anchors.fusions(batch.inputs, present)
        found["model contrast"] = objective.model_contrast * model_contrast(fused.z, *seen, objective.model_temperature)
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
