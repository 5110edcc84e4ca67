"""Where in the brain the answer comes from: a decoder's importance, person by person, for the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from phosphene.errors import InputError
from phosphene.reporting import brain
from phosphene.reporting.page import BrainMap, RegionBar

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.decoders.importance import Importance
    from phosphene.encoders import Targets
    from phosphene.evaluation import Scorecard
    from phosphene.recordings import Study, StudyView

__all__ = ["importance_maps"]

log = logging.getLogger(__name__)

_METHODS = {
    "patterns": "Haufe patterns: how far a voxel goes along with those outputs that predict what was shown.",
    "gradients": "Integrated gradients: how much each voxel adds to telling what was shown from the other stimuli.",
}
_GIVEN = "mean of its voxels, the strongest region is 1"
_SILENCED = "share of the answer that is lost when the region is silenced; regions may stand in for each other"


def importance_maps(
    decoders: Mapping[str, Decoder],
    study: Study,
    targets: Targets | Mapping[str, Targets] | None,
    scorecard: Scorecard,
    wanted: bool | Mapping[str, np.ndarray],
) -> tuple[tuple[BrainMap, ...], str, str]:
    """Maps of every person, what they show, and why there are none.

    Parameters
    ----------
    wanted : bool or mapping of str to (V,) array
        False: none. True: measured on the scored stimuli, averaged over folds. A mapping: drawn as it is.
    """
    subjects = scorecard.protocol.get("subjects", study.subjects)
    if isinstance(wanted, Mapping):
        drawn = tuple(_given(study, subject, wanted[subject]) for subject in subjects if subject in wanted)
        return (
            drawn,
            "Values given to the report." if drawn else "",
            "No map was given for the people of the scorecard.",
        )
    if not wanted:
        return (), "", "Importance was not asked for."
    if targets is None and any(decoder.encoder is None for decoder in decoders.values()):
        return (), "", "The decoder carries no encoder and no targets were given, so importance cannot be measured."
    views = _views(decoders, study, scorecard.protocol.get("role", "test"))
    chosen = {split: _targets(split, decoders[split], views[split], targets) for split in decoders}
    brains, methods = [], []
    for subject in subjects:
        try:
            found = [decoder.importance(views[split], chosen[split], subject) for split, decoder in decoders.items()]
        except InputError as error:
            log.warning("no importance of %s: %s", subject, error)
            brains.append(BrainMap(subject, (), (), absent=f"It could not be measured: {error}."))
            continue
        methods.append(found[0].method)
        brains.append(_measured(study, subject, found))
    return tuple(brains), _METHODS.get(methods[0], "") if methods else "", "There is nobody to measure it for."


def _views(decoders: Mapping[str, Decoder], study: Study, role: str) -> dict[str, StudyView]:
    known = study.split_names
    return {split: (study.using(split) if split in known else study).split(role) for split in decoders}


def _targets(split: str, decoder: Decoder, view: StudyView, targets: Targets | Mapping[str, Targets] | None) -> Targets:
    if isinstance(targets, Mapping):
        return targets[split]
    if targets is not None:
        return targets
    from phosphene.encoders import encode

    assert decoder.encoder is not None
    return encode(view.stimuli, decoder.encoder, progress=False)


def _measured(study: Study, subject: str, found: Sequence[Importance]) -> BrainMap:
    """Folds together, each counted by its responses."""
    weights = np.array([one.n_trials for one in found], dtype=float)
    values = np.average([one.voxels for one in found], axis=0, weights=weights)
    whole = float(np.average([one.margin for one in found], weights=weights))
    lost = {name: float(np.average([one.rois[name] for one in found], weights=weights)) for name in found[0].rois}
    return _map(study, subject, values, brain.region_bars(lost, whole, study.recordings[subject].rois), _SILENCED)


def _given(study: Study, subject: str, values: np.ndarray) -> BrainMap:
    recording = study.recordings[subject]
    values = np.asarray(values, dtype=float)
    if values.shape != (recording.n_voxels,):
        raise InputError(f"importance of {subject} must be ({recording.n_voxels},), found shape {values.shape}")
    return _map(study, subject, values, brain.region_means(values, recording.rois), _GIVEN)


def _map(study: Study, subject: str, values: np.ndarray, regions: tuple[RegionBar, ...], words: str) -> BrainMap:
    recording = study.recordings[subject]
    # in an unknown space an affine may be a mere scale: no side is claimed then
    affine = None if recording.space == "unknown" else recording.affine
    views = brain.brain_views(values, recording.voxels, affine)
    absent = "" if views else "The voxels of this person carry no coordinates that can be drawn flat or in slices."
    return BrainMap(subject, views, regions, words, "" if regions else "No region is named in this recording.", absent)
