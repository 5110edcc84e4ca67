"""Settings of an MLIP model: the ``[model]`` table of a preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from phosphene.encoders.merging.settings import MergeSettings
from phosphene.settings import Settings

__all__ = ["MLIPConfig"]


class MLIPConfig(Settings):
    """Sizes and variants of the image and text towers.

    Attributes
    ----------
    image_size, patch : int
        Pixels a side of a picture and of a patch; the grid has ``image_size / patch`` tokens a side.
    stem : {"conv", "patch"}
        Patches through strided 3 x 3 convolutions (learns shape faster), or one linear map of each patch.
    width, heads, mlp_ratio
        Of the image tower.
    spectral_blocks, spatial_blocks : int
        Blocks that mix tokens with filters over the 2-D spectrum of the grid, and blocks of attention.
        ``spectral_blocks = 0`` is a plain CLIP.
    arrangement : {"sequential", "parallel"}
        Attention after the spectral blocks, or both beside each other on the same patches.
    spectral_filter : {"learned", "lowpass", "highpass"}
        Filters of the spectral blocks; the fixed ones are ablations.
    frequency_head : bool
        Whether there is an embedding of the frequency domain.
    token_heads : bool
        Whether tokens (patches and words) are projected into a space of their own for token-level alignment.
    embed, token_embed : int
        Width of the pooled and of the token-level shared space.
    text_width, text_heads, text_blocks : int
        Of the text tower.
    text_context : int
        Longest caption in tokens, start and end included.
    text_causal : bool
        Whether a word sees only the words before it.
    vocabulary : int
        Entries of the tokenizer.
    merge : MergeSettings, optional
        Token merging in the spatial blocks while training and in the scores of the card. As an encoder the model
        merges nothing unless it is told to; `restore` concerns the encoder only.
    """

    image_size: int = Field(64, ge=16)
    patch: int = Field(8, ge=2)
    stem: Literal["conv", "patch"] = "conv"
    width: int = Field(256, ge=8)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    spectral_blocks: int = Field(2, ge=0)
    spatial_blocks: int = Field(4, ge=1)
    arrangement: Literal["sequential", "parallel"] = "sequential"
    spectral_filter: Literal["learned", "lowpass", "highpass"] = "learned"
    frequency_head: bool = True
    token_heads: bool = True
    embed: int = Field(256, ge=2)
    token_embed: int = Field(128, ge=2)
    text_width: int = Field(192, ge=8)
    text_heads: int = Field(4, ge=1)
    text_blocks: int = Field(3, ge=1)
    text_context: int = Field(64, ge=4)
    text_causal: bool = False
    vocabulary: int = Field(1024, ge=260)
    merge: MergeSettings | None = None

    @property
    def grid(self) -> int:
        """Tokens a side of the picture."""
        return self.image_size // self.patch

    def without_use(self) -> dict[str, str]:
        """Settings of blocks and heads that are not there, and of merging."""
        idle = {} if self.spectral_blocks else dict.fromkeys(("arrangement", "spectral_filter"), "spectral_blocks = 0")
        idle |= {} if self.token_heads else {"token_embed": "token_heads = false"}
        merging = {} if self.merge is None else self.merge.without_use()
        return idle | {f"merge.{name}": why for name, why in merging.items()}

    def untrained(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """Embeddings that the model has and no part of an objective trains, by the names of its weights."""
        there = {
            "spatial": True,
            "frequency": self.frequency_head,
            "spatial_token": self.token_heads,
            "frequency_token": self.token_heads and self.frequency_head,
        }
        return tuple(name for name, present in there.items() if present and not weights[name])

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.image_size % self.patch:
            raise ValueError(f"patch = {self.patch} does not divide image_size = {self.image_size}")
        if self.stem == "conv" and self.patch & (self.patch - 1):
            raise ValueError(f"stem = 'conv' halves the picture step by step: patch = {self.patch} is no power of two")
        for width, heads in (("width", "heads"), ("text_width", "text_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{heads} = {getattr(self, heads)} does not divide {width} = {getattr(self, width)}")
        if self.spectral_blocks and self.grid < 3:
            raise ValueError(f"spectral blocks need a grid of at least 3 x 3 patches, found {self.grid} x {self.grid}")
        if self.frequency_head and not self.spectral_blocks:
            raise ValueError("frequency_head = true needs spectral_blocks of at least 1")
        if self.arrangement == "parallel" and not self.frequency_head:
            raise ValueError("arrangement = 'parallel' needs frequency_head = true: nothing else reads that branch")
        return self
