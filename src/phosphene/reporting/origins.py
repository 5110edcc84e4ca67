"""Where in the brain the answer comes from: a decoder's importance, person by person, for the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from phosphene.errors import InputError
from phosphene.reporting import brain
from phosphene.reporting.page import ALL, BrainMap, RegionBar

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
_SKIPPED = "share of what Skip-LoRA adds beyond a linear path that changes when the region is silenced"
_GIVEN = "mean of its voxels, the strongest region is 1"
_SILENCED = "share of the answer that is lost when the region is silenced; regions may stand in for each other"


@dataclass(frozen=True)
class _Measured:
    """Importance of one person over all folds: voxels, what silencing each region costs, and what there is to lose."""

    method: str
    voxels: np.ndarray
    lost: dict[str, float]
    whole: float


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
    measured: dict[str, _Measured] = {}
    failed: dict[str, str] = {}
    for subject in subjects:
        try:
            measured[subject] = _joined(
                [decoder.importance(views[split], chosen[split], subject) for split, decoder in decoders.items()]
            )
        except InputError as error:
            log.warning("no importance of %s: %s", subject, error)
            failed[subject] = f"It could not be measured: {error}."
    brains = [
        BrainMap(subject, (), (), absent=failed[subject])
        if subject in failed
        else _drawn(study, subject, subject, measured[subject])
        for subject in subjects
    ]
    if len(measured) > 1 and _one_grid(study, list(measured)):
        brains.insert(0, _drawn(study, ALL, next(iter(measured)), _everybody(list(measured.values()))))
    brains += _skips(decoders, views, study, subjects)
    note = _METHODS.get(next(iter(measured.values())).method, "") if measured else ""
    return tuple(brains), note, "There is nobody to measure it for."


def _skips(
    decoders: Mapping[str, Decoder], views: Mapping[str, StudyView], study: Study, subjects: Sequence[str]
) -> list[BrainMap]:
    """Where the Skip-LoRA of adapted people finds what is not linear; of the first fold that knows them."""
    from phosphene.decoders.skip_contributions import has_skips, skip_contributions

    maps = []
    for subject in subjects:
        split = next((split for split, decoder in decoders.items() if has_skips(decoder, subject)), None)
        if split is None:
            continue
        name = f"{subject}: Skip-LoRA"
        try:
            found = skip_contributions(cast(Any, decoders[split]), views[split], subject)
        except InputError as error:
            log.warning("no contributions of the skips of %s: %s", subject, error)
            maps.append(BrainMap(name, (), (), absent=f"It could not be measured: {error}."))
            continue
        regions = brain.region_bars(found.rois, found.margin, study.recordings[subject].rois)
        maps.append(_map(study, name, subject, found.voxels, regions, _SKIPPED))
    return maps


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


def _joined(found: Sequence[Importance]) -> _Measured:
    """Folds together, each counted by its responses."""
    weights = np.array([one.n_trials for one in found], dtype=float)

    def mean(values: Sequence[np.ndarray] | Sequence[float]) -> np.ndarray:
        return np.asarray(np.average(np.asarray(values), axis=0, weights=weights))

    lost = {name: float(mean([one.rois[name] for one in found])) for name in found[0].rois}
    whole = float(mean([one.margin for one in found]))
    return _Measured(found[0].method, mean([one.voxels for one in found]), lost, whole)


def _everybody(people: Sequence[_Measured]) -> _Measured:
    """Mean over people on one voxel grid, every map scaled to its own spread first."""
    maps = [one.voxels / (float(np.abs(one.voxels).mean()) or 1.0) for one in people]
    common = [name for name in people[0].lost if all(name in one.lost for one in people)]
    lost = {name: float(np.mean([one.lost[name] for one in people])) for name in common}
    return _Measured(people[0].method, np.mean(maps, axis=0), lost, float(np.mean([one.whole for one in people])))


def _one_grid(study: Study, subjects: Sequence[str]) -> bool:
    """Whether the voxels of these people lie at the same places."""
    tables = [study.recordings[subject].voxels for subject in subjects]
    places = [
        [name for name in ("i", "j", "k", "vertex", "template_u", "template_v") if name in table] for table in tables
    ]
    if not places[0] or any(names != places[0] for names in places):
        return False
    return all(np.array_equal(tables[0][name], table[name]) for table in tables[1:] for name in places[0])


def _drawn(study: Study, person: str, like: str, found: _Measured) -> BrainMap:
    """The map of a person (or of everybody), drawn on the voxels of `like`."""
    regions = brain.region_bars(found.lost, found.whole, study.recordings[like].rois)
    return _map(study, person, like, found.voxels, regions, _SILENCED)


def _given(study: Study, subject: str, values: np.ndarray) -> BrainMap:
    recording = study.recordings[subject]
    values = np.asarray(values, dtype=float)
    if values.shape != (recording.n_voxels,):
        raise InputError(f"importance of {subject} must be ({recording.n_voxels},), found shape {values.shape}")
    return _map(study, subject, subject, values, brain.region_means(values, recording.rois), _GIVEN)


def _map(
    study: Study, person: str, like: str, values: np.ndarray, regions: tuple[RegionBar, ...], words: str
) -> BrainMap:
    recording = study.recordings[like]
    # in an unknown space an affine may be a mere scale: no side is claimed then
    affine = None if recording.space == "unknown" else recording.affine
    views = brain.brain_views(values, recording.voxels, affine)
    absent = "" if views else "The voxels of this person carry no coordinates that can be drawn flat or in slices."
    return BrainMap(person, views, regions, words, "" if regions else "No region is named in this recording.", absent)
