"""What a run over Flower promises: counted by the server from what came, and never less than what sites count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from phosphene.federation.accounting import Accountant, Unit
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.protected import releases_of
from phosphene.federation.run_state import Federated
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Contribution

__all__ = ["counted", "promised"]

_ROUNDING = 1e-9


def counted(
    before: Accountant | None,
    sent: Mapping[str, Contribution],
    settings: FederationSettings,
    privacy: PrivacySettings | None,
) -> Accountant | None:
    """An accountant with a round's contributions too, whether they are used or not; None without privacy."""
    if before is None or privacy is None:
        return None
    made = Accountant.of_state(before.state())
    for name, each in sent.items():
        n_trials = max(1, each.n_trials)  # a claim that may be rubbish
        made.spend(name, releases_of(n_trials, settings, privacy))
    return made


def promised(now: Federated) -> list[str]:
    """Epsilon, delta, what is covered and what is not, in words: per trial and per site; nothing without privacy.

    Sites count on their own disk, before they send. They count more than the server saw where a round was done again or
    an answer was lost; the larger number is told. A site that told no number leaves no promise.
    """
    if now.accountant is None or not now.accountant.spent:
        return []
    found = []
    for unit in get_args(Unit):
        own = now.accountant.guarantee(unit)
        told = now.history[-1].epsilon.get(unit, 0.0) if now.history else 0.0
        told = math.inf if told is None else told
        if told > own.epsilon * (1 + _ROUNDING):
            found.append(f"Sites count more per {unit} than came here: rounds done again, answers that were lost.")
        found.append(replace(own, epsilon=max(own.epsilon, told)).told())
    return found
