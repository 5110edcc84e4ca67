"""Where training starts at what has a closed form: the mean target, and the ridge solution in a linear path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from phosphene.decoders.base import Decoder
from phosphene.decoders.ridge import Ridge, RidgeConfig
from phosphene.nn.readout import LinearPath

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["start_at_mean", "start_at_ridge"]


def start_at_mean(readout: Any, view: StudyView, targets: Targets, kind: str) -> None:
    """Set the bias of a readout to the mean target."""
    mean, _ = _moments(view.stimulus_ids, targets, kind)
    with torch.no_grad():
        readout.bias.copy_(torch.from_numpy(mean).view_as(readout.bias))


def start_at_ridge(
    decoder: Decoder,
    linear: LinearPath,
    readout: nn.Module,
    scale: float,
    view: StudyView,
    targets: Targets,
    kind: str,
    progress: bool = True,
) -> None:
    """Set a linear path to the ridge solution, and make what the network adds to it small.

    Voxels are standardised as ridge does it from here on.

    Parameters
    ----------
    decoder : Decoder
        Whose people, standardisers and target shape they are.
    linear : LinearPath
    readout : Module
        With ``out.weight`` and ``bias``: of the network beside the linear path.
    scale : float
        Size of the network's output to begin with, in deviations of the targets.
    view, targets, kind, progress
        As in `Decoder.warm_start`.
    """
    network: Any = readout
    settings = RidgeConfig(pool_subjects=decoder.subject_free, target_rank=linear.rank)
    ridge = Ridge(settings, decoder.subjects, decoder.target_shape).to(network.bias.device)
    ridge.solve(view, targets, kind, progress)
    # its weights are for responses standardised in its own way, over the trials of this view
    decoder.standardisers.load_state_dict(ridge.standardisers.state_dict())
    fitted = dict(ridge.named_buffers())
    people = range(len(linear.people))
    components = fitted["components"]
    if not len(components):
        components = torch.eye(decoder.n_outputs, device=components.device)
    linear.start(components, [fitted[f"weight_{at}"] for at in people])
    intercept = torch.stack([fitted[f"intercept_{at}"] for at in people]).mean(dim=0)
    with torch.no_grad():
        network.bias.copy_(intercept.view_as(network.bias))
        network.out.weight.mul_(scale * _moments(view.stimulus_ids, targets, kind)[1])


def _moments(ids: np.ndarray, targets: Targets, kind: str) -> tuple[np.ndarray, float]:
    """Mean of each target, and the deviation over stimuli (root of the mean variance), read in blocks."""
    total, squares = np.zeros(targets.shape(kind)), 0.0
    for start in range(0, len(ids), 256):
        block = targets.of(ids[start : start + 256], kind).astype(np.float64)
        total += block.sum(axis=0)
        squares += float((block**2).sum())
    mean = total / len(ids)
    return mean, float(np.sqrt(max(squares / len(ids) / mean.size - float((mean**2).mean()), 0.0)))
