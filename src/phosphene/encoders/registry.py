"""The door to encoders by name."""

from __future__ import annotations

import re
from typing import Any

from phosphene.encoders.base import Encoder
from phosphene.encoders.gabor import GaborEncoder
from phosphene.encoders.given import GivenEncoder
from phosphene.encoders.labels import LabelEncoder
from phosphene.encoders.merging.encoder import MergeableEncoder
from phosphene.encoders.minilm import MiniLMEncoder
from phosphene.encoders.mlip.encoder import SHIPPED, MLIPEncoder, MLIPTextEncoder, find_named_mlip
from phosphene.encoders.pixels import PixelGridEncoder
from phosphene.encoders.standardised import StandardisedEncoder
from phosphene.encoders.tfidf import TfidfSvdEncoder
from phosphene.encoders.transformers_text import TransformersTextEncoder
from phosphene.encoders.transformers_vision import TransformersVisionEncoder
from phosphene.errors import InputError, unknown

__all__ = ["ENCODERS", "make_encoder", "mergeable"]

ENCODERS: dict[str, type[Encoder]] = {
    kind.name: kind
    for kind in (
        GaborEncoder,
        PixelGridEncoder,
        TfidfSvdEncoder,
        LabelEncoder,
        MiniLMEncoder,
        MLIPEncoder,
        MLIPTextEncoder,
        TransformersVisionEncoder,
        TransformersTextEncoder,
        StandardisedEncoder,
        GivenEncoder,
    )
}

# what may follow the name after a colon, and the setting it fills
_ARGUMENTS = {
    "hf": "source",
    "hf-text": "source",
    "mlip": "source",
    "mlip-text": "source",
    "labels": "column",
    "z": "inner",
}
_SPELLINGS = [
    *SHIPPED,
    *(f"{name}-text" for name in SHIPPED),
    "gabor",
    "pixels",
    "tfidf-svd30",
    "labels",
    "labels:COLUMN",
    "minilm",
    "mlip:FOLDER",
    "mlip-text:FOLDER",
    "hf:MODEL",
    "hf-text:MODEL",
    "z:NAME",
]


def make_encoder(name: str, **settings: Any) -> Encoder:
    """Build an encoder by name.

    Parameters
    ----------
    name : str
        ``"pocket"``, the shipped vision-language encoder, or ``"pocket-text"``, its text tower; ``"mlip:FOLDER"`` and
        ``"mlip-text:FOLDER"`` for a model made by ``phosphene pretrain``; ``"gabor"``, ``"pixels"``, ``"tfidf-svdK"``
        for any K, ``"labels"`` or ``"labels:COLUMN"``, ``"minilm"``, ``"hf:MODEL"`` (vision tower) or
        ``"hf-text:MODEL"``, MODEL being a hub name or a local folder. ``"z:NAME"`` is any of these with each dimension
        z-scored over the training stimuli.
    **settings
        Settings of the encoder's `Config`.

    Raises
    ------
    InputError
        For an unknown name, listing the known ones, or a wrong setting.

    Examples
    --------
    >>> make_encoder("gabor", grid=8).label
    'gabor'
    >>> make_encoder("tfidf-svd30").config.components
    30
    """
    family, given = _parse(name)
    for key, value in given.items():
        if key in settings and settings[key] != value:
            raise InputError(f"encoder {name!r} says {key} = {value!r}, the setting says {settings[key]!r}")
    kind = ENCODERS[family]
    return kind(kind.Config.build({**given, **settings}))


def mergeable(encoder: Encoder) -> MergeableEncoder:
    """The encoder, or the one that it standardises, whose tokens can be merged.

    Raises
    ------
    InputError
        Where they cannot, naming the encoders whose can.
    """
    inner = encoder
    while isinstance(inner, StandardisedEncoder):
        inner = inner.inner
    if not isinstance(inner, MergeableEncoder):
        able = [name for name in _SPELLINGS if issubclass(ENCODERS[_parse(name)[0]], MergeableEncoder)]
        raise InputError(f"encoder {encoder.label!r} has no tower whose tokens could be merged; {', '.join(able)} have")
    return inner


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """Split a name into the family and the settings spelled in it."""
    counted = re.fullmatch(r"tfidf-svd(\d+)", name)
    if counted:
        return TfidfSvdEncoder.name, {"components": int(counted.group(1))}
    if name.removesuffix("-text") in SHIPPED:
        return ("mlip-text" if name.endswith("-text") else "mlip"), {"source": name.removesuffix("-text")}
    family, colon, argument = name.partition(":")
    # "given" stands for arrays made elsewhere: it is loaded with them, not built
    if family not in ENCODERS or family == GivenEncoder.name or (colon and (family not in _ARGUMENTS or not argument)):
        raise unknown("encoder", name, _SPELLINGS)
    if not colon and family in ("hf", "hf-text"):
        raise InputError(f"encoder {name!r} needs a model: {name}:HUB-NAME or {name}:LOCAL-FOLDER")
    if not colon and family in ("mlip", "mlip-text"):
        raise InputError(f"encoder {name!r} needs a model: {name}:FOLDER")
    if not colon and family == "z":
        raise InputError("encoder 'z' needs the encoder to standardise: z:gabor, z:minilm ...")
    if family in ("mlip", "mlip-text") and argument in SHIPPED:
        find_named_mlip(argument)
    return family, {_ARGUMENTS[family]: argument} if colon else {}
