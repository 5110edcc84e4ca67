"""Lite-Mind, repaired: a light Fourier-domain network from voxels to tokens or a pooled embedding.

Voxels are cut into patches and embedded; blocks compress the spectrum over patches with a library of filters and mix
channels; a frequency projector mixes channels as complex numbers; a readout turns the latent tokens into predictions.
What the paper states and what is our choice is listed in ``docs/lite_mind.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from phosphene.decoders.base import Decoder, DecoderConfig
from phosphene.decoders.ridge_start import start_at_mean, start_at_ridge
from phosphene.nn.patches import PatchEmbedding, voxel_order
from phosphene.nn.readout import LinearPath, PooledReadout, TokenReadout
from phosphene.nn.residual import ChannelMixer, DropPath
from phosphene.nn.spectral import FilterLibrary, FourierAxis, FrequencyProjector
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["LiteMind", "LiteMindConfig"]


class LiteMindConfig(DecoderConfig):
    """Settings of lite-mind.

    Attributes
    ----------
    order : {"scanner", "roi", "curve", "random"}
        Order in which voxels are listed before they are cut into patches, see `phosphene.nn.patches.voxel_order`.
    patches : int
        Patches (latent tokens), the same number for everybody: patches of people with more voxels are longer.
    width : int
        Channels of a latent token.
    shared_patches : bool
        One embedding for all patches of a person, as in the paper, or one for each.
    blocks : int
        Blocks of spectrum compression and channel mixing.
    mlp_ratio : float
        Hidden width of the channel mixing, in widths.
    filters : int
        Size of the filter library.
    spectrum : {"power", "cube", "linear"}
        What the library filters; "cube" (released code) and "linear" are for ablation.
    gating : {"power", "cosine"}
        What weighs the filters; "cosine" (constants, the library collapses) is for ablation.
    projector_groups : int
        Groups of the complex channel map: 1 is dense, `width` mixes nothing (released code), 0 leaves the projector
        out; the last two are for ablation.
    hidden, heads : int
        Width of the readout's hidden tokens, and groups of its channels that read the latent tokens independently.
    queries : int
        Hidden tokens of the readout of a pooled embedding.
    linear_rank : int
        Rank of a linear path beside the network (at most the number of outputs); 0 has none.
    linear_start : {"ridge", "random"}
        How the linear path starts: at the ridge solution of the training part, or at random.
    branch_scale : float
        Size of the network's output beside a ridge-started linear path when training starts.
    dropout, voxel_dropout, drop_path : float
        Of hidden units, of voxels at the input, and of residual branches (rising linearly over blocks to this rate).
    """

    order: Literal["scanner", "roi", "curve", "random"] = "scanner"
    patches: int = Field(16, ge=3)
    width: int = Field(64, ge=1)
    shared_patches: bool = False
    blocks: int = Field(2, ge=1)
    mlp_ratio: float = Field(2.0, gt=0)
    filters: int = Field(4, ge=2)
    spectrum: Literal["power", "cube", "linear"] = "power"
    gating: Literal["power", "cosine"] = "power"
    projector_groups: int = Field(1, ge=0)
    hidden: int = Field(128, ge=1)
    heads: int = Field(16, ge=1)
    queries: int = Field(4, ge=1)
    linear_rank: int = Field(0, ge=0)
    linear_start: Literal["ridge", "random"] = "ridge"
    branch_scale: float = Field(0.1, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    voxel_dropout: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _divides(self) -> LiteMindConfig:
        if self.projector_groups and self.width % self.projector_groups:
            raise ValueError(f"projector_groups must be 0 or divide width {self.width}, found {self.projector_groups}")
        if self.hidden % self.heads:
            raise ValueError(f"heads must divide hidden {self.hidden}, found {self.heads}")
        return self


class SpectralBlock(nn.Module):
    """``x + filter(norm(x))``, then channel mixing, each with its own residual."""

    def __init__(self, axis: FourierAxis, config: LiteMindConfig, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.library = FilterLibrary(axis, config.width, config.filters, config.spectrum, config.gating)
        self.drop_path = DropPath(drop_path)
        self.mixer = ChannelMixer(config.width, config.mlp_ratio, config.dropout, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(patches, batch, width)`` to the same shape."""
        mixed: Tensor = self.mixer(x + self.drop_path(self.library(self.norm(x))))
        return mixed


class LiteMind(Decoder):
    """The Lite-Mind network under the decoder contract: inputs by person, everything else shared."""

    name = "lite-mind"
    Config = LiteMindConfig

    def __init__(self, config: LiteMindConfig, subjects: Mapping[str, int], target_shape: Sequence[int]) -> None:
        super().__init__(config, subjects, target_shape)
        axis = FourierAxis(config.patches)
        rates = torch.linspace(0, config.drop_path, config.blocks).tolist()
        self.voxel_dropout = nn.Dropout(config.voxel_dropout)
        self.blocks = nn.Sequential(*[SpectralBlock(axis, config, rate) for rate in rates])
        groups = config.projector_groups
        self.projector = FrequencyProjector(axis, config.width, groups) if groups else nn.Identity()
        sizes = (config.patches, config.width)
        self.readout: TokenReadout | PooledReadout
        if len(self.target_shape) == 2:
            shape = (self.target_shape[0], self.target_shape[1])
            self.readout = TokenReadout(*sizes, shape, config.hidden, config.heads, config.dropout)
        else:
            out = self.target_shape[0]
            self.readout = PooledReadout(*sizes, out, config.hidden, config.heads, config.queries, config.dropout)
        rank = min(config.linear_rank, self.n_outputs)
        self.linear = LinearPath(rank, self.n_outputs) if rank else None
        self.inputs = nn.ModuleList()
        for subject, n_voxels in list(self.subjects.items())[: 1 if self.subject_free else None]:
            self._add_input(subject, n_voxels)

    def _add_input(self, subject: str, n_voxels: int) -> None:
        config: Any = self.config
        self.inputs.append(PatchEmbedding(n_voxels, config.patches, config.width, config.shared_patches))
        if self.linear is not None:
            self.linear.add(n_voxels)

    def _input(self, subject: str | None) -> int:
        return 0 if self.subject_free else self.index(str(subject))

    def arrange_voxels(self, subject: str, voxels: Table, space: Mapping[str, Any] | None = None) -> None:
        """Keep the voxel table, and list the person's voxels in the order of the settings."""
        super().arrange_voxels(subject, voxels, space)
        config: Any = self.config
        embedding = self.inputs[self._input(subject)]
        assert isinstance(embedding, PatchEmbedding)
        embedding.arrange(voxel_order(config.order, voxels))

    def _decode(self, responses: Tensor, subject: str | None) -> Tensor:
        at = self._input(subject)
        responses = self.voxel_dropout(responses)
        output: Tensor = self.readout(self.projector(self.blocks(self.inputs[at](responses))))
        if self.linear is not None:
            output = output + self.linear(responses, at).view_as(output)
        return output

    def warm_start(
        self, view: StudyView, targets: Targets, kind: str, progress: bool = True, stage: str = "training"
    ) -> bool:
        """Start at what has a closed form: the targets' mean, and the ridge solution in the linear path.

        With a ridge start, voxels are standardised as ridge does it.
        """
        config: Any = self.config
        if self.linear is None or config.linear_start != "ridge":
            start_at_mean(self.readout, view, targets, kind)
        else:
            start_at_ridge(self, self.linear, self.readout, config.branch_scale, view, targets, kind, progress)
        return True
