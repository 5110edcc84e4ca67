"""A site's part of a round: a pure function of its own state, the server's state, the settings and nothing else."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from phosphene.errors import FederationError, InputError
from phosphene.federation.adapter import adapted_trials, with_adapters
from phosphene.federation.library import FUSION, PrototypeLibrary, Prototypes, clip_rows
from phosphene.federation.model import PmcmModel
from phosphene.federation.objective import Anchors, losses, proximal
from phosphene.federation.randomness import generator, seed_of, seeded
from phosphene.federation.retrieval import assign_centres
from phosphene.federation.settings import FederationSettings, LibrarySettings
from phosphene.federation.state import Contribution, GlobalState, SiteState
from phosphene.federation.trials import MODALITIES, Trials

__all__ = [
    "check_together",
    "client_update",
    "contribution_of",
    "local_library",
    "make_model",
    "make_optimiser",
    "site_model",
    "train_round",
    "trained_at",
]

log = logging.getLogger(__name__)

_CHUNK = 1024  # trials encoded at once for the library


def client_update(site: SiteState, shared: GlobalState, settings: FederationSettings) -> tuple[Contribution, SiteState]:
    """Train at a site for one round, and say what it sends and what it keeps.

    Nothing given is changed. The same site, global state and settings give the same bits, whatever ran before.

    Parameters
    ----------
    site : SiteState
    shared : GlobalState
    settings : FederationSettings

    Returns
    -------
    Contribution
        Shared weights after training, prototype sums and counts, metrics; the people's adapters are not in it.
    SiteState
        With the adapters after training.

    Raises
    ------
    InputError
        Where the site does not agree with the others on classes, targets or widths, or is ahead of the server: its
        adapters have seen rounds that the server has not.
    FederationError
        When the loss is not finite.
    """
    model, after, metrics = trained_at(site, shared, settings)
    trials = adapted_trials(after, settings)
    library = local_library(model, trials, shared.library, settings)
    metrics["complete"] = float(trials.complete.sum())
    return contribution_of(model, site, shared, library, metrics), after


def trained_at(
    site: SiteState, shared: GlobalState, settings: FederationSettings
) -> tuple[PmcmModel, SiteState, dict[str, float]]:
    """The network after a site's training, what the site keeps, and its losses: `client_update`, but for what is sent.

    Raises
    ------
    InputError, FederationError
        As of `client_update`.
    """
    check_together(site, shared)
    site = with_adapters(site, settings)
    model = site_model(site, shared, settings)
    optimiser = make_optimiser(model, settings)
    if settings.client.optimiser == "kept":
        _restore(optimiser, model, site.optimiser)
    trials, anchors = adapted_trials(site, settings), _anchors(site, shared, settings)
    metrics = train_round(model, optimiser, trials, shared, settings, site.site, anchors)
    kept = _moments(optimiser, model) if settings.client.optimiser == "kept" else {}
    last = model.shared_state() if settings.objective.model_contrast else {}
    after = replace(site, private=model.private_state(), optimiser=kept, last=last, round=shared.round + 1)
    return model, after, metrics


def contribution_of(
    model: PmcmModel, site: SiteState, shared: GlobalState, library: PrototypeLibrary, metrics: dict[str, float]
) -> Contribution:
    """What a site sends of a network it has trained: the shared part of it, and how many trials it has of what."""
    return Contribution(
        site=site.site,
        round=shared.round + 1,
        weights=model.shared_state(),
        library=library,
        n_trials=len(site.trials),
        n_present=tuple(site.trials.present.sum(dim=0).tolist()),
        agreement=shared.agreement,
        metrics=metrics,
    )


def _anchors(site: SiteState, shared: GlobalState, settings: FederationSettings) -> Anchors | None:
    """Networks of MOON's term; none in a site's first round, which has no last one."""
    if not settings.objective.model_contrast or not site.last:
        return None
    server, last = (site_model(site, each, settings) for each in (shared, replace(shared, weights=site.last)))
    return Anchors(server, last)


def check_together(site: SiteState, shared: GlobalState) -> None:
    """Refuse a site and a server that do not belong together; see `client_update`."""
    if differ := site.agreement.differences(shared.agreement):
        raise InputError(f"{site.site} does not agree with the federation: {'; '.join(differ)}")
    if site.round > shared.round:
        raise InputError(
            f"{site.site} has trained in round {site.round}, the server is done with {shared.round}: the two states "
            "are not of one moment"
        )


def make_model(shared: GlobalState, settings: FederationSettings) -> PmcmModel:
    """The network with the server's weights and nobody's adapter."""
    model = PmcmModel(settings.model, shared.agreement, seed_of(settings.seed, "model"))
    model.load_shared(shared.weights)
    return model


def site_model(site: SiteState, shared: GlobalState, settings: FederationSettings) -> PmcmModel:
    """The network with the server's weights and the site's adapters: what the site predicts with."""
    model = make_model(shared, settings)
    model.add_people(site.trials.inputs.people)
    if site.private:
        model.load_private(site.private)
    return model


def make_optimiser(model: PmcmModel, settings: FederationSettings) -> torch.optim.AdamW:
    """AdamW over shared and private parameters, the heads with a learning rate of their own."""
    own = settings.client
    learned = [each for each in model.parameters() if each.requires_grad]
    heads = {id(each) for head in (model.classify, model.retrieve) if head is not None for each in head.parameters()}
    groups = [
        {"params": [each for each in learned if id(each) not in heads], "lr": own.learning_rate},
        {"params": [each for each in learned if id(each) in heads], "lr": own.learning_rate * own.head_rate},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, own.beta2), weight_decay=own.weight_decay)


def train_round(
    model: PmcmModel,
    optimiser: torch.optim.Optimizer,
    trials: Trials,
    shared: GlobalState,
    settings: FederationSettings,
    site: str,
    anchors: Anchors | None = None,
) -> dict[str, float]:
    """Train `model` in place for the epochs of one round; mean of each term of the loss over batches.

    Order of trials, masks and dropout come from the seed, the site's name and the round.

    Raises
    ------
    FederationError
        When the loss is not finite.
    """
    round_ = shared.round + 1
    prototypes = shared.library.release(settings.library.min_count)
    draws = generator(settings.seed, "training", site, round_)
    totals: dict[str, float] = {}
    steps = 0
    model.train()
    with seeded(settings.seed, "dropout", site, round_):
        for _ in range(settings.client.epochs):
            for rows in torch.randperm(len(trials), generator=draws).split(settings.client.batch_size):
                terms = _step(model, optimiser, trials.select(rows), prototypes, shared, settings, draws, anchors)
                steps += 1
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0.0) + value
    if not all(math.isfinite(total) for total in totals.values()):
        raise FederationError(f"{site}: the loss is not finite in round {round_}; lower client.learning_rate")
    return {f"loss {name}": total / steps for name, total in sorted(totals.items())}


def _step(
    model: PmcmModel,
    optimiser: torch.optim.Optimizer,
    batch: Trials,
    prototypes: Prototypes,
    shared: GlobalState,
    settings: FederationSettings,
    draws: torch.Generator,
    anchors: Anchors | None,
) -> dict[str, float]:
    own = settings.objective
    with_contrast = shared.round + 1 >= own.contrast_from
    terms = losses(model, batch, prototypes, settings.masks, own, with_contrast, draws, anchors)
    if own.proximal:
        terms["proximal"] = own.proximal * proximal(model.shared_parameters(), shared.weights)
    optimiser.zero_grad(set_to_none=True)
    if not terms:  # a batch without labels and without pairs teaches nothing
        return {}
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    if settings.client.clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.client.clip)
    optimiser.step()
    return {"total": total.item(), **{name: term.item() for name, term in terms.items()}}


@torch.no_grad()
def local_library(
    model: PmcmModel, trials: Trials, known: PrototypeLibrary, settings: FederationSettings
) -> PrototypeLibrary:
    """Sums and counts of a site's trials under a network in evaluation mode.

    Every trial contributes to the modalities it has; to the fusion where it is complete, unless settings say
    otherwise. Trials without labels contribute nothing, and there is nothing in it where no setting reads prototypes.

    Parameters
    ----------
    model : PmcmModel
    trials : Trials
    known : PrototypeLibrary
        The server's: to its centres trials are assigned.
    settings : FederationSettings
    """
    own = settings.library
    library = PrototypeLibrary.empty(len(model.agreement.classes), model.config.width, own.centres)
    if trials.labels is None or not settings.reads_prototypes:
        return library
    model.eval()
    prototypes = known.release(own.min_count)
    directions = torch.randn(own.centres, model.config.width, generator=generator(settings.seed, "centres"))
    for rows in torch.arange(len(trials)).split(_CHUNK):
        library = library + _part_library(model, trials.select(rows), prototypes, directions, own)
    return library.suppressed(own.site_min_count)


def _part_library(
    model: PmcmModel, trials: Trials, prototypes: Prototypes, directions: Tensor, own: LibrarySettings
) -> PrototypeLibrary:
    assert trials.labels is not None
    features, present = model.encode(trials.inputs), trials.present
    z = model.fuse(features, present, model.tokens.expand_as(features)).z
    complete = present.all(dim=1, keepdim=True)
    of_modalities = present & complete if own.complete_only else present
    fused = torch.ones_like(complete) if own.fusion_from == "all" and not own.complete_only else complete
    centre = None if own.centres == 1 else assign_centres(features, present, prototypes, directions)
    parts = torch.cat([features, z[:, None]], dim=1)
    if own.feature_limit is not None:
        parts = clip_rows(parts, own.feature_limit)
    assert parts.shape[1] == FUSION + 1 == len(MODALITIES) + 1
    return PrototypeLibrary.of(parts, torch.cat([of_modalities, fused], dim=1), trials.labels, centre, own.centres)


# -- moments of the optimiser ---------------------------------------------------------------------------------------


def _names(model: PmcmModel) -> dict[str, torch.nn.Parameter]:
    """All parameters, people's by their names: stable when people come in another order."""
    return {**model.shared_parameters(), **model.private_parameters()}


def _moments(optimiser: torch.optim.Optimizer, model: PmcmModel) -> dict[str, Tensor]:
    found = {}
    for name, parameter in _names(model).items():
        for key, value in optimiser.state.get(parameter, {}).items():
            found[f"{key}:{name}"] = value.detach().clone()
    return found


def _restore(optimiser: torch.optim.Optimizer, model: PmcmModel, moments: Mapping[str, Tensor]) -> None:
    places = _names(model)
    for entry, value in moments.items():
        key, name = entry.split(":", 1)
        if name not in places:
            raise InputError(f"the optimiser's state has a place too many, {name!r}")
        optimiser.state[places[name]][key] = value.clone()
