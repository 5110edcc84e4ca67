"""Aggregation of what sites send: pure functions on dictionaries of named float32 tensors.

An *update* is what training at a site added to the global weights (`difference`). All sums are taken in float64 and
given back as float32. The functions see no module and keep no state; the moments of `FedAdam` go in and come out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from phosphene.errors import InputError
from phosphene.settings import Settings

__all__ = [
    "LEAST_MEDIAN",
    "FedAdam",
    "FedAdamSettings",
    "added",
    "clip_norm",
    "difference",
    "fedavg",
    "least_trimmed",
    "median",
    "total_norm",
    "trimmed_mean",
]

Named = Mapping[str, Tensor]

_BELOW = 1 - 2**-21  # a clipped update stays within the limit after rounding to float32
LEAST_MEDIAN = 3
"""Updates below which a median withstands nobody."""


def fedavg(updates: Sequence[Named], weights: Sequence[float]) -> dict[str, Tensor]:
    r"""Weighted mean :math:`\sum_k w_k u_k / \sum_k w_k` (McMahan et al., 2017).

    Parameters
    ----------
    updates : sequence of mapping of str to Tensor
        One of each site: the same names and shapes, float32, finite.
    weights : sequence of float
        Not negative, e.g. the number of trials a site trained on. The order of the sites changes the result by
        rounding in float64 alone.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    InputError
        Without updates, for updates that differ in names or shapes, are not float32 or not finite, and for weights
        that are negative, not finite or all zero.

    Examples
    --------
    >>> fedavg([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], [1, 3])["w"].tolist()
    [0.75, 0.75]
    """
    names = _checked(updates)
    if len(weights) != len(updates):
        raise InputError(f"{len(updates)} updates need as many weights, found {len(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise InputError(
            f"weights of sites must be finite, not negative and not all zero, found {[float(w) for w in weights]}"
        )
    share = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
    share = share / share.sum()
    return {
        name: torch.tensordot(share.to(stacked.device), stacked, dims=1).float()
        for name, stacked in _stacks(updates, names)
    }


def median(updates: Sequence[Named]) -> dict[str, Tensor]:
    """Median of each number over sites; of an even count, the mean of the two in the middle (Yin et al., 2018).

    Withstands ``(n - 1) // 2`` sites that send anything at all. Every site counts the same.

    Parameters
    ----------
    updates : sequence of mapping of str to Tensor
        At least 3, as of `fedavg`.

    Raises
    ------
    InputError
        For fewer than 3 updates (the median of two is their mean and withstands nobody) and as of `fedavg`.

    Examples
    --------
    >>> median([{"w": torch.tensor([value])} for value in (0.0, 1.0, 100.0)])["w"].tolist()
    [1.0]
    """
    names = _checked(updates)
    count = len(updates)
    if count < LEAST_MEDIAN:
        raise InputError(
            f"a median withstands no faulty site below {LEAST_MEDIAN} updates, found {count}: use fedavg, with a "
            f"limit on the norm of updates, or more sites"
        )
    middle = slice((count - 1) // 2, count // 2 + 1)
    return {name: stacked.sort(dim=0).values[middle].mean(dim=0).float() for name, stacked in _stacks(updates, names)}


def trimmed_mean(updates: Sequence[Named], beta: float) -> dict[str, Tensor]:
    """Mean of each number over sites without the lowest and the highest ``floor(beta n)`` (Yin et al., 2018).

    Withstands as many faulty sites as are left out at each end. Every site counts the same.

    Parameters
    ----------
    updates : sequence of mapping of str to Tensor
        As of `fedavg`; at least ``1 / beta``, so that something is trimmed.
    beta : float
        Share left out at each end, in (0, 0.5).

    Raises
    ------
    InputError
        For a `beta` out of range, for so few updates that nothing would be trimmed, and as of `fedavg`.

    Examples
    --------
    >>> sent = [{"w": torch.tensor([value])} for value in (-100.0, 1.0, 2.0, 3.0, 100.0)]
    >>> trimmed_mean(sent, 0.2)["w"].tolist()
    [2.0]
    """
    names = _checked(updates)
    if not 0 < beta < 0.5:
        raise InputError(f"beta of the trimmed mean is a share in (0, 0.5), found {beta}")
    count = len(updates)
    cut = math.floor(beta * count + 1e-9)
    if cut == 0:
        raise InputError(
            f"a trimmed mean with beta {beta} leaves out nobody of {count} updates and withstands no faulty site: "
            f"it needs at least {least_trimmed(beta)} sites, or a larger beta"
        )
    kept = slice(cut, count - cut)
    return {name: stacked.sort(dim=0).values[kept].mean(dim=0).float() for name, stacked in _stacks(updates, names)}


def least_trimmed(beta: float) -> int:
    """Updates from which a trimmed mean leaves out one at each end.

    Examples
    --------
    >>> least_trimmed(0.2)
    5
    """
    return math.ceil(1 / beta - 1e-9)


def total_norm(update: Named) -> float:
    """Euclidean norm of all numbers of an update together, in float64; not finite where one of them is not.

    Correctly rounded sums of the tensors' squares: the order of the names makes no difference.
    """
    return math.sqrt(math.fsum(float(tensor.detach().double().square().sum()) for tensor in update.values()))


def clip_norm(update: Named, limit: float) -> tuple[dict[str, Tensor], float]:
    r"""Scale an update to :math:`u \min(1, c / \lVert u \rVert)`; also its norm before.

    What was clipped lies below the limit after rounding to float32: the sensitivity that `privacy` counts on.

    Parameters
    ----------
    update : mapping of str to Tensor
    limit : float
        :math:`c`, above 0.

    Returns
    -------
    dict of str to Tensor
        Copies, also where nothing was clipped.
    float
        Euclidean norm of all numbers together before clipping.

    Raises
    ------
    InputError
        For a limit that is not a positive number and for an update that is not float32 and finite.

    Examples
    --------
    >>> clipped, norm = clip_norm({"w": torch.tensor([3.0, 4.0])}, 1.0)
    >>> norm, [round(value, 4) for value in clipped["w"].tolist()]
    (5.0, [0.6, 0.8])
    """
    if not (math.isfinite(limit) and limit > 0):
        raise InputError(f"the limit of an update's norm must be a number above 0, found {limit}")
    _checked([update])
    norm = total_norm(update)
    scale = 1.0 if norm <= limit else limit / norm * _BELOW
    return {name: (tensor.detach().double() * scale).float() for name, tensor in update.items()}, norm


def difference(after: Named, before: Named) -> dict[str, Tensor]:
    """What training added: ``after - before``, tensor by tensor.

    Raises
    ------
    InputError
        Where the two differ in names or shapes, are not float32 or not finite.
    """
    return {name: (after[name].detach().double() - before[name].double()).float() for name in _checked([after, before])}


def added(weights: Named, update: Named) -> dict[str, Tensor]:
    """Weights moved by an update: ``weights + update``, tensor by tensor; errors as of `difference`."""
    return {name: (weights[name].double() + update[name].double()).float() for name in _checked([weights, update])}


class FedAdamSettings(Settings):
    """Settings of the server's Adam (Reddi et al., 2021)."""

    learning_rate: float = Field(default=0.01, gt=0, description="length of a step in each number of the weights")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean of updates")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="decay of the mean of squared updates")
    tau: float = Field(default=1e-3, gt=0, description="below updates of this size, steps become smaller")


class FedAdam:
    r"""Adam at the server, with the mean update in the place of a gradient (Reddi et al., 2021, algorithm 2).

    .. math:: m_t = \beta_1 m_{t-1} + (1-\beta_1) \Delta_t,\quad v_t = \beta_2 v_{t-1} + (1-\beta_2) \Delta_t^2,\quad
              x_{t+1} = x_t + \eta\, m_t / (\sqrt{v_t} + \tau)

    with :math:`m_{-1} = 0` and :math:`v_{-1} = \tau^2`; no correction of the start, as in the paper.

    Parameters
    ----------
    settings : FedAdamSettings, optional
    """

    def __init__(self, settings: FedAdamSettings | None = None) -> None:
        self.settings = settings or FedAdamSettings()

    def step(
        self, weights: Named, mean_update: Named, moments: Named | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step of the server.

        Parameters
        ----------
        weights, mean_update : mapping of str to Tensor
            The same names and shapes.
        moments : mapping of str to Tensor, optional
            What the step before gave: ``mean.NAME`` and ``square.NAME`` of every tensor. By default, or empty, the
            start.

        Returns
        -------
        weights, moments : dict of str to Tensor
            New ones; nothing given is changed.

        Raises
        ------
        InputError
            Where weights, update and moments do not belong together.
        """
        names = _checked([weights, mean_update])
        beta1, beta2, tau = self.settings.beta1, self.settings.beta2, self.settings.tau
        before = {f"{kind}.{name}": weights[name] for kind in ("mean", "square") for name in names}
        if moments:
            _checked([before, moments])
        moved, after = {}, {}
        for name in names:
            update = mean_update[name].double()
            mean = moments[f"mean.{name}"].double() if moments else torch.zeros_like(update)
            square = moments[f"square.{name}"].double() if moments else torch.full_like(update, tau**2)
            mean = beta1 * mean + (1 - beta1) * update
            square = beta2 * square + (1 - beta2) * update.square()
            step = self.settings.learning_rate * mean / (square.sqrt() + tau)
            moved[name] = (weights[name].double() + step).float()
            after[f"mean.{name}"], after[f"square.{name}"] = mean.float(), square.float()
        return moved, after


def _stacks(updates: Sequence[Named], names: Sequence[str]) -> list[tuple[str, Tensor]]:
    """Of each name, the tensors of all sites in float64: (sites, ...)."""
    return [(name, torch.stack([update[name].detach().double() for update in updates])) for name in names]


def _checked(updates: Sequence[Named]) -> list[str]:
    """Names of the tensors, in the first's order, when all agree."""
    if not updates:
        raise InputError("there is no update to aggregate")
    first = updates[0]
    for number, update in enumerate(updates):
        for name in sorted(first.keys() ^ update.keys()):
            fault = "lacks" if name in first else "has one tensor too many,"
            raise InputError(f"update {number} {fault} {name!r}")
        for name, tensor in update.items():
            if tensor.shape != first[name].shape:
                raise InputError(
                    f"{name!r} has shape {tuple(tensor.shape)} in update {number}, "
                    f"{tuple(first[name].shape)} in the first"
                )
            if tensor.dtype != torch.float32:
                raise InputError(f"{name!r} is {tensor.dtype} in update {number}: only torch.float32 is aggregated")
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{name!r} holds numbers that are not finite in update {number}")
    return list(first)
