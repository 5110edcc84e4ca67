"""CLIP and SigLIP vision towers: tokens before or after the projection, of any layer, and the pooled embedding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from phosphene.encoders.base import EncoderConfig
from phosphene.encoders.merging.encoder import MergeableEncoder, MergingConfig
from phosphene.encoders.merging.plan import TowerShape
from phosphene.encoders.preprocessing import read_preprocessing
from phosphene.encoders.pretrained import PretrainedEncoder
from phosphene.encoders.transformers_source import (
    TransformersEncoder,
    load_network,
    model_facts,
    tower_config,
    transformers,
)
from phosphene.encoders.transformers_text import TextConfig, TransformersTextEncoder
from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersVisionEncoder", "VisionConfig"]

# model_type of config.json -> name of the transformers class of its vision tower
_TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
}


class VisionConfig(MergingConfig):
    """Settings of a vision tower.

    Attributes
    ----------
    source : str
        Hub name or local folder. It does not enter the identity; the hash of the weights does.
    layer : int
        Hidden state the tokens are taken from: 0 is the input of the first block, k the output of block k, -1 the
        last.
    projected : bool
        Whether tokens pass the tower's final layer norm and, in CLIP, its projection into the space shared with text.
        False gives the hidden state itself.
    merge : MergeSettings or None
        How tokens are merged inside the tower: off unless given.
    texts : tuple of str
        What merging guided by text spares.
    """

    source: str
    layer: int = -1
    projected: bool = True


class TransformersVisionEncoder(TransformersEncoder, MergeableEncoder):
    """A CLIP or SigLIP vision tower of transformers.

    Tokens: (tokens, width), e.g. (257, 768) of CLIP ViT-L/14 after and (257, 1024) before the projection; the first
    token of CLIP is its class token. SigLIP has neither class token nor projection. Pooled is the tower's own image
    embedding in the space shared with text, not normalised, whatever the layer of the tokens.

    With `merge`, tokens alike are folded together inside the tower; all of the grid's are given back unless
    `merge.restore` is False.

    Raises
    ------
    InputError
        For a model of another kind, weights that are missing or a pickle, a layer that does not exist, a merging rate
        out of reach.
    """

    name: ClassVar[str] = "hf"
    Config: ClassVar[type[EncoderConfig]] = VisionConfig

    def prepare(self, frames: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(self._preprocessing.apply(frames)).to(self.device)

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from phosphene.encoders.merging.hosts import find_tower, tower_shape, with_merging

        network, merge = self.network(), self.config.merge
        if merge is None or not tower_shape(find_tower(network).config).plan(merge).active:
            return self._forward(network, pixels)
        merged = with_merging(network, merge, texts=self.text_guide())(
            pixels, layer=self.config.layer, projected=self.config.projected
        )
        return merged.tokens, merged.pooled

    def _forward(self, network: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        tower: Any = getattr(network, "vision_model", network)
        layer = _layer(self.config.layer, len(tower.encoder.layers), self.label)
        block = tower.encoder.layers[max(layer - 1, 0)]
        caught: list[torch.Tensor] = []

        def keep_input(module: Any, args: Any, kwargs: Any) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])

        def keep_output(module: Any, args: Any, output: Any) -> None:
            caught.append(output if isinstance(output, torch.Tensor) else output[0])

        # a hook keeps one hidden state; asking for all of them would hold every layer of the batch in memory
        hook = (
            block.register_forward_pre_hook(keep_input, with_kwargs=True)
            if layer == 0
            else block.register_forward_hook(keep_output)
        )
        try:
            output: Any = network(pixel_values=pixels)
        finally:
            hook.remove()
        tokens = caught[0]
        projection = getattr(network, "visual_projection", None)
        if self.config.projected:
            tokens = tower.post_layernorm(tokens)
            tokens = tokens if projection is None else projection(tokens)
        return tokens, output.pooler_output if projection is None else output.image_embeds

    def _read_facts(self, folder: Path) -> dict[str, Any]:
        tower = self._tower(folder)[1]
        facts = model_facts(folder)
        facts["preprocessing"] = read_preprocessing(folder).model_dump(mode="json")
        facts["layer"] = _layer(self.config.layer, tower.num_hidden_layers, self.label)
        return facts | self.merging_facts(folder)

    def tower_shape(self, folder: Path) -> TowerShape:
        from phosphene.encoders.merging.hosts import tower_shape

        return tower_shape(self._tower(folder)[1])

    def text_encoder(self, folder: Path) -> PretrainedEncoder:
        if self._tower(folder)[0] not in ("clip", "siglip"):
            return super().text_encoder(folder)
        return TransformersTextEncoder(TextConfig(source=str(folder)))

    def _identity_config(self) -> dict[str, Any]:
        settings = super()._identity_config()
        settings.pop("layer")  # -1 and the number of the last layer are the same; the number is among the facts
        return settings

    def _load(self, folder: Path) -> torch.nn.Module:
        kind, tower = self._tower(folder)
        network = load_network(getattr(transformers(f"encoder {self.label!r}"), _TOWERS[kind]), folder, tower)
        self._preprocessing = read_preprocessing(folder)
        return network

    def _tower(self, folder: Path) -> tuple[str, Any]:
        kind, tower = tower_config(folder, "vision_config", f"encoder {self.label!r}")
        if kind not in _TOWERS:
            raise unknown(f"kind of vision model in {folder / 'config.json'}:", kind, _TOWERS)
        return kind, tower


def _layer(layer: int, depth: int, label: str) -> int:
    """The layer as a number from 0 to depth."""
    if not -(depth + 1) <= layer <= depth:
        raise InputError(f"encoder {label!r} has layers 0 to {depth} (or -1 to {-depth - 1}), found layer {layer}")
    return layer % (depth + 1)
