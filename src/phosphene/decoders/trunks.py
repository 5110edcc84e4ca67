"""Shared trunks under decoders with several heads: the MindEye blocks, or Lite-Mind's way through the spectrum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from phosphene.decoders.lite_mind import LiteMindConfig, SpectralBlock
from phosphene.decoders.mindeye_mlp import input_layer
from phosphene.nn.patches import PatchEmbedding
from phosphene.nn.readout import PooledReadout, TokenReadout
from phosphene.nn.residual import ResidualBlock
from phosphene.nn.spectral import FourierAxis, FrequencyProjector

__all__ = ["TRUNKS", "BlocksTrunk", "SpectralTrunk", "Trunk"]


class Trunk(nn.Module, ABC):
    """From standardised responses to hidden features, and the heads that read them.

    Parameters
    ----------
    config : Settings
        With the sizes it needs, under the names of the decoders they come from.

    Attributes
    ----------
    inputs : ModuleList
        Layers that see responses: one for all, or one a person.
    width : int
        Channels of a hidden feature.
    """

    inputs: nn.ModuleList
    width: int

    @abstractmethod
    def add(self, n_voxels: int) -> None:
        """Make one more input."""

    @abstractmethod
    def forward(self, responses: Tensor, at: int, beside: Tensor | None = None) -> Tensor:
        """Responses ``(b, voxels)`` through input `at`, where `beside` ``(width,)`` is added, to hidden features."""

    @abstractmethod
    def summary(self, hidden: Tensor) -> Tensor:
        """One feature a sample, ``(b, width)``."""

    @abstractmethod
    def tokens(self, hidden: Tensor) -> Tensor:
        """Features of each latent token, ``(b, tokens, width)``; one token where there are none."""

    @abstractmethod
    def head(self, shape: tuple[int, ...]) -> nn.Module:
        """A readout of hidden features to ``(b, *shape)``, with parameters ``out.weight`` and ``bias``."""


class FlatReadout(nn.Module):
    """A linear layer under the names of Lite-Mind's readouts."""

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.out = nn.Linear(width, torch.Size(shape).numel(), bias=False)
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(b, width)`` to ``(b, *shape)``."""
        output: Tensor = self.out(hidden)
        return output.view(len(hidden), *self.shape) + self.bias


class BlocksTrunk(Trunk):
    """The MindEye input and residual blocks; hidden features are ``(b, width)``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.width, self.input_dropout = config.width, config.input_dropout
        self.inputs = nn.ModuleList()
        self.blocks = nn.Sequential(*[ResidualBlock(config.width, config.dropout) for _ in range(config.blocks)])

    def add(self, n_voxels: int) -> None:
        self.inputs.append(input_layer(n_voxels, self.width, self.input_dropout))

    def forward(self, responses: Tensor, at: int, beside: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.inputs[at](responses)
        mixed: Tensor = self.blocks(hidden if beside is None else hidden + beside)
        return mixed

    def summary(self, hidden: Tensor) -> Tensor:
        return hidden

    def tokens(self, hidden: Tensor) -> Tensor:
        return hidden.unsqueeze(1)

    def head(self, shape: tuple[int, ...]) -> nn.Module:
        return FlatReadout(self.width, shape)


class SpectralTrunk(Trunk):
    """Lite-Mind's embedding, blocks and frequency projector; hidden features are ``(patches, b, width)``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        keys = ("patches", "width", "blocks", "filters", "hidden", "heads", "queries", "dropout")
        self.sizes = LiteMindConfig.build({key: getattr(config, key) for key in keys})
        self.width = config.width
        axis = FourierAxis(config.patches)
        self.inputs = nn.ModuleList()
        self.voxel_dropout = nn.Dropout(config.input_dropout)
        self.blocks = nn.Sequential(*[SpectralBlock(axis, self.sizes, 0.0) for _ in range(config.blocks)])
        self.mixed = FrequencyProjector(axis, config.width, 1)

    def add(self, n_voxels: int) -> None:
        self.inputs.append(PatchEmbedding(n_voxels, self.sizes.patches, self.width, shared=False))

    def forward(self, responses: Tensor, at: int, beside: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.inputs[at](self.voxel_dropout(responses))
        mixed: Tensor = self.mixed(self.blocks(hidden if beside is None else hidden + beside))
        return mixed

    def summary(self, hidden: Tensor) -> Tensor:
        return hidden.mean(dim=0)

    def tokens(self, hidden: Tensor) -> Tensor:
        return hidden.transpose(0, 1)

    def head(self, shape: tuple[int, ...]) -> nn.Module:
        of, to = (self.sizes.patches, self.width), (self.sizes.hidden, self.sizes.heads)
        if len(shape) == 2:
            return TokenReadout(*of, (shape[0], shape[1]), *to, self.sizes.dropout)
        return PooledReadout(*of, shape[0], *to, self.sizes.queries, self.sizes.dropout)


TRUNKS: dict[str, type[Trunk]] = {"mlp": BlocksTrunk, "lite-mind": SpectralTrunk}
