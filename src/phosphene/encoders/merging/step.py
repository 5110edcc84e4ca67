"""What a host calls: `begin` before the first block, `merge_step` in each block between attention and MLP."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from phosphene.encoders.merging.guides import attention_cue, combine, highpass_cue, zscore
from phosphene.encoders.merging.matching import Merged, match, merge, unmerged
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.errors import InputError

__all__ = ["attention_sizes", "begin", "merge_step"]


def begin(
    tokens: Tensor,
    settings: MergeSettings,
    *,
    protected: int = 0,
    grid: tuple[int, int] | None = None,
    cue: Tensor | None = None,
) -> Merged:
    """The state before the first block, with the cue that is carried from block to block where the guide has one.

    Parameters
    ----------
    tokens : Tensor
        ``(B, N, D)`` what enters the first block (positions added or not: what is the same in all images matters
        little), class token and registers first.
    settings : MergeSettings
    protected : int
        Leading tokens that are never merged.
    grid : (int, int), optional
        Rows and columns of the other tokens: needed by the guides "frequency" and "both" without a `cue`.
    cue : Tensor, optional
        ``(B, N - protected)`` cue of the domain to carry instead: a learned frequency cue for "frequency" and "both",
        likeness to a text for "text".
    """
    state = unmerged(tokens.shape[0], tokens.shape[1], tokens.device)
    if settings.guide in ("none", "spatial"):
        return state
    if cue is None and settings.guide == "text":
        return state
    if cue is None:
        if grid is None or grid[0] * grid[1] != tokens.shape[1] - protected:
            raise ValueError(
                f"the guide {settings.guide!r} needs the grid of the {tokens.shape[1] - protected} tokens, found {grid}"
            )
        cue = highpass_cue(tokens[:, protected:], *grid)
    return state._replace(cue=zscore(F.pad(cue.detach().float(), (protected, 0)), protected))


def attention_sizes(state: Merged, settings: MergeSettings) -> Tensor | None:
    """Sizes to give to the attention of a block: None while each token stands for itself, or if they shall not count.

    Returns
    -------
    Tensor or None
        ``(B, N)``.
    """
    nothing = state.sizes.shape[1] == state.source.shape[1]
    return None if nothing or not settings.proportional else state.sizes


def merge_step(
    x: Tensor,
    keys: Tensor,
    state: Merged,
    r: int,
    settings: MergeSettings,
    protected: int = 0,
    *,
    queries: Tensor | None = None,
    cue: Tensor | None = None,
) -> tuple[Tensor, Merged]:
    """Merge r tokens away: the one call of a transformer block, after its attention and before its MLP.

    Parameters
    ----------
    x : Tensor
        ``(B, N, D)`` tokens after attention, the residual added.
    keys : Tensor
        ``(B, H, N, d)`` keys of that attention.
    state : Merged
        From `begin` or the block before.
    r : int
        Tokens to merge away; 0 gives `x` and `state` back untouched.
    settings : MergeSettings
        Of which `guide`, `strength` and `balance` are read.
    protected : int
        Leading tokens that are never merged, the class token first.
    queries : Tensor, optional
        ``(B, H, N, d)`` queries of that attention: needed by the guides "spatial" and "both".
    cue : Tensor, optional
        ``(B, N)`` cue of this block in place of the carried one, for "frequency", "both" and "text".

    Returns
    -------
    (Tensor, Merged)
        ``(B, N - r, D)`` and the state after.

    Raises
    ------
    InputError
        For a guide by text without one.
    """
    if r == 0:
        return x, state
    guide = _guide(keys, state, settings, protected, queries, cue)
    matching = match(
        keys.detach().mean(dim=1, dtype=torch.float32), r, protected=protected, guide=guide, strength=settings.strength
    )
    return merge(x, state, matching)


def _guide(
    keys: Tensor, state: Merged, settings: MergeSettings, protected: int, queries: Tensor | None, cue: Tensor | None
) -> Tensor | None:
    """The z-scored guide of the settings, ``(B, N)``."""
    kind = settings.guide
    if kind == "none":
        return None
    spatial = other = None
    if kind in ("spatial", "both"):
        if queries is None:
            raise ValueError(f"the guide {kind!r} needs the queries of the attention")
        spatial = zscore(attention_cue(queries, keys, protected), protected)
    if kind != "spatial":
        carried = state.cue if cue is None else cue
        if carried is None and kind == "text":
            raise InputError("merging guided by text needs a text: give one or several text embeddings")
        if carried is None:
            raise ValueError(f"the guide {kind!r} needs a cue: give one, or the grid of the tokens to `begin`")
        other = zscore(carried, protected)
    if spatial is None or other is None:
        return spatial if other is None else other
    return combine(spatial, other, settings.balance)
