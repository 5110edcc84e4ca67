"""The text tower: a small transformer over byte-pair tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from phosphene.encoders.mlip.config import MLIPConfig
from phosphene.nn.transformer import TransformerBlock

__all__ = ["TextTower"]


class TextTower(nn.Module):
    """Captions to one state a token.

    Parameters
    ----------
    config : MLIPConfig
    """

    def __init__(self, config: MLIPConfig) -> None:
        super().__init__()
        self.causal, width = config.text_causal, config.text_width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(config.text_context, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.text_heads, config.mlp_ratio) for _ in range(config.text_blocks)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        """States of all tokens.

        Parameters
        ----------
        ids : int64 Tensor (captions, tokens)
            At most ``text_context`` tokens.
        valid : bool Tensor (captions, tokens)
            False for padding.

        Returns
        -------
        Tensor (captions, tokens, text_width)
        """
        length = ids.shape[1]
        seen = valid[:, None, None, :]
        if self.causal:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        x = self.embedding(ids) + self.position[:length]

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)

        for block in self.blocks:
            x = block(x, attend)
        return self.norm(x)
