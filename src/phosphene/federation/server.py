"""The server's part of a round: rubbish is refused by name, the rest is aggregated, and too little is an error."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median as middle

import torch
from torch import Tensor

from phosphene.errors import FederationError, InputError
from phosphene.federation.aggregation import (
    LEAST_MEDIAN,
    FedAdam,
    added,
    clip_norm,
    difference,
    fedavg,
    least_trimmed,
    median,
    total_norm,
    trimmed_mean,
)
from phosphene.federation.library import NEVER, PrototypeLibrary
from phosphene.federation.model import PmcmModel
from phosphene.federation.randomness import seed_of
from phosphene.federation.settings import FederationSettings, ServerSettings
from phosphene.federation.state import Agreement, Contribution, GlobalState, RoundReport
from phosphene.federation.trials import MODALITIES

__all__ = ["check_asked", "first_state", "groups", "next_state", "server_update", "usable"]

log = logging.getLogger(__name__)

_RATIO_FROM = 3  # sites from which a norm is called too large beside the others'


def check_asked(server: ServerSettings, asked: int, sites: int) -> None:
    """Refuse a run whose rounds ask fewer sites than the server needs answers.

    Parameters
    ----------
    server : ServerSettings
    asked, sites : int
        Sites that are asked in a round, of all.

    Raises
    ------
    InputError
        For fewer than the quorum, or than the aggregator needs.
    """
    if server.quorum > asked:
        raise InputError(f"the quorum is {server.quorum}, and {asked} of {sites} sites are asked in a round")
    if (least := _least(server)) > asked:
        own = f" at a server.trim of {server.trim:g}" if server.aggregator == "trimmed-mean" else ""
        raise InputError(
            f"the aggregator {server.aggregator} needs {least} sites{own}, and {asked} of {sites} are asked in a round"
        )


def first_state(agreement: Agreement, settings: FederationSettings) -> GlobalState:
    """The state before the first round: weights from the seed, a library of nothing."""
    model = PmcmModel(settings.model, agreement, seed_of(settings.seed, "model"))
    library = PrototypeLibrary.empty(len(agreement.classes), settings.model.width, settings.library.centres)
    return GlobalState(model.shared_state(), library, agreement)


def server_update(
    shared: GlobalState, contributions: Sequence[Contribution], settings: FederationSettings, noised: bool = False
) -> GlobalState:
    """The next state of the server from what the sites sent.

    The order in which contributions arrive makes no difference. What was refused, and why, is in the new state's
    `report`.

    Parameters
    ----------
    shared : GlobalState
        The one that the sites trained from.
    contributions : sequence of Contribution
    settings : FederationSettings
    noised : bool
        Whether sites add noise to sums and counts (`protected.protected_update`): single cells of theirs, which may
        be of less than no trial, are not judged then.

    Raises
    ------
    FederationError
        For fewer usable contributions than the quorum; also when there is none at all.
    InputError
        For fewer contributions than a robust aggregator needs. Where enough sites answered and too few of them have a
        modality, its encoder stays as it is, and the report says so (`RoundReport.unmoved`).
    """
    good, refused = usable(shared, contributions, settings, noised)
    for site, reason in sorted(refused.items()):
        log.warning("round %d: the contribution of %s is refused: %s", shared.round + 1, site, reason)
    if len(good) < settings.server.quorum:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(refused.items()))
        raise FederationError(
            f"round {shared.round + 1} has {len(good)} usable contributions, {settings.server.quorum} are needed"
            + (f"; refused: {reasons}" if refused else "; no other site sent anything")
        )
    added_up = PrototypeLibrary.of_sites if settings.library.weighting == "sites" else PrototypeLibrary.total
    sent = added_up([each.library for each in good])
    norms = {each.site: total_norm(difference(each.weights, shared.weights)) for each in good}
    return next_state(shared, _mean_weights(shared, good, settings.server), sent, settings, norms, refused)


def next_state(
    shared: GlobalState,
    mean: dict[str, Tensor],
    sent: PrototypeLibrary,
    settings: FederationSettings,
    used: Mapping[str, float | None],
    refused: Mapping[str, str] | None = None,
) -> GlobalState:
    """The state after a round, once weights are averaged and prototypes added up.

    Parameters
    ----------
    shared : GlobalState
    mean : dict of str to Tensor
        Weights after the round; the server's optimiser, where there is one, goes towards them.
    sent : PrototypeLibrary
        The sum of the sites'.
    settings : FederationSettings
    used, refused : mapping
        For the `RoundReport`.
    """
    weights, moments = mean, dict[str, Tensor]()
    if settings.server.aggregator == "fedadam":
        towards = difference(mean, shared.weights)
        weights, moments = FedAdam(settings.server.fedadam).step(shared.weights, towards, shared.moments)
    library = shared.library.renewed(sent, settings.library)
    few = (sent.counts > 0) & (sent.counts < settings.library.min_count)
    without = (library.age == NEVER).all(dim=0) & settings.reads_prototypes
    lacking = [name for name, lacks in zip(shared.agreement.classes, without.tolist(), strict=True) if lacks]
    if lacking:
        log.info("round %d: no prototype of %s", shared.round + 1, ", ".join(lacking))
    report = RoundReport(
        shared.round + 1,
        dict(used),
        dict(refused or {}),
        lacking,
        int(few.sum()),
        unmoved=_unmoved(shared.weights, weights),
    )
    return GlobalState(weights, library, shared.agreement, shared.round + 1, moments, report)


# -- refusing -------------------------------------------------------------------------------------------------------


def usable(
    shared: GlobalState, contributions: Sequence[Contribution], settings: FederationSettings, noised: bool = False
) -> tuple[list[Contribution], dict[str, str]]:
    """Contributions that may count, by site's name, and the others' reasons.

    A norm beyond `max_ratio` medians of all sites' norms is refused where at least three contributions are left by
    the other checks; the same holds for the largest prototype.
    """
    good: list[Contribution] = []
    refused: dict[str, str] = {}
    often = Counter(each.site for each in contributions)
    for each in sorted(contributions, key=lambda one: one.site):
        twice = "the site sent more than one contribution in the round" if often[each.site] > 1 else ""
        if reason := twice or _fault(each, shared, settings, noised):
            refused[each.site] = reason
        else:
            good.append(each)
    norms = {each.site: total_norm(difference(each.weights, shared.weights)) for each in good}
    sizes = {} if noised else {each.site: _largest_prototype(each.library) for each in good}
    for what, found in (("its update has norm", norms), ("its largest prototype has norm", sizes)):
        for site, reason in _too_large(what, found, settings.server).items():
            refused.setdefault(site, reason)
    return [each for each in good if each.site not in refused], refused


def _too_large(what: str, norms: Mapping[str, float], server: ServerSettings) -> dict[str, str]:
    limit, words = math.inf, ""
    if server.max_ratio is not None and len(norms) >= _RATIO_FROM:
        usual = middle(norms.values())
        if usual > 0:
            limit, words = server.max_ratio * usual, f"{server.max_ratio:g} times the median of all sites"
    if server.max_norm is not None and what.startswith("its update") and server.max_norm < limit:
        limit, words = server.max_norm, "server.max_norm"
    return {site: f"{what} {norm:.4g}, more than {limit:.4g} ({words})" for site, norm in norms.items() if norm > limit}


def _largest_prototype(library: PrototypeLibrary) -> float:
    return float(library.release().vectors.norm(dim=-1).max())


def _fault(each: Contribution, shared: GlobalState, settings: FederationSettings, noised: bool) -> str:
    """Why a contribution cannot be used by itself; empty where it can."""
    if each.round != shared.round + 1:
        return f"it was trained for round {each.round}, this is round {shared.round + 1}"
    if differ := each.agreement.differences(shared.agreement):
        return f"it does not agree with the others: {'; '.join(differ)}"
    if each.n_trials < 1:
        return f"it counts {each.n_trials} trials"
    if len(each.n_present) != len(MODALITIES) or not all(0 <= n <= each.n_trials for n in each.n_present):
        return f"it has {each.n_trials} trials, of which {each.n_present[:3]} have fMRI, image and text"
    return _weights_fault(each.weights, shared.weights) or _library_fault(each, shared, settings, noised)


def _weights_fault(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    if lacking := sorted(expected.keys() - found.keys()):
        return f"its weights lack {lacking[0]!r}" + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else "")
    if unknown := len(found.keys() - expected.keys()):  # their names may be any text: it is not passed on
        return f"its weights have {unknown} tensor{'s' if unknown > 1 else ''} that the network has not"
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            return (
                f"{name!r} is {tuple(tensor.shape)} {tensor.dtype}, the others have {tuple(expected[name].shape)} "
                f"{expected[name].dtype}"
            )
        if not bool(torch.isfinite(tensor).all()):
            return f"{name!r} holds numbers that are not finite"
    return ""


def _library_fault(each: Contribution, shared: GlobalState, settings: FederationSettings, noised: bool) -> str:
    found, expected = each.library, shared.library
    if found.sums.shape != expected.sums.shape:
        return f"its library has {found.words}, the others' {expected.words}"
    if not bool(torch.isfinite(found.sums).all() and torch.isfinite(found.counts).all()):
        return "its library holds numbers that are not finite"
    if noised:
        return ""
    if bool((found.counts < 0).any()) or bool((found.counts.sum(dim=2) > each.n_trials).any()):
        return f"its library counts from {found.counts.min():g} to {found.counts.max():g} of {each.n_trials} trials"
    if bool((found.sums[found.counts == 0] != 0).any()):
        return "its library has sums of classes of which it counts no trial"
    limit = settings.library.feature_limit
    if limit is not None and (largest := _largest_prototype(found)) > limit * (1 + 1e-3) + 1e-3:
        return f"its largest prototype has norm {largest:.4g}, features are cut at {limit:g}"
    return ""


# -- aggregating ----------------------------------------------------------------------------------------------------


def _mean_weights(shared: GlobalState, good: Sequence[Contribution], server: ServerSettings) -> dict[str, Tensor]:
    """Weights after a round; each group of tensors is aggregated over the sites that trained it."""
    after = dict(shared.weights)
    least = _least(server)
    for names, weights in groups(list(shared.weights), good, server):
        before = {name: shared.weights[name] for name in names}
        taking = [(each, weight) for each, weight in zip(good, weights, strict=True) if weight > 0]
        if len(taking) < least <= len(good):
            log.warning(
                "round %d: the encoder of %s stays as it was: %d of %d sites have the modality, a %s needs %d",
                *(shared.round + 1, names[0].split(".")[0], len(taking), len(good), server.aggregator, least),
            )
            continue
        if not taking:  # nobody has this modality: the encoder stays as it is
            continue
        sent = [{name: each.weights[name] for name in names} for each, _ in taking]
        after |= _aggregated(
            before, sent, [weight for _, weight in taking], server, [each for each, _ in taking], shared
        )
    return after


def _least(server: ServerSettings) -> int:
    """Updates that the aggregator needs."""
    return {"median": LEAST_MEDIAN, "trimmed-mean": least_trimmed(server.trim)}.get(server.aggregator, 1)


def _aggregated(
    before: dict[str, Tensor],
    sent: list[dict[str, Tensor]],
    weights: list[float],
    server: ServerSettings,
    sites: list[Contribution],
    shared: GlobalState,
) -> dict[str, Tensor]:
    """One group of tensors. Weights are averaged as they are: of one site they come back to the bit."""
    if server.update_limit is not None:
        whole = [clip_norm(difference(each.weights, shared.weights), server.update_limit)[0] for each in sites]
        sent = [added(before, {name: update[name] for name in before}) for update in whole]
    if server.aggregator == "median":
        return median(sent)
    if server.aggregator == "trimmed-mean":
        return trimmed_mean(sent, server.trim)
    return fedavg(sent, weights)


def groups(
    names: Sequence[str], good: Sequence[Contribution], server: ServerSettings
) -> list[tuple[list[str], list[float]]]:
    """Groups of tensors that are averaged with the same weights, and the weight of each site in each."""
    if server.weighting != "modality":
        return [(list(names), [1.0 if server.weighting == "equal" else float(each.n_trials) for each in good])]
    own = {m: _encoder(modality, names) for m, modality in enumerate(MODALITIES)}
    rest = [name for name in names if not any(name in group for group in own.values())]
    encoders = [(group, [float(each.n_present[m]) for each in good]) for m, group in own.items()]
    return [*encoders, (rest, [float(each.n_trials) for each in good])]


def _encoder(modality: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{modality}.")]


def _unmoved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Modalities whose encoder is the same to the bit."""
    encoders = {modality: _encoder(modality, before) for modality in MODALITIES}
    return [m for m, names in encoders.items() if names and all(torch.equal(before[n], after[n]) for n in names)]
