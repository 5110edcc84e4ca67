"""The objective of MLIP: text against both domains of the image, as a whole and token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, distributed, nn

from phosphene.encoders.mlip.similarity import pool_grid
from phosphene.errors import InputError
from phosphene.nn.late_interaction import late_interaction
from phosphene.settings import Settings
from phosphene.training.contrast import Form, contrast, instance
from phosphene.training.gather import gather

if TYPE_CHECKING:
    from phosphene.encoders.mlip import ImageFeatures, TextFeatures

__all__ = ["MLIPObjective", "ObjectiveSettings"]

_TEMPERATURES = (0.01, 1.0)  # a learned temperature stays within


class ObjectiveSettings(Settings):
    """What pretraining minimises; the ``[objective]`` table of a preset.

    Attributes
    ----------
    spatial_weight, frequency_weight : float
        Weights of the contrast of captions with the spatial and with the frequency embedding.
    spatial_token_weight, frequency_token_weight : float
        Weights of the contrast by late interaction of words with the tokens of each domain. A part of weight 0 is not
        computed.
    form : {"softmax", "sigmoid"}
        Loss of CLIP or of SigLIP.
    temperature, token_temperature : float
        Of embeddings and of tokens.
    learn_temperature : bool
        Train both, starting there, between 0.01 and 1.
    bias : float
        First value of the learned biases of the sigmoid form, one for embeddings and one for tokens.
    token_bias : float, optional
        First value of that for tokens, where it is another one.
    top_tokens : int, optional
        Only this many visual tokens count, those that respond most to a caption.
    pool_tokens : int, optional
        A square number: where there are more visual tokens than this, they are averaged to a grid of so many before
        they meet the words. Merged tokens have no grid and stay as they are.
    chunk : int, optional
        Images compared at a time in the late interaction (default: by the memory that takes).
    """

    spatial_weight: float = Field(1.0, ge=0)
    frequency_weight: float = Field(1.0, ge=0)
    spatial_token_weight: float = Field(1.0, ge=0)
    frequency_token_weight: float = Field(1.0, ge=0)
    form: Form = "softmax"
    temperature: float = Field(0.07, ge=_TEMPERATURES[0], le=_TEMPERATURES[1])
    token_temperature: float = Field(0.07, ge=_TEMPERATURES[0], le=_TEMPERATURES[1])
    learn_temperature: bool = True
    bias: float = -10.0
    token_bias: float | None = None
    top_tokens: int | None = Field(None, ge=1)
    pool_tokens: int | None = Field(None, ge=1)
    chunk: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError(f"one of {', '.join(f'{name}_weight' for name in self.weights)} must be above 0")
        if self.pool_tokens is not None and math.isqrt(self.pool_tokens) ** 2 != self.pool_tokens:
            raise ValueError(f"pool_tokens must be a square such as 16, found {self.pool_tokens}")
        return self

    def without_use(self) -> dict[str, str]:
        """Settings of the sigmoid form in the other, and of parts of weight 0."""
        idle = dict.fromkeys(("bias", "token_bias"), "form = 'softmax'") if self.form == "softmax" else {}
        if not self.spatial_weight + self.frequency_weight:
            idle |= {"temperature": "spatial_weight and frequency_weight are 0"}
        if not self.spatial_token_weight + self.frequency_token_weight:
            names = ("token_temperature", "token_bias", "top_tokens", "pool_tokens", "chunk")
            idle |= dict.fromkeys(names, "spatial_token_weight and frequency_token_weight are 0")
        return idle

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each part by its name."""
        return {
            "spatial": self.spatial_weight,
            "frequency": self.frequency_weight,
            "spatial_token": self.spatial_token_weight,
            "frequency_token": self.frequency_token_weight,
        }


class _Scale(nn.Module):
    """Temperature and bias of one level of the objective."""

    def __init__(self, temperature: float, bias: float, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=settings.learn_temperature)
        self.bias = nn.Parameter(torch.tensor(bias)) if settings.form == "sigmoid" else None

    def forward(self) -> tuple[Tensor, Tensor | float]:
        """Temperature and bias in force."""
        if self.training:  # held inside the range, not cut off in the graph: a gradient can lead back from the edge
            with torch.no_grad():
                self.log_scale.clamp_(-math.log(_TEMPERATURES[1]), -math.log(_TEMPERATURES[0]))
        return self.log_scale.neg().exp(), 0.0 if self.bias is None else self.bias


class MLIPObjective(nn.Module):
    r"""Weighted sum of up to four contrasts of captions with images.

    .. math:: L = w_s L(s, t) + w_f L(f, t) + w_{st} L(S, W) + w_{ft} L(F, W)

    with the spatial and the frequency embedding `s` and `f` of an image and `t` of a caption (`contrast.instance`),
    their tokens `S`, `F` and words `W` (`late_interaction`). A reconstruction after the published description of
    MLIP; weights, projections and the form of the token level are our choices.

    Parameters
    ----------
    settings : ObjectiveSettings
    """

    def __init__(self, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.settings = settings
        weights = settings.weights
        # only what takes part: DDP waits for the gradient of every parameter
        pooled = weights["spatial"] or weights["frequency"]
        self.pooled_scale = _Scale(settings.temperature, settings.bias, settings) if pooled else None
        bias = settings.bias if settings.token_bias is None else settings.token_bias
        self.token_scale = _Scale(settings.token_temperature, bias, settings) if self.needs_tokens else None

    @property
    def needs_tokens(self) -> bool:
        """Whether token embeddings are looked at."""
        return self.settings.spatial_token_weight > 0 or self.settings.frequency_token_weight > 0

    def temperatures(self) -> dict[str, float]:
        """Temperatures in force, by level."""
        scales = {"temperature": self.pooled_scale, "token_temperature": self.token_scale}
        low, high = _TEMPERATURES  # a last step may have led out of the range, to which the next one would hold it
        return {
            name: min(max(math.exp(-scale.log_scale.item()), low), high)
            for name, scale in scales.items()
            if scale is not None
        }

    def biases(self) -> dict[str, float]:
        """Biases of the sigmoid form, by level; none of the softmax form."""
        scales = {"bias": self.pooled_scale, "token_bias": self.token_scale}
        return {
            name: scale.bias.item() for name, scale in scales.items() if scale is not None and scale.bias is not None
        }

    def forward(
        self,
        image: ImageFeatures,
        text: TextFeatures,
        positive: Tensor,
        *,
        images: Sequence[int] | None = None,
        captions: Sequence[int] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the batch of all processes, and its unweighted parts by name.

        Parameters
        ----------
        image : ImageFeatures
            Of the images of this process.
        text : TextFeatures
            Of the captions of this process, padded to one length everywhere.
        positive : Tensor (I, C) of bool
            Which captions describe which images, over all processes in the order of their ranks.
        images, captions : sequence of int, optional
            Images and captions of every process (default: as many as this one has).

        Raises
        ------
        InputError
            Where the model has no head for a part whose weight is above 0.
        """
        images, captions = _shares(images, len(image.spatial)), _shares(captions, len(text.pooled))
        if positive.shape != (sum(images), sum(captions)):
            raise ValueError(
                f"positives of {sum(images)} images and {sum(captions)} captions are needed, "
                f"found {tuple(positive.shape)}"
            )
        parts = {**self._pooled(image, text, positive, images, captions)}
        parts |= self._tokens(image, text, positive, images, captions)
        weights = self.settings.weights
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _pooled(
        self, image: ImageFeatures, text: TextFeatures, positive: Tensor, images: Sequence[int], captions: Sequence[int]
    ) -> dict[str, Tensor]:
        if self.pooled_scale is None:
            return {}
        (temperature, bias), form = self.pooled_scale(), self.settings.form
        words = gather(text.pooled.float(), captions)
        parts = {}
        for name, embedding in (("spatial", image.spatial), ("frequency", image.frequency)):
            if self.settings.weights[name]:
                every = gather(_present(name, embedding).float(), images)
                parts[name] = instance(every, words, positive, temperature, form, bias)
        return parts

    def _tokens(
        self, image: ImageFeatures, text: TextFeatures, positive: Tensor, images: Sequence[int], captions: Sequence[int]
    ) -> dict[str, Tensor]:
        if self.token_scale is None:
            return {}
        (temperature, bias), settings = self.token_scale(), self.settings
        words = gather(_present("token", text.tokens), captions)
        mask = gather(text.mask.to(torch.uint8), captions).bool()
        parts = {}
        for name, tokens, sizes in (
            ("spatial_token", image.spatial_tokens, image.sizes),
            ("frequency_token", image.frequency_tokens, None),
        ):
            if settings.weights[name]:
                tokens = _present(name, tokens)
                if settings.pool_tokens is not None and sizes is None:
                    tokens = pool_grid(tokens, settings.pool_tokens)
                # each process meets all captions with its own images; only the scores travel
                scores = late_interaction(
                    tokens, words, mask, sizes=sizes, chunk=settings.chunk, top=settings.top_tokens
                )
                to_text, to_image = (gather(score, images) / temperature for score in scores)
                parts[name] = contrast(to_text, to_image, positive, settings.form, bias)
        return parts


def _shares(given: Sequence[int] | None, own: int) -> tuple[int, ...]:
    """Rows of every process."""
    if given is not None:
        return tuple(given)
    alike = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    return (own,) * alike


def _present(name: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        head = "frequency_head" if name == "frequency" else "token_heads"
        also = " and model.frequency_head" if name == "frequency_token" else ""
        raise InputError(
            f"objective.{name}_weight is above 0, but the model has no such embeddings: set model.{head}{also}"
        )
    return tensor
