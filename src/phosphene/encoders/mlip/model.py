"""MLIP: an image and a text tower with embeddings of the spatial and the frequency domain, pooled and by token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from phosphene.encoders.merging.guides import embedding_cue
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.mlip.config import MLIPConfig
from phosphene.encoders.mlip.image import Cue, ImageStates, ImageTower
from phosphene.encoders.mlip.text import TextTower
from phosphene.encoders.mlip.tokenizer import END, START

__all__ = ["MLIP", "ImageFeatures", "TextFeatures"]


class ImageFeatures(NamedTuple):
    """Embeddings of pictures in the spaces shared with text; none is normalised.

    Attributes
    ----------
    spatial : Tensor (pictures, embed)
    frequency : Tensor (pictures, embed) or None
    spatial_tokens : Tensor (pictures, tokens, token_embed) or None
        Without the class token.
    frequency_tokens : Tensor (pictures, patches, token_embed) or None
    sizes : Tensor (pictures, tokens) or None
        How many patches each spatial token stands for, where tokens were merged.
    """

    spatial: Tensor
    frequency: Tensor | None = None
    spatial_tokens: Tensor | None = None
    frequency_tokens: Tensor | None = None
    sizes: Tensor | None = None


class TextFeatures(NamedTuple):
    """Embeddings of captions; none is normalised.

    Attributes
    ----------
    pooled : Tensor (captions, embed)
    tokens : Tensor (captions, tokens, token_embed) or None
    mask : bool Tensor (captions, tokens)
        True where a token is part of a word, False for marks and padding.
    """

    pooled: Tensor
    tokens: Tensor | None
    mask: Tensor


class MLIP(nn.Module):
    """Image and text towers and their projections.

    After the description of "Multi-Perspective Language-Image Pretraining" (Zhang et al., ICML 2024); what it leaves
    open is our choice, see ``docs/mlip.md``.

    Parameters
    ----------
    config : MLIPConfig

    Attributes
    ----------
    frequency_trained : bool
        Whether anything trains the frequency embedding. Where nothing does, it guides no merging.

    Examples
    --------
    >>> model = MLIP(MLIPConfig(width=32, embed=16, text_width=32))
    >>> model.encode_image(torch.zeros(2, 3, 64, 64)).frequency.shape
    torch.Size([2, 16])
    """

    def __init__(self, config: MLIPConfig) -> None:
        super().__init__()
        self.config, self.frequency_trained = config, True
        self.image, self.text = ImageTower(config), TextTower(config)
        self.spatial_projection = nn.Linear(config.width, config.embed, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.embed, bias=False)
        self.frequency_projection = nn.Linear(config.width, config.embed, bias=False) if config.frequency_head else None
        self.spatial_token_projection: nn.Linear | None = None
        self.frequency_token_projection: nn.Linear | None = None
        self.word_projection: nn.Linear | None = None
        if config.token_heads:
            self.spatial_token_projection = nn.Linear(config.width, config.token_embed, bias=False)
            self.word_projection = nn.Linear(config.text_width, config.token_embed, bias=False)
            if config.frequency_head:
                self.frequency_token_projection = nn.Linear(config.width, config.token_embed, bias=False)

    def with_merge(self, merge: MergeSettings | None) -> MLIP:
        """The same weights, shared, in a model that merges tokens otherwise: merging has no weights of its own."""
        with torch.random.fork_rng(devices=[]):  # first weights are drawn here, and not kept
            twin = MLIP(self.config.model_copy(update={"merge": merge}))
        twin.load_state_dict(self.state_dict(), assign=True)
        for parameter, own in zip(twin.parameters(), self.parameters(), strict=True):
            parameter.requires_grad_(own.requires_grad)
        twin.frequency_trained = self.frequency_trained
        return twin.train(self.training)

    def image_states(self, pixels: Tensor, texts: Tensor | None = None) -> ImageStates:
        """Tokens of pictures before any projection, merged as the settings say.

        Parameters
        ----------
        pixels : Tensor (pictures, 3, image_size, image_size)
        texts : Tensor (texts, embed), optional
            Pooled text embeddings, for merging guided by text: patches that resemble one of them are spared.
        """
        states: ImageStates = self.image(pixels, self._cue(texts), self._frequency_guides)
        return states

    @property
    def _frequency_guides(self) -> bool:
        return self.frequency_projection is not None and self.frequency_trained

    def _cue(self, texts: Tensor | None) -> Cue | None:
        """Salience of patches: likeness to the texts, or of the frequency tokens to their own picture's embedding."""
        guide = "none" if self.config.merge is None else self.config.merge.guide
        project = self.spatial_projection
        if self._frequency_guides and self.frequency_projection is not None:
            project = self.frequency_projection
        if guide == "text" and texts is not None:
            return lambda patches: embedding_cue(project(patches), texts)
        if guide in ("frequency", "both") and self._frequency_guides:

            def own(patches: Tensor) -> Tensor:
                projected = project(patches)
                return embedding_cue(projected, projected.mean(dim=1, keepdim=True))

            return own
        return None

    def encode_image(self, pixels: Tensor, tokens: bool = True, texts: Tensor | None = None) -> ImageFeatures:
        """Embed pictures.

        Parameters
        ----------
        pixels : Tensor (pictures, 3, image_size, image_size)
            As `prepare` makes them.
        tokens : bool
            Whether token embeddings are wanted (None where the model has no token heads).
        texts : Tensor (texts, embed), optional
            As in `image_states`.
        """
        states = self.image_states(pixels, texts)
        frequency = spatial_tokens = frequency_tokens = None
        if states.frequency is not None and self.frequency_projection is not None:
            frequency = self.frequency_projection(states.frequency.mean(dim=1))
            if tokens and self.frequency_token_projection is not None:
                frequency_tokens = self.frequency_token_projection(states.frequency)
        if tokens and self.spatial_token_projection is not None:
            spatial_tokens = self.spatial_token_projection(states.spatial[:, 1:])
        spatial = self.spatial_projection(states.spatial[:, 0])
        sizes = None if states.merged is None else states.merged.sizes[:, 1:]
        return ImageFeatures(spatial, frequency, spatial_tokens, frequency_tokens, sizes)

    def encode_text(self, ids: Tensor, valid: Tensor, tokens: bool = True) -> TextFeatures:
        """Embed captions.

        Parameters
        ----------
        ids : int64 Tensor (captions, tokens)
        valid : bool Tensor (captions, tokens)
            Both as `Tokenizer.encode` makes them.
        tokens : bool
            Whether word embeddings are wanted (None where the model has no token heads).
        """
        states = self.text(ids, valid)
        ended = (ids == END).int().argmax(dim=1)
        pooled = self.text_projection(states[torch.arange(len(ids), device=ids.device), ended])
        words = self.word_projection(states) if tokens and self.word_projection is not None else None
        return TextFeatures(pooled, words, valid & (ids != START) & (ids != END))

    def forward(self, pixels: Tensor, ids: Tensor, valid: Tensor) -> tuple[ImageFeatures, TextFeatures]:
        """Both towers at once, as a training step needs them."""
        return self.encode_image(pixels), self.encode_text(ids, valid)

    @staticmethod
    def normalise(pictures: Tensor) -> Tensor:
        """Pictures in [0, 1] as the image tower wants them: around zero, spread about one."""
        return (pictures - 0.5) * 4.0

    @classmethod
    def prepare(cls, frames: Tensor) -> Tensor:
        """uint8 pictures (n, height, width, 3) to normalised floats (n, 3, height, width), on the same device."""
        return cls.normalise(frames.permute(0, 3, 1, 2).float() / 255.0)
