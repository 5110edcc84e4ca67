"""The audit of a federation: trained anew on half of every site's trials, and every site's part attacked.

A run that trained on all trials has no other trials of the same kind to compare with; test stimuli differ from
training stimuli, and an attack would find that difference. So half of each site's stimuli, drawn by chance, is held
back, the federation is trained with the same settings, under the same faults, and what the server sees of each site in
the last round in which it counts is attacked with the two halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from phosphene.errors import InputError
from phosphene.federation.audit import Attack
from phosphene.federation.audit_site import audit_site
from phosphene.federation.engine import federate
from phosphene.federation.faults import Fault
from phosphene.federation.library import PARTS
from phosphene.federation.privacy import PrivacySettings, Protection
from phosphene.federation.randomness import generator
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import GlobalState, SiteState
from phosphene.federation.trials import Trials

__all__ = ["audit_run", "check_audit", "halved"]


def audit_run(
    sites: Mapping[str, SiteState],
    settings: FederationSettings,
    rounds: int,
    *,
    quorum: int | None = None,
    participation: float = 1.0,
    deadline: float | None = None,
    faults: Sequence[Fault] = (),
    privacy: PrivacySettings | None = None,
    secure: bool = False,
    out: str | Path | None = None,
    pool: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, list[Attack]]:
    """Attack every site's part of the last round in which it counted; see `audit_site.audit_site` for the attacks.

    Parameters
    ----------
    sites : mapping of str to SiteState
        Before their first round, with labels.
    settings : FederationSettings
    rounds : int
    quorum, participation, deadline, faults
        As of `engine.federate`: what befell the run befalls the audited one. A contribution that was refused or came
        too late is not attacked.
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
        By site; of a site where there is nothing to attack (nothing of it ever counted, or it has too few trials of
        every class), an empty list.

    Raises
    ------
    InputError
        As of `check_audit` and `engine.federate`.
    RoundFailure
        For a round below the quorum, which halves reach where an update of theirs is refused.
    """
    halves = check_audit(sites, privacy, seed)
    kept = _Kept(list(sites), settings, None if out is None else Path(out))
    federate(
        {name: half for name, (half, _) in halves.items()},
        settings,
        rounds,
        out=out,
        quorum=quorum,
        participation=participation,
        deadline=deadline,
        faults=faults,
        privacy=privacy,
        secure=secure,
        progress=progress,
        watch=kept.put,
    )
    protection = None if privacy is None else Protection(privacy, settings.model.width, len(PARTS))
    found: dict[str, list[Attack]] = {}
    for name, (half, others) in halves.items():
        found[name] = []
        if (last := kept.of(half)) is None:
            continue
        site, seen = last
        assert seen.report is not None
        least = 0.0 if protection is None else protection.least_count(len(seen.report.used) if secure else 1)
        try:
            found[name] = audit_site(site, seen, others, seen, settings, least, pool, seed)
        except InputError:
            if site.trials.labels is None:
                raise
    return found


class _Kept:
    """What the server saw of each site when it last counted; on disk too, so that training can go on.

    Parameters
    ----------
    names : sequence of str
        Of all sites.
    settings : FederationSettings
    folder : Path, optional
    """

    def __init__(self, names: Sequence[str], settings: FederationSettings, folder: Path | None) -> None:
        self._settings, self._last = settings, dict[str, tuple[SiteState, GlobalState]]()
        self._folders = {name: folder / f"seen-{n:04d}" for n, name in enumerate(sorted(names)) if folder is not None}

    def put(self, site: SiteState, seen: GlobalState) -> None:
        """Keep a site after its training, and what the server saw of it."""
        self._last[site.site] = site, seen
        if self._folders:
            seen.save(self._folders[site.site] / "sent", self._settings)
            site.save(self._folders[site.site] / "site")

    def of(self, site: SiteState) -> tuple[SiteState, GlobalState] | None:
        """What was put last, of a site as it began; None where nothing of it counted."""
        folder = self._folders.get(site.site)
        if site.site not in self._last and folder is not None and (folder / "site").exists():
            after = SiteState.load(folder / "site", site.trials, site.agreement)
            return after, GlobalState.load(folder / "sent", self._settings)
        return self._last.get(site.site)


def check_audit(
    sites: Mapping[str, SiteState], privacy: PrivacySettings | None = None, seed: int = 0
) -> dict[str, tuple[SiteState, Trials]]:
    """Halves of all sites, or why there is no audit; before any training.

    Raises
    ------
    InputError
        As of `halved`, for sites without labels, and for private training with a limit of epsilon: batches are a larger
        share of half of the trials, so that halves reach the limit in earlier rounds than the run that is audited.
    """
    if privacy is not None and privacy.trial_sgd is not None and privacy.epsilon_limit is not None:
        raise InputError(
            "an audit trains on half of the trials, which private training (privacy.trial_sgd) makes dearer: its sites "
            "would fall silent in earlier rounds than the run's. Audit without privacy.epsilon_limit"
        )
    if bare := [name for name, site in sites.items() if site.trials.labels is None]:
        raise InputError(f"{', '.join(bare)} cannot be audited without labels of its trials")
    return {name: halved(site, seed) for name, site in sites.items()}


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
