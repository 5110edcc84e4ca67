"""What to spare from merging: cues of salience for each token, from attention, from the spectrum, or from a text.

A cue is ``(B, N)`` in float32 over all present tokens, protected ones included, without gradient. `zscore` brings cues
to one scale for each image; protected tokens count nowhere and have 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention_cue", "combine", "embedding_cue", "highpass_cue", "zscore"]


def zscore(cue: Tensor, protected: int = 0) -> Tensor:
    """Centre and scale a cue over the unprotected tokens of each image; a cue that is the same everywhere becomes 0.

    Parameters
    ----------
    cue : Tensor
        ``(B, N)``.
    protected : int
        Leading tokens that are set to 0.
    """
    free = cue.detach()[:, protected:].float()
    centred = free - free.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    floor = 1e-6 * free.abs().amax(dim=1, keepdim=True) + 1e-12  # below, differences are rounding
    return F.pad(torch.where(spread > floor, centred / spread.clamp(min=1e-12), 0.0), (protected, 0))


def attention_cue(queries: Tensor, keys: Tensor, protected: int = 0) -> Tensor:
    r"""Spatial cue: how much attention a token draws.

    With a class token (the first, `protected` at least 1), up to a constant for each image that `zscore` takes away,
    the log of its attention averaged over heads :math:`h`,

    .. math:: a_n = \frac{1}{H} \sum_h \log \mathrm{softmax}_n (q^h_{cls} \cdot k^h_n / \sqrt d)

    In a tower without one (`protected` 0) the log of the mean attention that a token receives from all tokens stands
    in, averaged over heads. Sizes do not enter, so that a merged token is as salient as what lies in it.

    Parameters
    ----------
    queries, keys : Tensor
        ``(B, H, N, d)``.
    protected : int
        Leading tokens that are never merged.
    """
    q, k = queries.detach().float(), keys.detach().float()
    with torch.autocast(q.device.type, enabled=False):
        if protected:
            logits = torch.einsum("bhd,bhnd->bhn", q[:, :, 0], k) / math.sqrt(q.shape[-1])
            return logits.log_softmax(dim=-1).mean(dim=1)
        received = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1).mean(dim=2)
        return received.clamp(min=1e-30).log().mean(dim=1)


def highpass_cue(tokens: Tensor, height: int, width: int, *, cutoff: float = 0.5) -> Tensor:
    r"""Frequency cue without training: how much fine detail of the token grid lies in a token.

    The grid is transformed by the 2-D DFT, spatial frequencies up to `cutoff` are taken out, and what is left is
    transformed back: :math:`b_n = \| \mathcal F^{-1}[\mathbb 1(|\omega| > c)\, \mathcal F x]_n \| / \sqrt D`.

    Parameters
    ----------
    tokens : Tensor
        ``(B, height * width, D)`` in raster order, without class token.
    height, width : int
    cutoff : float
        As a share of the highest frequency along an axis, 0 (all but the mean) to below sqrt 2.
    """
    grid = tokens.detach().float().unflatten(1, (height, width))
    rows = torch.fft.fftfreq(height, 0.5, device=grid.device)
    columns = torch.fft.rfftfreq(width, 0.5, device=grid.device)
    high = (rows[:, None].square() + columns.square()).sqrt() > cutoff
    spectrum = torch.fft.rfft2(grid, dim=(1, 2)) * high[..., None]
    detail = torch.fft.irfft2(spectrum, s=(height, width), dim=(1, 2))
    return detail.square().mean(dim=-1).sqrt().flatten(1)


def embedding_cue(tokens: Tensor, reference: Tensor) -> Tensor:
    """Cue by content: the cosine of each token with a reference, the largest where there are several.

    With the image's own frequency embedding and its projected frequency tokens, the learned frequency cue; with one or
    several text embeddings and tokens projected into the space shared with text, the text cue.

    Parameters
    ----------
    tokens : Tensor
        ``(B, N, E)``.
    reference : Tensor
        ``(M, E)`` for all images, or ``(B, M, E)`` for each its own.
    """
    if reference.ndim not in (2, 3) or reference.shape[-1] != tokens.shape[-1]:
        raise ValueError(
            f"references must be (M, {tokens.shape[-1]}) or (B, M, {tokens.shape[-1]}), found {tuple(reference.shape)}"
        )
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens.detach().float(), dim=-1)
        return (unit @ F.normalize(reference.detach().float(), dim=-1).mT).amax(dim=-1)


def combine(spatial: Tensor, frequency: Tensor, balance: float) -> Tensor:
    """``balance * spatial + (1 - balance) * frequency``, both z-scored."""
    return balance * spatial + (1 - balance) * frequency
