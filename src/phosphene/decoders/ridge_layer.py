"""Closed forms of input layers: from voxels to scores of the targets' components, and from these into a network.

Scores are ``z = P (y - mean) / sigma``, with P (k, D) the first principal components of the training targets as rows
and sigma their deviations. Kept with the decoder, so that people who come later need no data of those before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from phosphene.decoders.borrowed import Borrowed
from phosphene.decoders.ridge import RidgeConfig, fit_ridge, fit_ridge_and_left_out
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["Components", "RidgeLayer", "principal_components"]

_BLOCK = 256
_MOST_STIMULI, _MOST_NUMBERS = 4096, 2 * 10**8  # of targets held at once
_MOST_SPREAD = 4.0  # times what ridge says, at most: noise alone must not be blown up without end
_LEAST = 1e-6  # variance of a component, relative to the first


class Components(NamedTuple):
    """Principal components of targets: mean (D,), components (k, D), deviations (k,)."""

    centre: Tensor
    components: Tensor
    deviation: Tensor


def principal_components(view: StudyView, targets: Targets, kind: str, rank: int) -> Components:
    """First principal components of the targets of the stimuli somebody saw (of some of them where there are many).

    Raises
    ------
    InputError
        For targets that do not vary.
    """
    seen = np.unique(np.concatenate([view.trials(subject)["stimulus_id"] for subject in view.subjects]))
    width = int(np.prod(targets.shape(kind)))
    most = max(rank + 1, min(_MOST_STIMULI, _MOST_NUMBERS // width))
    picked = seen[np.unique(np.linspace(0, len(seen) - 1, min(len(seen), most)).astype(int))]
    y = torch.from_numpy(targets.of(picked, kind).reshape(len(picked), -1))
    centre = y.mean(dim=0)
    y = (y - centre).double() if y.numel() <= 10**7 else y - centre
    small = y.T @ y if y.shape[1] <= len(y) else y @ y.T
    values, vectors = torch.linalg.eigh(small)
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    keep = values > _LEAST * values[0].clamp_min(1e-30)
    if not keep.any() or float(values[0]) <= 1e-12 * y.numel():
        raise InputError(f"the targets of the {len(picked)} training stimuli do not vary: nothing can be learnt")
    values, vectors = values[keep], vectors[:, keep]
    components = vectors.T if y.shape[1] <= len(y) else (y.T @ vectors / values.sqrt()).T
    return Components(centre.float(), components.float().contiguous(), (values / len(y)).sqrt().float())


class RidgeLayer(nn.Module):
    """What the closed form of an input layer needs: components of the targets, and their lift into the network.

    Parameters
    ----------
    n_outputs : int
        Numbers in a target.
    """

    most = 4096
    """Responses of each person from which the lift is learnt."""
    centre: Tensor
    components: Tensor
    deviation: Tensor
    lift: Tensor
    offset: Tensor
    spread: Tensor

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_outputs))
        self.register_buffer("components", torch.empty(0, n_outputs))
        for name in ("deviation", "lift", "offset"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("spread", torch.zeros(()))  # of the scores that the trained network reads; before: none

    def set(self, basis: Components, lift: Tensor, offset: Tensor) -> None:
        """Set components, and the map from scores into the network, ``(width, k)`` and ``(width,)``."""
        self.centre, self.components, self.deviation = basis
        self.lift, self.offset, self.spread = lift, offset, torch.zeros(())

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Give buffers the shapes they have in a file."""
        for name, tensor in tensors.items():
            self.register_buffer(name, torch.empty(tensor.shape))

    def scores(self, ids: np.ndarray, targets: Targets, kind: str) -> Tensor:
        """Scores of stimuli, ``(n, k)``; targets are read in blocks."""
        parts = [
            (torch.from_numpy(targets.of(ids[at : at + _BLOCK], kind)).flatten(1) - self.centre) @ self.components.T
            for at in range(0, len(ids), _BLOCK)
        ]
        return torch.cat(parts) / self.deviation

    def solve(
        self,
        ids: Sequence[np.ndarray],
        x: Tensor,
        view: StudyView,
        targets: Targets,
        kind: str,
        who: str,
        borrowed: Borrowed | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Weight ``(width, V)`` and bias ``(width,)`` of an input layer, from responses x ``(n, V)`` to stimuli.

        With what is `borrowed` from other people ridge corrects their prediction, unless alone it says more of left-out
        trials. Ridge shrinks what it doubts, the more the fewer the trials, and a trained network would read that as
        pictures that are all alike: scores are spread, on left-out trials, as those that it was trained to read.
        """
        names = np.concatenate(ids)
        if not self.spread:  # nothing is trained yet
            weight, intercept = self._ridge(ids, x, view, targets, kind, who)
            return self.lift @ weight.T, self.lift @ intercept + self.offset
        dtype, units = _precision(x), view.units_of(names)
        x, z = x.to(dtype), self.scores(names, targets, kind).to(dtype)
        starts = [_beside(x, z, units, each, who) for each in ([None] if borrowed is None else [None, borrowed])]
        said, weight = max(starts, key=lambda start: _agreement(start[0], z))
        weight = weight * float(self.spread / _spread(said).clamp_min(float(self.spread) / _MOST_SPREAD))
        intercept = z.mean(dim=0) - x.mean(dim=0) @ weight
        return self.lift @ weight.T.float(), self.lift @ intercept.float() + self.offset

    def _ridge(
        self, ids: Sequence[np.ndarray], x: Tensor, view: StudyView, targets: Targets, kind: str, who: str
    ) -> tuple[Tensor, Tensor]:
        names = np.concatenate(ids)
        units = view.units_of(names)
        dtype = _precision(x)
        z = self.scores(names, targets, kind).to(dtype)
        weight, intercept, _ = fit_ridge(x.to(dtype), z, units, RidgeConfig(), who)
        return weight.float(), intercept.float()

    def learn_lift(
        self, ids: Sequence[np.ndarray], hidden: Tensor, view: StudyView, targets: Targets, kind: str
    ) -> None:
        """Find the lift that turns scores into a trained network's activations, ``(n, width)``.

        The activations are regressed on the scores that are linear in them, not on the true ones: these would be
        attenuated twice, once here and once by the ridge solution of the person who is added.
        """
        weight, intercept = self._ridge(ids, hidden, view, targets, kind, "the trained input layers")
        said = (hidden @ weight + intercept).double()
        self.spread = _spread(said).float()
        mean, centre = said.mean(dim=0), hidden.double().mean(dim=0)
        said, h = said - mean, hidden.double() - centre
        gram = said.T @ said
        gram.diagonal().add_(1e-2 * gram.diagonal().mean())
        lift = torch.linalg.solve(gram, said.T @ h).T
        self.lift, self.offset = lift.float().contiguous(), (centre - lift @ mean).float()


def _beside(x: Tensor, z: Tensor, units: np.ndarray, borrowed: Borrowed | None, who: str) -> tuple[Tensor, Tensor]:
    """Scores of left-out trials ``(n, k)`` by ridge beside what is borrowed, and the weight ``(V, k)`` of both."""
    config, prior = RidgeConfig(), torch.zeros_like(z)
    if borrowed is not None:
        prior = x @ borrowed.matrix.to(x) + borrowed.offset.to(x)
    weight, rest = fit_ridge_and_left_out(x, z - prior, units, config, who)
    return prior + rest, weight if borrowed is None else weight + borrowed.matrix.to(x)


def _precision(x: Tensor) -> torch.dtype:
    """Double while it is cheap; penalties near zero need it."""
    return torch.float64 if min(x.shape) <= 3000 else torch.float32


def _agreement(said: Tensor, z: Tensor) -> float:
    """Correlation of all scores together, each with a mean of zero; how far they are spread does not matter."""
    said, z = said - said.mean(dim=0), z - z.mean(dim=0)
    return float((said * z).sum() / (said.norm() * z.norm()).clamp_min(1e-12))


def _spread(scores: Tensor) -> Tensor:
    """Root of the mean variance of scores ``(n, k)``."""
    return scores.var(dim=0, unbiased=False).mean().sqrt()
