"""Attention over tokens of different sizes, on the fused kernels.

A token that stands for z original ones must draw the attention that z of them would: log z is added to its logits
(proportional attention). A bias on the logits keeps PyTorch off the flash kernels of a GPU; one more channel gives the
same sum and does not.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None = None, *, how: Literal["auto", "bias", "channel"] = "auto"
) -> Tensor:
    r"""Proportional attention, :math:`\mathrm{softmax}(q k^T / \sqrt d + \log z)\, v`.

    Parameters
    ----------
    q : Tensor
        ``(B, H, M, d)``.
    k, v : Tensor
        ``(B, H, N, d)``.
    sizes : Tensor, optional
        ``(B, N)`` float32. None is attention without sizes: PyTorch's own function and nothing else.
    how : {"auto", "bias", "channel"}
        "bias" gives log z as a mask ``(B, 1, 1, N)``. "channel" gives it as one more channel of the keys, against a
        constant :math:`\sqrt d` in the queries: exact, and open to kernels that take no mask; heads are padded to a
        multiple of 8. "auto" is the channel in half precision on a GPU, else the bias.

    Returns
    -------
    Tensor
        ``(B, H, M, d)``.
    """
    if sizes is None:
        return F.scaled_dot_product_attention(q, k, v)
    bias = sizes.detach().log()[:, None, None]
    if how == "bias" or (how == "auto" and not (q.is_cuda and q.element_size() == 2)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    width = q.shape[-1]
    rest = -(width + 1) % 8
    asked = F.pad(torch.full_like(q[..., :1], math.sqrt(width)), (0, rest))
    level = F.pad(bias.mT.to(k.dtype).expand(-1, k.shape[1], -1, -1), (0, rest))
    query, key = torch.cat([q, asked], dim=-1), torch.cat([k, level], dim=-1)
    padded = F.scaled_dot_product_attention(query, key, F.pad(v, (0, rest + 1)), scale=1 / math.sqrt(width))
    return padded[..., :width]
