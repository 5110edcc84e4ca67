"""From responses to predicted embeddings: one file per method, all under one contract."""

from __future__ import annotations

from phosphene.decoders.base import ClassesConfig, Decoder, DecoderConfig, Episodes, Prediction
from phosphene.decoders.importance import Importance
from phosphene.decoders.registry import DECODERS, make_decoder

__all__ = [
    "DECODERS",
    "ClassesConfig",
    "Decoder",
    "DecoderConfig",
    "Episodes",
    "Importance",
    "Prediction",
    "make_decoder",
]
