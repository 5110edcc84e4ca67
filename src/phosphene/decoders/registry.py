"""The decoders by name.

A new one: its file, its config class, one line here, one preset, and its row in the contract test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phosphene.decoders.base import Decoder
from phosphene.decoders.lite_mind import LiteMind
from phosphene.decoders.mindeye_mlp import MindEyeMLP
from phosphene.decoders.mindtuner import MindTuner
from phosphene.decoders.ridge import Ridge
from phosphene.decoders.shared_response import SharedResponse
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.errors import unknown
from phosphene.settings import load_preset

__all__ = ["DECODERS", "decoder_class", "make_decoder"]

DECODERS: dict[str, type[Decoder]] = {
    "lite-mind": LiteMind,
    "mindeye-mlp": MindEyeMLP,
    "mindtuner": MindTuner,
    "ridge": Ridge,
    "shared-response": SharedResponse,
    "wills-aligner": WillsAligner,
}


def decoder_class(name: str) -> type[Decoder]:
    """The class behind a decoder's name; an unknown name lists the known ones."""
    if name not in DECODERS:
        raise unknown("decoder", name, DECODERS)
    return DECODERS[name]


def make_decoder(
    name: str,
    preset: str | None = None,
    *,
    subjects: Mapping[str, int],
    target_shape: Sequence[int],
    **settings: Any,
) -> Decoder:
    """Build an untrained decoder.

    Parameters
    ----------
    name : str
        A key of `DECODERS`, e.g. ``"lite-mind"``.
    preset : str, optional
        A preset of that decoder, e.g. ``"nsd"``; without it the defaults of its config.
    subjects : mapping of str to int
        Voxels of each person.
    target_shape : (tokens, width) or (width,)
        What is to be predicted: a grid of tokens, or one pooled embedding.
    **settings
        Settings of the decoder's config; unknown ones are refused, and those that the others leave without a use.

    Examples
    --------
    >>> decoder = make_decoder("ridge", subjects={"sub-01": 100}, target_shape=(30,))
    >>> decoder.target_shape
    (30,)
    """
    cls = decoder_class(name)
    layers = load_preset("decoders", name, preset).get("decoder", {}) if preset else {}
    config = cls.Config.build(layers, settings)
    config.check_given(settings)
    return cls(config, subjects, tuple(target_shape))
