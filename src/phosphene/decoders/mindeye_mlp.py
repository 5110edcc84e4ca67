"""The MindEye1 network as a rival: a wide residual multi-layer perceptron and a projector for each token.

Layout and sizes as published (Scotti et al., 2023): voxels to 4,096 units, four residual blocks, a linear map to all
tokens, then the projector whose outputs are trained contrastively. Input layers belong to one person each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from phosphene.decoders.base import Decoder, DecoderConfig
from phosphene.nn.residual import ResidualBlock, TokenProjector

__all__ = ["MindEyeMLP", "MindEyeMLPConfig", "input_layer"]


class MindEyeMLPConfig(DecoderConfig):
    """Settings of mindeye-mlp; the defaults are the published sizes.

    Attributes
    ----------
    width : int
        Units of the backbone.
    blocks : int
        Residual blocks.
    input_dropout, dropout : float
        Dropout after the input layer and in the residual blocks.
    projector : int
        Hidden width of the projector; 0 has none.
    """

    width: int = Field(4096, ge=1)
    blocks: int = Field(4, ge=0)
    input_dropout: float = Field(0.5, ge=0, lt=1)
    dropout: float = Field(0.15, ge=0, lt=1)
    projector: int = Field(2048, ge=0)


def input_layer(n_voxels: int, width: int, dropout: float) -> nn.Sequential:
    """From the voxels of a person, or of a common space, into the width of the backbone."""
    return nn.Sequential(nn.Linear(n_voxels, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout))


class MindEyeMLP(Decoder):
    """The MindEye1 backbone with its projector under the decoder contract."""

    name = "mindeye-mlp"
    Config = MindEyeMLPConfig

    def __init__(self, config: MindEyeMLPConfig, subjects: Mapping[str, int], target_shape: Sequence[int]) -> None:
        super().__init__(config, subjects, target_shape)
        self.blocks = nn.Sequential(*[ResidualBlock(config.width, config.dropout) for _ in range(config.blocks)])
        self.out = nn.Linear(config.width, self.n_outputs)
        self.projector = TokenProjector(self.target_shape[-1], config.projector) if config.projector else None
        self.inputs = nn.ModuleList()
        for subject, n_voxels in list(self.subjects.items())[: 1 if self.subject_free else None]:
            self._add_input(subject, n_voxels)

    def _add_input(self, subject: str, n_voxels: int) -> None:
        config: Any = self.config
        self.inputs.append(input_layer(n_voxels, config.width, config.input_dropout))

    def _decode(self, responses: Tensor, subject: str | None) -> Tensor:
        at = 0 if self.subject_free else self.index(str(subject))
        output: Tensor = self.out(self.blocks(self.inputs[at](responses)))
        output = output.view(len(output), *self.target_shape)
        return output if self.projector is None else self.projector(output)
