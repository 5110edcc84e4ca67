"""Bipartite soft matching of tokens: which to merge, the merged tokens, and the way back to the full grid.

Tokens are split alternately into sets A and B. Every token of A proposes to the token of B whose key is most alike; the
r strongest proposals are carried out at once, several of them into one token of B where it was chosen several times.
The tokens that remain keep their order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Matching", "Merged", "match", "merge", "unmerge", "unmerged"]


class Merged(NamedTuple):
    """What has been merged so far; passed from block to block.

    Attributes
    ----------
    sizes : Tensor
        ``(B, N)`` float32: how many original tokens each present token stands for.
    source : Tensor
        ``(B, N0)`` int64: the present token in which each original token now lies.
    cue : Tensor or None
        ``(B, N)`` float32: a guide that is carried along, merged as the tokens are; see `begin`.
    """

    sizes: Tensor
    source: Tensor
    cue: Tensor | None = None


class Matching(NamedTuple):
    """Which tokens go where, for one merge of N tokens by r.

    Attributes
    ----------
    kept : Tensor
        ``(B, N - r)`` int64: the tokens that remain, in order.
    moved : Tensor
        ``(B, r)`` int64: the tokens that are merged into others, strongest proposal first.
    target : Tensor
        ``(B, N)`` int64: position among the kept of every token, for a moved one that of the token it goes into.
    """

    kept: Tensor
    moved: Tensor
    target: Tensor


def unmerged(batch: int, tokens: int, device: torch.device | str | None = None) -> Merged:
    """The state before any merge: every size is one, every token lies where it was.

    Examples
    --------
    >>> unmerged(2, 5).sizes.shape
    torch.Size([2, 5])
    """
    source = torch.arange(tokens, device=device).expand(batch, tokens)
    return Merged(torch.ones(batch, tokens, device=device), source)


def match(keys: Tensor, r: int, *, protected: int = 0, guide: Tensor | None = None, strength: float = 0.0) -> Matching:
    r"""Choose r tokens to merge into others, by

    .. math:: c_{nm} = \cos(k_n, k_m) - \eta\, (g_n + g_m) / 2, \qquad n \in A, m \in B

    in float32 whatever the precision of the keys, and without gradient. Among equal proposals, and among equally good
    partners, the token that stands first is preferred.

    Parameters
    ----------
    keys : Tensor
        ``(B, N, d)`` what likeness is measured on: the keys of the attention, averaged over heads.
    r : int
        Tokens to merge away, at least 0. At most half of the unprotected tokens can go: a larger r is cut to that.
    protected : int
        Leading tokens (class token, registers) that take no part.
    guide : Tensor, optional
        ``(B, N)`` salience g. Salient tokens are made less alike, so that the background merges first.
    strength : float
        Weight eta of the guide.
    """
    if r < 0 or not 0 <= protected <= keys.shape[1]:
        raise ValueError(
            f"r must be at least 0 and protected one of the {keys.shape[1]} tokens, found {r}, {protected}"
        )
    batch, tokens = keys.shape[:2]
    r = min(r, (tokens - protected) // 2)
    everything = torch.arange(tokens, device=keys.device).expand(batch, tokens)
    if r == 0:
        return Matching(everything, everything[:, :0], everything)
    best, partner = _proposals(keys.detach(), protected, None if guide is None else guide.detach(), strength)
    chosen = best.sort(dim=1, descending=True, stable=True).indices[:, :r]
    moved = protected + 2 * chosen
    into = protected + 2 * partner.gather(1, chosen) + 1
    stays = torch.ones(batch, tokens, dtype=torch.int64, device=keys.device).scatter(1, moved, 0)
    position = stays.cumsum(1) - 1
    kept = stays.sort(dim=1, descending=True, stable=True).indices[:, : tokens - r]
    return Matching(kept, moved, position.scatter(1, moved, position.gather(1, into)))


def _proposals(keys: Tensor, protected: int, guide: Tensor | None, strength: float) -> tuple[Tensor, Tensor]:
    """For each token of A the likeness of its best partner, and the number of that partner within B."""
    with torch.autocast(keys.device.type, enabled=False):
        unit = F.normalize(keys[:, protected:].float(), dim=-1)
        first, second = unit[:, ::2], unit[:, 1::2]
        if guide is None or strength == 0.0:
            return torch.bmm(first, second.transpose(1, 2)).max(dim=2)
        cost = -0.5 * strength * guide[:, protected:].float()
        best, partner = torch.baddbmm(cost[:, None, 1::2], first, second.transpose(1, 2)).max(dim=2)
        return best + cost[:, ::2], partner  # the cost of the proposing token does not change whom it chooses


def merge(x: Tensor, state: Merged, matching: Matching) -> tuple[Tensor, Merged]:
    r"""Carry out a matching: each token becomes the mean of what flows into it, weighted by size,

    .. math:: x'_m = x_m + \sum_{n \to m} \frac{z_n}{z_m + \sum_{n' \to m} z_{n'}} (x_n - x_m),

    which leaves a token bit for bit as it was where nothing flows in or where all that does is the same.

    Parameters
    ----------
    x : Tensor
        ``(B, N, D)`` the tokens.
    state : Merged
    matching : Matching

    Returns
    -------
    (Tensor, Merged)
        ``(B, N - r, D)`` tokens in the precision of `x`, and the state after.
    """
    kept, moved, target = matching
    if moved.shape[1] == 0:
        return x, state
    into = target.gather(1, moved)
    moving = state.sizes.gather(1, moved)
    sizes = state.sizes.gather(1, kept).scatter_add(1, into, moving)
    share = moving / sizes.gather(1, into)
    cue = None if state.cue is None else _mean(state.cue[..., None], kept, moved, into, share)[..., 0]
    return _mean(x, kept, moved, into, share), Merged(sizes, target.gather(1, state.source), cue)


def _mean(x: Tensor, kept: Tensor, moved: Tensor, into: Tensor, share: Tensor) -> Tensor:
    remaining = _rows(x, kept)
    step = (_rows(x, moved) - _rows(remaining, into)) * share[..., None].to(x.dtype)
    flat = remaining.flatten(0, 1).index_add(0, _flat(into, kept.shape[1]), step.flatten(0, 1))
    return flat.view_as(remaining)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[b, index[b, i]]``; as a look-up of whole rows, which is several times faster than a gather of elements."""
    return F.embedding(_flat(index, x.shape[1]), x.flatten(0, 1)).view(*index.shape, x.shape[2])


def _flat(index: Tensor, tokens: int) -> Tensor:
    """Numbers of tokens in each image as row numbers of ``x.flatten(0, 1)``."""
    return (index + tokens * torch.arange(index.shape[0], device=index.device)[:, None]).flatten()


def unmerge(x: Tensor, state: Merged) -> Tensor:
    """Copy every merged token back to all the places it stands for: ``(B, N, D)`` to ``(B, N0, D)``."""
    return _rows(x, state.source)
