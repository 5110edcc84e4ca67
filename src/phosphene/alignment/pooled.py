"""Adaptive average pooling of voxels in scanner order to a fixed width: the naive rival of every alignment.

MindBridge (Wang et al., CVPR 2024) brings people to one width by adaptive max pooling; the mean is our choice, because
it is linear. No place in the pooled vector means the same in two people, except by chance of a common scanning order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from scipy import sparse

from phosphene.alignment.base import Aligner, AlignerSettings, PersonMap, Template
from phosphene.errors import InputError
from phosphene.recordings.recording import ROI_PREFIX
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["Pooled", "PooledSettings", "pooling_matrix"]


class PooledSettings(AlignerSettings):
    """Settings of pooled.

    Attributes
    ----------
    width : int or None
        Places of the template; None takes the smallest number of voxels anybody has. With ``within="roi"`` every
        region has as many places as the person with the fewest voxels in it, and a width is refused.
    within : {"brain", "roi"}
        Whether all voxels are pooled together, or those of each region apart.
    """

    width: int | None = Field(default=None, ge=1)
    within: Literal["brain", "roi"] = "brain"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.within == "roi" and self.width is not None:
            raise ValueError(
                f"width = {self.width} has no use with within = 'roi', where every region has its own width: give it "
                "with within = 'brain' only"
            )
        return self


def pooling_matrix(n_voxels: int, width: int) -> sparse.csr_array:
    """Adaptive average pooling as a matrix ``(n_voxels, width)``.

    Place j is the mean of voxels ``floor(j n / width)`` to ``ceil((j + 1) n / width)``, as in PyTorch's
    ``AdaptiveAvgPool1d``; a width above the number of voxels repeats some.

    Examples
    --------
    >>> pooling_matrix(4, 2).toarray().tolist()
    [[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]
    """
    place = np.arange(width)
    first, last = place * n_voxels // width, -(-(place + 1) * n_voxels // width)
    length = last - first
    rows = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + np.repeat(first, length)
    columns, values = np.repeat(place, length), np.repeat(1 / length, length)
    return sparse.csr_array((values, (rows, columns)), shape=(n_voxels, width))


class Pooled(Aligner):
    """Adaptive average pooling in the order in which voxels are listed; looks at no response and no coordinate."""

    name = "pooled"
    Config = PooledSettings

    def _fit(self, view: StudyView) -> None:
        template = self._by_region(view) if self.config.within == "roi" else self._whole(view)
        self._template = template
        self._set(template, {subject: self._add(subject, view) for subject in view.subjects})

    def _whole(self, view: StudyView) -> Template:
        width = self.config.width or min(view.n_voxels(subject) for subject in view.subjects)
        return Template(f"pooled-{width}", Table({"place": np.arange(width)}))

    def _by_region(self, view: StudyView) -> Template:
        regions = {subject: view.rois(subject) for subject in view.subjects}
        first = next(iter(regions.values()))
        counts = {
            name: min(int(rois[name].sum()) if name in rois else 0 for rois in regions.values()) for name in first
        }
        counts = {name: count for name, count in counts.items() if count}
        if not counts:
            raise InputError("pooling within regions needs a region that everybody has; there is none in this study")
        region = np.repeat(list(counts), list(counts.values()))
        columns: dict[str, Any] = {"place": np.arange(len(region)), "region": region}
        return Template("pooled-roi", Table({**columns, **{f"{ROI_PREFIX}{name}": region == name for name in counts}}))

    def _add(self, subject: str, view: StudyView) -> PersonMap:
        n_voxels, template = view.n_voxels(subject), self.template
        if "region" not in template.voxels:
            return PersonMap.of(pooling_matrix(n_voxels, template.size))
        matrix = sparse.lil_array((n_voxels, template.size), dtype=np.float32)
        for name, places in template.rois.items():
            inside = np.flatnonzero(view.rois(subject).get(name, np.zeros(n_voxels, dtype=bool)))
            if len(inside):
                block = pooling_matrix(len(inside), int(places.sum())).toarray()
                matrix[np.ix_(inside, np.flatnonzero(places))] = block
        return PersonMap.of(sparse.csr_array(matrix))
