"""The server's rounds over Flower: who is there, who is asked, what came, and an update in every round or an error."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import replace
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from phosphene.errors import FederationError, InputError
from phosphene.federation.accounting import Accountant
from phosphene.federation.classes import clusters_digest
from phosphene.federation.engine import RoundFailure
from phosphene.federation.flower.config import RunSettings
from phosphene.federation.flower.exchange import Reply, ask
from phosphene.federation.flower.members import Members
from phosphene.federation.flower.messages import packed
from phosphene.federation.flower.promise import counted, promised
from phosphene.federation.flower.record import record_of
from phosphene.federation.flower.telling import show_log
from phosphene.federation.protected import check_protection, noised
from phosphene.federation.randomness import drawn, n_drawn
from phosphene.federation.run_state import Federated, RunFolder
from phosphene.federation.server import check_asked, first_state, server_update
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Contribution
from phosphene.files import read_json, write_json

__all__ = ["federate_over", "server_app"]

log = logging.getLogger(__name__)

_TOKEN = "token.json"
_MOST_TRIALS = 2**53  # beyond, an average in floating point is none
_ABSENT = Reply(reason="it is not connected")
_UNREADABLE = "its contribution cannot be read, or stands under another name"


def server_app() -> ServerApp:
    """The app of the server; a run without an update in every round ends with an error."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        show_log()
        run = RunSettings.of_config(context.run_config)
        done = federate_over(grid, run)
        log.info("%s: %d rounds, %d sites in the last", run.out, done.shared.round, len(done.history[-1].used))

    return app


def federate_over(grid: Grid, run: RunSettings, pause: float = 1.0) -> Federated:
    """Rounds over Flower, from what the run folder holds.

    Parameters
    ----------
    grid : Grid
    run : RunSettings
    pause : float
        Seconds between two looks for sites and answers.

    Returns
    -------
    Federated
        Server and history; what sites keep stays with them.

    Raises
    ------
    InputError
        For settings that do not fit, sites that do not agree or have one name, and a folder of another run.
    FederationError
        Where too few sites came in time.
    RoundFailure
        For a round below the quorum. The last good round is kept.
    """
    settings, privacy = run.federation(), run.protection()
    _check(run, settings)
    for note in run.notes:
        log.info(note)
    members = Members(grid, max(run.wait, run.deadline))
    agreement = members.gather(run.sites, settings.server.quorum, run.wait, pause)
    if run.clusters and clusters_digest(agreement.classes, agreement.image_encoder) != run.clusters:
        raise InputError(
            f"the sites agree on clusters, or image targets, that are not the run's, {run.clusters}: give them its "
            f"file and targets of its encoder, or the run theirs"
        )
    accountant = None if privacy is None else Accountant(privacy.delta)
    start = Federated(first_state(agreement, settings).in_order(), {}, (), accountant)
    noisy = privacy is not None and privacy.seed is None
    folder = RunFolder(run.out, {**_asked(run, settings), "agreement": agreement.facts}, settings, noisy)
    now = folder.read(start)
    if now.shared.round > run.rounds:
        raise InputError(f"{run.out} holds {now.shared.round} rounds, {run.rounds} are asked for: name a new folder")
    token = _token(folder)
    try:
        while now.shared.round < run.rounds:
            now = _round(now, grid, run, token, members, pause)
            _count(now, folder)
            folder.write(now)
    except RoundFailure as failure:
        now = failure.last
        _count(now, folder)
        raise
    finally:
        for words in promised(now):
            log.info(words)
    return now


def _count(now: Federated, folder: RunFolder) -> None:
    """Keep what was released, also in a round that failed."""
    if now.accountant is not None:
        folder.count(now.accountant)


def _check(run: RunSettings, settings: FederationSettings) -> None:
    if not run.out:
        raise InputError("out is empty: name the run folder at the server")
    check_asked(settings.server, n_drawn(run.sites, run.participation), run.sites)
    if (privacy := run.protection()) is not None:
        check_protection(settings, privacy, secure=False)


def _asked(run: RunSettings, settings: FederationSettings) -> dict[str, Any]:
    """For JSON: all that a resumed run must have alike."""
    privacy = run.protection()
    given = run.model_dump(include={"participation", "classes", "class_names", "split", "missing", "pattern"})
    given |= run.model_dump(include={"clusters", "holds"}, exclude_defaults=True)
    return {
        "engine": "flower",
        "settings": settings.model_dump(mode="json"),
        "privacy": None if privacy is None else privacy.model_dump(mode="json"),
        **given,
    }


def _token(folder: RunFolder) -> str:
    """A name of the run under which sites keep their part: drawn once, the same when it is resumed."""
    place = folder.folder / _TOKEN
    if not place.exists():
        write_json(place, secrets.token_hex(16))
    return str(read_json(place))


# -- a round --------------------------------------------------------------------------------------------------------


def _round(now: Federated, grid: Grid, run: RunSettings, token: str, members: Members, pause: float) -> Federated:
    settings, privacy, started = run.federation(), run.protection(), time.perf_counter()
    there, round_ = members.look(), now.shared.round + 1
    names = drawn(members.names, run.participation, settings.seed, round_)
    tensors, facts = replace(now.shared, moments={}, report=None).to_tensors()  # what the server needs for itself
    contents = {there[name]: packed({"run": token, "shared": facts}, tensors) for name in names if name in there}
    answers = ask(grid, contents, "train", run.deadline, pause)
    replies = {name: answers[there[name]] if name in there else _ABSENT for name in names}
    sent = {name: each for name, reply in replies.items() if (each := _contribution(name, reply)) is not None}
    missing = {name: reply.reason or _UNREADABLE for name, reply in replies.items() if name not in sent}
    for name, reason in missing.items():
        log.warning("round %d: %s is missing: %s", round_, name, reason)
    accountant = counted(now.accountant, sent, settings, privacy)
    try:
        shared = server_update(now.shared, list(sent.values()), settings, noised(privacy)).in_order()
    except (FederationError, InputError) as error:  # the second: fewer than a robust aggregator needs
        who = "; ".join(f"{name}: {reason}" for name, reason in missing.items()) or "no site"
        raise RoundFailure(f"{error}. Missing: {who}", replace(now, accountant=accountant)) from None
    idle = [name for name in members.names if name not in names]
    record = record_of(now, shared, sent, missing, idle, replies, time.perf_counter() - started)
    log.info("round %d: %d of %d sites, %.1f s", round_, len(record.used), len(names), record.seconds)
    return Federated(shared, {}, (*now.history, record), accountant)


def _contribution(name: str, reply: Reply) -> Contribution | None:
    """What a site sent, under its own name; None where there is none that can be read."""
    if reply.reason:
        return None
    try:
        sent = Contribution.from_tensors(reply.tensors, reply.facts["contribution"])
    except Exception:  # rubbish may fail in any way
        return None
    return sent if sent.site == name and sent.n_trials < _MOST_TRIALS else None
