"""Token merging in the vision towers of transformers: CLIP and SigLIP, as they are, without a change to them.

A tower is run block by block from outside on its own modules, so that nothing is replaced, hooked or stored in it: the
same network can be called merged and unmerged at once. Only what the versions of transformers share is used; the flat
layout of the newer ones and the nested one (``vision_model``) of the older ones are both found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phosphene.encoders.merging.attention import attention
from phosphene.encoders.merging.guides import embedding_cue
from phosphene.encoders.merging.matching import Merged, unmerge
from phosphene.encoders.merging.plan import MergePlan, TowerShape
from phosphene.encoders.merging.schedule import patch_flops
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.merging.step import attention_sizes, begin, merge_step
from phosphene.errors import InputError

__all__ = ["MergedTower", "TowerOutput", "find_tower", "tower_shape", "with_merging"]

# model_type of the tower's configuration -> what its module must have, and the classes a user knows it by
_PARTS = {
    "clip_vision_model": ("embeddings", "pre_layrnorm", "encoder", "post_layernorm"),
    "siglip_vision_model": ("embeddings", "encoder", "post_layernorm", "head"),
}
_PATCHABLE = (
    "CLIP vision towers (CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection) and SigLIP vision towers with "
    "their pooling head (SiglipModel, SiglipVisionModel)"
)


class TowerOutput(NamedTuple):
    """What a tower makes of a batch of pictures.

    Attributes
    ----------
    tokens : Tensor (B, N, width)
        All tokens of the grid again where the settings restore it, else those that remain.
    pooled : Tensor (B, width)
        The tower's own image embedding, projected where the network has a projection; not normalised.
    sizes : float32 Tensor (B, N')
        How many original tokens each token that remained stands for, at the layer the tokens are of.
    source : int64 Tensor (B, N0)
        The remaining token in which each original one lies.
    """

    tokens: Tensor
    pooled: Tensor
    sizes: Tensor
    source: Tensor


def find_tower(network: nn.Module) -> Any:
    """The vision tower inside a transformers network.

    Raises
    ------
    InputError
        For a network whose tower cannot be patched, naming it and those that can.
    """
    tower: Any = network
    for _ in range(2):  # CLIPModel and, in older versions, the tower's own wrapper
        tower = getattr(tower, "vision_model", tower)
    parts = _PARTS.get(str(getattr(getattr(tower, "config", None), "model_type", None)))
    if parts is None or not all(hasattr(tower, part) for part in parts):
        raise InputError(f"tokens cannot be merged in a {type(network).__name__}; they can in {_PATCHABLE}")
    return tower


def tower_shape(config: Any) -> TowerShape:
    """Sizes of a tower by its transformers configuration.

    Raises
    ------
    InputError
        For the configuration of a tower that cannot be patched.
    """
    if config.model_type not in _PARTS:
        raise InputError(f"tokens cannot be merged in a tower of kind {config.model_type!r}; they can in {_PATCHABLE}")
    side, width, mlp_width = config.image_size // config.patch_size, config.hidden_size, config.intermediate_size
    fixed, protected = patch_flops(side**2, config.patch_size, width), 1
    if config.model_type == "siglip_vision_model":
        # the pooling head: keys and values of all tokens, counted as if none were merged; one query, one MLP
        fixed, protected = fixed + 4.0 * width * (side**2 * (width + 1) + width + mlp_width), 0
    return TowerShape(config.num_hidden_layers, (side, side), protected, width, mlp_width, fixed)


def with_merging(network: nn.Module, settings: MergeSettings, *, texts: Tensor | None = None) -> MergedTower:
    """A tower that merges tokens while it runs; the network itself stays as it is.

    Parameters
    ----------
    network : nn.Module
        A CLIP or SigLIP of transformers, or its vision tower.
    settings : MergeSettings
    texts : Tensor, optional
        ``(M, width)`` text embeddings in the space of the tower's pooled output, for the guide "text".

    Raises
    ------
    InputError
        For a tower that cannot be patched, a rate out of reach, a guide by text without texts.

    Examples
    --------
    >>> from transformers import CLIPVisionConfig, CLIPVisionModel
    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    >>> small = CLIPVisionConfig(**sizes, image_size=64, patch_size=8)
    >>> tower = with_merging(CLIPVisionModel(small).eval(), MergeSettings(tokens=0.6))
    >>> output = tower(torch.zeros(2, 3, 64, 64))
    >>> output.tokens.shape, output.sizes.shape
    (torch.Size([2, 65, 32]), torch.Size([2, 39]))
    """
    tower = find_tower(network)
    shape = tower_shape(tower.config)
    plan = shape.plan(settings)
    reference = None
    if settings.guide == "text":
        if texts is None:
            raise InputError("merging guided by text needs a text: give one or several text embeddings")
        reference = _into_tower(network, tower, texts)
    return MergedTower(network, tower, settings, shape, plan, reference)


def _into_tower(network: Any, tower: Any, texts: Tensor) -> Tensor:
    """Text embeddings taken back through the linear maps between the tower's tokens and the shared space.

    A token's likeness to a text then is one product in the tower's width. In SigLIP these maps are the values and the
    output of the pooling head's attention; its MLP, which is not linear, is left out.
    """
    projection = getattr(network, "visual_projection", None)
    head = getattr(tower, "head", None)
    texts = texts.detach()
    if texts.ndim != 2:
        raise InputError(f"text embeddings must be (texts, width), found {tuple(texts.shape)}")
    maps = [] if projection is None else [projection.weight]
    if head is not None:
        maps = [head.attention.out_proj.weight, head.attention.in_proj_weight.chunk(3)[2]]
    width = maps[0].shape[0] if maps else tower.config.hidden_size
    if texts.shape[1] != width:
        raise InputError(f"text embeddings are {texts.shape[1]} wide, the tower's own {width}")
    texts = texts.to(tower.post_layernorm.weight)
    for weight in maps:
        texts = texts @ weight.detach()
    return texts


@dataclass(frozen=True)
class MergedTower:
    """A vision tower and how its tokens are merged; made by `with_merging`.

    Calling it changes neither the network nor itself. Attention is PyTorch's fused one whatever the network's own
    implementation: without merging the output is the network's own bit for bit where that is "sdpa".
    """

    network: nn.Module
    tower: Any
    settings: MergeSettings
    shape: TowerShape
    plan: MergePlan
    reference: Tensor | None = None

    def __call__(self, pixels: Tensor, *, layer: int = -1, projected: bool = True) -> TowerOutput:
        """Run the tower.

        Parameters
        ----------
        pixels : Tensor (B, 3, height, width)
            Prepared as the network wants them.
        layer : int
            Hidden state the tokens are taken from, as in `VisionConfig`: 0 to the number of blocks, or -1 and below.
        projected : bool
            Whether tokens pass the final norm and, where the network has one, the projection.

        Raises
        ------
        InputError
            In training with dropout on attention, which merging does not have.
        """
        if self.tower.training and self.tower.config.attention_dropout:
            raise InputError(
                f"attention_dropout = {self.tower.config.attention_dropout:g} of a {type(self.network).__name__} in "
                "training cannot be kept while tokens are merged; set it to 0"
            )
        layer %= self.shape.layers + 1
        x = self.tower.embeddings(pixels)
        if self.shape.protected:
            x = self.tower.pre_layrnorm(x)
        state = begin(x, self.settings, protected=self.shape.protected, grid=self.shape.grid)
        wanted = x, state
        for number, block in enumerate(self.tower.encoder.layers, start=1):
            x, state = self._checkpointed(block, x, state, self.plan.rates[number - 1])
            if number == layer:
                wanted = x, state
        tokens, at = wanted
        if projected:
            tokens = self._project(self.tower.post_layernorm(tokens))
        if self.settings.restore:
            tokens = unmerge(tokens, at)
        return TowerOutput(tokens, self._pool(x, state), at.sizes, at.source)

    def _checkpointed(self, block: Any, x: Tensor, state: Merged, r: int) -> tuple[Tensor, Merged]:
        """The block, its activations not kept where the network is set to gradient checkpointing."""
        # newer versions mark the blocks, older ones the stack of them
        asked = getattr(block, "gradient_checkpointing", self.tower.encoder.gradient_checkpointing)
        if asked and block.training and torch.is_grad_enabled():
            again: tuple[Tensor, Merged] = checkpoint(self._block, block, x, state, r, use_reentrant=False)
            return again
        return self._block(block, x, state, r)

    def _block(self, block: Any, x: Tensor, state: Merged, r: int) -> tuple[Tensor, Merged]:
        """Attention, merging, MLP; the keys serve both attention and matching."""
        layer = block.self_attn
        normed = block.layer_norm1(x)
        q, k, v = (_heads(part(normed), layer.num_heads) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
        received = attention(q, k, v, attention_sizes(state, self.settings))
        x = x + layer.out_proj(received.transpose(1, 2).flatten(2))
        x, state = merge_step(
            x, k, state, r, self.settings, self.shape.protected, queries=q, cue=self._likeness(x) if r else None
        )
        return x + block.mlp(block.layer_norm2(x)), state

    def _likeness(self, x: Tensor) -> Tensor | None:
        """What each token, read as the last block's would be, has in common with the nearest text: (B, N)."""
        if self.reference is None:
            return None
        with torch.no_grad():
            return embedding_cue(self.tower.post_layernorm(x), self.reference)

    def _project(self, x: Tensor) -> Tensor:
        projection = getattr(self.network, "visual_projection", None)
        projected: Tensor = x if projection is None else projection(x)
        return projected

    def _pool(self, x: Tensor, state: Merged) -> Tensor:
        if self.shape.protected:
            return self._project(self.tower.post_layernorm(x[:, 0]))
        x, head, sizes = self.tower.post_layernorm(x), self.tower.head, attention_sizes(state, self.settings)
        if sizes is None:
            own: Tensor = head(x)
            return own
        probe = head.probe.expand(len(x), -1, -1)
        pooled = head.attention(probe, x, x, key_padding_mask=sizes.log().to(x.dtype))[0]
        fed: Tensor = pooled + head.mlp(head.layernorm(pooled))
        return fed[:, 0]


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(B, N, heads * d)`` to ``(B, heads, N, d)``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
