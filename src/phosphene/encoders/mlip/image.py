"""The image tower: patches, a stage in the frequency domain, a stage of attention with token merging inside."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from phosphene.encoders.mlip.config import MLIPConfig
from phosphene.nn.spectral import FourierGrid, GlobalFilter, RadialFilter
from phosphene.nn.transformer import FeedForward, TransformerBlock

__all__ = ["ImageStates", "ImageTower"]


class ImageStates(NamedTuple):
    """What the tower makes of a batch of pictures.

    Attributes
    ----------
    spatial : Tensor (batch, 1 + tokens, width)
        Class token and patch tokens after attention; merged ones where there is merging.
    frequency : Tensor (batch, patches, width) or None
        Patch tokens after the spectral blocks.
    """

    spatial: Tensor
    frequency: Tensor | None


class ConvStem(nn.Sequential):
    """Patches through 3 x 3 convolutions that halve the picture until a pixel is a patch."""

    def __init__(self, patch: int, width: int) -> None:
        layers: list[nn.Module] = []
        steps, channels = patch.bit_length() - 1, 3
        for step in range(steps):
            out = max(width >> (steps - 1 - step), 8)
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(1, out), nn.GELU()]
            channels = out
        super().__init__(*layers, nn.Conv2d(channels, width, 1))


class SpectralBlock(nn.Module):
    """``x + filter(norm(x))`` over the spectrum of the grid, then a feed-forward; tokens on the first axis."""

    def __init__(self, transform: FourierGrid, config: MLIPConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.filter: nn.Module
        if config.spectral_filter == "learned":
            self.filter = GlobalFilter(transform, config.width)
        else:
            self.filter = RadialFilter(transform, config.width, config.spectral_filter)
        self.feed_forward = FeedForward(config.width, config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, batch, width)`` to the same shape."""
        x = x + self.filter(self.norm(x))
        fed: Tensor = x + self.feed_forward(x)
        return fed


class ImageTower(nn.Module):
    """Pictures to tokens of both domains.

    Parameters
    ----------
    config : MLIPConfig
    """

    def __init__(self, config: MLIPConfig) -> None:
        super().__init__()
        self.config, width, patch = config, config.width, config.patch
        self.stem: nn.Module = (
            ConvStem(patch, width) if config.stem == "conv" else nn.Conv2d(3, width, patch, stride=patch)
        )
        self.position = nn.Parameter(0.02 * torch.randn(config.grid**2, width))
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.spectral = nn.ModuleList()
        if config.spectral_blocks:
            transform = FourierGrid(config.grid, config.grid)
            self.spectral.extend(SpectralBlock(transform, config) for _ in range(config.spectral_blocks))
        self.spatial = nn.ModuleList(
            TransformerBlock(width, config.heads, config.mlp_ratio) for _ in range(config.spatial_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.frequency_norm = nn.LayerNorm(width) if config.frequency_head else None

    def forward(self, pixels: Tensor) -> ImageStates:
        """Tokens of pictures, normalised pixels of shape (batch, 3, image_size, image_size)."""
        x = self.stem(pixels).flatten(2).permute(2, 0, 1) + self.position[:, None]  # (tokens, batch, width)
        filtered = x
        for block in self.spectral:
            filtered = block(filtered)
        frequency = None if self.frequency_norm is None else self.frequency_norm(filtered).transpose(0, 1)
        patches = (filtered if self.config.arrangement == "sequential" else x).transpose(0, 1)
        return ImageStates(self._attend(patches), frequency)

    def _attend(self, patches: Tensor) -> Tensor:
        x = torch.cat([self.class_token.expand(len(patches), 1, -1), patches], dim=1)
        for block in self.spatial:
            x = block(x)
        return self.norm(x)
