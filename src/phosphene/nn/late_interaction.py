"""Late interaction of visual tokens with words: exact, a few matrix products, in bounded memory.

All pairs of I images and C captions make a tensor of I x C x N x T similarities of which only maxima are wanted. It is
made block by block, and once more in the backward pass, where the gradient of a maximum is a mask: nothing of that
size is ever kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["late_interaction"]

# similarities of one block: what stays in the cache of a processor core, and a few hundred MB on a GPU
_BLOCK = {"cpu": 2**19, "cuda": 2**26}


def late_interaction(
    image_tokens: Tensor,
    words: Tensor,
    mask: Tensor,
    *,
    sizes: Tensor | None = None,
    chunk: int | None = None,
    top: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Similarity of every image with every caption, token by token, in both directions (FILIP).

    With :math:`a_{ic}(n, m) = \cos(v_{in}, w_{cm})`, :math:`M_c` the words of caption `c` and :math:`z_{in}` the
    sizes of the tokens,

    .. math:: x_{ic} = \frac{\sum_n z_{in} \max_{m \in M_c} a_{ic}(n, m)}{\sum_n z_{in}}, \qquad
              y_{ic} = \frac{1}{|M_c|} \sum_{m \in M_c} \max_n a_{ic}(n, m)

    Where several tokens share a maximum they share its gradient on a CPU; on a GPU one of them takes it.

    Parameters
    ----------
    image_tokens : Tensor (I, N, E)
        Visual tokens, of any length.
    words : Tensor (C, T, E)
        Word tokens, of any length.
    mask : Tensor (C, T) of bool
        True for a word, False for padding; each caption has a word.
    sizes : Tensor (I, N), optional
        How many patches a merged token stands for; a token of size 0 is padding. Default: all alike.
    chunk : int, optional
        Images compared at a time (default: by the memory that takes).
    top : int, optional
        The first mean runs over this many tokens only, those with the highest maxima (chosen pair by pair).

    Returns
    -------
    image_to_text, text_to_image : Tensor (I, C)
        `x` and `y`, in [-1, 1], float32 (float64 for float64). Inside autocast the products are of its precision.

    Examples
    --------
    >>> image = torch.eye(4)[None, :3]
    >>> words = torch.eye(4)[None, [0, 3]]
    >>> x, y = late_interaction(image, words, torch.tensor([[True, True]]))
    >>> round(float(x), 3), round(float(y), 3)
    (0.333, 0.5)
    """
    _check(image_tokens, words, mask, sizes, top)
    if mask.device.type == "cpu":  # on a GPU to look for padding that all share would mean to wait for it
        used = mask.any(dim=0).nonzero().flatten().tolist()
        words, mask = words[:, used[0] : used[-1] + 1], mask[:, used[0] : used[-1] + 1]
    present = None if sizes is None else sizes > 0
    visual = _units(image_tokens, present).contiguous()
    # word by word, captions side by side: both maxima then run over rows, at the speed of memory
    textual = _units(words, mask).transpose(0, 1).flatten(0, 1)
    shares = mask.to(visual.dtype)
    shares = (shares / shares.sum(dim=1, keepdim=True).clamp(min=1)).T
    device = visual.device.type
    if torch.is_autocast_enabled(device):
        visual, textual = (each.to(torch.get_autocast_dtype(device)) for each in (visual, textual))
    if chunk is None:
        block = _BLOCK.get(device, _BLOCK["cuda"])
        chunk = max(1, block // (visual.shape[1] * len(textual)))
    scores: tuple[Tensor, Tensor] = _Interaction.apply(visual, textual, sizes, shares, chunk, top)
    return scores


def _check(image_tokens: Tensor, words: Tensor, mask: Tensor, sizes: Tensor | None, top: int | None) -> None:
    if image_tokens.ndim != 3 or words.ndim != 3 or image_tokens.shape[2] != words.shape[2]:
        raise ValueError(
            "image tokens (I, N, E) and words (C, T, E) are needed, "
            f"found {tuple(image_tokens.shape)} and {tuple(words.shape)}"
        )
    if mask.shape != words.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"a mask (C, T) of bool is needed, found {tuple(mask.shape)} of {mask.dtype}")
    if sizes is not None and sizes.shape != image_tokens.shape[:2]:
        raise ValueError(f"sizes (I, N) are needed, found {tuple(sizes.shape)} for {tuple(image_tokens.shape)}")
    if top is not None and top < 1:
        raise ValueError(f"top counts tokens, from 1, found {top}")
    if mask.device.type == "cpu" and not mask.any(dim=1).all():
        raise ValueError(f"caption {int((~mask.any(dim=1)).nonzero()[0])} has no words")


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _units(tokens: Tensor, present: Tensor | None) -> Tensor:
    """Tokens (B, N, E) of length one; an absent one becomes a copy of the first present one, which no maximum feels."""
    units = functional.normalize(tokens.to(_wide(tokens)), dim=2)
    if present is None:
        return units
    first = present.to(torch.uint8).argmax(dim=1)
    copies = units[torch.arange(len(units), device=units.device), first]
    return torch.where(present[:, :, None], units, copies[:, None])


def _token_shares(best: Tensor, sizes: Tensor | None, top: int | None) -> Tensor:
    """Weight of each token in the mean over tokens, (b, N, C) or (b, N, 1), from their maxima (b, N, C)."""
    if sizes is None:
        sizes = best.new_ones(best.shape[:2])
    weights = sizes.to(best.dtype)[:, :, None]
    if top is not None and top < best.shape[1]:
        chosen = best.masked_fill(weights <= 0, -torch.inf).topk(top, dim=1).indices
        weights = torch.zeros_like(best).scatter(1, chosen, weights.expand_as(best).gather(1, chosen))
    return weights / weights.sum(dim=1, keepdim=True)


class _Interaction(torch.autograd.Function):
    """Both scores of unit tokens (I, N, E) with unit words (T * C, E), weighted by `shares` (T, C)."""

    @staticmethod
    def forward(
        ctx: Any, visual: Tensor, textual: Tensor, sizes: Tensor | None, shares: Tensor, chunk: int, top: int | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(visual, textual, sizes, shares)
        ctx.chunk, ctx.top = chunk, top
        blocks = []
        for start in range(0, len(visual), chunk):
            part = slice(start, start + chunk)
            similar = _similar(visual[part], textual, len(shares))
            of_tokens, of_words = similar.amax(dim=2).to(shares.dtype), similar.amax(dim=1)
            weights = _token_shares(of_tokens, None if sizes is None else sizes[part], top)
            blocks.append(((weights * of_tokens).sum(dim=1), (shares * of_words).sum(dim=1)))
        to_text, to_image = zip(*blocks, strict=True)
        return torch.cat(to_text), torch.cat(to_image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        visual, textual, sizes, shares = ctx.saved_tensors
        need_visual, need_textual = ctx.needs_input_grad[:2]
        of_visual = visual.new_empty(visual.shape) if need_visual else None
        # transposed, the sum over blocks is the fastest of the four products
        of_textual = torch.zeros_like(textual.T, dtype=shares.dtype) if need_textual else None
        for start in range(0, len(visual), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            block = visual[part]
            pull = (_shared if visual.device.type == "cpu" else _indexed)(
                _similar(block, textual, len(shares)),
                (gradients[0][part], gradients[1][part]),
                None if sizes is None else sizes[part],
                shares,
                ctx.top,
            ).flatten(2)
            if of_visual is not None:
                torch.matmul(pull, textual, out=of_visual[part])
            if of_textual is not None:
                _add_product(of_textual, block.flatten(0, 1).T, pull.flatten(0, 1))
        if of_textual is not None:
            of_textual = of_textual.T.to(textual.dtype)
        return of_visual, of_textual, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:  # sums over many blocks are kept in float32
        total += (left @ right).to(total.dtype)


def _similar(visual: Tensor, textual: Tensor, length: int) -> Tensor:
    """Similarities (b, N, T, C)."""
    with torch.autocast(visual.device.type, enabled=False):
        return torch.matmul(visual, textual.T).view(*visual.shape[:2], length, -1)


def _shared(
    similar: Tensor, gradients: tuple[Tensor, Tensor], sizes: Tensor | None, shares: Tensor, top: int | None
) -> Tensor:
    """Gradient of the similarities (b, N, T, C), which are overwritten: shares of the maxima, zero elsewhere.

    Only passes that a processor does at the speed of its cache: to ask where a maximum lies is twenty times slower.
    """
    to_text, to_image = (gradient[:, None, None] for gradient in gradients)
    of_tokens, of_words = similar.amax(dim=2, keepdim=True), similar.amax(dim=1, keepdim=True)
    weights = _token_shares(of_tokens.squeeze(2).to(shares.dtype), sizes, top)[:, :, None]
    pull = similar.clone().eq_(of_tokens)  # in place, a comparison keeps the type and its speed
    pull *= (weights * to_text / pull.sum(dim=2, keepdim=True)).to(pull.dtype)
    of_maxima = similar.eq_(of_words)
    of_maxima *= (shares * to_image / of_maxima.sum(dim=1, keepdim=True)).to(pull.dtype)
    pull += of_maxima
    return pull


def _indexed(
    similar: Tensor, gradients: tuple[Tensor, Tensor], sizes: Tensor | None, shares: Tensor, top: int | None
) -> Tensor:
    """The same with one place for each maximum, written there: a GPU finds it at no cost, and has fewer passes."""
    to_text, to_image = (gradient[:, None] for gradient in gradients)
    (of_tokens, word), token = similar.max(dim=2), similar.argmax(dim=1)
    weights = _token_shares(of_tokens.to(shares.dtype), sizes, top)
    pull = similar.zero_()
    pull.scatter_(2, word[:, :, None], (weights * to_text).to(pull.dtype)[:, :, None])
    return pull.scatter_add_(1, token[:, None], (shares * to_image).to(pull.dtype)[:, None])
