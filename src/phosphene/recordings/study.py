"""`Study`: people, stimuli and named splits by stimulus; the test part is out of reach of the training view."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from phosphene.errors import InputError, refuse_doubles, unknown
from phosphene.files import digest
from phosphene.recordings.recording import Recording, named_regions
from phosphene.recordings.scaling import SCALINGS, SessionScaler
from phosphene.stimuli import StimulusSet
from phosphene.table import Table

__all__ = ["ALL", "CommonSpace", "Splits", "Study", "StudyView", "content_digest", "roles_of"]

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


class CommonSpace(Protocol):
    """A way from everybody's voxels into one space, such as a fitted `phosphene.alignment.Aligner`."""

    def filled(self, subject: str, responses: np.ndarray) -> np.ndarray:
        """Responses ``(n, V_s)`` in the space, float32 ``(n, V)``; zero at places the person does not cover."""

    def places(self, subject: str) -> Table:
        """One row a place, with a boolean column ``covered``."""

    def space(self) -> dict[str, Any]:
        """What `Recording.meta` tells, of the space."""


class StudyView:
    """What may be seen of a study in one role: its stimuli, and the trials in which they were shown.

    Built by `Study.split`; responses come z-scored where the study says so.
    """

    def __init__(
        self,
        study: Study,
        role: str,
        ids: np.ndarray,
        subjects: Sequence[str] | None = None,
        common: CommonSpace | None = None,
        n_sessions: float | None = None,
    ) -> None:
        self.role = role
        self.split_name = study.current_split
        self.study_name = study.name
        self.scaling = study.scaling
        self.unit = study.unit
        self.stimulus_ids = np.asarray(ids, dtype=str)
        self.subjects = list(study.subjects if subjects is None else subjects)
        self.n_sessions = n_sessions
        self.__study, self.__common = study, common
        self.__rows: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return (
            f"StudyView({self.split_name}/{self.role}: {len(self.stimulus_ids)} stimuli, {len(self.subjects)} people)"
        )

    @property
    def stimuli(self) -> StimulusSet:
        """The stimuli of this role only."""
        return self.__study.stimuli.select(self.stimulus_ids)

    @property
    def units(self) -> np.ndarray:
        """The unit every stimulus of the view belongs to, text ``(stimuli,)``: its label, or its own id."""
        return self.stimulus_ids if self.unit is None else self.stimuli.labels[self.unit].astype(str)

    def units_of(self, ids: np.ndarray) -> np.ndarray:
        """The unit of each of these stimuli of the view, in their order."""
        unit_of = dict(zip(self.stimulus_ids.tolist(), self.units.tolist(), strict=True))
        return np.array([unit_of[name] for name in ids.tolist()])

    def _recording(self, subject: str) -> Recording:
        if subject not in self.subjects:
            raise unknown("subject", subject, self.subjects)
        return self.__study.recordings[subject]

    def _trial_rows(self, subject: str) -> np.ndarray:
        recording = self._recording(subject)
        if subject not in self.__rows:
            seen = np.isin(recording.trials["stimulus_id"], self.stimulus_ids)
            if self.n_sessions is not None:
                seen &= recording.early(self.n_sessions)
            self.__rows[subject] = np.flatnonzero(seen)
        return self.__rows[subject]

    def sessions(self, subject: str) -> tuple[int, ...]:
        """The person's sessions that this view sees, in order of time (of their numbers)."""
        recording = self._recording(subject)
        seen = recording.trials["session"]
        numbers = np.unique(seen if self.n_sessions is None else seen[recording.early(self.n_sessions)])
        return tuple(int(number) for number in numbers)

    def n_trials(self, subject: str) -> int:
        """Trials of this person in this role."""
        return len(self._trial_rows(subject))

    def n_voxels(self, subject: str) -> int:
        """Voxels of this person."""
        recording = self._recording(subject)
        return recording.n_voxels if self.__common is None else len(self.__common.places(subject))

    def voxels(self, subject: str) -> Table:
        """The person's voxel table."""
        recording = self._recording(subject)
        return recording.voxels if self.__common is None else self.__common.places(subject)

    def rois(self, subject: str) -> dict[str, np.ndarray]:
        """The person's named regions: boolean masks over voxels."""
        return named_regions(self.voxels(subject))

    def space(self, subject: str) -> dict[str, Any]:
        """Space, affine, volume shape and the like of the person's voxels, as plain values."""
        meta = self._recording(subject).meta()
        return meta if self.__common is None else {**meta, **self.__common.space()}

    def trials(self, subject: str) -> Table:
        """Trial table of this role."""
        return self._recording(subject).trials.take(self._trial_rows(subject))

    def responses(self, subject: str, rows: Any = None) -> np.ndarray:
        """Responses, float32 ``(n, voxels)``, scaled; `rows` index the trials of this role (default all).

        Raises
        ------
        InputError
            Where one of them is NaN or infinite, naming person, trial and voxel.
        """
        recording = self._recording(subject)
        wanted = self._trial_rows(subject)[slice(None) if rows is None else rows]
        recording.require_finite(wanted)
        block = recording.read(wanted)
        scaler = self.__study.scaler(subject, self.n_sessions)
        if scaler is not None:
            block = scaler.transform(block, recording.trials["session"][wanted])
        return block if self.__common is None else self.__common.filled(subject, block)

    def blocks(self, subject: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Walk through the responses in bounded memory: pairs of row numbers of this role and responses."""
        size = max(1, 2**23 // max(1, self.n_voxels(subject)))
        for start in range(0, self.n_trials(subject), size):
            rows = np.arange(start, min(start + size, self.n_trials(subject)))
            yield rows, self.responses(subject, rows)

    def moments(self, subject: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every voxel over the trials of this role, float32 ``(voxels,)`` each."""
        count, total, square = 0, np.zeros(self.n_voxels(subject)), np.zeros(self.n_voxels(subject))
        shift = None
        for _, block in self.blocks(subject):
            shift = block[0].astype(np.float64) if shift is None else shift  # keeps the squares well conditioned
            centred = block - shift
            count, total, square = count + len(block), total + centred.sum(axis=0), square + (centred**2).sum(axis=0)
        if shift is None:
            raise InputError(f"{subject} has no trials in the {self.role} part of split {self.split_name!r}")
        variance = np.maximum(square / count - (total / count) ** 2, 0)
        return (shift + total / count).astype(np.float32), np.sqrt(variance).astype(np.float32)

    def averaged(self, subject: str, max_repeats: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean response to each stimulus over its (first `max_repeats`) trials.

        Returns
        -------
        ids : (stimuli,) ndarray of str
            Stimuli this person saw, in the order of the view.
        responses : (stimuli, voxels) float32 ndarray
        """
        shown = self.trials(subject)["stimulus_id"]
        row_of = {name: row for row, name in enumerate(self.stimulus_ids.tolist())}
        stimulus = np.array([row_of[name] for name in shown.tolist()], dtype=np.int64)
        # the trial's rank among the trials of its stimulus, in order of time
        order = np.argsort(stimulus, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(stimulus[order])) + 1]) if len(order) else order
        rank = np.empty_like(stimulus)
        rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
        use = np.flatnonzero(rank < max_repeats) if max_repeats else np.arange(len(rank))
        seen, where, count = np.unique(stimulus[use], return_inverse=True, return_counts=True)
        total = np.zeros((len(seen), self.n_voxels(subject)), dtype=np.float64)
        size = max(1, 2**23 // max(1, self.n_voxels(subject)))
        for start in range(0, len(use), size):
            np.add.at(total, where[start : start + size], self.responses(subject, use[start : start + size]))
        return self.stimulus_ids[seen], (total / count[:, None]).astype(np.float32)

    def restrict(self, ids: Sequence[str] | np.ndarray) -> StudyView:
        """A smaller view: these stimuli of this one (inner folds). Scaling stays that of the split's training part.

        Raises
        ------
        InputError
            For ids outside of this view.
        """
        ids = np.asarray(ids, dtype=str)
        outside = np.setdiff1d(ids, self.stimulus_ids)
        if len(outside):
            raise InputError(
                f"{len(outside)} stimuli are not in the {self.role} part of split {self.split_name!r}, "
                f"such as {', '.join(outside[:5])}"
            )
        return StudyView(self.__study, self.role, ids, self.subjects, self.__common, self.n_sessions)

    def first_sessions(self, count: float) -> StudyView:
        """The same view of everybody's first sessions alone: other trials are neither read nor used for scaling.

        Parameters
        ----------
        count : float
            Sessions; of a part of one, the first trials are seen.

        Raises
        ------
        InputError
            For none, or more than somebody has.
        """
        for subject in self.subjects:
            self._recording(subject).early(count)
        return StudyView(self.__study, self.role, self.stimulus_ids, self.subjects, self.__common, count)

    def subset(self, subjects: Sequence[str]) -> StudyView:
        """The same view of fewer people.

        Raises
        ------
        InputError
            For somebody unknown, or named twice.
        """
        for subject in subjects:
            self._recording(subject)
        refuse_doubles("subject", subjects)
        return StudyView(self.__study, self.role, self.stimulus_ids, subjects, self.__common, self.n_sessions)

    def through(self, common: CommonSpace) -> StudyView:
        """The same view with everybody's responses in a common space; they are mapped as they are read."""
        return StudyView(self.__study, self.role, self.stimulus_ids, self.subjects, common, self.n_sessions)

    def to_nifti(self, subject: str, vector: Any) -> Any:
        """One value a voxel (as recorded) back to a volume."""
        return self._recording(subject).to_nifti(vector)


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
