"""A site of a federation: answers who it is, and trains. Its data and its people's adapters stay on its own disk.

Errors are told to the server in fixed words by their kind; what they say stands in the site's own log alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from phosphene.encoders import targets_named, targets_of_nothing
from phosphene.errors import FederationError, InputError
from phosphene.federation.accounting import Accountant, Unit
from phosphene.federation.classes import ClusterClasses, LabelClasses
from phosphene.federation.client import client_update
from phosphene.federation.faults import NOT_FINITE, SPENT, reason_of
from phosphene.federation.flower.config import RunSettings, SiteSettings
from phosphene.federation.flower.exchange import OTHER_PRIVACY
from phosphene.federation.flower.keeping import SiteFolder
from phosphene.federation.flower.messages import packed, unpacked
from phosphene.federation.flower.telling import show_log
from phosphene.federation.holdings import check_places, held_at, held_words
from phosphene.federation.missing import Missing
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.protected import planned_releases, protected_update
from phosphene.federation.settings import FederationSettings
from phosphene.federation.sites import StudySites, dealt
from phosphene.federation.state import GlobalState, SiteState
from phosphene.federation.trials import FMRI, IMAGE, MODALITIES
from phosphene.recordings import Study

__all__ = ["client_app", "first_site"]

log = logging.getLogger(__name__)

Answer = tuple[dict[str, Any], dict[str, Tensor] | None]


def first_site(own: SiteSettings, run: RunSettings) -> SiteState:
    """The site before its first round, from its study; what it does not hold is not read."""
    with _place(own, run) as (made, name, missing):
        return made.site(name, run.federation().model.width, missing)


@contextmanager
def _place(own: SiteSettings, run: RunSettings) -> Iterator[tuple[StudySites, str, Missing | None]]:
    """The sites of the study that is here, which of them this one is, and what is hidden on purpose."""
    held = held_words(own.holds)
    with Study.open(own.study, stimuli_alone=MODALITIES[FMRI] not in held) as opened:
        study = opened.using(run.split) if run.split else opened
        everybody, name, missing = study.split("train").subjects, own.site, None
        if own.partition_id is not None and own.num_partitions is not None:
            places, holds = dealt(everybody, own.num_partitions), held_at(run.holds.split())
            name, missing = list(places)[own.partition_id], Missing(run.missing, run.pattern, run.seed)
        else:
            places = {name: own.person_names or (everybody if MODALITIES[FMRI] in held else [])}
            holds = {name: held}
        check_places(study, places, holds, clusters=bool(run.clusters))
        image, text = (
            targets_named(each, study, progress=False) if modality in held else targets_of_nothing(each)
            for modality, each in zip(MODALITIES[IMAGE:], (own.targets, own.text), strict=True)
        )
        classes: LabelClasses | ClusterClasses
        if run.clusters:
            classes = ClusterClasses.open(own.clusters)
        else:
            names = run.names or LabelClasses.found(study.split("train").stimuli.labels, run.columns).names
            classes = LabelClasses(names, tuple(run.columns))
        yield StudySites(study, places, classes, image, text, holds), name, missing


def client_app() -> ClientApp:
    """The app that runs at every site: ``query`` says who it is, ``train`` trains for a round."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return _answered(message, context, _introduced)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answered(message, context, _trained)

    return app


def _answered(
    message: Message, context: Context, ask: Callable[[RecordDict, SiteSettings, RunSettings], Answer]
) -> Message:
    show_log()
    try:
        run = RunSettings.of_config(context.run_config)
        own = SiteSettings.of_config(context.node_config, run)
        if why := own.objection(run):
            log.error("not taking part: %s", why)
            return Message(packed({"failed": OTHER_PRIVACY}), reply_to=message)
        facts, tensors = ask(message.content, own, run)
    except Exception as error:  # a site may fail in any way
        log.error("not taking part: %s", error, exc_info=error)
        facts, tensors = {"failed": reason_of(error)}, None
    return Message(packed(facts, tensors), reply_to=message)


def _introduced(content: RecordDict, own: SiteSettings, run: RunSettings) -> Answer:
    """Who it is. What it cannot use fails here; targets that are not the clusters' are for the server to name."""
    with _place(own, run) as (made, name, missing):
        agreement, classes = made.agreement(run.federation().model.width), made.classes
        if isinstance(classes, ClusterClasses) and classes.encoder != agreement.image_encoder:
            log.error("clusters of %s, and image targets of %s here", classes.encoder, agreement.image_encoder)
        else:
            made.site(name, agreement.width, missing)
    return {"site": name, "agreement": agreement.facts}, None


def _trained(content: RecordDict, own: SiteSettings, run: RunSettings) -> Answer:
    facts, tensors = unpacked(content)
    token = str(facts["run"])
    if not re.fullmatch(r"[0-9a-f]{32}", token):
        raise InputError(f"the server calls the run {token[:40]!r}, not 32 hexadecimal digits")
    shared, settings = GlobalState.from_tensors(tensors, facts["shared"]), run.federation()
    start = first_site(own, run)
    folder = SiteFolder(own.keep, token, start)
    before = folder.before(shared.round)
    privacy, epsilon = run.protection(), {}
    if privacy is None:
        sent, after = client_update(before, shared, settings)
    else:
        try:
            epsilon = _counted(before, settings, privacy, folder, own.epsilon_limit)
        except FederationError as error:
            log.error("round %d: %s", shared.round + 1, error)
            return {"failed": SPENT}, None
        sent, after = protected_update(before, shared, settings, privacy)
    if not after.is_finite:
        return {"failed": NOT_FINITE}, None
    folder.keep(before, after)
    words = "round %d: trained on %d trials; %d bytes of weights, prototype sums and counts leave the site"
    log.info(words, shared.round + 1, sent.n_trials, sent.n_bytes)
    tensors, facts = sent.to_tensors()
    return {"contribution": facts, "epsilon": epsilon}, tensors


def _counted(
    before: SiteState, settings: FederationSettings, privacy: PrivacySettings, folder: SiteFolder, limit: float
) -> dict[str, float]:
    """Count a round on the site's disk, before anything is trained; epsilon by unit in this run afterwards."""
    planned = planned_releases(before, settings, privacy)
    if limit:
        folder.in_all(privacy.delta, limit).spend(before.site, planned)
    accountant = folder.accountant(Accountant(privacy.delta, privacy.epsilon_limit))
    accountant.spend(before.site, planned)
    folder.count(accountant)
    found = {unit: accountant.epsilon(unit) for unit in get_args(Unit)}
    words = "released in this run, with the round that follows: epsilon %.3g per trial, %.3g per site, at delta %g"
    log.info(words, found["trial"], found["site"], privacy.delta)
    return found
