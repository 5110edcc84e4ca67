"""Alignment by place: a shared grid, template positions, or the fsaverage surfaces; looks at no response.

That people are first aligned anatomically to a standard template is Wills Aligner's (Bao et al., AAAI 2025); which
template is not known to us, and grids, radii and weights are our choice (docs/alignment.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.alignment import meshes, one_grid, points
from phosphene.alignment.base import Aligner, PersonMap, Template
from phosphene.alignment.resampling import AnatomicalSettings, region_mask, vote_on_regions
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["Anatomical", "AnatomicalSettings"]

_WAYS: dict[str, ModuleType] = {"grid": one_grid, "points": points, "mesh": meshes}


class Anatomical(Aligner):
    """Resampling onto a template, the same whatever was shown.

    In this order: onto the mesh that was named (``template="fsaverage5"``); onto positions whose columns were named;
    people on one grid or mesh stay there; people with ``template_u, template_v`` or ``template_x, template_y,
    template_z`` go onto a grid over them.
    """

    name = "anatomical"
    Config = AnatomicalSettings

    def _fit(self, view: StudyView) -> None:
        self._way = self._choose(view)
        self._refuse_unused(view)
        template = _WAYS[self._way].build(view, self.config)
        people = {subject: self._place(subject, view, template) for subject in view.subjects}
        for subject, person in people.items():
            if not person.covered.any():
                raise InputError(f"{subject} covers no place of the template {template.name}: nothing can be aligned")
        share = np.mean([person.covered for person in people.values()], axis=0)
        template, people = _keep(template, people, (share > 0) & (share >= self.config.share))
        template = vote_on_regions(view, people, template)
        template, people = _keep(template, people, region_mask(template, self.config.roi))
        self._set(template, people)

    def _choose(self, view: StudyView) -> str:
        if self.config.template is not None:
            return "mesh"
        if self.config.columns is not None and points.position_columns(view, self.config):
            return "points"
        reason = one_grid.why_not(view)
        if reason is None:
            return "grid"
        if points.position_columns(view, self.config):
            return "points"
        raise InputError(
            f"{', '.join(view.subjects)} cannot be aligned anatomically: {reason}, and not all voxel tables have "
            "positions in a common space (template_u, template_v or template_x, template_y, template_z). Name a "
            "surface template (fsaverage5 ...), the columns that hold positions, or use a functional aligner"
        )

    def _refuse_unused(self, view: StudyView) -> None:
        way = self._way
        if way == "mesh":
            surfaces = [meshes.on_surface(view.voxels(subject)) for subject in view.subjects]
            way = "surface" if all(surfaces) else "volume"
        if words := self.config.unused(way):
            raise InputError(f"settings of anatomical alignment: {words}")

    def _place(self, subject: str, view: StudyView, template: Template) -> PersonMap:
        return PersonMap.of(_WAYS[self._way].place(view, subject, template, self.config))

    def _add(self, subject: str, view: StudyView) -> PersonMap:
        return self._place(subject, view, self.template)

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {}, {"way": self._way}

    def _restore(self, tensors: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> None:
        self._way = str(plain["way"])


def _keep(
    template: Template, people: Mapping[str, PersonMap], kept: np.ndarray
) -> tuple[Template, dict[str, PersonMap]]:
    rows = np.flatnonzero(kept)
    return template.take(rows), {subject: person.take(rows) for subject, person in people.items()}
