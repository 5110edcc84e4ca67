"""MLIP, phosphene's own vision-language encoder: model, tokenizer, folder on disk."""

from phosphene.encoders.mlip.config import MLIPConfig
from phosphene.encoders.mlip.model import MLIP, ImageFeatures, TextFeatures
from phosphene.encoders.mlip.store import load_model, save_model
from phosphene.encoders.mlip.tokenizer import Tokenizer

__all__ = ["MLIP", "ImageFeatures", "MLIPConfig", "TextFeatures", "Tokenizer", "load_model", "save_model"]
