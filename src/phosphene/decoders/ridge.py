"""Ridge regression from voxels to targets: the rival that must be beaten, so it is built well.

For responses X (trials, voxels) and targets Y (trials, D), both centred, each target d has its own penalty::

    w_d = argmin_w |X w - Y_d|^2 + penalty_d |w|^2 = (X'X + penalty_d I)^-1 X' Y_d

Penalties are chosen by inner folds over units (stimuli, or what the study says belongs together) of the training part.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor

from phosphene.decoders.base import Decoder, DecoderConfig
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["Ridge", "RidgeConfig", "fit_ridge", "inner_folds", "ridge_path", "ridge_weights"]

log = logging.getLogger(__name__)

_CONSTANT = 1e-12  # variance, in units of a standardised voxel's, that is rounding


class RidgeConfig(DecoderConfig):
    """Settings of ridge.

    Attributes
    ----------
    penalties : tuple of float
        Candidates, in units of the mean squared norm of a (standardised, averaged) response.
    penalty : {"per-target", "shared"}
        Whether every target has its own penalty, or all share the one that is best on the whole.
    folds : int
        Inner folds.
    target_rank : int
        Targets wider than this are reduced to so many principal components of the training targets first; narrower
        ones are predicted as they are.
    """

    penalties: tuple[float, ...] = tuple(float(f"{p:.3g}") for p in np.logspace(-4, 3, 15))
    penalty: Literal["per-target", "shared"] = "per-target"
    folds: int = 5
    target_rank: int = 1024


def inner_folds(units: np.ndarray, folds: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of (train, validation) row numbers; rows of one unit stay together.

    Raises
    ------
    InputError
        With fewer than two units.
    """
    n_units = len(np.unique(units))
    if n_units < 2:
        raise InputError(f"inner folds need at least two units of training stimuli, found {n_units}")
    splitter = GroupKFold(n_splits=min(folds, n_units), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(units)), groups=units))


def _spectral(x: Tensor, y: Tensor, x_new: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues, left and right factors: predictions for a penalty p are ``left @ (right / (values + p))``.

    Works in whichever of trials and voxels is fewer. Also returns the map ``back`` with weights = back @ (right / ...).
    """
    if x.shape[0] <= x.shape[1]:
        values, vectors = torch.linalg.eigh(x @ x.T)
        back = x.T @ vectors
        right = vectors.T @ y
    else:
        values, back = torch.linalg.eigh(x.T @ x)
        right = back.T @ (x.T @ y)
    return values.clamp_min(0), x_new @ back, right, back


def ridge_path(x: Tensor, y: Tensor, x_new: Tensor, penalties: Sequence[float]) -> Tensor:
    """Predictions for new responses under every penalty.

    Parameters
    ----------
    x : Tensor of shape (trials, voxels)
    y : Tensor of shape (trials, targets)
    x_new : Tensor of shape (new trials, voxels)
    penalties : sequence of float

    Returns
    -------
    Tensor of shape (penalties, new trials, targets)
    """
    centre, offset = x.mean(dim=0), y.mean(dim=0)
    values, left, right, _ = _spectral(x - centre, y - offset, x_new - centre)
    return torch.stack([left @ (right / (values[:, None] + p)) + offset for p in penalties])


def ridge_weights(x: Tensor, y: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``(voxels, targets)`` and intercepts ``(targets,)`` for one penalty a target ``(targets,)``."""
    centre, offset = x.mean(dim=0), y.mean(dim=0)
    values, _, right, back = _spectral(x - centre, y - offset, x[:0])
    weights = back @ (right / (values[:, None] + penalty))
    return weights, offset - centre @ weights


def fit_ridge(
    x: Tensor, y: Tensor, units: np.ndarray, config: RidgeConfig, who: str = "ridge"
) -> tuple[Tensor, Tensor, float]:
    """Ridge with penalties chosen by inner folds over units.

    Parameters
    ----------
    x : Tensor of shape (trials, voxels)
    y : Tensor of shape (trials, targets)
    units : (trials,) ndarray
        Rows of one unit stay on one side of a fold.
    config : RidgeConfig
    who : str
        Named in errors.

    Returns
    -------
    weights : Tensor of shape (voxels, targets)
    intercepts : Tensor of shape (targets,)
    penalty : float
        The median one, in units of the mean squared norm of a response.

    Raises
    ------
    InputError
        For responses that do not vary, or fewer than two units.
    """
    scale = float((x - x.mean(dim=0)).square().sum(dim=1).mean())
    if scale <= _CONSTANT * x.shape[1]:
        raise InputError(
            f"{who}: nothing can be learnt from responses that do not vary: {len(x)} training stimuli, "
            f"{x.shape[1]} voxel{'s' * (x.shape[1] > 1)}, each with one value throughout"
        )
    penalties = [scale * p for p in config.penalties]
    error = torch.zeros(len(penalties), y.shape[1], dtype=x.dtype, device=x.device)
    for train, validation in inner_folds(units, config.folds):
        predicted = ridge_path(x[train], y[train], x[validation], penalties)
        error += (predicted - y[validation]).square().sum(dim=1)
    if config.penalty == "shared":
        error = error.sum(dim=1, keepdim=True).expand_as(error)
    chosen = torch.tensor(penalties, dtype=x.dtype, device=x.device)[error.argmin(dim=0)]
    weight, intercept = ridge_weights(x, y, chosen)
    return weight, intercept, float(chosen.median()) / scale


class Ridge(Decoder):
    """Closed-form linear decoder; repeats of a stimulus are averaged before fitting."""

    name = "ridge"
    Config = RidgeConfig
    closed_form = True
    components: Tensor

    def __init__(self, config: RidgeConfig, subjects: Mapping[str, int], target_shape: Sequence[int]) -> None:
        super().__init__(config, subjects, target_shape)
        self.register_buffer("components", torch.empty(0, self.n_outputs))
        for subject, n_voxels in list(self.subjects.items())[: 1 if self.subject_free else None]:
            self._add_input(subject, n_voxels)

    def _add_input(self, subject: str, n_voxels: int) -> None:
        # no columns until fitted: a full matrix of an NSD-sized decoder would be 12 GB of zeros
        at = self.index(subject)
        self.register_buffer(f"weight_{at}", torch.empty(n_voxels, 0))
        self.register_buffer(f"intercept_{at}", torch.zeros(self.n_outputs))

    def _decode(self, responses: Tensor, subject: str | None) -> Tensor:
        at = 0 if self.subject_free else self.index(str(subject))
        weight: Tensor = getattr(self, f"weight_{at}")
        intercept: Tensor = getattr(self, f"intercept_{at}")
        if weight.shape[1] == 0:
            return intercept.expand(len(responses), -1)
        output = responses.to(weight.dtype) @ weight
        if len(self.components):
            output = output @ self.components
        return output + intercept

    def _make_room(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name == "components" or name.startswith("weight_"):
                self.register_buffer(name, torch.empty(tensor.shape))

    def solve(self, view: StudyView, targets: Targets, kind: str, progress: bool = True) -> None:
        """Standardise voxels over the trials of a training view, and fit to its averaged responses.

        With `pool_subjects` all people's responses are rows of one regression; penalties are then chosen on people
        together, and inner folds hold a unit out for everybody.
        """
        for subject in self.subjects:
            self.set_standardiser(subject, *view.moments(subject))
        self.provenance["penalty"] = {}
        if self.subject_free:
            parts = [self._averaged(view, subject) for subject in self.subjects]
            ids = np.concatenate([part[0] for part in parts])
            self._solve_one(0, "all", ids, np.concatenate([part[1] for part in parts]), view, targets, kind)
        else:
            for at, subject in enumerate(self.subjects):
                self._solve_one(at, subject, *self._averaged(view, subject), view, targets, kind)

    def _averaged(self, view: StudyView, subject: str) -> tuple[np.ndarray, np.ndarray]:
        ids, responses = view.averaged(subject)
        if not len(ids):
            raise InputError(f"{subject} has no trials in the {view.role} part of split {view.split_name!r}")
        standardised = self.standardisers[self.index(subject)](torch.from_numpy(responses).to(self.components.device))
        return ids, standardised.cpu().numpy()

    def _solve_one(
        self, at: int, who: str, ids: np.ndarray, responses: np.ndarray, view: StudyView, targets: Targets, kind: str
    ) -> None:
        config: Any = self.config
        device = self.components.device
        # double precision while it is cheap; penalties near zero need it
        dtype = torch.float64 if min(responses.shape) <= 3000 else torch.float32
        x = torch.as_tensor(responses, dtype=dtype, device=device)
        y = torch.as_tensor(targets.of(ids, kind).reshape(len(ids), -1), dtype=dtype, device=device)
        y, components, offset = self._reduced(y)
        unit_of = dict(zip(view.stimulus_ids.tolist(), view.units.tolist(), strict=True))
        units = np.array([unit_of[name] for name in ids.tolist()])
        weight, intercept, middle = fit_ridge(x, y, units, config, who)
        if components is not None:
            self.register_buffer("components", components.float().contiguous())
            intercept = intercept @ components + offset
        self.register_buffer(f"weight_{at}", weight.float().contiguous())
        self.register_buffer(f"intercept_{at}", intercept.float())
        self.provenance["penalty"][who] = middle
        log.info("ridge, %s: %d rows, median penalty %.3g of the mean squared norm", who, len(ids), middle)

    def _reduced(self, y: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Principal components of wide targets; the same ones for everybody, taken from the first person's stimuli."""
        rank = self.config.target_rank
        offset = y.mean(dim=0)
        if y.shape[1] <= rank:
            return y, None, offset
        if len(self.components):
            components = self.components.to(y.dtype)
        else:
            centred = y - offset
            values, vectors = torch.linalg.eigh(centred @ centred.T)
            keep = torch.arange(len(values) - 1, max(len(values) - 1 - rank, -1), -1, device=y.device)
            keep = keep[values[keep] > 1e-9 * values[-1]]
            components = (centred.T @ vectors[:, keep] / values[keep].sqrt()).T
        return (y - offset) @ components.T, components, offset
