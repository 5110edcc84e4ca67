"""What other people's responses say of one person's, through an aligner: where a new person's ridge layer may start.

The others' averaged responses lie in the aligner's template, standardised person by person; ridge leads from them to
scores of targets. A person's native voxels reach the same scores by one linear map: into the template, and through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from phosphene.decoders.ridge import RidgeConfig, fit_ridge

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.recordings import StudyView

__all__ = ["Borrowed", "borrow"]

_BLOCK = 2**24  # numbers of aligned voxels at once


class Borrowed(NamedTuple):
    """Scores ``x @ matrix + offset`` of a person's standardised responses x; matrix (V, k), offset (k,)."""

    matrix: Tensor
    offset: Tensor


def borrow(
    aligner: Aligner,
    others: StudyView,
    own: StudyView,
    subject: str,
    standardiser: tuple[Tensor, Tensor],
    scores: Callable[[np.ndarray], Tensor],
) -> Borrowed:
    """The scores that ridge over other people would give to a person.

    Parameters
    ----------
    aligner : Aligner
        Knows everybody.
    others, own : StudyView
        Training trials in native voxels, of other people and of this one.
    subject : str
    standardiser : (Tensor (V,), Tensor (V,))
        Mean and deviation by which the person's native responses are standardised.
    scores : callable
        Of stimulus ids, ``(n, k)``.
    """
    through = others.through(aligner)
    rows = [through.averaged(person) for person in through.subjects]
    x = torch.cat([_standardised(responses)[0] for _, responses in rows])
    ids = np.concatenate([each for each, _ in rows])
    weight, intercept, _ = fit_ridge(x, scores(ids).double(), through.units_of(ids), RidgeConfig(), "people together")
    _, mean, deviation = _standardised(own.through(aligner).averaged(subject)[1])
    weight = weight / deviation[:, None]
    centre, spread = (each.cpu().numpy() for each in standardiser)
    at_centre = aligner.filled(subject, centre[None])
    offset = (torch.from_numpy(at_centre).double() - mean) @ weight + intercept
    return Borrowed(_native(aligner, subject, spread, weight).float(), offset[0].float())


def _standardised(responses: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Responses over the deviation of each place, their mean, and the deviation; places that do not vary stay zero."""
    x = torch.from_numpy(responses).double()
    mean, deviation = x.mean(dim=0), x.std(dim=0)
    deviation = torch.where(deviation > 0, deviation, torch.inf)
    return (x - mean) / deviation, mean, deviation


def _native(aligner: Aligner, subject: str, spread: np.ndarray, weight: Tensor) -> Tensor:
    """The way of each voxel, moved by its deviation, through the template to scores, ``(V, k)``."""
    n_voxels, block = len(spread), max(1, _BLOCK // max(len(spread), len(weight)))
    still = aligner.filled(subject, np.zeros((1, n_voxels), dtype=np.float32))
    parts = []
    for first in range(0, n_voxels, block):
        some = np.arange(first, min(first + block, n_voxels))
        moved = np.zeros((len(some), n_voxels), dtype=np.float32)
        moved[np.arange(len(some)), some] = spread[some]
        parts.append(torch.from_numpy(aligner.filled(subject, moved) - still).double() @ weight)
    return torch.cat(parts)
