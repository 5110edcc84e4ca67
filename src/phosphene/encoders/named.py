"""Targets of a study from one word: a folder that `encode` wrote, or an encoder's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phosphene.encoders.cache import encode
from phosphene.encoders.registry import make_encoder
from phosphene.encoders.targets import Targets
from phosphene.errors import InputError
from phosphene.stimuli.stimulus_set import StimulusSet

if TYPE_CHECKING:
    from phosphene.recordings import Study

__all__ = ["targets_named", "targets_of_nothing"]


def targets_named(name: str | Path, study: Study, progress: bool = True) -> Targets:
    """Targets from a folder, or encoded now; encoders that learn are fitted on the training part of the split.

    Parameters
    ----------
    name : str or Path
        Folder of `Targets.save`, or a name for `make_encoder`.
    study : Study
    progress : bool
    """
    if (Path(name) / "targets.json").exists():
        return Targets.open(name)
    encoder = make_encoder(str(name))
    fit_on = study.split("train").stimulus_ids if encoder.needs_fit else None
    return encode(study.stimuli, encoder, fit_on=fit_on, progress=progress)


def targets_of_nothing(name: str | Path) -> Targets:
    """Targets of no stimulus: width and identity of an encoder, for who has nothing that it could encode.

    Parameters
    ----------
    name : str or Path
        As of `targets_named`.

    Raises
    ------
    InputError
        For an encoder that learns from stimuli: without them it is not known.

    Examples
    --------
    >>> targets_of_nothing("pixels").shape()
    (768,)
    """
    if (Path(name) / "targets.json").exists():
        return Targets.open(name).select([])
    encoder = make_encoder(str(name))
    if encoder.needs_fit:
        raise InputError(
            f"encoder {encoder.label!r} learns from stimuli, and there are none here: name a folder that phosphene "
            f"encode wrote elsewhere, or an encoder that learns nothing"
        )
    blank = StimulusSet(["blank"], np.zeros((1, 64, 64, 3), dtype=np.uint8), [["a picture"]])
    return Targets([], None, encoder.encode(blank).pooled[:0], encoder)
