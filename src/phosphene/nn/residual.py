"""Residual blocks, a projector applied to each token, and dropped residual branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ChannelMixer", "DropPath", "ResidualBlock", "TokenProjector"]


class DropPath(nn.Module):
    """In training, drop the whole branch of some samples; batch on axis 1, as the spectral layers have it.

    Parameters
    ----------
    rate : float
        Share of samples dropped, in [0, 1); the others are scaled up to keep the mean.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, batch, width)`` to the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[1], 1, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class ChannelMixer(nn.Module):
    """``x + drop(W2 gelu(W1 norm(x)))`` over the channels of each token."""

    def __init__(self, width: int, ratio: float = 2.0, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = max(1, round(ratio * width))
        self.branch = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
            DropPath(drop_path),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, batch, width)`` to the same shape."""
        return x + self.branch(x)


class ResidualBlock(nn.Module):
    """``x + dropout(gelu(norm(W x + b)))``: the block of the MindEye backbone, with a residual that is one."""

    def __init__(self, width: int, dropout: float = 0.15) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, width)`` to the same shape."""
        return x + self.branch(x)


class TokenProjector(nn.Sequential):
    """The MindEye projector: norm, GELU and three linear layers, applied to each token alike.

    Parameters
    ----------
    width : int
        Width of a token, in and out.
    hidden : int
        Width of the two hidden layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )
