"""`phosphene check`: what is in a study, what looks odd (notes), and what is wrong (problems)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.recordings.ceiling import estimate_ncsnr, noise_ceiling, repeats_of
from phosphene.recordings.check_text import report_text
from phosphene.recordings.overlap import caption_keys, overlaps, picture_keys
from phosphene.recordings.recording import Recording
from phosphene.recordings.store import open_study, verify
from phosphene.recordings.study import Study
from phosphene.recordings.surfaces import vertex_fault

__all__ = ["StudyCheck", "check_study"]


@dataclass
class StudyCheck:
    """What `check_study` found.

    Attributes
    ----------
    path : Path
    facts : dict
        Name, scaling, stimuli, splits and recipe of the study.
    people : dict of str to dict
        Counts, voxels, sessions, repeats and noise ceiling of each person.
    notes : list of str
        What one should know.
    problems : list of str
        What must be mended; empty for a sound study.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "path": str(self.path),
            "study": self.facts,
            "people": self.people,
            "notes": self.notes,
            "problems": self.problems,
        }

    def text(self) -> str:
        """Everything for a human reader."""
        return report_text(str(self.path), self.facts, self.people, self.notes, self.problems)


def check_study(path: str | Path, *, pictures: bool = True) -> StudyCheck:
    """Look through a study file, block by block.

    Parameters
    ----------
    path : str or Path
        The study file.
    pictures : bool
        Whether to read all pictures and look for equal ones on two sides of a split.

    Raises
    ------
    InputError
        When the file cannot be opened as a study at all.
    """
    found = StudyCheck(Path(path))
    found.problems += verify(path)
    damaged = {subject for subject in _subjects(path) if any(p.startswith(f"{subject}:") for p in found.problems)}
    with open_study(path) as study:
        found.facts = _facts(study)
        for subject, recording in study.recordings.items():
            found.people[subject] = _person(study, recording, found, readable=subject not in damaged)
        _check_splits(study, found)
        _check_overlap(study, found, pictures)
    return found


def _subjects(path: str | Path) -> list[str]:
    with open_study(path) as study:
        return study.subjects


def _facts(study: Study) -> dict[str, Any]:
    stimuli = study.stimuli
    return {
        "name": study.name,
        "digest": study.digest,
        "scaling": study.scaling,
        "unit": study.unit,
        "licence": study.licence,
        "citation": study.citation,
        "recipe": study.recipe,
        "stimuli": {
            "n": len(stimuli),
            "frame_shape": None if stimuli.frame_shape is None else list(stimuli.frame_shape),
            "captions": sum(map(len, stimuli.captions)),
            "labels": list(stimuli.labels.columns),
        },
        "splits": {split: {role: len(ids) for role, ids in study.roles(split).items()} for split in study.split_names},
    }


def _person(study: Study, recording: Recording, found: StudyCheck, *, readable: bool) -> dict[str, Any]:
    """Facts of one person; what is odd or wrong goes to `found`."""
    trials = recording.trials
    sessions, per_session = np.unique(trials["session"], return_counts=True)
    shown = np.array([len(rows) for rows in repeats_of(recording)[1]])
    times, stimuli = np.unique(shown, return_counts=True)
    facts: dict[str, Any] = {
        "trials": recording.n_trials,
        "voxels": recording.n_voxels,
        "space": recording.space,
        "sessions": len(sessions),
        "trials_per_session": [int(per_session.min()), int(per_session.max())] if len(sessions) else [0, 0],
        "runs": len({*zip(trials["session"].tolist(), trials["run"].tolist(), strict=True)}),
        "stimuli": len(shown),
        "repeats": {int(n): int(count) for n, count in zip(times, stimuli, strict=True)},
        "rois": {name: int(mask.sum()) for name, mask in recording.rois.items()},
    }
    _check_voxel_table(recording, found)
    if not readable:
        return facts
    facts |= _values(recording, found)
    facts["noise_ceiling"] = _ceiling(recording)
    left_out = _left_out(study.recipe, recording.subject)
    if left_out:
        found.notes.append(f"{recording.subject}: voxels left out on import: {left_out}")
    return facts


def _left_out(recipe: Mapping[str, Any], subject: str) -> str:
    """What the reader left out of a person's voxels, in words; empty where it left out nothing or does not say."""
    people = recipe.get("people")
    of_person = people.get(subject) if isinstance(people, Mapping) else None
    counts = (recipe.get("voxels_left_out") or {}).get(subject) or (of_person or {}).get("voxels_left_out") or {}
    return ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in counts.items() if n)


def _check_voxel_table(recording: Recording, found: StudyCheck) -> None:
    voxels, subject = recording.voxels, recording.subject
    if all(axis in voxels for axis in "ijk"):
        places = np.stack([voxels[axis] for axis in "ijk"], axis=1)
        shape = recording.volume_shape
        outside = (places < 0).any(axis=1)
        if shape is not None:
            outside |= (places >= np.array(shape)).any(axis=1)
        if outside.any():
            found.problems.append(f"{subject}: {outside.sum()} voxels lie outside of the volume {shape}")
    elif "vertex" in voxels and "hemisphere" in voxels:
        if fault := vertex_fault(voxels, recording.n_vertices):
            found.problems.append(f"{subject}: voxel table, {fault}")
        return
    else:
        found.notes.append(f"{subject}: voxels have no place (i, j, k or vertex, hemisphere): no maps of the brain")
        return
    twice = len(places) - len(np.unique(places, axis=0))
    if twice:
        found.problems.append(f"{subject}: {twice} voxels have the place of another one")


def _values(recording: Recording, found: StudyCheck) -> dict[str, Any]:
    """NaN, constant voxels, voxels constant in a session: one walk through the responses."""
    session = recording.trials["session"]
    missing = np.zeros(recording.n_voxels, dtype=np.int64)
    low: dict[int, np.ndarray] = {}
    high: dict[int, np.ndarray] = {}
    for rows, block in recording.blocks():
        missing += (~np.isfinite(block)).sum(axis=0)
        for number in np.unique(session[rows]).tolist():
            part = block[session[rows] == number]
            least, most = part.min(axis=0), part.max(axis=0)
            low[number] = np.minimum(low[number], least) if number in low else least
            high[number] = np.maximum(high[number], most) if number in high else most
    if not low:
        found.problems.append(f"{recording.subject}: there is no trial")
        return {}
    least, most = np.stack(list(low.values())), np.stack(list(high.values()))
    constant = least.min(axis=0) == most.max(axis=0)
    counts = {n: int(np.sum(session == n)) for n in low}
    several = np.array([counts[n] > 1 for n in low])
    lost = (least == most)[several].any(axis=0) & ~constant
    facts = {
        "voxels_with_missing_values": int((missing > 0).sum()),
        "constant_voxels": int(constant.sum()),
        "voxels_constant_in_a_session": int(lost.sum()),
        "range": [_plain(least.min()), _plain(most.max())],
    }
    subject = recording.subject
    if facts["voxels_with_missing_values"]:
        found.problems.append(f"{subject}: {facts['voxels_with_missing_values']} voxels have NaN or infinite responses")
    if constant.all():
        found.problems.append(f"{subject}: every voxel is constant")
    elif constant.any():
        found.notes.append(f"{subject}: {constant.sum()} voxels are constant over all trials")
    if lost.any():
        found.notes.append(f"{subject}: {lost.sum()} voxels are constant within at least one session")
    return facts


def _ceiling(recording: Recording) -> dict[str, Any] | None:
    """Medians over voxels of ncsnr and of the noise ceiling of single trials and of the usual number of repeats."""
    ncsnr = estimate_ncsnr(recording)
    if ncsnr is None:
        return None
    counts = np.array([len(rows) for rows in repeats_of(recording)[1]])
    usual = int(np.bincount(counts[counts > 1]).argmax())

    def medians(mask: Any) -> dict[str, Any]:
        return {
            "ncsnr": _plain(np.median(ncsnr[mask])),
            "single_trial": _plain(np.median(noise_ceiling(ncsnr[mask], 1))),
            "averaged": _plain(np.median(noise_ceiling(ncsnr[mask], usual))),
        }

    facts = {"repeats": usual, "estimated_from": int((counts > 1).sum()), **medians(slice(None))}
    facts["rois"] = {name: medians(mask) for name, mask in recording.rois.items() if mask.any()}
    if "ncsnr" in recording.voxels:
        facts["stored_ncsnr"] = _plain(np.nanmedian(recording.voxels["ncsnr"].astype(np.float64)))
    return facts


def _check_splits(study: Study, found: StudyCheck) -> None:
    if not study.split_names:
        found.notes.append("there is no split: nothing can be fitted until there is one")
    has_role = {stimulus for split in study.split_names for ids in study.roles(split).values() for stimulus in ids}
    without: dict[str, int] = {}
    seen_by: dict[str, set[str]] = {}
    for subject, recording in study.recordings.items():
        shown = recording.trials["stimulus_id"].tolist()
        seen_by[subject] = set(shown)
        idle = sum(stimulus not in has_role for stimulus in shown)
        if study.split_names and idle:
            without[subject] = idle
        found.people[subject]["trials_without_role"] = idle
    if without:
        told = ", ".join(f"{subject} {n}" for subject, n in without.items())
        found.notes.append(f"trials whose stimulus has a role in no split: {told}")
    nobody = set(study.stimuli.ids.tolist()) - set().union(*seen_by.values())
    if nobody:
        found.notes.append(f"{len(nobody)} stimuli were shown to nobody, such as {', '.join(sorted(nobody)[:3])}")
    for split in study.split_names:
        roles = study.roles(split)
        if "train" not in roles:
            found.notes.append(f"split {split!r} has no role 'train'")
        for role, ids in roles.items():
            blind = [subject for subject, seen in seen_by.items() if not seen & set(ids)]
            if len(blind) == len(seen_by):
                found.problems.append(f"split {split!r}: nobody saw any stimulus of role {role!r}")
            elif blind:
                found.notes.append(f"split {split!r}: no trial of role {role!r} for {', '.join(blind)}")


def _check_overlap(study: Study, found: StudyCheck, pictures: bool) -> None:
    looks = None
    try:
        looks = picture_keys(study.stimuli) if pictures else None
    except OSError as error:
        found.problems.append(f"stimuli: the pictures are damaged ({error})")
    keys: dict[str, np.ndarray | None] = {
        "picture": looks,
        "captions": caption_keys(study.stimuli),
        f"unit:{study.unit}": study.stimuli.labels[study.unit].astype(str) if study.unit else None,
    }
    known: Mapping[str, np.ndarray] = {kind: key for kind, key in keys.items() if key is not None}
    for overlap in overlaps(study, known):
        # different pictures may well have equal captions; without pictures the captions are the stimulus
        same = overlap.kind == "picture" or (overlap.kind == "captions" and not study.stimuli.has_pixels)
        (found.problems if same and overlap.touches_training else found.notes).append(overlap.words())


def _plain(value: Any) -> float | None:
    """A number for JSON, which has no word for NaN."""
    return float(value) if np.isfinite(value) else None
