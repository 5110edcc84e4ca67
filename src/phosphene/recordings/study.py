"""`Study`: people, stimuli and named splits by stimulus."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.files import digest
from phosphene.recordings.recording import Recording
from phosphene.recordings.scaling import SCALINGS, SessionScaler
from phosphene.recordings.view import StudyView
from phosphene.stimuli import StimulusSet

__all__ = ["ALL", "Splits", "Study", "content_digest", "roles_of"]

log = logging.getLogger(__name__)

Splits = Mapping[str, Mapping[str, Sequence[str] | np.ndarray]]
ALL = "all"  # the role every stimulus has: for decoding what has no split


class Study:
    """Recordings of people, the stimuli they saw, and splits by stimulus.

    Parameters
    ----------
    stimuli : StimulusSet
        Everything that was shown.
    recordings : mapping of str to Recording, or iterable of Recording
        One a person.
    splits : mapping, optional
        ``{"default": {"train": ids, "test": ids}}``; several splits (folds) by name. Roles share no stimulus.
    name, licence, citation : str
        Facts that travel with the data.
    scaling : {"session", "none"}, optional
        Whether views z-score each voxel within each session (mean and deviation from training trials). Default:
        ``"session"`` where somebody has more than one session.
    unit : str, optional
        Label column whose stimuli belong together (e.g. ``"action"``): inner folds, validation parts and bootstraps
        keep them on one side. Default: every stimulus is its own unit.
    recipe : mapping, optional
        How the responses came to be (source, mask, preprocessing), as plain values.
    stimuli_alone : bool
        Whether nobody's recording need be there: pictures and captions of a site without a brain.

    Examples
    --------
    >>> from phosphene.table import Table
    >>> stimuli = StimulusSet(["a", "b"])
    >>> trials, voxels = Table({"stimulus_id": ["a", "b"]}), Table({"i": [0], "j": [0], "k": [0]})
    >>> person = Recording("sub-01", np.zeros((2, 1), "float32"), trials, voxels)
    >>> study = Study(stimuli, [person], {"default": {"train": ["a"], "test": ["b"]}})
    >>> study.split("train").trials("sub-01")["stimulus_id"].tolist()
    ['a']
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        recordings: Mapping[str, Recording] | Iterable[Recording],
        splits: Splits | None = None,
        *,
        name: str = "study",
        scaling: str | None = None,
        unit: str | None = None,
        licence: str = "",
        citation: str = "",
        recipe: Mapping[str, Any] | None = None,
        stimuli_alone: bool = False,
    ) -> None:
        self.stimuli = stimuli
        people = list(recordings.values() if isinstance(recordings, Mapping) else recordings)
        if not people and not stimuli_alone:
            raise InputError("a study needs the recording of at least one person")
        self.recordings = {recording.subject: recording for recording in people}
        if len(self.recordings) < len(people):
            raise InputError(f"a subject occurs twice among {', '.join(r.subject for r in people)}")
        for recording in people:
            _check_known(recording, stimuli)
        if scaling is None:
            scaling = "session" if any(len(np.unique(r.trials["session"])) > 1 for r in people) else "none"
        if scaling not in SCALINGS:
            raise unknown("scaling", scaling, SCALINGS)
        self.scaling = scaling
        if unit is not None and unit not in stimuli.labels:
            raise unknown("unit (a label column of the stimuli)", unit, stimuli.labels.columns)
        self.unit = unit
        self.name, self.licence, self.citation = name, licence, citation
        self.recipe = dict(recipe or {})
        self._roles = {split: roles_of(split, roles, stimuli) for split, roles in (splits or {}).items()}
        self.current_split = "default" if "default" in self._roles or not self._roles else next(iter(self._roles))
        self._scalers: dict[tuple[str, str, float | None], SessionScaler] = {}
        self._stored_digest: str | None = None
        self._close: Any = None

    # -- on disk ------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path, stimuli_alone: bool = False) -> Study:
        """Open a study file; pixels and responses stay on disk until they are asked for.

        Parameters
        ----------
        path : str or Path
        stimuli_alone : bool
            Whether nobody's recording need be there.

        Raises
        ------
        InputError
            When the file is missing, truncated, or not a phosphene study.
        """
        from phosphene.recordings.store import open_study

        return open_study(path, stimuli_alone)

    def save(self, path: str | Path) -> Path:
        """Write everything into one HDF5 file, block by block, atomically."""
        from phosphene.recordings.store import save_study

        return save_study(self, path)

    def close(self) -> None:
        """Close the file behind the study, if there is one."""
        if self._close is not None:
            self._close()
            self._close = None

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- people and splits --------------------------------------------------------------------------------------

    @property
    def subjects(self) -> list[str]:
        """Names of the people, in order."""
        return list(self.recordings)

    @property
    def split_names(self) -> list[str]:
        """Names of the splits (or folds)."""
        return list(self._roles)

    @property
    def digest(self) -> str:
        """Hash of stimuli, trials, responses and splits: equal for equal content."""
        if self._stored_digest is None:
            self._stored_digest = content_digest(self, {r.subject: _sha256(r) for r in self.recordings.values()})
        return self._stored_digest

    def __repr__(self) -> str:
        people = ", ".join(f"{r.subject} ({r.n_trials} x {r.n_voxels})" for r in self.recordings.values())
        return f"Study({self.name!r}: {len(self.stimuli)} stimuli; {people}; splits: {', '.join(self.split_names)})"

    def using(self, split: str) -> Study:
        """The same study with another current split."""
        if split not in self._roles:
            raise unknown("split", split, self._roles)
        other = object.__new__(Study)
        other.__dict__.update(self.__dict__)
        other.current_split = split
        return other

    def roles(self, split: str | None = None) -> dict[str, list[str]]:
        """Stimulus ids by role of a split (default: the current one)."""
        name = self.current_split if split is None else split
        if name not in self._roles:
            raise unknown("split", name, self._roles)
        roles = self._roles[name]
        return {str(role): self.stimuli.ids[roles == role].tolist() for role in np.unique(roles) if role}

    def with_splits(self, splits: Splits) -> Study:
        """The same study with splits added or replaced."""
        other = object.__new__(Study)
        other.__dict__.update(self.__dict__)
        added = {split: roles_of(split, roles, self.stimuli) for split, roles in splits.items()}
        other._roles = {**self._roles, **added}
        # scaling belongs to the training rows of a split, the digest to its roles
        other._scalers, other._stored_digest = {}, None
        if other.current_split not in other._roles:
            other.current_split = next(iter(other._roles))
        return other

    def split(self, role: str) -> StudyView:
        """The part of the study whose stimuli have this role in the current split (``"all"``: every stimulus).

        Raises
        ------
        InputError
            For a role nobody has, listing the known ones.
        """
        if role == ALL:
            return StudyView(self, ALL, self.stimuli.ids)
        known = self.roles() if self.current_split in self._roles else {}
        if role not in known:
            raise unknown(f"role of split {self.current_split!r}:", role, [*known, ALL])
        return StudyView(self, role, np.array(known[role], dtype=str))

    def scaler(self, subject: str, n_sessions: float | None = None) -> SessionScaler | None:
        """What views of the current split z-score this person's responses with; None for scaling ``"none"``.

        Mean and deviation come from training trials, where `n_sessions` is given from those of the first sessions.
        """
        if self.scaling == "none":
            return None
        key = (self.current_split, subject, n_sessions)
        if key not in self._scalers:
            recording = self.recordings[subject]
            train = self.roles().get("train", []) if self.current_split in self._roles else []
            used = np.isin(recording.trials["stimulus_id"], train)
            if n_sessions is not None:
                used &= recording.early(n_sessions)
            rows = np.flatnonzero(used)
            if n_sessions is not None and len(rows) == 0:
                raise InputError(
                    f"{subject} has no training trials of split {self.current_split!r} in the first {n_sessions:g} "
                    "sessions: nothing to scale by"
                )
            recording.require_finite(rows)
            scaler = SessionScaler.fit(recording, rows)
            if len(rows) == 0:
                log.warning("%s is scaled by %s", subject, scaler.source)
            self._scalers[key] = scaler
        return self._scalers[key]


def _check_known(recording: Recording, stimuli: StimulusSet) -> None:
    shown = np.unique(recording.trials["stimulus_id"])
    strange = np.setdiff1d(shown, stimuli.ids)
    if len(strange):
        raise InputError(
            f"{recording.subject}: {len(strange)} stimulus ids of the trials table are not among the {len(stimuli)} "
            f"stimuli, such as {', '.join(strange[:5])}"
        )


def roles_of(split: str, roles: Mapping[str, Sequence[str] | np.ndarray], stimuli: StimulusSet) -> np.ndarray:
    """One role a stimulus ("" for none)."""
    of = np.full(len(stimuli), "", dtype=f"<U{max([1, *map(len, roles)])}")
    for role, ids in roles.items():
        if role in ("", ALL):
            raise InputError(f"split {split!r}: {role!r} cannot be the name of a role")
        rows = stimuli.rows(ids)
        taken = rows[of[rows] != ""]
        if len(taken):
            raise InputError(
                f"split {split!r}: {len(taken)} stimuli have two roles, such as {stimuli.ids[taken[0]]} "
                f"({of[taken[0]]} and {role})"
            )
        of[rows] = role
    return of


def _sha256(recording: Recording) -> str:
    sha = hashlib.sha256()
    for _, block in recording.blocks():
        sha.update(np.ascontiguousarray(block).tobytes())
    return sha.hexdigest()


def content_digest(study: Study, responses: Mapping[str, str]) -> str:
    """Hash of stimuli, trials, splits and the SHA-256 of every person's responses."""
    parts: list[str] = [*study.stimuli.ids.tolist(), *study.stimuli.hashes.tolist()]
    for subject, recording in study.recordings.items():
        parts += [subject, responses[subject], repr(recording.trials.to_records())]
    for split, roles in sorted(study._roles.items()):
        parts += [split, *roles.tolist()]
    return digest(*parts)
