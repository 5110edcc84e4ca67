"""Where training starts at what has a closed form: the mean target, ridge in a linear path, and what is individual."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from phosphene.decoders.base import Decoder
from phosphene.decoders.common_ridge import CommonRidge
from phosphene.decoders.ridge import Ridge, RidgeConfig, fit_ridge_beside, ridge_out_of_fold
from phosphene.nn.adapter import AdaptedLinear, AdapterBank, LowRank
from phosphene.nn.readout import LinearPath

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = [
    "class_slopes",
    "start_at_mean",
    "start_at_ridge",
    "start_by_counting",
    "start_classes",
    "start_individually",
]

_People = Mapping[str, tuple[np.ndarray, np.ndarray, Tensor]]  # ids, units, responses


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
    weights, intercept = _solution(ridge, len(linear.people))
    components = ridge.components
    if not len(components):
        components = torch.eye(decoder.n_outputs, device=components.device)
    linear.start(components, weights)
    with torch.no_grad():
        network.bias.copy_(intercept.view_as(network.bias))
        network.out.weight.mul_(scale * _moments(view.stimulus_ids, targets, kind)[1])


def start_classes(
    decoder: Decoder, path: LinearPath, readout: nn.Module, scale: float, view: StudyView, labels: Mapping[str, Tensor]
) -> None:
    """Set a linear path to the logits that ridge makes of labels; the network adds little to them.

    Ridge says how much likelier than on average a class is; at small changes the logit moves by that over p (1 - p).

    Parameters
    ----------
    labels : mapping of stimulus id to Tensor (classes,)
        0 or 1.
    decoder, readout, scale, view
        As in `start_at_ridge`, after which this is to be called.
    """
    network: Any = readout
    share, slope = class_slopes(labels)
    ridge = Ridge(RidgeConfig(pool_subjects=decoder.subject_free), decoder.subjects, (len(share),))
    ridge.to(network.bias.device).solve_for(view, lambda ids: torch.stack([labels[name] for name in ids]).numpy())
    weights, intercept = _solution(ridge, len(path.people))
    path.start(torch.eye(len(share), device=intercept.device), [weight * slope.to(weight) for weight in weights])
    with torch.no_grad():
        network.bias.copy_(torch.logit(share).to(intercept) + (intercept - share.to(intercept)) * slope.to(intercept))
        network.out.weight.mul_(scale)


def class_slopes(labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Share p of stimuli that have each class, never 0 or 1, and the slope of its logit, 1 / (p (1 - p))."""
    n = len(labels)
    share = torch.stack(list(labels.values())).mean(dim=0).clamp(0.5 / n, 1 - 0.5 / n)
    return share, 1 / (share * (1 - share))


def start_individually(
    path: LinearPath,
    people: _People,
    wanted: Callable[[np.ndarray], Tensor],
    known: bool,
) -> None:
    """Start people's private experts on a linear path at the difference between their own map and the common one.

    A person's scores are ridge beside a share of the common prediction (`fit_ridge_beside`); inner folds choose the
    penalty of each score and the share of all, so that little is changed where people are alike.

    Parameters
    ----------
    path : LinearPath
        With one input for all; where it carries no private experts nothing is done.
    people : mapping of subject to (ids, units, responses (n, voxels))
        Averaged training responses, as the path sees them.
    wanted : callable
        What the path's output should be for stimulus ids, ``(n, out)``.
    known : bool
        Whether the path was trained on these people: what it would say of trials it has not seen is then found by
        ridge over all of them, fitted without each fold.
    """
    experts = _private_experts(path)
    if not experts:
        return
    config, scores = RidgeConfig(), _scores(path, people, wanted)
    common = cast(Tensor, path.people[0].weight).detach()
    if known:
        x, z, units = _together(people, scores)
        said = ridge_out_of_fold(x.double(), z, units, config)
        prior = dict(zip(people, said.split([len(z) for z in scores.values()]), strict=True))
    else:
        prior = {subject: (responses @ common.T).double() for subject, (_, _, responses) in people.items()}
    for subject, (_, units, responses) in people.items():
        own, share = fit_ridge_beside(responses.double(), scores[subject], prior[subject], units, config, subject)
        change = own.T.float() + (share - 1) * common
        _set(experts[subject], change, responses)


@torch.no_grad()
def start_by_counting(
    path: LinearPath,
    people: _People,
    wanted: Callable[[np.ndarray], Tensor],
    known: bool,
    shared: CommonRidge,
    times: float,
) -> None:
    """Start people's private experts where everybody's ridge would be, had their own responses counted more often.

    Parameters
    ----------
    path, people, wanted, known
        As of `start_individually`.
    shared : CommonRidge
        Learnt here from these people where they are known.
    times : float
        How many times more.
    """
    experts = _private_experts(path)
    if not experts:
        return
    common, scores = cast(Tensor, path.people[0].weight), _scores(path, people, wanted)
    if known:
        shared.learn(*_together(people, scores))
    for subject, (_, _, responses) in people.items():
        change = shared.change(responses, scores[subject] - (responses @ common.T).double(), times)
        _set(experts[subject], change.T.float(), responses)


def _private_experts(path: LinearPath) -> dict[str, LowRank]:
    """Everybody's private expert on the input of a linear path; none where it carries none."""
    layer = path.people[0]
    if not isinstance(layer, AdaptedLinear) or "own" not in layer.parts:
        return {}
    bank = cast(AdapterBank, layer.parts["own"])
    return {subject: cast(LowRank, bank.get_submodule(key)) for subject, key in bank.keys.items()}


def _scores(path: LinearPath, people: _People, wanted: Callable[[np.ndarray], Tensor]) -> dict[str, Tensor]:
    """Of what each person's output should be, the scores in the path's basis, ``(n, scores)``."""
    to_scores = torch.linalg.pinv(path.basis.detach().double())
    return {subject: wanted(ids).double() @ to_scores for subject, (ids, _, _) in people.items()}


def _together(people: _People, scores: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, np.ndarray]:
    """Responses, scores and units of all people, one below the other."""
    responses = torch.cat([each for _, _, each in people.values()])
    return responses, torch.cat(list(scores.values())), np.concatenate([units for _, units, _ in people.values()])


@torch.no_grad()
def _set(adapter: LowRank, change: Tensor, responses: Tensor) -> None:
    """Set an adapter to a change ``(n_out, n_in)``, or to what of it moves outputs for these responses most."""
    strongest = torch.linalg.svd(responses @ change.T, full_matrices=False)[2][: len(adapter.a)]
    adapter.b.zero_()
    adapter.a[: len(strongest)] = strongest @ change
    adapter.b[:, : len(strongest)] = strongest.T / adapter.scale


def _solution(ridge: Ridge, inputs: int) -> tuple[list[Tensor], Tensor]:
    """Weights of every input ``(V, k)``, and the mean intercept."""
    fitted = dict(ridge.named_buffers())
    intercepts = torch.stack([fitted[f"intercept_{at}"] for at in range(inputs)])
    return [fitted[f"weight_{at}"] for at in range(inputs)], intercepts.mean(dim=0)


def _moments(ids: np.ndarray, targets: Targets, kind: str) -> tuple[np.ndarray, float]:
    """Mean of each target, and the deviation over stimuli (root of the mean variance), read in blocks."""
    total, squares = np.zeros(targets.shape(kind)), 0.0
    for start in range(0, len(ids), 256):
        block = targets.of(ids[start : start + 256], kind).astype(np.float64)
        total += block.sum(axis=0)
        squares += float((block**2).sum())
    mean = total / len(ids)
    return mean, float(np.sqrt(max(squares / len(ids) / mean.size - float((mean**2).mean()), 0.0)))
