"""What is written down of a round over Flower: the same record as in process, from what contributions say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

from phosphene.federation.accounting import Unit
from phosphene.federation.flower.exchange import Reply
from phosphene.federation.run_state import Federated, RoundRecord
from phosphene.federation.state import Contribution, GlobalState
from phosphene.federation.trials import MODALITIES

__all__ = ["record_of"]


def record_of(
    before: Federated,
    after: GlobalState,
    sent: Mapping[str, Contribution],
    missing: Mapping[str, str],
    idle: list[str],
    replies: Mapping[str, Reply],
    seconds: float,
) -> RoundRecord:
    """The record of a round, by site what it sent, why there is nothing, and what it answered."""
    assert after.report is not None
    used = {name: sent[name] for name in after.report.used}
    return RoundRecord(
        **vars(after.report),
        missing=dict(missing),
        idle=idle,
        metrics={name: each.told for name, each in used.items()},
        bytes_up={name: each.n_bytes for name, each in sent.items()},
        bytes_down=before.shared.n_bytes,
        seconds=seconds,
        fractions=_fractions(list(used.values())),
        epsilon=_epsilon(before, [replies[name] for name in used]),
        seen="contributions",
    )


def _fractions(used: list[Contribution]) -> dict[str, float]:
    """Share of trials that miss each modality, and that are complete where the sites say so."""
    total = sum(each.n_trials for each in used)
    held = [sum(each.n_present[m] for each in used) for m in range(len(MODALITIES))]
    found = {f"missing {name}": (total - n) / total for name, n in zip(MODALITIES, held, strict=True)}
    if all("complete" in each.told for each in used):
        found["complete"] = sum(each.told["complete"] for each in used) / total
    return found


def _epsilon(before: Federated, replies: list[Reply]) -> dict[str, float | None]:
    """The largest that any site has counted so far, as sites report it; None is no promise."""
    found: dict[str, float | None] = dict(before.history[-1].epsilon) if before.history else {}
    told = [reply.facts["epsilon"] for reply in replies if isinstance(reply.facts.get("epsilon"), dict)]
    for each in told:
        for unit in get_args(Unit):
            value, held = each.get(unit, math.inf), found.get(unit, 0.0)
            sound = isinstance(value, float) and math.isfinite(value)
            found[unit] = max(held, value) if sound and held is not None else None
    return found
