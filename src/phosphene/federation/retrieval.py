"""What observed features say of classes, and of modalities that are missing: no function here sees a label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from phosphene.federation.library import FUSION, Prototypes
from phosphene.federation.trials import MODALITIES

__all__ = ["assign_centres", "nearest_centre", "prototypes_of", "similarity", "soft_prototypes"]

_M = len(MODALITIES)


def similarity(features: Tensor, present: Tensor, prototypes: Prototypes) -> tuple[Tensor, Tensor]:
    r"""Mean cosine of what a trial shows with each prototype, over the modalities that both have.

    .. math:: s_n[c, k] = \frac{1}{|O|} \sum_{m \in O} \cos(h^m_n, P^m[c, k])

    with :math:`O` the modalities that the trial has and for which ``P[c, k]`` is available.

    Parameters
    ----------
    features : Tensor (n, 3, d)
    present : Tensor (n, 3) of bool
    prototypes : Prototypes

    Returns
    -------
    similarity : Tensor (n, C, K)
        0 where they share no modality.
    comparable : Tensor (n, C, K) of bool
        Where they share one.
    """
    vectors = functional.normalize(prototypes.vectors[:FUSION], dim=-1)
    cosines = torch.einsum("nmd,mckd->nmck", functional.normalize(features, dim=-1), vectors)
    both = present[:, :, None, None] & prototypes.available[:FUSION]
    shared = both.sum(dim=1)
    return (cosines * both).sum(dim=1) / shared.clamp_min(1), shared > 0


def nearest_centre(features: Tensor, present: Tensor, prototypes: Prototypes) -> Tensor:
    """Of each class, the centre most similar to each trial, (n, C); the first where nothing can be compared."""
    score, comparable = similarity(features, present, prototypes)
    return score.masked_fill(~comparable, -torch.inf).argmax(dim=2)


def assign_centres(features: Tensor, present: Tensor, prototypes: Prototypes, directions: Tensor) -> Tensor:
    """To which centre of each class a trial belongs: one for all its modalities, so that centres pair up across them.

    Parameters
    ----------
    directions : Tensor (K, d)
        Fixed vectors that part the trials of a class for which fewer than K centres are known yet.

    Returns
    -------
    Tensor (n, C) of int
    """
    mean = (functional.normalize(features, dim=-1) * present[..., None]).sum(dim=1)
    start = (mean @ directions.T).argmax(dim=1)
    known = prototypes.available[:FUSION].any(dim=0).all(dim=1)  # (C,)
    return torch.where(known, nearest_centre(features, present, prototypes), start[:, None])


def soft_prototypes(
    features: Tensor, present: Tensor, prototypes: Prototypes, temperature: float
) -> tuple[Tensor, Tensor]:
    """For each modality, prototypes weighted by the softmax of `similarity` over classes and centres.

    Returns
    -------
    substitutes : Tensor (n, 3, d)
    found : Tensor (n, 3) of bool
        False where no prototype of that modality could be compared with the trial; zeros stand there.
    """
    score, comparable = similarity(features, present, prototypes)
    columns, found = [], []
    for m in range(_M):
        candidates = (comparable & prototypes.available[m]).flatten(1)
        some = candidates.any(dim=1)
        scaled = (score.flatten(1) / temperature).masked_fill(~candidates, -torch.inf)
        weights = torch.where(some[:, None], scaled, 0.0).softmax(dim=1) * some[:, None]
        columns.append(weights @ prototypes.vectors[m].flatten(0, 1))
        found.append(some)
    return torch.stack(columns, dim=1), torch.stack(found, dim=1)


def prototypes_of(classes: Tensor, features: Tensor, present: Tensor, prototypes: Prototypes) -> tuple[Tensor, Tensor]:
    """Prototypes of one class a trial, of the centre most similar to what the trial shows.

    Parameters
    ----------
    classes : Tensor (n,) of int

    Returns
    -------
    substitutes : Tensor (n, 3, d)
    found : Tensor (n, 3) of bool
        Where the class has a prototype of that modality.
    """
    score, comparable = similarity(features, present, prototypes)
    rows = torch.arange(len(classes))
    own, usable = score[rows, classes], comparable[rows, classes]  # (n, K)
    columns, found = [], []
    for m in range(_M):
        available = prototypes.available[m, classes]  # (n, K)
        # a centre that cannot be compared comes after all that can, one that is not available is never taken
        rank = torch.where(usable, own, -2.0).masked_fill(~available, -torch.inf)
        columns.append(prototypes.vectors[m, classes, rank.argmax(dim=1)])
        found.append(available.any(dim=1))
    return torch.stack(columns, dim=1), torch.stack(found, dim=1)
