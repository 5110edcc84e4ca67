"""Pre-norm transformer blocks in two halves, so that a caller can act between attention and feed-forward."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Attend", "FeedForward", "TransformerBlock"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values (batch, heads, tokens, channels) to what each query receives, of the same shape."""


class FeedForward(nn.Sequential):
    """Norm, linear, GELU, linear over the channels of each token; without the residual."""

    def __init__(self, width: int, ratio: float = 4.0) -> None:
        hidden = max(1, round(ratio * width))
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class TransformerBlock(nn.Module):
    """Multi-head self-attention and feed-forward, each after a layer norm and with a residual.

    Parameters
    ----------
    width : int
        Channels, a multiple of `heads`.
    heads : int
    ratio : float
        Hidden width of the feed-forward, in widths.
    """

    def __init__(self, width: int, heads: int, ratio: float = 4.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width {width}, found {heads}")
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = FeedForward(width, ratio)

    def attend(self, x: Tensor, attend: Attend = functional.scaled_dot_product_attention) -> tuple[Tensor, Tensor]:
        """First half of the block.

        Parameters
        ----------
        x : Tensor (batch, tokens, width)
        attend : callable
            The attention itself; the default has neither mask nor bias.

        Returns
        -------
        x : Tensor (batch, tokens, width)
            With what attention adds.
        queries, keys : Tensor (2, batch, heads, tokens, width / heads)
        """
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        received = attend(qkv[0], qkv[1], qkv[2])
        return x + self.out(received.transpose(1, 2).reshape(batch, tokens, width)), qkv[:2]

    def feed(self, x: Tensor) -> Tensor:
        """Second half: ``x + feed_forward(x)``."""
        fed: Tensor = x + self.feed_forward(x)
        return fed

    def forward(self, x: Tensor, attend: Attend = functional.scaled_dot_product_attention) -> Tensor:
        """``(batch, tokens, width)`` to the same shape."""
        return self.feed(self.attend(x, attend)[0])
