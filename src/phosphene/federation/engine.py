"""Rounds in one process: deterministic, resumed to the same bits after a kill, and borne on when sites fail."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from phosphene.errors import FederationError, InputError
from phosphene.federation.accounting import Accountant, Unit
from phosphene.federation.client import client_update
from phosphene.federation.faults import NOT_FINITE, SPENT, Fault, check_faults, reason_of, spoiled
from phosphene.federation.missing import fractions
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.protected import check_protection, noised, planned_releases, protected_update
from phosphene.federation.randomness import drawn, n_drawn
from phosphene.federation.run_state import ALL_SITES, Federated, RoundRecord, RunFolder, digest_of
from phosphene.federation.secure_round import (
    LEAST,
    add_up,
    check_summable,
    mean_loss,
    server_update_of_sum,
    summand,
    summed_library,
)
from phosphene.federation.secure_sum import Masked, SecureSum
from phosphene.federation.server import check_asked, first_state, server_update
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Contribution, GlobalState, SiteState, check_agreement
from phosphene.training.progress import progress_bar

__all__ = ["RoundFailure", "Watch", "federate"]

log = logging.getLogger(__name__)

Watch = Callable[[SiteState, GlobalState], None]

_NOT_SUMMABLE = "what it would send holds numbers that are not finite, or too large to be added up"


class RoundFailure(FederationError):
    """A round had too few usable contributions.

    Attributes
    ----------
    last : Federated
        After the last round that was good, with what the failed one released counted.
    """

    def __init__(self, message: str, last: Federated) -> None:
        super().__init__(message)
        self.last = last


def federate(
    sites: Mapping[str, SiteState],
    settings: FederationSettings,
    rounds: int,
    *,
    out: str | Path | None = None,
    quorum: int | None = None,
    participation: float = 1.0,
    deadline: float | None = None,
    faults: Sequence[Fault] = (),
    privacy: PrivacySettings | None = None,
    secure: bool = False,
    progress: bool = True,
    watch: Watch | None = None,
) -> Federated:
    """Train across sites, all in this process.

    The same sites, settings and seed give the same bits, interrupted or not. A site that fails is missing in its round,
    with a reason in fixed words, and the others go on.

    Parameters
    ----------
    sites : mapping of str to SiteState
        By name, before their first round.
    settings : FederationSettings
    rounds : int
        At least 1. A run in `out` goes on to more rounds than it had before.
    out : str or Path, optional
        Folder in which everything is kept after every round. A run that was interrupted goes on there; a finished one
        is read back.
    quorum : int, optional
        Usable contributions without which a round fails, instead of `settings.server.quorum`.
    participation : float
        Share of the sites that is drawn for each round, in (0, 1]; rounded up.
    deadline : float, optional
        Seconds, for delays among the faults: time is simulated, so that training takes none of it.
    faults : sequence of Fault
    privacy : PrivacySettings, optional
        Clipping and noise at the sites, counted over rounds.
    secure : bool
        Sites send their parts under pairwise masks, and the server sees nothing but their sum, of at least three sites,
        of the quorum, and of `privacy.shares`. Settings of the server that look at single contributions are refused.
    progress : bool
        Show a progress bar, on terminals.
    watch : callable, optional
        Called in every round with each site that counted, after its training, and what the server saw of it: a state
        with the site's own weights and library, or with those of the sum. Nothing of it leaves this process.

    Returns
    -------
    Federated
        Server, sites, history of the rounds and the accountant.

    Raises
    ------
    InputError
        For sites that do not agree, settings that do not fit, and a folder of another run; before any training.
    RoundFailure
        For a round below the quorum, naming who was missing and why. The last good round is kept.
    """
    agreement = check_agreement({name: site.agreement for name, site in sites.items()})
    if quorum is not None:
        settings = FederationSettings.build(settings.model_dump(), {"server": {"quorum": quorum}})
    plan = _Plan(settings, participation, deadline, tuple(faults), privacy, secure)
    plan.check(sites, rounds)
    now = Federated(first_state(agreement, settings).in_order(), dict(sorted(sites.items())), (), plan.accountant())
    folder = None
    if out is not None:
        noisy = privacy is not None and privacy.seed is None
        folder = RunFolder(out, {**plan.facts(), **_facts(now)}, settings, noisy)
        now = folder.read(now)
        if now.shared.round > rounds:
            raise InputError(f"{out} holds {now.shared.round} rounds, {rounds} are asked for: name a new folder")
    with progress_bar("federate", rounds, progress) as shown:
        shown(now.shared.round, "")
        while now.shared.round < rounds:
            now = _round(now, plan, folder, watch)
            if folder is not None:
                folder.write(now)
            shown(now.shared.round, f"{len(now.history[-1].used)} sites")
    return now


@dataclass(frozen=True)
class _Plan:
    """What a run does beside the sites' data."""

    settings: FederationSettings
    participation: float
    deadline: float | None
    faults: tuple[Fault, ...]
    privacy: PrivacySettings | None
    secure: bool

    @property
    def least(self) -> int:
        """Contributions without which no secure sum is read."""
        shares = 1 if self.privacy is None else self.privacy.shares
        return max(LEAST, shares, self.settings.server.quorum)

    def check(self, sites: Mapping[str, SiteState], rounds: int) -> None:
        """Refuse what cannot be run; see `federate`."""
        if rounds < 1:
            raise InputError(f"a run has at least one round, found {rounds}: without one nothing is trained")
        if not 0 < self.participation <= 1:
            raise InputError(f"participation is a share of the sites in (0, 1], found {self.participation}")
        for name, site in sites.items():
            if site.site != name:
                raise InputError(f"site {site.site!r} was given under the name {name!r}")
            if site.round:
                raise InputError(f"{name} has trained in round {site.round} already: a run starts before the first")
            if site.agreement.width != self.settings.model.width:
                raise InputError(
                    f"model.width is {self.settings.model.width}, {name} agreed on a width of {site.agreement.width}"
                )
        asked = n_drawn(len(sites), self.participation)
        if self.secure:
            check_summable(self.settings)
        check_asked(self.settings.server, asked, len(sites))
        if self.secure and self.least > asked:
            raise InputError(
                f"a secure sum is of at least {self.least} sites here, and {asked} of {len(sites)} are asked in a "
                f"round: in one of fewer, sites could tell each other's part"
            )
        check_faults(self.faults, sites, rounds, self.deadline)
        if self.privacy is not None:
            check_protection(self.settings, self.privacy, self.secure)

    def fault(self, site: str, round_: int) -> Fault | None:
        """What goes wrong there and then."""
        return next((each for each in self.faults if each.site == site and round_ in each.rounds), None)

    def accountant(self) -> Accountant | None:
        """A new one."""
        return None if self.privacy is None else Accountant(self.privacy.delta, self.privacy.epsilon_limit)

    def facts(self) -> dict[str, Any]:
        """For JSON: all that a resumed run must have alike."""
        privacy = None if self.privacy is None else self.privacy.model_dump(mode="json")
        return {
            "settings": self.settings.model_dump(mode="json"),
            "participation": self.participation,
            "deadline": self.deadline,
            "faults": [each.words for each in self.faults],
            "privacy": privacy,
            "secure": self.secure,
        }


@dataclass(frozen=True, eq=False)
class _Answer:
    """What came of asking a site: what reached the server in time, or why nothing did; and what the site keeps."""

    site: SiteState
    sent: Contribution | Masked | None = None
    reason: str = ""
    n_bytes: int = 0


def _facts(start: Federated) -> dict[str, Any]:
    """For JSON: who takes part with which data, and what they agreed on."""
    facts = {"agreement": asdict(start.shared.agreement), "sites": {n: digest_of(s) for n, s in start.sites.items()}}
    return json.loads(json.dumps(facts))


# -- a round --------------------------------------------------------------------------------------------------------


def _round(now: Federated, plan: _Plan, folder: RunFolder | None, watch: Watch | None) -> Federated:
    started, round_ = time.perf_counter(), now.shared.round + 1
    names = drawn(list(now.sites), plan.participation, plan.settings.seed, round_)
    accountant, silent = _counted(now, plan, names)
    if folder is not None and accountant is not None:
        folder.count(accountant)
    summation = _summation(plan, set(names) - silent, round_)
    answers = {
        name: _Answer(now.sites[name], reason=SPENT)
        if name in silent
        else _ask(now.sites[name], now.shared, plan, summation)
        for name in names
    }
    missing = {name: each.reason for name, each in answers.items() if each.sent is None}
    for name, reason in missing.items():
        log.warning("round %d: %s is missing: %s", round_, name, reason)
    try:
        shared, metrics = _served(now.shared, [each.sent for each in answers.values()], plan, summation)
    except (FederationError, InputError) as error:  # the second: fewer than a robust aggregator needs
        who = "; ".join(f"{name}: {reason}" for name, reason in missing.items()) or "no site"
        raise RoundFailure(f"{error}. Missing: {who}", replace(now, accountant=accountant)) from None
    if watch is not None:
        for name, seen in _seen(shared, answers, summation).items():
            watch(answers[name].site, seen)
    shared = shared.in_order()
    record = _record(now, shared, answers, metrics, plan.secure, accountant, time.perf_counter() - started)
    after = {**now.sites, **{name: each.site for name, each in answers.items()}}
    return Federated(shared, after, (*now.history, record), accountant)


def _counted(now: Federated, plan: _Plan, names: Sequence[str]) -> tuple[Accountant | None, set[str]]:
    """The accountant with what the round will release, and the sites whose budget does not allow it."""
    if now.accountant is None or plan.privacy is None:
        return None, set()
    accountant, silent = Accountant.of_state(now.accountant.state()), set()
    for name in names:
        fault = plan.fault(name, now.shared.round + 1)
        if fault is not None and fault.kind == "drop":
            continue
        try:
            accountant.spend(name, planned_releases(now.sites[name], plan.settings, plan.privacy))
        except FederationError:
            silent.add(name)
    return accountant, silent


def _summation(plan: _Plan, names: set[str], round_: int) -> SecureSum | None:
    """Secrets for a round's secure sum; None where there is none, or too few sites are left to take part."""
    if not plan.secure or len(names) < plan.least:
        return None
    return SecureSum(names, round_, plan.least)


def _served(
    shared: GlobalState, given: Sequence[Contribution | Masked | None], plan: _Plan, summation: SecureSum | None
) -> tuple[GlobalState, dict[str, dict[str, float]]]:
    """The server's part: its next state, and metrics as far as it sees them."""
    if not plan.secure:
        sent = [each for each in given if isinstance(each, Contribution)]
        after = server_update(shared, sent, plan.settings, noised(plan.privacy))
        assert after.report is not None
        return after, {each.site: each.told for each in sent if each.site in after.report.used}
    if summation is None:
        raise FederationError(f"round {shared.round + 1} has too few sites for a secure sum, of at least {plan.least}")
    summed = add_up(summation, [each for each in given if isinstance(each, Masked)])
    loss = mean_loss(summed)
    metrics = {} if loss is None else {ALL_SITES: {"loss total": loss}}
    return server_update_of_sum(shared, summed, plan.settings, noised(plan.privacy)), metrics


def _seen(shared: GlobalState, answers: Mapping[str, _Answer], summation: SecureSum | None) -> dict[str, GlobalState]:
    """What the server saw of every site that counted; of a secure sum the same of all."""
    assert shared.report is not None
    sent = {name: answers[name].sent for name in shared.report.used}
    if summation is None:
        parts = {name: each for name, each in sent.items() if isinstance(each, Contribution)}
        return {n: replace(shared, weights=each.weights, library=each.library, moments={}) for n, each in parts.items()}
    tensors = add_up(summation, [each for each in sent.values() if isinstance(each, Masked)]).tensors
    library = summed_library(tensors, shared.library)
    return dict.fromkeys(sent, replace(shared, library=library, moments={}))


def _ask(site: SiteState, shared: GlobalState, plan: _Plan, summation: SecureSum | None) -> _Answer:
    """Train at a site, and bear whatever goes wrong there; nothing of an error's text is passed on."""
    fault = plan.fault(site.site, shared.round + 1)
    kind = "" if fault is None else fault.kind
    if kind == "drop":
        return _Answer(site, reason="it dropped out")
    try:
        if kind == "rubbish":
            raise RuntimeError(f"/srv/{site.site}/patients.h5: cannot use response {site.trials.inputs.image[0, 0]:g}")
        if plan.privacy is None:
            sent, after = client_update(site, shared, plan.settings)
        else:
            sent, after = protected_update(site, shared, plan.settings, plan.privacy)
    except Exception as error:  # a site may fail in any way
        return _Answer(site, reason=reason_of(error))
    if not after.is_finite:
        return _Answer(site, reason=NOT_FINITE)
    if fault is not None and kind in ("nan", "poison"):
        sent = spoiled(sent, shared, fault)
    if summation is None:
        answer = _Answer(after, sent, n_bytes=sent.n_bytes)
    else:
        try:
            masked = summation.mask(site.site, summand(sent, plan.settings))
        except InputError:
            return _Answer(after, reason=_NOT_SUMMABLE)
        answer = _Answer(after, masked, n_bytes=masked.values.nbytes)
    if fault is not None and plan.deadline is not None and kind == "delay" and float(fault.size or 0) > plan.deadline:
        return replace(answer, sent=None, reason=f"no answer within {plan.deadline:g} s")
    return answer


def _record(
    now: Federated,
    shared: GlobalState,
    answers: Mapping[str, _Answer],
    metrics: dict[str, dict[str, float]],
    secure: bool,
    accountant: Accountant | None,
    seconds: float,
) -> RoundRecord:
    assert shared.report is not None
    shares = fractions(np.concatenate([now.sites[name].trials.present.numpy() for name in sorted(shared.report.used)]))
    epsilon: dict[str, float | None] = {}
    if accountant is not None:
        found = {unit: accountant.epsilon(unit) for unit in get_args(Unit)}
        epsilon = {unit: value if math.isfinite(value) else None for unit, value in found.items()}
    return RoundRecord(
        **vars(shared.report),
        missing={name: each.reason for name, each in answers.items() if each.sent is None},
        idle=sorted(now.sites.keys() - answers.keys()),
        metrics=metrics,
        bytes_up={name: each.n_bytes for name, each in answers.items() if each.n_bytes},
        bytes_down=now.shared.n_bytes,
        seconds=seconds,
        fractions={name: share for name, share in shares.items() if not name.startswith("only ")},
        epsilon=epsilon,
        seen="sum" if secure else "contributions",
    )
