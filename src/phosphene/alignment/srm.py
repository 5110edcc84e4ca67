"""Shared response model: a few features that explain everybody's responses, and an orthonormal map a person.

Deterministic variant of Chen et al. (2015). That the number of features is chosen by how well the others' shared
response explains a person's held-out responses is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from phosphene.alignment.base import PersonMap, Template
from phosphene.alignment.functional import Components, Functional, FunctionalSettings, Lesson, limited
from phosphene.alignment.solvers import choose_features, orthonormal_map, shared_response
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["Srm", "SrmSettings"]


class SrmSettings(FunctionalSettings):
    """Settings of srm.

    Attributes
    ----------
    features : tuple of int
        Candidates for the size of the template; inner folds choose one. More than the data can have are cut.
    rounds : int
        Turns between maps and shared response.
    """

    features: Components = (5, 10, 20, 50, 100)
    rounds: int = Field(default=10, ge=1)


class Srm(Functional):
    """Orthonormal maps into a shared response of k features; the features lie nowhere in the brain."""

    name = "srm"
    Config = SrmSettings

    def _learn(self, view: StudyView, ids: np.ndarray, responses: Mapping[str, np.ndarray]) -> None:
        lessons = {subject: self._lesson(view, ids, x) for subject, x in responses.items()}
        folds = next(iter(lessons.values())).folds
        centred = [lesson.centred for lesson in lessons.values()]
        candidates = limited(self.config.features, [x[train] for x in centred for train, _ in folds])
        features = choose_features(centred, folds, candidates, self.config.rounds)
        maps, shared = shared_response(centred, features, self.config.rounds)
        self._set_response(shared)
        template = Template(f"srm-{features}", Table({"feature": np.arange(features)}))
        pairs = zip(lessons.items(), maps, strict=True)
        self._set(template, {s: lesson.mapped(weights, np.zeros(features)) for (s, lesson), weights in pairs})

    def _map(self, subject: str, view: StudyView, lesson: Lesson, response: np.ndarray) -> PersonMap:
        offset = response.mean(axis=0, dtype=np.float64)
        return lesson.mapped(orthonormal_map(lesson.centred, response - offset), offset)
