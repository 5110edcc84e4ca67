"""`StudyView`: what may be seen of a study in one role; the test part is out of reach of the training view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from phosphene.errors import InputError, refuse_doubles, unknown
from phosphene.recordings.recording import Recording, named_regions
from phosphene.stimuli import StimulusSet
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.recordings.study import Study

__all__ = ["CommonSpace", "StudyView"]


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

        Raises
        ------
        InputError
            For fewer repeats than one, and as `responses` does.
        """
        if max_repeats is not None and max_repeats < 1:
            raise InputError(f"max_repeats must be at least 1, or None for all of them; found {max_repeats}")
        shown = self.trials(subject)["stimulus_id"]
        row_of = {name: row for row, name in enumerate(self.stimulus_ids.tolist())}
        stimulus = np.array([row_of[name] for name in shown.tolist()], dtype=np.int64)
        # the trial's rank among the trials of its stimulus, in order of time
        order = np.argsort(stimulus, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(stimulus[order])) + 1]) if len(order) else order
        rank = np.empty_like(stimulus)
        rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
        use = np.flatnonzero(rank < max_repeats) if max_repeats is not None else np.arange(len(rank))
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
            For none, or more than somebody has or this view sees.
        """
        for subject in self.subjects:
            self._recording(subject).early(count)
        if self.n_sessions is not None and count > self.n_sessions:
            known = f"{self.n_sessions:g} session{'s' * (self.n_sessions > 1)}"
            raise InputError(f"this view sees the first {known} alone; asked for the first {count:g}")
        return StudyView(self.__study, self.role, self.stimulus_ids, self.subjects, self.__common, count)

    def subset(self, subjects: Sequence[str]) -> StudyView:
        """The same view of fewer people.

        Raises
        ------
        InputError
            For nobody, somebody unknown, or named twice.
        """
        if not len(subjects):
            raise InputError("subjects is empty: name at least one person")
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
