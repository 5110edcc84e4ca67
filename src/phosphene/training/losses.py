"""Objectives as pure functions of tensors; trials of the same stimulus are never negatives of each other.

All contrastive functions take the predictions of a batch ``(B, D)``, the targets of its *distinct* stimuli ``(U, D)``
and, for every prediction, the row of its target ``(B,)``. Repeats of a stimulus, in one person or in several, thus
share one column, and the direction image to brain leaves the other trials of a stimulus out of the denominator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from phosphene.training.contrast import cosines

__all__ = [
    "bimixco",
    "cosine",
    "infonce",
    "mixed_targets",
    "mse",
    "multilabel",
    "pair_weights",
    "semantic_relations",
    "softclip",
    "weighted",
]


def weighted(to_image: Tensor, to_brain: Tensor, weights: Tensor) -> Tensor:
    """Symmetric cross-entropy of logits in both directions with pair weights.

    Parameters
    ----------
    to_image, to_brain : Tensor (B, U)
        Logits of trials with stimuli; the same tensor twice where they are symmetric.
    weights : Tensor (B, U)
        How much each trial belongs to each stimulus; rows sum to one. See `pair_weights`.

    Returns
    -------
    Tensor ()
    """
    positive = weights > 0
    of_image = (weights * to_image.log_softmax(dim=1)).sum()
    # image to brain: each positive pair against the predictions that hold nothing of this stimulus
    negatives = to_brain.masked_fill(positive, -torch.inf).logsumexp(dim=0, keepdim=True)
    log_share = to_brain - torch.logaddexp(to_brain, negatives)
    of_brain = (weights * log_share).masked_fill(~positive, 0.0).sum()
    return -(of_image + of_brain) / (2 * len(to_image))


def infonce(predictions: Tensor, targets: Tensor, stimulus: Tensor, temperature: Tensor | float) -> Tensor:
    r"""Symmetric InfoNCE over cosine similarities, with several positives.

    With :math:`s_{iu} = \cos(p_i, t_u)/\tau`, :math:`u(i)` the stimulus of trial `i` and :math:`N(u)` the trials of
    other stimuli,

    .. math:: -\frac{1}{2B} \sum_i \left[\log \frac{e^{s_{iu(i)}}}{\sum_u e^{s_{iu}}}
              + \log \frac{e^{s_{iu(i)}}}{e^{s_{iu(i)}} + \sum_{k \in N(u(i))} e^{s_{ku(i)}}}\right]

    Parameters
    ----------
    predictions : Tensor (B, D)
    targets : Tensor (U, D)
        Targets of the distinct stimuli of the batch.
    stimulus : Tensor (B,) of int
        Row of `targets` that each prediction should meet.
    temperature : Tensor or float
        :math:`\tau`.

    Returns
    -------
    Tensor ()

    Examples
    --------
    >>> eye = torch.eye(3)
    >>> bool(infonce(eye, eye, torch.arange(3), 0.01) < 1e-6)
    True
    """
    logits = cosines(predictions, targets) / temperature
    return weighted(logits, logits, pair_weights(stimulus, len(targets)).to(logits.dtype))


def bimixco(
    predictions: Tensor,
    targets: Tensor,
    stimulus: Tensor,
    temperature: Tensor | float,
    partner: Tensor,
    share: Tensor,
) -> Tensor:
    r"""InfoNCE, both directions, of predictions from mixed responses (BiMixCo of MindEye, after MixCo).

    Prediction `i` came from :math:`\lambda_i x_i + (1 - \lambda_i) x_{\pi(i)}` and is positive with weight
    :math:`\lambda_i` to its own stimulus, :math:`1 - \lambda_i` to that of its partner. With all shares 1 it is
    `infonce`.

    Parameters
    ----------
    partner : Tensor (B,) of int
        Row of `targets` of the partner's stimulus.
    share : Tensor (B,)
        :math:`\lambda_i` in [0, 1].
    """
    logits = cosines(predictions, targets) / temperature
    weights = pair_weights(stimulus, len(targets), partner, share.to(logits.dtype))
    return weighted(logits, logits, weights)


def pair_weights(
    stimulus: Tensor, n_stimuli: int, partner: Tensor | None = None, share: Tensor | None = None
) -> Tensor:
    """Weight of each trial's stimulus, and of its partner's where responses are mixed: (B, U).

    Examples
    --------
    >>> pair_weights(torch.tensor([1, 0]), 2, torch.tensor([0, 0]), torch.tensor([0.75, 0.5])).tolist()
    [[0.25, 0.75], [1.0, 0.0]]
    """
    if partner is None or share is None:
        return functional.one_hot(stimulus, n_stimuli)
    weights = torch.zeros(len(stimulus), n_stimuli, dtype=share.dtype, device=share.device)
    weights.scatter_add_(1, stimulus[:, None], share[:, None])
    return weights.scatter_add_(1, partner[:, None], 1 - share[:, None])


def softclip(predictions: Tensor, targets: Tensor, stimulus: Tensor, temperature: Tensor | float) -> Tensor:
    r"""Cross-entropy against the targets' own similarities, both directions (SoftCLIP of MindEye).

    .. math:: -\frac{1}{2} \left[\frac{1}{B} \sum_{i,u} q_{u(i)u} \log p(u \mid i)
              + \frac{1}{B} \sum_{i,k} r_{u(i)k} \log p(k \mid u(i))\right]

    where :math:`q_{vu}` is the softmax over `u` of :math:`\cos(t_v, t_u)/\tau` and :math:`r_{vk}` that over trials
    `k` of :math:`\cos(t_v, t_{u(k)})/\tau`: trials of one stimulus share their mass evenly. A learned temperature
    gets no gradient through the soft labels.

    Parameters
    ----------
    predictions, targets, stimulus, temperature
        As in `infonce`.
    """
    logits = cosines(predictions, targets) / temperature
    fixed = temperature.detach() if isinstance(temperature, Tensor) else temperature
    labels = (cosines(targets, targets) / fixed).detach()
    to_image = (labels.softmax(dim=1)[stimulus] * logits.log_softmax(dim=1)).sum()
    trial_labels = labels[:, stimulus].softmax(dim=1)
    log_share = (trial_labels * logits.T.log_softmax(dim=1)).sum(dim=1)
    return -(to_image + log_share[stimulus].sum()) / (2 * len(logits))


def mixed_targets(targets: Tensor, stimulus: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Targets of mixed responses, ``share * own + (1 - share) * partner's``: (B, D)."""
    share = share.to(targets.dtype)[:, None]
    return torch.lerp(targets[partner], targets[stimulus], share)


def mse(predictions: Tensor, aligned: Tensor, variance: Tensor | float = 1.0) -> Tensor:
    """Mean squared error over all elements, in units of `variance`: 1 is what the mean target reaches.

    Parameters
    ----------
    predictions, aligned : Tensor (B, D)
        Predictions and the target of each.
    variance : Tensor or float
        Mean variance of a target dimension over training stimuli.
    """
    return functional.mse_loss(predictions, aligned) / variance


def cosine(predictions: Tensor, aligned: Tensor) -> Tensor:
    """One minus the cosine of each prediction (B, D) with its target (B, D), averaged."""
    return 1.0 - functional.cosine_similarity(predictions, aligned, dim=1).mean()


def multilabel(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits with labels in [0, 1], both (B, classes), averaged over both."""
    return functional.binary_cross_entropy_with_logits(logits, labels)


def semantic_relations(predictions: Tensor, aligned: Tensor, temperature: Tensor | float, form: str = "kl") -> Tensor:
    r"""How far relations between predictions are from those between their stimuli, whoever saw them.

    With :math:`u_i` the target of prediction :math:`z_i`, rows over all :math:`j \ne i` of the batch,

    .. math:: \frac{1}{B} \sum_i \mathrm{KL}\Big(\mathrm{softmax}_j \frac{\cos(u_i, u_j)}{\tau} \,\Big\|\,
              \mathrm{softmax}_j \frac{\cos(z_i, z_j)}{\tau}\Big)

    or, in the form "frobenius", the mean square of :math:`\cos(u_i, u_j) - \cos(z_i, z_j)`.

    Parameters
    ----------
    predictions, aligned : Tensor (B, D)
        Predictions, of all people of a batch, and the target of each.
    temperature : Tensor or float
        :math:`\tau`, of the form "kl".
    form : {"kl", "frobenius"}

    Returns
    -------
    Tensor ()
    """
    own = torch.eye(len(predictions), dtype=torch.bool, device=predictions.device)
    wanted, found = cosines(aligned, aligned).detach(), cosines(predictions, predictions)
    if form == "frobenius":
        return (wanted - found)[~own].square().mean()
    wanted = (wanted / temperature).masked_fill(own, -torch.inf).log_softmax(dim=1)
    found = (found / temperature).masked_fill(own, -torch.inf).log_softmax(dim=1)
    # what is masked out of both has no share in the divergence, and must not make it NaN
    rows = torch.where(own, 0.0, wanted.exp() * (wanted - found).masked_fill(own, 0.0))
    return rows.sum(dim=1).mean()
