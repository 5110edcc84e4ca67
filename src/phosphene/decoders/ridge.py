"""Ridge regression from voxels to targets: the rival that must be beaten, so it is built well.

For responses X (trials, voxels) and targets Y (trials, D), both centred, each target d has its own penalty::

    w_d = argmin_w |X w - Y_d|^2 + penalty_d |w|^2 = (X'X + penalty_d I)^-1 X' Y_d

Penalties are chosen by inner folds over units (stimuli, or what the study says belongs together) of the training part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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

__all__ = [
    "Ridge",
    "RidgeConfig",
    "fit_ridge",
    "fit_ridge_and_left_out",
    "fit_ridge_beside",
    "inner_folds",
    "ridge_out_of_fold",
    "ridge_path",
    "ridge_penalties",
    "ridge_weights",
]

log = logging.getLogger(__name__)

_CONSTANT = 1e-12  # variance, in units of a standardised voxel's, that is rounding
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a prediction from elsewhere
_FORGIVEN = 0.02  # excess of the squared error over the least that costs a factor of e


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
    penalty, best = _best_penalties(x, y, units, config, who)
    weight, intercept = ridge_weights(x, y, penalty)
    return weight, intercept, float(torch.tensor(config.penalties)[best.cpu()].median())


def fit_ridge_beside(
    x: Tensor, y: Tensor, prior: Tensor, units: np.ndarray, config: RidgeConfig, who: str = "ridge"
) -> tuple[Tensor, float]:
    """Ridge on what a share of somebody else's prediction leaves, averaged over shares.

    With the share 1 ridge corrects the prediction, and shrinks to it; with 0 it stands alone. Every share has its best
    penalty for each target, by inner folds, and counts the less the larger its error on them is, over all targets: by
    a factor of e for each two hundredths of the least error.

    Parameters
    ----------
    x : Tensor of shape (trials, voxels)
    y : Tensor of shape (trials, targets)
    prior : Tensor of shape (trials, targets)
        Predictions by weights that have not seen these trials.
    units, config, who
        As in `fit_ridge`; each target has its own penalty.

    Returns
    -------
    weights : Tensor of shape (voxels, targets)
    share : float
        Of the prediction; the whole is ``share * prediction + x @ weights``, but for a constant.
    """
    shares = torch.tensor(_SHARES, dtype=x.dtype, device=x.device)
    rests = torch.cat([y - share * prior for share in shares], dim=1)
    penalties = ridge_penalties(x, config, who)
    least, place = _fold_errors(x, rests, units, penalties, config.folds).min(dim=0)
    errors = least.view(len(shares), -1).sum(dim=1)
    excess = errors / errors.min().clamp_min(torch.finfo(x.dtype).tiny) - 1
    counts = torch.softmax(-excess / _FORGIVEN, dim=0)
    weights, _ = ridge_weights(x, rests, torch.tensor(penalties, dtype=x.dtype, device=x.device)[place])
    return torch.einsum("vst,s->vt", weights.view(len(weights), len(shares), -1), counts), float(shares @ counts)


def ridge_out_of_fold(x: Tensor, y: Tensor, units: np.ndarray, config: RidgeConfig, who: str = "ridge") -> Tensor:
    """What ridge says of every row ``(trials, targets)`` when it was fitted without the row's fold of units."""
    return _left_out(x, y, units, config, _best_penalties(x, y, units, config, who)[0])


def fit_ridge_and_left_out(
    x: Tensor, y: Tensor, units: np.ndarray, config: RidgeConfig, who: str = "ridge"
) -> tuple[Tensor, Tensor]:
    """Weights ``(voxels, targets)`` of `fit_ridge`, and what `ridge_out_of_fold` says, with penalties chosen once."""
    penalty, _ = _best_penalties(x, y, units, config, who)
    return ridge_weights(x, y, penalty)[0], _left_out(x, y, units, config, penalty)


def _left_out(x: Tensor, y: Tensor, units: np.ndarray, config: RidgeConfig, penalty: Tensor) -> Tensor:
    said = torch.empty_like(y)
    for train, held in inner_folds(units, config.folds):
        weight, intercept = ridge_weights(x[train], y[train], penalty)
        said[held] = x[held] @ weight + intercept
    return said


def _best_penalties(x: Tensor, y: Tensor, units: np.ndarray, config: RidgeConfig, who: str) -> tuple[Tensor, Tensor]:
    """The penalty of each target ``(targets,)`` that is best on held-out folds, and its place among the candidates."""
    penalties = ridge_penalties(x, config, who)
    error = _fold_errors(x, y, units, penalties, config.folds)
    if config.penalty == "shared":
        error = error.sum(dim=1, keepdim=True).expand_as(error)
    best = error.argmin(dim=0)
    return torch.tensor(penalties, dtype=x.dtype, device=x.device)[best], best


def ridge_penalties(x: Tensor, config: RidgeConfig, who: str) -> list[float]:
    """Candidate penalties in the units of responses ``(trials, voxels)``; refuses responses that do not vary."""
    scale = float((x - x.mean(dim=0)).square().sum(dim=1).mean())
    if scale <= _CONSTANT * x.shape[1]:
        raise InputError(
            f"{who}: nothing can be learnt from responses that do not vary: {len(x)} training stimuli, "
            f"{x.shape[1]} voxel{'s' * (x.shape[1] > 1)}, each with one value throughout"
        )
    return [scale * penalty for penalty in config.penalties]


def _fold_errors(x: Tensor, y: Tensor, units: np.ndarray, penalties: Sequence[float], folds: int) -> Tensor:
    """Squared errors on the held-out folds, ``(penalties, targets)``."""
    error = torch.zeros(len(penalties), y.shape[1], dtype=x.dtype, device=x.device)
    for train, held in inner_folds(units, folds):
        error += (ridge_path(x[train], y[train], x[held], penalties) - y[held]).square().sum(dim=1)
    return error


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
        self.solve_for(view, lambda ids: targets.of(ids, kind))

    def solve_for(self, view: StudyView, values: Callable[[np.ndarray], np.ndarray]) -> None:
        """As `solve`, to whatever `values` says of stimulus ids, an array with a row each."""
        for subject in self.subjects:
            self.set_standardiser(subject, *view.moments(subject))
        self.provenance["penalty"] = {}
        if self.subject_free:
            parts = [self._averaged(view, subject) for subject in self.subjects]
            ids = np.concatenate([part[0] for part in parts])
            self._solve_one(0, "all", ids, np.concatenate([part[1] for part in parts]), view, values)
        else:
            for at, subject in enumerate(self.subjects):
                self._solve_one(at, subject, *self._averaged(view, subject), view, values)

    def _averaged(self, view: StudyView, subject: str) -> tuple[np.ndarray, np.ndarray]:
        ids, responses = view.averaged(subject)
        if not len(ids):
            raise InputError(f"{subject} has no trials in the {view.role} part of split {view.split_name!r}")
        standardised = self.standardisers[self.index(subject)](torch.from_numpy(responses).to(self.components.device))
        return ids, standardised.cpu().numpy()

    def _solve_one(
        self,
        at: int,
        who: str,
        ids: np.ndarray,
        responses: np.ndarray,
        view: StudyView,
        values: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        config: Any = self.config
        device = self.components.device
        # double precision while it is cheap; penalties near zero need it
        dtype = torch.float64 if min(responses.shape) <= 3000 else torch.float32
        x = torch.as_tensor(responses, dtype=dtype, device=device)
        y = torch.as_tensor(values(ids).reshape(len(ids), -1), dtype=dtype, device=device)
        y, components, offset = self._reduced(y)
        units = view.units_of(ids)
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
