"""Which voxels and regions carry the answer: Haufe patterns, integrated gradients, occlusion of regions.

All are measured on held-out trials against what was really shown: a decoder that learned nothing has a flat map.
With p the predicted and y the shown embedding, both centred on the mean over the shown stimuli, a trial's *margin* is::

    m = cos(p, y) - mean over the other stimuli y' of cos(p, y')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    from phosphene.decoders.base import Decoder
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["METHODS", "Importance", "importance", "integrated_gradients", "margins", "occlusion", "patterns"]

METHODS = ("patterns", "gradients")


@dataclass(frozen=True)
class Importance:
    """What each voxel and region contributes.

    Attributes
    ----------
    subject : str
        Whose voxels.
    method : str
        ``"patterns"`` (Haufe) or ``"gradients"`` (integrated gradients).
    voxels : (V,) float32 ndarray
        One value a voxel, largest where the answer is; around zero where nothing is.
    rois : dict of str to float
        Loss of mean margin when the region is silenced (all its voxels at their mean).
    margin : float
        Mean margin with the whole brain: what there is to lose.
    n_trials : int
        Held-out responses it was measured on.
    """

    subject: str
    method: str
    voxels: np.ndarray
    rois: dict[str, float]
    margin: float
    n_trials: int


def margins(predicted: Tensor, shown: Tensor) -> Tensor:
    """Margin of each trial.

    Parameters
    ----------
    predicted, shown : Tensor of shape (n, D)
        Row i of both belongs to one stimulus; rows of `shown` are different stimuli.

    Returns
    -------
    Tensor of shape (n,)
        In [-2, 2]; zero on average where the prediction knows nothing.
    """
    centre = shown.mean(dim=0)
    p = torch.nn.functional.normalize(predicted - centre, dim=1)
    y = torch.nn.functional.normalize(shown - centre, dim=1)
    own = (p * y).sum(dim=1)
    everything = p @ y.sum(dim=0)
    return own - (everything - own) / max(1, len(y) - 1)


def patterns(decoder: Decoder, responses: Tensor, shown: Tensor, subject: str | None) -> Tensor:
    """Haufe patterns, ``(V,)``.

    A weight says how a voxel is used, not whether it carries anything; the pattern, the covariance of the voxel with
    the decoder's output, does (Haufe et al. 2014, NeuroImage 87:96). Outputs count by how well they predict what was
    shown, and the whole by how surely the decoder predicts anything. With r_d the held-out correlation of output d
    (zero where negative) and z the mean margin in its standard errors, a voxel's value is::

        max(0, 1 - 2 / z) sqrt(mean_d (r_d corr(x, p_d))^2)

    which is zero for a decoder whose mean margin is within two standard errors of nothing.
    """
    with torch.no_grad():
        output = decoder(responses, subject).embedding
    skill = _correlation(output, shown).clamp_min(0)
    x, p = _unit_columns(responses), _unit_columns(output)
    return _sureness(margins(output, shown)) * (x.T @ p * skill).square().mean(dim=1).sqrt()


def integrated_gradients(
    decoder: Decoder, responses: Tensor, shown: Tensor, subject: str | None, steps: int = 16
) -> Tensor:
    """Integrated gradients of the mean margin, ``(V,)``, from the mean response to each response.

    They add up to the difference of the margins at both ends of the path (Sundararajan et al. 2017), up to the error of
    the midpoint rule with `steps` points. Below zero: a voxel that misleads.
    """
    start = responses.mean(dim=0, keepdim=True)
    difference = responses - start
    total = torch.zeros_like(responses)
    for step in range(steps):
        point = (start + (step + 0.5) / steps * difference).requires_grad_(True)
        with torch.enable_grad():
            margin = margins(decoder(point, subject).embedding, shown).sum()
        total += torch.autograd.grad(margin, point)[0]
    return (difference * total / steps).mean(dim=0)


@torch.no_grad()
def occlusion(
    decoder: Decoder, responses: Tensor, shown: Tensor, subject: str | None, rois: dict[str, np.ndarray]
) -> dict[str, float]:
    """Loss of mean margin when all voxels of a region are held at their mean, by region."""
    whole = float(margins(decoder(responses, subject).embedding, shown).mean())
    lost = {}
    for name, mask in rois.items():
        silenced = responses.clone()
        here = torch.from_numpy(np.flatnonzero(mask)).to(responses.device)
        silenced[:, here] = responses[:, here].mean(dim=0)
        lost[name] = whole - float(margins(decoder(silenced, subject).embedding, shown).mean())
    return lost


def importance(
    decoder: Decoder,
    view: StudyView,
    targets: Targets,
    subject: str,
    method: str = "auto",
    max_stimuli: int = 200,
    steps: int = 16,
) -> Importance:
    """Importance of one person's voxels and regions, on the held-out stimuli of a view.

    Parameters
    ----------
    decoder : Decoder
        Fitted on other stimuli.
    view : StudyView
        Held-out part, e.g. ``study.split("test")``; repeats are averaged.
    targets : Targets
        Of the encoder the decoder was fitted to.
    subject : str
        Whose voxels.
    method : {"auto", "patterns", "gradients"}
        Haufe patterns for linear decoders, integrated gradients for networks; ``"auto"`` picks.
    max_stimuli : int
        At most so many stimuli, evenly spread over the view.
    steps : int
        Points of the path of integrated gradients.
    """
    if method == "auto":
        method = "patterns" if decoder.closed_form else "gradients"
    if method not in METHODS:
        raise unknown("importance method", method, ["auto", *METHODS])
    ids, averaged = view.averaged(subject)
    if len(ids) < 3:
        raise InputError(
            f"importance needs responses of {subject} to at least three held-out stimuli, found {len(ids)}"
        )
    chosen = np.unique(np.linspace(0, len(ids) - 1, min(max_stimuli, len(ids))).round().astype(int))
    device = next(iter(decoder.buffers())).device
    responses = torch.from_numpy(averaged[chosen]).to(device)
    shown = torch.from_numpy(targets.of(ids[chosen], decoder.target_kind)).to(device).float().flatten(1)
    known = decoder.known_as(subject)
    training = decoder.training
    decoder.eval()
    compute: Any = patterns if method == "patterns" else integrated_gradients
    keywords = {} if method == "patterns" else {"steps": steps}
    values = compute(decoder, responses, shown, known, **keywords)
    with torch.no_grad():
        margin = float(margins(decoder(responses, known).embedding, shown).mean())
    lost = occlusion(decoder, responses, shown, known, view.rois(subject))
    decoder.train(training)
    return Importance(subject, method, values.detach().cpu().numpy().astype(np.float32), lost, margin, len(chosen))


def _sureness(margin: Tensor) -> float:
    """``max(0, 1 - 2 / z)`` with z the mean of the trials' margins in standard errors."""
    error = float(margin.std()) / len(margin) ** 0.5
    mean = float(margin.mean())
    return max(0.0, 1.0 - 2.0 * error / mean) if mean > 0 else 0.0


def _unit_columns(values: Tensor) -> Tensor:
    centred = values - values.mean(dim=0)
    return centred / centred.norm(dim=0).clamp_min(1e-12)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return (_unit_columns(a) * _unit_columns(b)).sum(dim=0)
