"""The image tower: patches, a stage in the frequency domain, a stage of attention with token merging inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from phosphene.encoders.merging.attention import attention
from phosphene.encoders.merging.matching import Merged
from phosphene.encoders.merging.plan import TowerShape
from phosphene.encoders.merging.schedule import patch_flops
from phosphene.encoders.merging.step import attention_sizes, begin, merge_step
from phosphene.encoders.mlip.config import MLIPConfig
from phosphene.errors import InputError
from phosphene.nn.spectral import FourierGrid, GlobalFilter, RadialFilter
from phosphene.nn.transformer import FeedForward, TransformerBlock

__all__ = ["Cue", "ImageStates", "ImageTower", "merge_rates", "tower_shape"]

Cue = Callable[[Tensor], Tensor]
"""Patch tokens (batch, patches, width), normalised, to how salient each is: (batch, patches)."""


class ImageStates(NamedTuple):
    """What the tower makes of a batch of pictures.

    Attributes
    ----------
    spatial : Tensor (batch, 1 + tokens, width)
        Class token and patch tokens after attention; merged ones where there is merging.
    frequency : Tensor (batch, patches, width) or None
        Patch tokens after the spectral blocks.
    merged : Merged or None
        Which patches lie in which spatial token, where tokens were merged.
    """

    spatial: Tensor
    frequency: Tensor | None
    merged: Merged | None = None


class ConvStem(nn.Sequential):
    """Patches through 3 x 3 convolutions that halve the picture until a pixel is a patch."""

    def __init__(self, patch: int, width: int) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for out in _stem_channels(patch, width):
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(1, out), nn.GELU()]
            channels = out
        super().__init__(*layers, nn.Conv2d(channels, width, 1))


def _stem_channels(patch: int, width: int) -> list[int]:
    """Channels after each halving: doubling up to the width."""
    steps = patch.bit_length() - 1
    return [max(width >> (steps - 1 - step), 8) for step in range(steps)]


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
        self.rates = merge_rates(config)

    def forward(self, pixels: Tensor, cue: Cue | None = None, of_frequency: bool = True) -> ImageStates:
        """Tokens of pictures.

        Parameters
        ----------
        pixels : Tensor (batch, 3, image_size, image_size)
            Normalised.
        cue : callable, optional
            Salience of patches for merging guided by frequency or text; without it the guide by frequency takes the
            high-pass energy of the grid.
        of_frequency : bool
            Whether that is read from the tokens of the frequency domain, where there are any.

        Raises
        ------
        InputError
            For pictures of another size: a stem would fill them up or cut them off.
        """
        side, found = self.config.image_size, tuple(pixels.shape[-2:])
        if found != (side, side):
            raise InputError(
                f"this image tower takes pictures of {side} x {side} pixels, found {found[0]} x {found[1]}"
            )
        x = self.stem(pixels).flatten(2).permute(2, 0, 1) + self.position[:, None]  # (tokens, batch, width)
        filtered = x
        for block in self.spectral:
            filtered = block(filtered)
        frequency = None if self.frequency_norm is None else self.frequency_norm(filtered).transpose(0, 1)
        patches = (filtered if self.config.arrangement == "sequential" else x).transpose(0, 1)
        tokens = torch.cat([self.class_token.expand(len(patches), 1, -1), patches], dim=1)
        if not any(self.rates):
            for block in self.spatial:
                tokens = block(tokens)
            return ImageStates(self.norm(tokens), frequency)
        read = frequency if of_frequency and frequency is not None else None
        salience = None if cue is None else cue(self.norm(patches) if read is None else read)
        return self._merging(tokens, frequency, salience)

    def _merging(self, tokens: Tensor, frequency: Tensor | None, salience: Tensor | None) -> ImageStates:
        """The spatial blocks with tokens merged between attention and feed-forward."""
        settings, grid = self.config.merge, self.config.grid
        assert settings is not None
        state = begin(tokens, settings, protected=1, grid=(grid, grid), cue=salience)
        for layer, rate in enumerate(self.rates):
            block = cast(TransformerBlock, self.spatial[layer])
            attend = partial(attention, sizes=attention_sizes(state, settings))
            tokens, (queries, keys) = block.attend(tokens, attend)
            tokens, state = merge_step(tokens, keys, state, rate, settings, 1, queries=queries)
            tokens = block.feed(tokens)
        return ImageStates(self.norm(tokens), frequency, state)


def merge_rates(config: MLIPConfig) -> tuple[int, ...]:
    """Tokens merged away in each spatial block.

    Raises
    ------
    InputError
        When the wanted rate is out of reach.
    """
    if config.merge is None or not config.merge.active:
        return (0,) * config.spatial_blocks
    return tower_shape(config).plan(config.merge).rates


def tower_shape(config: MLIPConfig) -> TowerShape:
    """Sizes of the spatial stage, as far as they decide a schedule."""
    return TowerShape(
        layers=config.spatial_blocks,
        grid=(config.grid, config.grid),
        protected=1,
        width=config.width,
        mlp_width=round(config.mlp_ratio * config.width),
        fixed=_flops_before(config),
    )


def _flops_before(config: MLIPConfig) -> float:
    """Operations of stem and spectral blocks, which merging does not change; a multiply-add counted as two."""
    patches, width = config.grid**2, config.width
    if config.stem == "patch":
        stem = patch_flops(patches, config.patch, width)
    else:
        side, channels, stem = config.image_size, 3, 2.0 * patches * width**2
        for out in _stem_channels(config.patch, width):
            side //= 2
            stem += 2.0 * side**2 * 9 * channels * out
            channels = out
    transforms = 2 * 2.0 * patches * (patches + 4) * width  # there and back; up to four bins have no phase
    return stem + config.spectral_blocks * (transforms + 4.0 * patches * width * round(config.mlp_ratio * width))
