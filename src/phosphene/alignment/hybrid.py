r"""Hybrid: anatomical alignment first, then functional alignment to what it makes common, and a weight between the two.

.. math:: M_s = (1 - w) A_s + w F_s

with A_s the anatomical map and F_s the functional one, from the person's own voxels to the mean over people of the
anatomically aligned responses. That an interpolation of both beats either was reported for resting and task data of the
Human Connectome Project (Imaging Neuroscience 2024, imag_a_00253); its form here is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from scipy import sparse

from phosphene.alignment.anatomical import Anatomical
from phosphene.alignment.base import PersonMap
from phosphene.alignment.factored import factored
from phosphene.alignment.functional import Components, Functional, FunctionalSettings, Lesson, limited
from phosphene.alignment.procrustes import COMPONENTS
from phosphene.alignment.resampling import AnatomicalSettings
from phosphene.alignment.ridge import PENALTIES, Penalties
from phosphene.alignment.solvers import choose, procrustes_map, procrustes_path, ridge_map, ridge_path

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["Hybrid", "HybridSettings"]

Share = Annotated[float, Field(ge=0, le=1)]


class HybridSettings(FunctionalSettings):
    """Settings of hybrid.

    Attributes
    ----------
    weight : float or tuple of float
        w: 0 is anatomical alignment, 1 is functional alignment onto its template. Of several, inner folds choose the
        one, for all people, whose aligned responses are nearest to the anatomically aligned ones of the others.
    method : {"ridge", "procrustes"}
        How the functional maps are fitted.
    anatomical : AnatomicalSettings
    penalties, components : tuples
        Candidates for ridge and procrustes; inner folds choose one a person. Those of the other method are refused.
    """

    weight: Share | Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    method: Literal["ridge", "procrustes"] = "ridge"
    anatomical: AnatomicalSettings = AnatomicalSettings()
    penalties: Penalties = PENALTIES
    components: Components = COMPONENTS

    @model_validator(mode="after")
    def _fits(self) -> Self:
        other, own = ("components", "penalties") if self.method == "ridge" else ("penalties", "components")
        if idle := self.changed([other]):
            raise ValueError(f"{idle[0]} has no use with method = {self.method!r}, which has {own}")
        return self


class Hybrid(Functional):
    """Anatomical and functional maps, interpolated.

    Where a person's anatomy covers a place, both count; where it does not, the functional map alone says what the
    person would respond there (with a weight of zero the place stays uncovered).
    """

    name = "hybrid"
    Config = HybridSettings

    def _learn(self, view: StudyView, ids: np.ndarray, responses: Mapping[str, np.ndarray]) -> None:
        self._anatomical = Anatomical(self.config.anatomical).fit(view)
        placed = np.stack([self._anatomical.transform(subject, x) for subject, x in responses.items()])
        covering = np.isfinite(placed).all(axis=1).sum(axis=0)
        response = np.nan_to_num(placed.astype(np.float64)).sum(axis=0) / covering
        self._set_response(response)
        lessons = {subject: self._lesson(view, ids, x) for subject, x in responses.items()}
        self._weight = self._choose_weight(lessons, dict(zip(responses, placed, strict=True)), response)
        people = {subject: self._map(subject, view, lesson, response) for subject, lesson in lessons.items()}
        self._set(self._anatomical.template, people)

    def _choose_weight(
        self, lessons: Mapping[str, Lesson], placed: Mapping[str, np.ndarray], response: np.ndarray
    ) -> float:
        """The weight with the least squared error on stimuli left out, over people and places they share."""
        given = self.config.weight
        candidates = np.array([given] if isinstance(given, float) else given)
        if len(candidates) == 1:
            return float(candidates[0])
        errors = np.zeros(len(candidates))
        for subject, lesson in lessons.items():
            rest = np.stack([x for other, x in placed.items() if other != subject]).astype(np.float64)
            known = np.asarray(np.isfinite(rest).all(axis=1))
            places = np.flatnonzero(known.any(axis=0) & np.isfinite(placed[subject]).all(axis=0))
            others = np.where(known[:, None], rest, 0.0).sum(axis=0)[:, places] / known.sum(axis=0)[places]
            own = placed[subject][:, places].astype(np.float64)
            for train, held in lesson.folds:
                offset = lesson.centred[train].mean(axis=0)
                target = response[train] - response[train].mean(axis=0)
                functional = self._functional(lesson.part(train), target)[:, places]
                guess = (lesson.centred[held] - offset) @ functional
                anatomy = own[held] - own[train].mean(axis=0)
                truth = others[held] - others[train].mean(axis=0)
                errors += [np.square((1 - w) * anatomy + w * guess - truth).sum() for w in candidates]
        return float(candidates[errors.argmin()])

    def _map(self, subject: str, view: StudyView, lesson: Lesson, response: np.ndarray) -> PersonMap:
        if subject not in self._anatomical.people:
            self._anatomical.add(subject, view)
        place, weight = self._anatomical.person(subject), self._weight
        offset = response.mean(axis=0, dtype=np.float64)
        if weight == 0:
            return place
        functional = self._functional(lesson, response - offset)
        share = np.where(place.covered, weight, 1.0)
        anatomical = place.matrix @ sparse.diags_array(1 - share)
        return PersonMap.of(
            factored(lesson.basis, functional * share, sparse.csr_array(anatomical)),
            lesson.mean,
            share * offset + lesson.mean @ anatomical,
            np.ones(len(offset), dtype=bool),
        )

    def _functional(self, lesson: Lesson, response: np.ndarray) -> np.ndarray:
        """Weights ``(r, V)`` on the coordinates of the lesson."""
        x, folds = lesson.centred, lesson.folds
        if self.config.method == "ridge":
            return ridge_map(x, response, choose(ridge_path, x, response, folds, self.config.penalties))
        candidates = limited(self.config.components, [x[train] for train, _ in folds])
        return procrustes_map(x, response, choose(procrustes_path, x, response, folds, candidates))

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        tensors, _ = super()._state()
        return tensors, {"anatomical": self._anatomical._state()[1], "weight": self._weight}

    def _restore(self, tensors: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> None:
        super()._restore(tensors, plain)
        self._weight = float(plain["weight"])
        self._anatomical = Anatomical(self.config.anatomical)
        self._anatomical._set(self.template, {})
        self._anatomical._restore({}, plain["anatomical"])
