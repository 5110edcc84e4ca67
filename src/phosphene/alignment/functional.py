"""What functional aligners share: the stimuli they learn from, and the response of the template to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from phosphene.alignment import one_grid
from phosphene.alignment.anatomical import Anatomical
from phosphene.alignment.base import Aligner, AlignerSettings, PersonMap, Template, several
from phosphene.alignment.factored import factored
from phosphene.alignment.resampling import AnatomicalSettings
from phosphene.alignment.shared import mean_responses, shared_stimuli, units_of
from phosphene.alignment.solvers import inner_folds, thin_svd
from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["Components", "Functional", "FunctionalSettings", "Lesson", "Target", "common_target", "limited"]

Components = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), BeforeValidator(several)]


class FunctionalSettings(AlignerSettings):
    """Settings of every functional aligner.

    Attributes
    ----------
    least : int
        Shared stimuli below which nothing is fitted.
    folds : int
        Inner folds over units of the shared stimuli, where something is chosen.
    """

    least: int = Field(default=20, ge=4)
    folds: int = Field(default=4, ge=2)


@dataclass(frozen=True)
class Target:
    """The template's response to the shared stimuli.

    Attributes
    ----------
    template : Template
    response : (n, V) ndarray
    reference : str or None
        The person whose responses these are; None for a mean over people.
    """

    template: Template
    response: np.ndarray
    reference: str | None = None


@dataclass(frozen=True)
class Lesson:
    """One person's mean responses to shared stimuli, centred, and the inner folds over them.

    Attributes
    ----------
    mean : (V_s,) ndarray
    centred : (n, r) ndarray
        Coordinates in the space that the responses span (all methods depend on inner products alone); r is at most n.
    basis : (V_s, r) ndarray
        Orthonormal columns; centred responses are ``centred @ basis.T``.
    units : (n,) ndarray
    folds : list of (train, validation) rows
    """

    mean: np.ndarray
    centred: np.ndarray
    basis: np.ndarray
    units: np.ndarray
    folds: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, responses: np.ndarray, units: np.ndarray, folds: int) -> Lesson:
        """Centre responses ``(n, V_s)`` and split their units."""
        mean = responses.mean(axis=0, dtype=np.float64)
        left, values, right = thin_svd(responses - mean)
        return cls(mean, left * values, right, units, inner_folds(units, folds))

    def part(self, rows: np.ndarray) -> Lesson:
        """The same of some of the stimuli, with inner folds of its own."""
        x, units = self.centred[rows], self.units[rows]
        return Lesson(self.mean, x - x.mean(axis=0), self.basis, units, inner_folds(units, len(self.folds)))

    def mapped(self, weights: np.ndarray, offset: np.ndarray) -> PersonMap:
        """The map of weights ``(r, V)`` on the coordinates; it says something about every place."""
        return PersonMap.of(factored(self.basis, weights), self.mean, offset, np.ones(weights.shape[1], dtype=bool))


def common_target(view: StudyView, responses: Mapping[str, np.ndarray], reference: str | None) -> Target:
    """The response to be aligned to: a named person's, else the mean over people on one grid, else the first person's.

    Raises
    ------
    InputError
        For an unknown reference.
    """
    if reference is not None and reference not in responses:
        raise unknown("reference", reference, responses)
    if reference is None and one_grid.why_not(view) is None:
        grid = Anatomical(AnatomicalSettings(share=1.0)).fit(view)
        aligned = [grid.transform(subject, x) for subject, x in responses.items()]
        return Target(grid.template, np.stack(aligned).mean(axis=0, dtype=np.float64))
    chosen = next(iter(responses)) if reference is None else reference
    counts = view.space(chosen)["n_vertices"]
    template = Template(chosen, view.voxels(chosen), None if counts is None else (int(counts[0]), int(counts[1])))
    return Target(template, responses[chosen].astype(np.float64), chosen)


class Functional(Aligner):
    """Base of aligners that learn from responses to stimuli that people share (means over repeats).

    A subclass writes `_learn`, which sets template, maps and `_response` (what the template answered to the stimuli in
    `content`, for people who are added later), and `_map`.
    """

    functional = True
    Config: ClassVar[type[AlignerSettings]] = FunctionalSettings

    def _fit(self, view: StudyView) -> None:
        if len(view.subjects) < 2:
            raise InputError(f"{self.name} aligns people with one another; the view holds {view.subjects[0]} alone")
        ids = shared_stimuli(view, view.subjects, self.config.least)
        self._remember(view, ids)
        responses = {subject: mean_responses(view, subject, ids) for subject in view.subjects}
        self._learn(view, ids, responses)

    @abstractmethod
    def _learn(self, view: StudyView, ids: np.ndarray, responses: Mapping[str, np.ndarray]) -> None:
        """Fit to everybody's responses ``(n, V_s)`` to the shared stimuli `ids`."""

    @abstractmethod
    def _map(self, subject: str, view: StudyView, lesson: Lesson, response: np.ndarray) -> PersonMap:
        """The map of one person onto the template's response ``(n, V)`` to the stimuli of the lesson."""

    def _lesson(self, view: StudyView, ids: np.ndarray, responses: np.ndarray) -> Lesson:
        return Lesson.of(responses, units_of(view, ids), self.config.folds)

    def _remember(self, view: StudyView, ids: np.ndarray) -> None:
        stimuli = view.stimuli.select(ids)
        self.content = dict(zip(ids.tolist(), stimuli.hashes.tolist(), strict=True))
        self.has_pictures = stimuli.has_pixels

    def _add(self, subject: str, view: StudyView) -> PersonMap:
        names = np.array(list(self.content))
        # in the order of the view, in which its means come
        order = {name: at for at, name in enumerate(view.stimulus_ids.tolist())}
        rows = np.array(sorted(self._known_rows(subject, view), key=lambda row: order[names[row]]))
        lesson = self._lesson(view, names[rows], mean_responses(view, subject, names[rows]))
        return self._map(subject, view, lesson, self._response[rows])

    def _known_rows(self, subject: str, view: StudyView) -> list[int]:
        """Rows of the template's response whose stimuli this person saw: the same name and the same content."""
        seen = np.unique(view.trials(subject)["stimulus_id"])
        both = [name for name in seen.tolist() if name in self.content]
        stimuli = view.stimuli.select(both)
        same = {n for n, content in zip(both, stimuli.hashes.tolist(), strict=True) if self.content[n] == content}
        rows = [row for row, name in enumerate(self.content) if name in same]
        if len(rows) < self.config.least:
            raise InputError(
                f"{subject} saw {len(rows)} of the {len(self.content)} stimuli this {self.name} aligner was fitted on "
                f"(in the {view.role} part of split {view.split_name!r}); at least {self.config.least} are needed"
            )
        return rows

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"response": self._response}, {}

    def _restore(self, tensors: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> None:
        self._response = tensors["response"].astype(np.float32)

    def _set_response(self, response: np.ndarray) -> None:
        self._response = response.astype(np.float32)


def limited(candidates: Iterable[int], lessons: Iterable[np.ndarray], others: Iterable[int] = ()) -> list[int]:
    """Candidates for a number of components, cut to what the data can have."""
    most = min(min(min(len(x) - 1, x.shape[1]) for x in lessons), *others, 10**9)
    return sorted({max(1, min(int(number), most)) for number in candidates})
