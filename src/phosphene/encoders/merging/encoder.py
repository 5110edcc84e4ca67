"""What encoders over a tower that can merge tokens share: the setting `merge`, and what it means for identities."""

from __future__ import annotations

import copy
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import model_validator

from phosphene.encoders.base import EncodedBatch, EncoderConfig, PixelEncoder
from phosphene.encoders.merging.plan import MergePlan, TowerShape
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.pretrained import PretrainedEncoder
from phosphene.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["MergeableEncoder", "MergingConfig"]


class MergingConfig(EncoderConfig):
    """Settings of an encoder whose tower can merge tokens.

    Attributes
    ----------
    merge : MergeSettings or None
        How tokens are merged inside the tower; None is the tower as it is. Not these words but the schedule that they
        come to enters the identity.
    texts : tuple of str
        What merging guided by text spares: captions or names of classes, embedded by the model's own text tower.
    """

    merge: MergeSettings | None = None
    texts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _texts_are_read(self) -> Self:
        if self.texts and (self.merge is None or self.merge.guide != "text"):
            raise ValueError("texts are read by merge.guide = 'text' alone")
        if not all(text.strip() for text in self.texts):
            raise ValueError(f"texts must not be empty, found {list(self.texts)}")
        return self


class MergeableEncoder(PretrainedEncoder, PixelEncoder):
    """An encoder over a vision tower that can merge tokens.

    A subclass gives `prepare`, `embed` and `tower_shape`, adds `merging_facts` to what `_read_facts` says and, where
    there is a text tower, gives `text_encoder`. It reads `config.merge` at every call, so that `with_merge` can share
    the network; where it cannot, it gives its own `with_merge`.
    """

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__(config)
        self._guide: torch.Tensor | None = None

    @abstractmethod
    def prepare(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 pictures (n, height, width, 3) as the tower wants them, on the encoder's device."""

    @abstractmethod
    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (n, tokens, width) and pooled (n, width) of prepared pictures, merged as the settings say."""

    @abstractmethod
    def tower_shape(self, folder: Path) -> TowerShape:
        """Sizes of the tower in a model folder, as far as they decide a schedule."""

    def text_encoder(self, folder: Path) -> PretrainedEncoder:
        """The encoder of the model's own text tower, for the guide by text.

        Raises
        ------
        InputError
            Where there is none.
        """
        raise InputError(
            f"merging guided by text needs the model's own text tower, and {folder} has none: name a model that has "
            "one, or another guide (none, spatial, frequency, both)"
        )

    def merging(self, folder: Path) -> MergeSettings:
        """The settings in force; without any in the configuration nothing is merged."""
        return self.config.merge or MergeSettings.build()

    def encode_pixels(self, frames: np.ndarray) -> EncodedBatch:
        import torch

        self.network()
        pixels = self.prepare(frames)
        with torch.inference_mode():
            tokens, pooled = self.embed(pixels)
        return EncodedBatch(tokens=tokens.float().cpu().numpy(), pooled=pooled.float().cpu().numpy())

    def merge_plan(self) -> MergePlan:
        """How many tokens are merged away where, and what that saves.

        Raises
        ------
        InputError
            For a rate out of reach.
        """
        return self.tower_shape(self.folder).plan(self.merging(self.folder))

    def with_merge(self, merge: MergeSettings) -> Self:
        """The same encoder with other merge settings, on the same network."""
        self.network()
        twin = copy.copy(self)
        twin.config = self.config.model_copy(update={"merge": merge})
        twin._known = twin._guide = None
        return twin

    def merging_facts(self, folder: Path) -> dict[str, Any]:
        """What of merging changes what comes out, for `_read_facts`; empty where nothing is merged.

        Settings that come to the same schedule and guide give the same facts.

        Raises
        ------
        InputError
            For a rate out of reach; for a guide by text without texts or without a text tower.
        """
        merge = self.merging(folder)
        plan = self.tower_shape(folder).plan(merge)
        if not plan.active:
            return {}
        facts: dict[str, Any] = {"rates": list(plan.rates), "proportional": merge.proportional}
        facts |= {"restore": merge.restore, "guide": merge.guide}
        if merge.guide != "none":
            facts["strength"] = merge.strength
        if merge.guide == "both":
            facts["balance"] = merge.balance
        if merge.guide == "text":
            facts["texts"], facts["text_tower"] = sorted(set(self._texts())), self.text_encoder(folder).identity
        return {"merging": facts}

    def text_guide(self) -> torch.Tensor | None:
        """Embeddings (texts, width) of what the guide by text spares; None for other guides."""
        import torch

        if self.merging(self.folder).guide != "text":
            return None
        if self._guide is None:
            encoder: Any = self.text_encoder(self.folder)
            encoder.device = self.device
            self._guide = torch.from_numpy(encoder.encode_captions([[text] for text in self._texts()]).pooled)
        return self._guide

    def _texts(self) -> tuple[str, ...]:
        texts: tuple[str, ...] = self.config.texts
        if not texts:
            raise InputError(
                f"encoder {self.label!r}: merging guided by text needs texts that say what to spare, such as "
                "--merge-text 'a dog' or texts=('a dog', 'a boat')"
            )
        return texts

    def _identity_config(self) -> dict[str, Any]:
        settings = super()._identity_config()
        for key in MergingConfig.model_fields:  # what they come to is among the facts
            settings.pop(key)
        return settings
