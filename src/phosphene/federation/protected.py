"""A site's part of a round under protection: `client_update` whose contribution is clipped and blurred.

Prototypes are made with the weights that were *received* (or trained privately), not with those that the site's trials
have just moved: else one trial would have a part in the features of all others, and no bound would hold.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from phosphene.errors import InputError, require
from phosphene.federation.accounting import Release
from phosphene.federation.adapter import adapted_trials, with_adapters
from phosphene.federation.aggregation import added, difference
from phosphene.federation.client import (
    check_together,
    contribution_of,
    local_library,
    make_optimiser,
    site_model,
    trained_at,
)
from phosphene.federation.library import PARTS, PrototypeLibrary
from phosphene.federation.model import PmcmModel
from phosphene.federation.noise import NoiseSource
from phosphene.federation.objective import losses, proximal
from phosphene.federation.privacy import PrivacySettings, Protection, clip_labels
from phosphene.federation.randomness import generator, seeded
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Contribution, GlobalState, SiteState
from phosphene.federation.trial_sgd import TrialSgd, TrialSgdSettings, check_terms

__all__ = [
    "check_private",
    "check_protection",
    "noised",
    "planned_releases",
    "protected_update",
    "readable",
    "releases_of",
]


def check_protection(settings: FederationSettings, privacy: PrivacySettings, secure: bool) -> None:
    """Refuse a run's protection at its door; every engine asks.

    Parameters
    ----------
    settings : FederationSettings
    privacy : PrivacySettings
    secure : bool
        Whether the server sees nothing but secure sums.

    Raises
    ------
    InputError
        For noise that is split where the server sees every contribution, and as of `check_private`.
    MissingDependencyError
        Without an accountant.
    """
    if privacy.shares > 1 and not secure:
        raise InputError(
            f"privacy.shares is {privacy.shares}: noise that is split needs secure sums, and here the server sees "
            f"every contribution. Set it to 1, or let the sums be secure"
        )
    check_private(settings, privacy)
    require("dp_accounting.rdp", "privacy", "an accountant of privacy")


def noised(privacy: PrivacySettings | None) -> bool:
    """Whether sites add noise to sums and counts: the server reads them otherwise."""
    return privacy is not None and privacy.feature_limit is not None


def readable(
    settings: FederationSettings, privacy: PrivacySettings | None, n_sites: int, given: bool
) -> tuple[FederationSettings, list[str]]:
    """Settings under which no prototype is read that may be noise alone, and what to know of protection, in words.

    Parameters
    ----------
    settings : FederationSettings
    privacy : PrivacySettings, optional
    n_sites : int
        Whose noise is added up.
    given : bool
        Whether `library.min_count` was asked for: then it stays.
    """
    if privacy is None:
        return settings, []
    notes = []
    if privacy.seed is not None:
        notes.append(
            "privacy.seed is given: who knows it takes the noise off again, so what is promised is for studies"
        )
    least = math.ceil(Protection(privacy, settings.model.width, len(PARTS)).least_count(n_sites))
    if not given and least > settings.library.min_count:
        settings = settings.build(settings.model_dump(), {"library": {"min_count": least}})
        notes.append(f"library.min_count is {least}: three deviations of the noise on counts")
    return settings, notes


def check_private(settings: FederationSettings, privacy: PrivacySettings) -> None:
    """Refuse settings under which no promise would hold.

    Raises
    ------
    InputError
        For what protects nothing, noise that is split where sites count differently, thresholds on counts before the
        noise, two different limits of features, and, with `trial_sgd`, losses that are no sum over trials or settings
        of training that it has no use for.
    """
    own = settings.library
    if privacy.update_limit is None and privacy.feature_limit is None and privacy.trial_sgd is None:
        raise InputError("privacy protects nothing: give update_limit, feature_limit, or trial_sgd")
    if privacy.shares > 1 and privacy.update_limit is not None and settings.server.weighting != "equal":
        raise InputError(
            f"noise that is split among sites bounds what one adds to their plain sum: server.weighting must be equal, "
            f"it is {settings.server.weighting}"
        )
    if privacy.feature_limit is not None:
        if own.weighting == "sites":
            raise InputError(
                "library.weighting = sites divides by counts of single sites, which are noise: set it to counts"
            )
        if not settings.reads_prototypes:
            raise InputError(
                "privacy.feature_limit has no use: neither training nor inference reads prototypes, and sites send none"
            )
        if own.site_min_count > 0:
            raise InputError(
                "library.site_min_count looks at counts before the noise: whether a cell is sent would give single "
                "trials away. Set it to 0 and raise library.min_count, which looks at what came"
            )
        if own.feature_limit not in (None, privacy.feature_limit):
            raise InputError(
                f"library.feature_limit is {own.feature_limit:g} and privacy.feature_limit {privacy.feature_limit:g}: "
                f"give the second alone"
            )
    if privacy.trial_sgd is not None:
        check_terms(_terms(settings))
        if settings.objective.model_contrast:
            raise InputError("privacy.trial_sgd has no use for MOON's networks: set objective.model_contrast to 0")
        if settings.model.adapter != "learned":
            raise InputError(
                "privacy.trial_sgd trains adapters privately too, and one in closed form is made of the trials as they "
                "are: set model.adapter to learned"
            )
        if settings.client.optimiser != "fresh" or settings.client.clip is not None:
            raise InputError(
                "privacy.trial_sgd has a limit of its own and starts afresh: leave client.clip and optimiser"
            )


def planned_releases(site: SiteState, settings: FederationSettings, privacy: PrivacySettings) -> list[Release]:
    """What `protected_update` of this site will release in one round; known before anything is trained."""
    return releases_of(len(site.trials), settings, privacy)


def releases_of(n_trials: int, settings: FederationSettings, privacy: PrivacySettings) -> list[Release]:
    """As `planned_releases`, of a site of so many trials."""
    own = privacy.trial_sgd
    gradients = [] if own is None else [own.release(n_trials, settings.client.epochs)]
    protection = Protection(privacy, settings.model.width, len(PARTS))
    return protection.releases(library=settings.reads_prototypes, gradients=gradients)


def protected_update(
    site: SiteState, shared: GlobalState, settings: FederationSettings, privacy: PrivacySettings
) -> tuple[Contribution, SiteState]:
    """`client_update` under protection; with a seed of the noise, as deterministic as it.

    Count the cost first: ``accountant.spend(site.site, planned_releases(...))``, and keep the accountant's state
    before anything is sent. The server must know that libraries are noised (``server_update(..., noised=True)``).

    Parameters
    ----------
    site : SiteState
    shared : GlobalState
    settings : FederationSettings
    privacy : PrivacySettings

    Returns
    -------
    Contribution
        Without metrics, which nothing protects; the number of trials, a weight, stays.
    SiteState

    Raises
    ------
    InputError
        As of `check_private`, `client_update` and `Protection.update`.
    MissingDependencyError
        For `trial_sgd` without Opacus.
    """
    check_private(settings, privacy)
    protection = Protection(privacy, settings.model.width, len(PARTS))
    source = NoiseSource(privacy.seed, site.site, shared.round + 1)
    site = with_adapters(site, settings)
    if privacy.trial_sgd is None:
        trained, after, _ = trained_at(site, shared, settings)
        model = trained if privacy.feature_limit is None else site_model(after, shared, settings)  # what was received
    else:
        check_together(site, shared)
        trained = model = site_model(site, shared, settings)
        _train_privately(model, site, shared, settings, privacy.trial_sgd, privacy.seed)
        after = replace(site, private=model.private_state(), round=shared.round + 1)
    library = _limited_library(model, site, shared, settings, privacy)
    if privacy.feature_limit is not None:
        sums, counts = protection.library(library.sums, library.counts, source)
        library = PrototypeLibrary(sums, counts, torch.zeros_like(library.age))  # every cell is sent
    made = contribution_of(trained, site, shared, library, {})
    update, _ = protection.update(difference(made.weights, shared.weights), source)
    return replace(made, weights=added(shared.weights, update)), after


def _limited_library(
    model: PmcmModel, site: SiteState, shared: GlobalState, settings: FederationSettings, privacy: PrivacySettings
) -> PrototypeLibrary:
    """Sums and counts under a network, with features and labels clipped where privacy limits them; without noise."""
    trials, limit = adapted_trials(site, settings), privacy.feature_limit
    if limit is not None:
        library = settings.library.model_copy(update={"feature_limit": limit})
        settings = settings.model_copy(update={"library": library})
        if trials.labels is not None:
            trials = replace(trials, labels=clip_labels(trials.labels, privacy.classes_per_trial))
    return local_library(model, trials, shared.library, settings)


def _terms(settings: FederationSettings) -> list[str]:
    """Names of the loss's terms that have a weight."""
    own = settings.objective
    found = [f"contrast {part}" for part, weight in zip(PARTS, own.contrast, strict=True) if weight]
    found += ["retrieval"] if own.retrieval_weight and "retrieval" in settings.model.heads else []
    return [*found, "task"]


def _train_privately(
    model: PmcmModel,
    site: SiteState,
    shared: GlobalState,
    settings: FederationSettings,
    own: TrialSgdSettings,
    seed: int | None,
) -> None:
    """Train all parameters in place, private adapters too, for the epochs of one round."""
    round_, trials = shared.round + 1, adapted_trials(site, settings)
    optimiser = make_optimiser(model, settings)
    private = TrialSgd(model, optimiser, own, len(trials), ("task",), seed, site.site, round_)
    prototypes = shared.library.release(settings.library.min_count)
    draws = generator(settings.seed, "training", site.site, round_)

    def loss_of(row: int) -> Tensor:
        one = trials.select(torch.tensor([row]))
        terms = losses(model, one, prototypes, settings.masks, settings.objective, False, draws)
        if settings.objective.proximal:
            terms["proximal"] = settings.objective.proximal * proximal(model.shared_parameters(), shared.weights)
        return torch.stack([model.tokens.sum() * 0.0, *terms.values()]).sum()

    model.train()
    with seeded(settings.seed, "dropout", site.site, round_):
        for rows in private.batches(settings.client.epochs):
            private.step(rows, loss_of)
