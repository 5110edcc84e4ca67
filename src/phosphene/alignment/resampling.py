"""What the ways of anatomical alignment share: their settings, whether people lie on one grid, votes on regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from scipy import sparse

from phosphene.alignment.base import AlignerSettings, PersonMap, Template
from phosphene.errors import InputError, unknown
from phosphene.recordings.recording import ROI_PREFIX

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["AnatomicalSettings", "normalised", "region_mask", "vote_on_regions"]


_OF_POINTS = ("method", "spacing", "radius", "columns", "affines")
_USED = {
    "grid": (),
    "points": _OF_POINTS,
    "surface": ("template", "method", "freesurfer"),
    "volume": ("template", "method", "radius", "freesurfer"),
}
WAYS = {
    "grid": "people who lie on one grid or mesh stay there",
    "points": "people go onto a grid over their template positions",
    "surface": "people go onto a mesh from surfaces",
    "volume": "people go onto a mesh from volumes",
}


class AnatomicalSettings(AlignerSettings):
    """Settings of anatomical. What the way that people take has no use for is refused, unless it is at its default.

    Attributes
    ----------
    template : str or None
        ``"fsaverage5"``, ``"fsaverage6"`` or ``"fsaverage"``; excludes `spacing`, `columns` and `affines`. None: the
        grid that people share already, else a grid over their template positions.
    method : {"area", "nearest"}
        Whether a place takes a weighted mean of the voxels around it, or the nearest one.
    spacing : float
        Of a grid over template positions, in their unit (mm).
    radius : float
        Voxels farther from a place than this do not count; with ``"nearest"`` it is the farthest one allowed. From a
        surface onto a mesh there is none.
    columns : tuple of str or None
        Columns of the voxel table that hold positions in the common space. Default: ``template_u, template_v``, else
        ``template_x, template_y, template_z``.
    affines : mapping of str to (4, 4)
        By person: takes the mm of `columns` into the mm of the common space. Default: they are in it.
    roi : tuple of str
        Keep places of these regions only; default all.
    share : float
        Keep places that at least this share of the people cover.
    freesurfer : str or None
        Folder of FreeSurfer subjects; default ``SUBJECTS_DIR`` or ``FREESURFER_HOME/subjects``.
    """

    template: str | None = None
    method: Literal["area", "nearest"] = "area"
    spacing: float = Field(default=4.0, gt=0)
    radius: float = Field(default=6.0, gt=0)
    columns: tuple[str, ...] | None = None
    affines: dict[str, list[list[float]]] = Field(default={})
    roi: tuple[str, ...] = ()
    share: float = Field(default=0.5, ge=0, le=1)
    freesurfer: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.template is not None and (words := self.unused("volume")):
            raise ValueError(words)
        return self

    def unused(self, way: str) -> str | None:
        """In words, which settings were changed that have no use on one of the `WAYS`; None where there are none."""
        of_ways = {name for names in _USED.values() for name in names}
        idle = self.changed(sorted(of_ways - set(_USED[way])))
        allowed = ", ".join(("roi", "share", *_USED[way]))
        return (
            f"{', '.join(idle)} {'have' if len(idle) > 1 else 'has'} no use where {WAYS[way]}; allowed there: {allowed}"
            if idle
            else None
        )


def vote_on_regions(view: StudyView, people: Mapping[str, PersonMap], template: Template) -> Template:
    """The template with a boolean column for every region: more than half of what people bring to a place is in it."""
    names = dict.fromkeys(name for subject in people for name in view.rois(subject))
    columns = {}
    for name in names:
        votes, voters = np.zeros(template.size), np.zeros(template.size)
        for subject, person in people.items():
            if name not in view.rois(subject):
                continue
            inside = view.rois(subject)[name].astype(np.float32)
            votes += np.asarray(inside @ person.matrix).ravel()
            voters += person.covered
        columns[f"{ROI_PREFIX}{name}"] = votes > 0.5 * np.maximum(voters, 1e-9)
    return Template(template.name, template.voxels.with_columns(**columns), template.n_vertices)


def region_mask(template: Template, roi: tuple[str, ...]) -> np.ndarray:
    """Places within any of the named regions, all for none named.

    Raises
    ------
    InputError
        For an unknown region, or regions without a place.
    """
    if not roi:
        return np.ones(template.size, dtype=bool)
    rois = template.rois
    for name in roi:
        if name not in rois:
            raise unknown("region", name, rois)
    mask = np.logical_or.reduce([rois[name] for name in roi])
    if not mask.any():
        raise InputError(f"no place of the template {template.name} is in {', '.join(roi)}")
    return mask


def normalised(weights: sparse.csr_array) -> sparse.csr_array:
    """Columns that sum to one; empty ones stay empty."""
    totals = np.asarray(weights.sum(axis=0)).ravel()
    scale = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return sparse.csr_array(weights @ sparse.diags_array(scale))
