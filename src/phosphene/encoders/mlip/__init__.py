"""MLIP, phosphene's own vision-language encoder: model, tokenizer, folder on disk."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phosphene.encoders.mlip.config import MLIPConfig
    from phosphene.encoders.mlip.model import MLIP, ImageFeatures, TextFeatures
    from phosphene.encoders.mlip.similarity import similarities
    from phosphene.encoders.mlip.store import load_model, save_model
    from phosphene.encoders.mlip.tokenizer import Tokenizer

__all__ = [
    "MLIP",
    "ImageFeatures",
    "MLIPConfig",
    "TextFeatures",
    "Tokenizer",
    "load_model",
    "save_model",
    "similarities",
]

_HOMES = {
    "MLIPConfig": "config",
    "Tokenizer": "tokenizer",
    "load_model": "store",
    "save_model": "store",
    "similarities": "similarity",
}


def __getattr__(name: str) -> Any:
    # the registry of encoders imports this package, and must not import torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'model')}"), name)
