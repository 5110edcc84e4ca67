"""Contrast of images with texts, softmax and sigmoid, with any number of positives: pure functions of tensors.

A pair is positive, negative or left out. Another caption of the same image, and the same caption under another image,
are positives; two positives of one row are never each other's negatives.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Form", "contrast", "cosines", "instance"]

Form = Literal["softmax", "sigmoid"]


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of every row of one (I, E) with every row of the other (C, E): (I, C), in float32 at least."""
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(
            f"vectors of one width, (I, E) and (C, E), are needed, found {tuple(one.shape)} and {tuple(other.shape)}"
        )
    dtype = torch.promote_types(one.dtype, torch.float32)
    with torch.autocast(one.device.type, enabled=False):
        return functional.normalize(one.to(dtype), dim=1) @ functional.normalize(other.to(dtype), dim=1).T


def instance(
    image: Tensor,
    text: Tensor,
    positive: Tensor,
    temperature: Tensor | float,
    form: Form = "softmax",
    bias: Tensor | float = 0.0,
    ignore: Tensor | None = None,
) -> Tensor:
    r"""Contrast of embeddings: `contrast` of :math:`\cos(v_i, t_c)/\tau` in both directions.

    Parameters
    ----------
    image : Tensor (I, E)
    text : Tensor (C, E)
    positive, form, bias, ignore
        See `contrast`.
    temperature : Tensor or float
        :math:`\tau`.

    Returns
    -------
    Tensor ()

    Examples
    --------
    >>> eye = torch.eye(3)
    >>> bool(instance(eye, eye, eye.bool(), 0.01) < 1e-6)
    True
    """
    logits = cosines(image, text) / temperature
    return contrast(logits, logits, positive, form, bias, ignore)


def contrast(
    image_to_text: Tensor,
    text_to_image: Tensor,
    positive: Tensor,
    form: Form = "softmax",
    bias: Tensor | float = 0.0,
    ignore: Tensor | None = None,
) -> Tensor:
    r"""Contrastive loss of logits, mean of both directions.

    ``"softmax"``: with :math:`P_i` and :math:`N_i` the positives and negatives of image `i`,

    .. math:: \frac{1}{I} \sum_i \frac{1}{|P_i|} \sum_{c \in P_i}
              -\log \frac{e^{s_{ic}}}{e^{s_{ic}} + \sum_{k \in N_i} e^{s_{ik}}}

    and the same over the columns of `text_to_image`; a row without positives does not count. With one positive in
    every row and column it is the loss of CLIP. ``"sigmoid"``: with :math:`z_{ic} = \pm 1`,
    :math:`-\frac{1}{I} \sum_{ic} \log \sigma(z_{ic} (s_{ic} + b))`, the loss of SigLIP.

    Parameters
    ----------
    image_to_text, text_to_image : Tensor (I, C)
        Logits, that is similarities over the temperature; the same tensor twice where similarity is symmetric.
    positive : Tensor (I, C) of bool
    form : {"softmax", "sigmoid"}
    bias : Tensor or float
        Added to the logits of the sigmoid form; without effect on the softmax.
    ignore : Tensor (I, C) of bool, optional
        Pairs that are neither positive nor negative.

    Returns
    -------
    Tensor ()
    """
    shape = image_to_text.shape
    if image_to_text.ndim != 2 or not shape == text_to_image.shape == positive.shape:
        found = ", ".join(str(tuple(t.shape)) for t in (image_to_text, text_to_image, positive))
        raise ValueError(f"logits and positives (I, C) are needed, found {found}")
    outside = torch.zeros_like(positive) if ignore is None else ignore
    positive = positive & ~outside
    directions = [(image_to_text, 1), (text_to_image, 0)]
    if form == "sigmoid":
        # one similarity for both directions is one sum, not two
        logits = [image_to_text] if image_to_text is text_to_image else [image_to_text, text_to_image]
        return torch.stack([_sigmoid(each + bias, positive, outside) for each in logits]).mean()
    return torch.stack([_softmax(each, positive, outside, dim) for each, dim in directions]).mean()


def _softmax(logits: Tensor, positive: Tensor, outside: Tensor, dim: int) -> Tensor:
    negatives = logits.masked_fill(positive | outside, -torch.inf).logsumexp(dim, keepdim=True)
    lost = functional.softplus(negatives - logits).masked_fill(~positive, 0.0)
    count = positive.sum(dim)
    return (lost.sum(dim) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def _sigmoid(logits: Tensor, positive: Tensor, outside: Tensor) -> Tensor:
    signed = torch.where(positive, logits, -logits)
    return functional.softplus(-signed).masked_fill(outside, 0.0).sum() / len(logits)
