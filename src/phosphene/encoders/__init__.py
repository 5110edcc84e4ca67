"""Stimuli -> targets: classical features, transformers towers, captions; the target cache."""

from __future__ import annotations

from phosphene.encoders.base import CaptionEncoder, EncodedBatch, Encoder, EncoderConfig, PixelEncoder
from phosphene.encoders.cache import encode
from phosphene.encoders.given import given_targets
from phosphene.encoders.named import targets_named, targets_of_nothing
from phosphene.encoders.registry import ENCODERS, make_encoder
from phosphene.encoders.targets import Targets

__all__ = [
    "ENCODERS",
    "CaptionEncoder",
    "EncodedBatch",
    "Encoder",
    "EncoderConfig",
    "PixelEncoder",
    "Targets",
    "encode",
    "given_targets",
    "make_encoder",
    "targets_named",
    "targets_of_nothing",
]
