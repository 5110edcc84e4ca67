"""From predicted embeddings to something to look at: retrieval from a gallery of pictures, clips or captions."""

from __future__ import annotations

from phosphene.rendering.decoding import Decoded, decode
from phosphene.rendering.gallery import Gallery, gallery_stimuli

__all__ = ["Decoded", "Gallery", "decode", "gallery_stimuli"]
