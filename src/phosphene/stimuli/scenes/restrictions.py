"""What a draw of scenes is restricted to: the words that may occur, by attribute, for all scenes or for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.stimuli.scenes.vocabulary import BACKGROUNDS, COLOURS, LIGHTS, MATERIALS, SHAPES

__all__ = ["RESTRICTABLE", "SCALES_ALLOWED", "Allowed", "allowed_masks", "check_scale"]

Allowed = Sequence[str] | np.ndarray

RESTRICTABLE: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "material": tuple(MATERIALS),
    "background": tuple(BACKGROUNDS),
    "light": tuple(LIGHTS),
}
SCALES_ALLOWED = (0.05, 0.72)


def allowed_masks(only: Mapping[str, Allowed], n: int) -> dict[str, np.ndarray]:
    """Boolean (n, k) masks over the vocabulary for the attributes that are restricted.

    Parameters
    ----------
    only : mapping
        By attribute: names, a boolean ``(k,)`` array, or a boolean ``(n, k)`` array.
    n : int
        Scenes.

    Raises
    ------
    InputError
        For an unknown attribute or word, an array of another shape or type, a scene to which nothing is left.
    """
    masks = {}
    for name, allowed in only.items():
        if name not in RESTRICTABLE:
            raise unknown("attribute of `only`", name, RESTRICTABLE)
        mask = _as_mask(name, allowed)
        count = len(RESTRICTABLE[name])
        if mask.dtype != np.bool_ or mask.shape not in ((count,), (n, count)):
            raise InputError(
                f"only[{name!r}] must be names, or a boolean array of shape ({count},) or ({n}, {count}), "
                f"found {mask.dtype} of shape {mask.shape}"
            )
        mask = np.broadcast_to(mask, (n, count))
        if not mask.any(1).all():
            raise InputError(f"only[{name!r}] leaves nothing to scene {int(np.argmin(mask.any(1)))} of the batch")
        masks[name] = mask
    return masks


def _as_mask(attribute: str, allowed: Allowed) -> np.ndarray:
    if isinstance(allowed, np.ndarray) and allowed.dtype.kind not in "UO":
        return allowed
    if isinstance(allowed, str):
        raise InputError(f"only[{attribute!r}] must be several names in a sequence, such as [{allowed!r}]")
    known = RESTRICTABLE[attribute]
    mask = np.zeros(len(known), dtype=bool)
    for name in allowed:
        if name not in known:
            raise unknown(attribute, name, known)
        mask[known.index(str(name))] = True
    return mask


def check_scale(scale: tuple[float, float] | None) -> None:
    """Refuse a range of half-extents that is no range or out of bounds."""
    if scale is None:
        return
    low, high = SCALES_ALLOWED
    if len(scale) != 2 or not low <= scale[0] <= scale[1] <= high:
        raise InputError(f"scale must be (least, greatest) half-extent within {low} to {high}, found {scale!r}")
