"""Training masks: what stands in for a modality that a trial misses while the network learns.

Labels are read here and nowhere in `inference`: the label-indexed mask is the paper's, and for training alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phosphene.federation.library import Prototypes
from phosphene.federation.retrieval import prototypes_of, soft_prototypes
from phosphene.federation.settings import MaskSettings

__all__ = ["drop_modalities", "substitutes"]


def drop_modalities(present: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Hide modalities with probability `rate`, each on its own; a trial keeps at least one of those it has.

    Parameters
    ----------
    present : Tensor (n, 3) of bool
    rate : float
    generator : Generator

    Returns
    -------
    Tensor (n, 3) of bool
    """
    if not rate:
        return present
    draws = torch.rand(present.shape, generator=generator)
    kept = present & (draws >= rate)
    # where all would be hidden, the one that came nearest to being kept stays
    last = draws.masked_fill(~present, -1.0).argmax(dim=1)
    alone = torch.nn.functional.one_hot(last, present.shape[1]).bool() & present
    return torch.where(kept.any(dim=1, keepdim=True), kept, alone)


def substitutes(
    features: Tensor,
    present: Tensor,
    labels: Tensor | None,
    prototypes: Prototypes,
    tokens: Tensor,
    settings: MaskSettings,
    generator: torch.Generator,
) -> Tensor:
    r"""Stand-ins for every modality of every trial; those of modalities that are present are not read by the fusion.

    Each trial draws one kind by the mixture's shares: ``label`` :math:`P^m[\arg\max_c s_n[c]]` (the paper's),
    ``retrieval`` (weights from what is observed, no label), ``token``, ``zero``, ``random``. Where there is no
    prototype, the fallback stands.

    Parameters
    ----------
    features : Tensor (n, 3, d)
    present : Tensor (n, 3) of bool
    labels : Tensor (n, C), optional
        Without labels, and for trials that have no class, a label mask falls back.
    prototypes : Prototypes
        Numbers, not parameters: no gradient reaches those who made them.
    tokens : Tensor (3, d)
        The learned ones.
    settings : MaskSettings
    generator : Generator

    Returns
    -------
    Tensor (n, 3, d)
    """
    mixture = settings.mixture
    shares = torch.tensor(list(mixture.values()))
    drawn = torch.multinomial(shares, len(features), replacement=True, generator=generator)
    token, zero = tokens.expand_as(features), torch.zeros_like(features)
    fallback = token if settings.fallback == "token" else zero
    result = zero
    for number, kind in enumerate(mixture):
        if kind == "label":
            candidate = _labelled(features.detach(), present, labels, prototypes, fallback)
        elif kind == "retrieval":
            seen = features.detach() if settings.stop_gradient else features
            found = soft_prototypes(seen, present, prototypes, settings.temperature)
            candidate = torch.where(found[1][..., None], found[0], fallback)
        elif kind == "random":
            candidate = torch.randn(features.shape, generator=generator)
        else:
            candidate = token if kind == "token" else zero
        result = torch.where((drawn == number)[:, None, None], candidate, result)
    return result


def _labelled(
    features: Tensor, present: Tensor, labels: Tensor | None, prototypes: Prototypes, fallback: Tensor
) -> Tensor:
    if labels is None:
        return fallback
    vectors, found = prototypes_of(labels.argmax(dim=1), features, present, prototypes)
    usable = found & (labels.amax(dim=1) > 0)[:, None]
    return torch.where(usable[..., None], vectors, fallback)
