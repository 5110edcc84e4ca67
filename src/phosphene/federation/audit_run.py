"""The audit of a federation: trained anew on half of every site's trials, and every site's part attacked.

A run that trained on all trials has no other trials of the same kind to compare with; test stimuli differ from
training stimuli, and an attack would find that difference. So half of each site's stimuli, drawn by chance, is held
back, the federation is trained with the same settings, and what the server sees of each site in the last round is
attacked with the two halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from phosphene.errors import InputError
from phosphene.federation.audit import Attack
from phosphene.federation.audit_site import audit_site
from phosphene.federation.client import client_update
from phosphene.federation.engine import federate
from phosphene.federation.library import PARTS, PrototypeLibrary
from phosphene.federation.privacy import PrivacySettings, Protection
from phosphene.federation.protected import protected_update
from phosphene.federation.randomness import generator
from phosphene.federation.run_state import Federated
from phosphene.federation.secure_round import add_up, server_update_of_sum, summand
from phosphene.federation.secure_sum import SecureSum
from phosphene.federation.server import first_state
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Contribution, SiteState
from phosphene.federation.trials import Trials

__all__ = ["audit_run", "halved"]


def audit_run(
    sites: Mapping[str, SiteState],
    settings: FederationSettings,
    rounds: int,
    *,
    privacy: PrivacySettings | None = None,
    secure: bool = False,
    out: str | Path | None = None,
    pool: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, list[Attack]]:
    """Attack every site's part of the last of some rounds; see `audit_site.audit_site` for the attacks.

    Parameters
    ----------
    sites : mapping of str to SiteState
        Before their first round, with labels.
    settings : FederationSettings
    rounds : int
    privacy : PrivacySettings, optional
        As in the run that is audited. What an audit says is made of the trials and is not counted: who tells it,
        tells more than epsilon covers.
    secure : bool
        Whether the server sees the sum alone: that is attacked then, once with each site's trials.
    out : str or Path, optional
        Folder in which the training can go on after an interruption.
    pool : int
        Trials among which inversion looks for one; of fewer others of a class there is no inversion.
    seed : int
        Of the halves and of the bootstrap.
    progress : bool

    Returns
    -------
    dict of str to list of Attack
        By site; of a site where there is nothing to attack (too few trials of every class), an empty list.
    """
    halves = {name: halved(site, seed) for name, site in sites.items()}
    now = Federated(
        first_state(next(iter(sites.values())).agreement, settings), {name: half for name, (half, _) in halves.items()}
    )
    if rounds > 1:
        now = federate(now.sites, settings, rounds - 1, out=out, privacy=privacy, secure=secure, progress=progress)
    sent, after = {}, {}
    for name, site in now.sites.items():
        if privacy is None:
            sent[name], after[name] = client_update(site, now.shared, settings)
        else:
            sent[name], after[name] = protected_update(site, now.shared, settings, privacy)
    seen = _of_sum(now, sent, settings, privacy) if secure else sent
    least = 0.0
    if privacy is not None:
        least = Protection(privacy, settings.model.width, len(PARTS)).least_count(len(sites) if secure else 1)
    found = {}
    for name, site in after.items():
        try:
            found[name] = audit_site(site, seen[name], halves[name][1], now.shared, settings, least, pool, seed)
        except InputError:
            if site.trials.labels is None:
                raise
            found[name] = []
    return found


def halved(site: SiteState, seed: int = 0) -> tuple[SiteState, Trials]:
    """A site with half of its stimuli, drawn by chance, and the trials of the others.

    Trials of one unit (a stimulus, or both videos of an action) stay together. Both halves have trials of every person
    of the site.

    Raises
    ------
    InputError
        For fewer than two stimuli, and for a person all of whose trials would be held back.
    """
    names = np.unique(site.trials.units)
    if len(names) < 2:
        raise InputError(f"{site.site} cannot be audited: it has trials of {len(names)} stimulus, half is held back")
    order = torch.randperm(len(names), generator=generator(seed, "audit", site.site)).numpy()
    inside = torch.from_numpy(np.isin(site.trials.units, names[order[: (len(names) + 1) // 2]]))
    kept, held = (site.trials.select(rows.nonzero().flatten()) for rows in (inside, ~inside))
    if lost := sorted(site.trials.inputs.people.keys() - kept.inputs.people.keys()):
        raise InputError(f"{site.site} cannot be audited: no trial of {', '.join(lost)} is left to train on")
    return replace(site, trials=kept), held


def _of_sum(
    now: Federated, sent: Mapping[str, Contribution], settings: FederationSettings, privacy: PrivacySettings | None
) -> dict[str, Contribution]:
    """What the server sees of every site: the same total, in the shape of a contribution."""
    summation = SecureSum(sent, now.shared.round + 1)
    summed = add_up(summation, [summation.mask(name, summand(each, settings.server)) for name, each in sent.items()])
    noised = privacy is not None and privacy.feature_limit is not None
    weights = server_update_of_sum(now.shared, summed, settings, noised).weights
    total = PrototypeLibrary.total(each.library for each in sent.values())
    return {name: replace(each, weights=weights, library=total) for name, each in sent.items()}
