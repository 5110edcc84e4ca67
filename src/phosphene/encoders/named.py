"""Targets of a study from one word: a folder that `encode` wrote, or an encoder's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phosphene.encoders.cache import encode
from phosphene.encoders.registry import make_encoder
from phosphene.encoders.targets import Targets

if TYPE_CHECKING:
    from phosphene.recordings import Study

__all__ = ["targets_named"]


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
