"""Equal pictures: content hashes of pixels alone, and the refusal of a picture on two sides of a split."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from phosphene.errors import InputError, LeakageError
from phosphene.files import digest
from phosphene.stimuli.stimulus_set import StimulusSet

__all__ = ["check_pictures_apart", "picture_hashes"]

_SHOWN = 5


def picture_hashes(stimuli: StimulusSet) -> np.ndarray:
    """Content hash of the pixels of each stimulus, whatever its id, captions and labels; read block by block.

    Returns
    -------
    (n,) ndarray of str
        Equal exactly where all pixels are. A picture that was scaled or compressed again is another picture.

    Raises
    ------
    InputError
        When there are no pixels.

    Examples
    --------
    >>> twice = StimulusSet(["a", "b"], pixels=np.zeros((2, 4, 4, 3), np.uint8), captions=[["x"], ["y"]])
    >>> len(set(picture_hashes(twice).tolist())), len(set(twice.hashes.tolist()))
    (1, 2)
    """
    if not stimuli.has_pixels:
        raise InputError("these stimuli have no pixels; there are no pictures to hash")
    return np.array([digest(picture) for _, block in stimuli.blocks() for picture in block], dtype=str)


def check_pictures_apart(parts: Mapping[str, StimulusSet], hashes: Mapping[str, np.ndarray] | None = None) -> None:
    """Refuse a picture that occurs in two parts, under whatever id and with whatever captions.

    Parameters
    ----------
    parts : mapping of str to StimulusSet
        By name, such as ``{"train": ..., "held-out": ...}``. Repeats within a part are no leak.
    hashes : mapping of str to (n,) array of str, optional
        `picture_hashes` of the parts, where they are known already: pixels are then not read.

    Raises
    ------
    LeakageError
        Naming the parts, how many pictures they share, and the ids of the first.
    InputError
        For a part without pixels.

    Examples
    --------
    >>> one = StimulusSet(["a"], pixels=np.zeros((1, 4, 4, 3), np.uint8), captions=[["a dot"]])
    >>> check_pictures_apart({"train": one, "test": StimulusSet(["b"], pixels=one.pixels())})
    Traceback (most recent call last):
    phosphene.errors.LeakageError: 1 picture is in both 'train' and 'test': a = b. ...
    """
    shapes = {name: part.frame_shape for name, part in parts.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(f"pictures can be compared at one size only, found {found}")
    if hashes is None:
        hashes = {name: picture_hashes(part) for name, part in parts.items()}
    first_id = {
        name: dict(zip(reversed(hashes[name].tolist()), reversed(part.ids.tolist()), strict=True))
        for name, part in parts.items()
    }
    for one, other in itertools.combinations(parts, 2):
        shared = [key for key in first_id[one] if key in first_id[other]]
        if shared:
            pairs = sorted((first_id[one][key], first_id[other][key]) for key in shared)
            shown = ", ".join(f"{a} = {b}" for a, b in pairs[:_SHOWN])
            raise LeakageError(
                f"{len(shared)} picture{'s are' if len(shared) > 1 else ' is'} in both {one!r} and {other!r}: {shown}"
                f"{' and others' if len(pairs) > _SHOWN else ''}. Scores there would count what was learned by heart; "
                "give each picture once, with all its captions, or keep its copies on one side"
            )
