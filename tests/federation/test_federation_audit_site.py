"""The audit of one site's contribution: it finds what an overfitted round gives away, and less of it under noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federation_sites import AGREEMENT, made_trials, settings

from phosphene.errors import InputError
from phosphene.federation.audit_site import audit_site
from phosphene.federation.client import client_update
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.protected import protected_update
from phosphene.federation.server import first_state
from phosphene.federation.state import SiteState

PEOPLE = {"p1": 50}


@pytest.fixture(scope="module")
def halves():
    """One person's trials, in two halves drawn by chance, with labels that can only be learned by heart."""
    trials = made_trials(0, PEOPLE, n=80)
    rng = torch.Generator().manual_seed(0)
    trials = replace(trials, labels=torch.eye(4)[torch.randint(0, 4, (80,), generator=rng)])
    order = torch.randperm(80, generator=rng)
    quiet = {"retrieval_weight": 0.0, **{f"contrast_{part}": 0.0 for part in ("fmri", "image", "text", "fusion")}}
    chosen = settings(
        client={"epochs": 30, "learning_rate": 0.01}, model={"input_dropout": 0.0, "dropout": 0.0}, objective=quiet
    )
    return SiteState("north", trials.select(order[:40]), AGREEMENT), trials.select(order[40:]), chosen


def by_name(attacks):
    return {attack.name: attack for attack in attacks}


def test_an_overfitted_site_gives_its_trials_away_and_noise_hides_them(halves):
    site, others, chosen = halves
    shared = first_state(AGREEMENT, chosen)
    sent, after = client_update(site, shared, chosen)
    bare = by_name(audit_site(after, sent, others, shared, chosen, pool=5))
    assert bare["membership by loss"].value > 0.75
    assert bare["membership by loss"].succeeds
    assert {name.rsplit(", ", 1)[1] for name in bare if name.startswith("inversion")} == {
        "fmri", "image", "text", "the fusion",
    }  # fmt: skip
    assert bare["inversion, all counts, image"].chance == 1 / 5
    privacy = PrivacySettings(update_limit=0.1, update_noise=20.0, feature_limit=1.0, library_noise=8.0, seed=0)
    sent, after = protected_update(site, shared, chosen, privacy)
    hidden = by_name(audit_site(after, sent, others, shared, chosen, pool=5))
    assert hidden["membership by loss"].value < bare["membership by loss"].value - 0.1
    assert hidden["membership by distance, fmri"].value < bare["membership by distance, fmri"].value


def test_a_site_that_has_not_trained_gives_nobody_away(halves):
    site, others, chosen = halves
    shared = first_state(AGREEMENT, chosen)
    sent, after = client_update(site, shared, settings(client={"epochs": 1, "learning_rate": 1e-9}))
    found = by_name(audit_site(after, sent, others, shared, chosen))
    for name in ("membership by loss", "membership by confidence"):
        assert found[name].value == pytest.approx(0.5, abs=0.2)


def test_prototypes_below_the_least_count_are_not_attacked(halves):
    site, others, chosen = halves
    shared = first_state(AGREEMENT, chosen)
    sent, after = client_update(site, shared, settings())
    found = audit_site(after, sent, others, shared, chosen, min_count=1e6)
    assert [attack.name for attack in found] == ["membership by loss", "membership by confidence"]


def test_without_labels_there_is_no_audit(halves):
    site, others, chosen = halves
    shared = first_state(AGREEMENT, chosen)
    sent, after = client_update(site, shared, settings())
    with pytest.raises(InputError, match="north cannot be audited without labels"):
        audit_site(after, sent, replace(others, labels=None), shared, chosen)
