"""Ridge from each person's voxels to the template's response: what the others would have responded.

On the Natural Scenes Dataset ridge was found the best of the functional aligners that Ferrante et al. (2023) compared.
What the template's response is, and how the penalty is chosen, is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BeforeValidator, Field
from scipy import sparse

from phosphene.alignment.base import PersonMap, several
from phosphene.alignment.functional import Functional, FunctionalSettings, Lesson, common_target
from phosphene.alignment.solvers import choose, ridge_map, ridge_path

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["PENALTIES", "Penalties", "RidgeAligner", "RidgeAlignerSettings"]

Penalties = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), BeforeValidator(several)]
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class RidgeAlignerSettings(FunctionalSettings):
    """Settings of ridge.

    Attributes
    ----------
    reference : str or None
        The person whose voxels are the template. None: the mean over people where they lie on one grid, else the first
        person.
    penalties : tuple of float
        Candidates, in units of the mean squared norm of a (mean) response; inner folds choose one a person.
    """

    reference: str | None = None
    penalties: Penalties = PENALTIES


class RidgeAligner(Functional):
    """Each person's voxels predict the template's response to the shared stimuli; the reference stays as recorded."""

    name = "ridge"
    Config = RidgeAlignerSettings

    def _learn(self, view: StudyView, ids: np.ndarray, responses: Mapping[str, np.ndarray]) -> None:
        target = common_target(view, responses, self.config.reference)
        self._set_response(target.response)
        people = {}
        for subject, x in responses.items():
            if subject == target.reference:
                people[subject] = PersonMap.of(sparse.eye_array(x.shape[1], format="csr"))
            else:
                people[subject] = self._map(subject, view, self._lesson(view, ids, x), target.response)
        self._set(target.template, people)

    def _map(self, subject: str, view: StudyView, lesson: Lesson, response: np.ndarray) -> PersonMap:
        offset = response.mean(axis=0, dtype=np.float64)
        penalty = choose(ridge_path, lesson.centred, response - offset, lesson.folds, self.config.penalties)
        return lesson.mapped(ridge_map(lesson.centred, response - offset, penalty), offset)
