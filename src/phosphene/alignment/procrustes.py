"""Procrustes: one rotation and one scale a person, which keep the distances between responses (hyperalignment).

As in Haxby et al. (2011), with a mean template that is made anew from the aligned responses. That only the leading
principal components are rotated, as many as inner folds choose, is our choice: the rest is mostly noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from scipy import sparse

from phosphene.alignment.base import PersonMap
from phosphene.alignment.functional import Components, Functional, FunctionalSettings, Lesson, common_target, limited
from phosphene.alignment.solvers import choose, procrustes_map, procrustes_path
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["COMPONENTS", "Procrustes", "ProcrustesSettings"]

COMPONENTS = (10, 20, 50, 100, 200, 400)


class ProcrustesSettings(FunctionalSettings):
    """Settings of procrustes.

    Attributes
    ----------
    reference : str or None
        As of ridge.
    components : tuple of int
        Candidates for the number of principal components that are rotated; inner folds choose one a person.
    rounds : int
        How often the template is made anew from what is aligned to it. A reference person, named or implied, stays as
        recorded: another number than the default is refused there.
    """

    reference: str | None = None
    components: Components = COMPONENTS
    rounds: int = Field(default=2, ge=0)


class Procrustes(Functional):
    """Rotation and scale onto the template's response to the shared stimuli; the reference stays as recorded."""

    name = "procrustes"
    Config = ProcrustesSettings

    def _learn(self, view: StudyView, ids: np.ndarray, responses: Mapping[str, np.ndarray]) -> None:
        target = common_target(view, responses, self.config.reference)
        if target.reference is not None and (idle := self.config.changed(["rounds"])):
            raise InputError(
                f"{idle[0]} has no use where one person is the template ({target.reference}), who stays as recorded: "
                "leave it out, or align people who lie on one grid without a reference"
            )
        lessons = {s: self._lesson(view, ids, x) for s, x in responses.items() if s != target.reference}
        response = target.response - target.response.mean(axis=0)
        chosen = {subject: self._choose(lesson, response) for subject, lesson in lessons.items()}
        for _ in range(self.config.rounds if target.reference is None else 0):
            aligned = [x.centred @ procrustes_map(x.centred, response, chosen[s]) for s, x in lessons.items()]
            response = np.mean(aligned, axis=0)
        offset = target.response.mean(axis=0)
        self._set_response(response + offset)
        people = {}
        for subject in responses:
            if subject == target.reference:
                people[subject] = PersonMap.of(sparse.eye_array(target.template.size, format="csr"))
            else:
                lesson = lessons[subject]
                people[subject] = lesson.mapped(procrustes_map(lesson.centred, response, chosen[subject]), offset)
        self._set(target.template, people)

    def _choose(self, lesson: Lesson, response: np.ndarray) -> int:
        fewest = [lesson.centred[train] for train, _ in lesson.folds]
        candidates = limited(self.config.components, fewest)
        return int(choose(procrustes_path, lesson.centred, response, lesson.folds, candidates))

    def _map(self, subject: str, view: StudyView, lesson: Lesson, response: np.ndarray) -> PersonMap:
        offset = response.mean(axis=0, dtype=np.float64)
        components = self._choose(lesson, response - offset)
        return lesson.mapped(procrustes_map(lesson.centred, response - offset, components), offset)
