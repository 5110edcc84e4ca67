"""Stimuli as embedded pictures of bounded weight."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from phosphene.errors import InputError
from phosphene.reporting.page import Picture

__all__ = ["BUDGET", "album", "embed", "embed_lossless"]

BUDGET = 2_600_000
"""Bytes that all pictures of stimuli in one report may take together, base64 included."""

# longest side in pixels and WebP quality, from best to smallest; the first that keeps the budget is taken
_STEPS = ((256, 84), (192, 80), (144, 76), (112, 72), (88, 66), (64, 60))


def embed(pixels: np.ndarray, alt: str, side: int = 192, quality: int = 80) -> Picture:
    """One picture as a WebP ``data:`` URI, shrunk to `side` where it is larger.

    Parameters
    ----------
    pixels : np.ndarray
        ``(H, W, 3)`` or ``(H, W)``, uint8.
    alt : str
        Alternative text.

    Raises
    ------
    InputError
        When the array is not a picture.

    Examples
    --------
    >>> embed(np.zeros((8, 8, 3), np.uint8), "nothing but black").src[:23]
    'data:image/webp;base64,'
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise InputError(f"a picture must be uint8 (H, W, 3) or (H, W), found {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _picture(image.convert("RGB"), alt, "webp", quality=quality, method=4)


def embed_lossless(pixels: np.ndarray, alt: str) -> Picture:
    """A drawing, e.g. a map of the brain ``(H, W, 4)`` uint8, as a PNG ``data:`` URI."""
    return _picture(Image.fromarray(pixels), alt, "png", optimize=True)


def album(
    identifiers: Sequence[str],
    frames: Callable[[Sequence[str]], np.ndarray],
    alts: Mapping[str, str],
    uses: Mapping[str, int] | None = None,
    budget: int = BUDGET,
) -> dict[str, Picture]:
    """Embed many stimuli at the best size at which all uses of them together keep a budget.

    Parameters
    ----------
    identifiers : sequence of str
        Stimuli to embed.
    frames : callable
        Gives ``(n, H, W, 3)`` uint8 for some identifiers; asked for at most 64 at a time.
    alts : mapping of str to str
        Alternative text by identifier.
    uses : mapping of str to int, optional
        How often each picture stands on the page; 1 where not named.
    budget : int
        Bytes; the smallest step is taken when none keeps it.
    """
    uses = uses or {}
    # a few pictures foretell the weight of all of them at each step
    probe = list(identifiers[:: max(1, len(identifiers) // 12)])[:12]
    shown = sum(uses.get(identifier, 1) for identifier in identifiers)
    sample = frames(probe) if probe else np.empty((0, 1, 1, 3), np.uint8)
    side, quality = _STEPS[-1]
    for side, quality in _STEPS:
        weight = [len(embed(frame, "", side, quality).src) for frame in sample]
        if not weight or sum(weight) / len(weight) * shown <= budget:
            break
    pictures = {}
    for start in range(0, len(identifiers), 64):
        part = list(identifiers[start : start + 64])
        for identifier, frame in zip(part, frames(part), strict=True):
            pictures[identifier] = embed(frame, alts.get(identifier, identifier), side, quality)
    return pictures


def _picture(image: Image.Image, alt: str, kind: str, **settings: int) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{code}", alt, image.width, image.height)
