"""How like pictures and captions are: by the spatial embedding alone, or with the other perspectives added."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from phosphene.encoders.mlip.model import ImageFeatures, TextFeatures
from phosphene.errors import InputError
from phosphene.nn.late_interaction import late_interaction

__all__ = ["SCORES", "pool_grid", "similarities"]

SCORES = ("spatial", "spatial + frequency", "spatial + frequency + tokens")
"""Names of the similarities; the first is what a CLIP has, and the fair comparison with one."""


def similarities(
    image: ImageFeatures,
    text: TextFeatures,
    *,
    pool_tokens: int | None = None,
    top_tokens: int | None = None,
    tokens: bool = True,
) -> dict[str, Tensor]:
    """Similarities (I, C) of I pictures with C captions, by name in `SCORES`.

    Cosines of what both sides have are added up, all with weight one; a token-level cosine is the mean of both
    directions of late interaction.

    Parameters
    ----------
    image, text : ImageFeatures, TextFeatures
        As `MLIP.encode_image` and `MLIP.encode_text` give them.
    pool_tokens, top_tokens : int, optional
        As the model was trained: visual tokens are averaged to so many, and only so many count.
    tokens : bool
        Whether to compare tokens too, which costs most.

    Examples
    --------
    >>> import torch
    >>> image, text = ImageFeatures(torch.eye(2)), TextFeatures(torch.eye(2), None, torch.ones(2, 1).bool())
    >>> {name: score.diagonal().tolist() for name, score in similarities(image, text).items()}
    {'spatial': [1.0, 1.0]}
    """
    words = functional.normalize(text.pooled.float(), dim=1)
    total = functional.normalize(image.spatial.float(), dim=1) @ words.T
    scores = {SCORES[0]: total}
    if image.frequency is not None:
        total = total + functional.normalize(image.frequency.float(), dim=1) @ words.T
        scores[SCORES[1]] = total
    grids = [(image.spatial_tokens, image.sizes), (image.frequency_tokens, None)]
    if tokens and text.tokens is not None and any(grid is not None for grid, _ in grids):
        for grid, sizes in grids:
            if grid is None:
                continue
            if pool_tokens is not None and sizes is None:
                grid = pool_grid(grid, pool_tokens)
            there, back = late_interaction(grid, text.tokens, text.mask, sizes=sizes, top=top_tokens)
            total = total + (there + back) / 2
        scores[SCORES[2]] = total
    return scores


def pool_grid(tokens: Tensor, most: int) -> Tensor:
    """Average a square grid of tokens (B, N, E) to one of `most` tokens; a grid that is not larger stays as it is.

    Examples
    --------
    >>> import torch
    >>> pool_grid(torch.arange(16.0).view(1, 16, 1), 4).flatten().tolist()
    [2.5, 4.5, 10.5, 12.5]
    """
    count, side = tokens.shape[1], math.isqrt(tokens.shape[1])
    if count <= most:
        return tokens
    if side * side != count:
        raise InputError(f"objective.pool_tokens needs a square grid of tokens, found {count} tokens")
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    return functional.adaptive_avg_pool2d(grid, math.isqrt(most)).flatten(2).transpose(1, 2)
