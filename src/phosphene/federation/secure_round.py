r"""A round of which the server sees sums alone: what a site puts into the sum, and what the server makes of the total.

A site `k` sends, under the masks of `secure_sum`, its weights times what they count for, :math:`n_k w_k`, the
:math:`n_k` themselves, its prototype sums and counts, and its loss times its trials. The server divides totals:
:math:`\sum_k n_k w_k / \sum_k n_k` is the weighted mean of `aggregation.fedavg` to half a step of 2^-30 a site over
:math:`\sum_k n_k`; sums and counts of prototypes are multiples of that step and come out as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phosphene.errors import FederationError, InputError
from phosphene.federation.library import NEVER, PrototypeLibrary
from phosphene.federation.secure_sum import Masked, SecureSum, check_compatible
from phosphene.federation.server import groups, next_state
from phosphene.federation.settings import FederationSettings, ServerSettings
from phosphene.federation.state import Contribution, GlobalState

__all__ = ["LEAST", "Summed", "add_up", "check_summable", "mean_loss", "server_update_of_sum", "summand"]

LEAST = 3  # in a sum of two sites each knows the other's part
_LOSS = "loss total"


@dataclass(frozen=True, eq=False)
class Summed:
    """All that the server sees of a round of secure summation.

    Attributes
    ----------
    sites : tuple of str
        Whose parts are in the sum, by name.
    round : int
    tensors : dict of str to Tensor
        float64: the sums of what `summand` makes.
    """

    sites: tuple[str, ...]
    round: int
    tensors: dict[str, Tensor]


def check_summable(settings: FederationSettings) -> None:
    """Refuse settings under which the server looks at single contributions.

    Raises
    ------
    InputError
        Naming them.
    """
    server = settings.server
    if settings.library.weighting == "sites":
        raise InputError(
            "secure summation shows the server nothing but the sum, and library.weighting = sites divides by counts of "
            "single sites: set it to counts"
        )
    check_compatible(
        server.aggregator,
        **{f"server.{name}": getattr(server, name) for name in ("max_norm", "max_ratio", "update_limit")},
    )


def summand(sent: Contribution, settings: FederationSettings) -> dict[str, Tensor]:
    """What a site puts into the sum, for `secure_sum.SecureSum.mask`: numbers that say something when added up.

    Parameters
    ----------
    sent : Contribution
    settings : FederationSettings
        Where `server.weighting` says what the weights of a site count for, and whether prototypes are read at all.
    """
    made = {}
    for number, (names, (weight,)) in enumerate(groups(list(sent.weights), [sent], settings.server)):
        made[f"weight/{number}"] = torch.tensor(weight, dtype=torch.float64)
        made |= {f"weights/{name}": sent.weights[name].double() * weight for name in names}
    trials = float(sent.n_trials) if _LOSS in sent.metrics else 0.0
    if settings.reads_prototypes:
        made |= {"library/sums": sent.library.sums, "library/counts": sent.library.counts}
    return made | {
        "loss/sum": torch.tensor(trials * sent.metrics.get(_LOSS, 0.0), dtype=torch.float64),
        "loss/trials": torch.tensor(trials, dtype=torch.float64),
    }


def add_up(summation: SecureSum, sent: Sequence[Masked]) -> Summed:
    """What the server sees of masked parts; errors as of `secure_sum.SecureSum.total`."""
    return Summed(tuple(sorted(each.site for each in sent)), summation.turn, summation.total(sent))


def summed_library(tensors: Mapping[str, Tensor], like: PrototypeLibrary) -> PrototypeLibrary:
    """The sites' libraries added up; one of nothing, of the size of `like`, where nobody reads prototypes."""
    if "library/sums" not in tensors:
        _, classes, centres, width = like.sums.shape
        return PrototypeLibrary.empty(classes, width, centres)
    sums, counts = tensors["library/sums"], tensors["library/counts"]
    return PrototypeLibrary(sums, counts, torch.where((counts > 0).any(dim=2), 0, NEVER))


def mean_loss(summed: Summed) -> float | None:
    """Mean loss over the trials of all sites; None where no site tells its own."""
    trials = float(summed.tensors["loss/trials"])
    return float(summed.tensors["loss/sum"]) / trials if trials else None


def server_update_of_sum(
    shared: GlobalState, summed: Summed, settings: FederationSettings, noised: bool = False
) -> GlobalState:
    """The next state of the server from the sum of what sites sent: `server.server_update` that sees no site's part.

    Parameters
    ----------
    shared : GlobalState
        The one that the sites trained from.
    summed : Summed
    settings : FederationSettings
    noised : bool
        Whether sites add noise to sums and counts.

    Raises
    ------
    FederationError
        For a sum of fewer sites than the quorum, of another round, or of less than no trial.
    InputError
        As of `check_summable`.
    """
    check_summable(settings)
    round_, quorum = shared.round + 1, settings.server.quorum
    if summed.round != round_:
        raise FederationError(f"the sum is of round {summed.round}, this is round {round_}")
    if len(summed.sites) < quorum:
        raise FederationError(f"round {round_} has a sum of {len(summed.sites)} sites, {quorum} are needed")
    library = summed_library(summed.tensors, shared.library)
    if not noised and bool((library.counts < 0).any()):
        least = float(library.counts.min())
        raise FederationError(f"the sum of round {round_} counts {least:g} trials: a site sends rubbish")
    return next_state(shared, _mean(shared, summed, settings.server), library, settings, dict.fromkeys(summed.sites))


def _mean(shared: GlobalState, summed: Summed, server: ServerSettings) -> dict[str, Tensor]:
    """Mean weights; a group of tensors that counts for nothing at any site stays as it is."""
    after = dict(shared.weights)
    for number, (names, _) in enumerate(groups(list(shared.weights), [], server)):
        weight = summed.tensors[f"weight/{number}"]
        if float(weight) > 0:
            after |= {name: (summed.tensors[f"weights/{name}"] / weight).float() for name in names}
    return after
