"""The audit of a whole run: halves that share no stimulus, and what is seen with and without protection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federation_sites import AGREEMENT, made_trials, settings

from phosphene.errors import InputError
from phosphene.federation import audit_run as room
from phosphene.federation.audit_run import audit_run, halved
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.state import SiteState

LEARNT = {
    "client": {"epochs": 12, "learning_rate": 5e-3},
    "objective": {"full_view": 0.0},
    "server": {"max_ratio": None},
}


def sites(n: int = 60, noise: float = 3.0) -> dict[str, SiteState]:
    """Trials whose noise can be learned by heart."""
    return {
        name: SiteState(name, made_trials(seed, {f"p{seed}": 20}, n, noise), AGREEMENT)
        for seed, name in enumerate(("north", "south", "west"))
    }


def test_halves_share_no_stimulus_and_are_drawn_from_the_seed():
    site = sites()["north"]
    ids = site.trials.ids[torch.arange(60).numpy() // 2]  # every stimulus shown twice
    twice = replace(site.trials, ids=ids, units=ids)
    half, held = halved(replace(site, trials=twice), seed=3)
    assert not set(half.trials.ids) & set(held.ids)
    assert len(half.trials) == len(held) == 30
    again, other = (halved(replace(site, trials=twice), seed)[0].trials.ids.tolist() for seed in (3, 4))
    assert half.trials.ids.tolist() == again
    assert again != other


def test_a_site_of_which_no_half_can_be_held_back_is_refused():
    site = sites()["north"]
    with pytest.raises(InputError, match="north cannot be audited: it has trials of 1 stimulus"):
        halved(replace(site, trials=site.trials.select(torch.tensor([0]))))
    trials = made_trials(0, {"p0": 20, "p1": 20}, 1)
    with pytest.raises(InputError, match=r"no trial of p[01] is left"):
        halved(SiteState("both", trials, AGREEMENT))


@pytest.fixture(scope="module")
def bare():
    return audit_run(sites(), settings(**LEARNT), 2, pool=5)


def test_what_sites_send_as_it_is_leaks(bare):
    assert bare.keys() == {"north", "south", "west"}
    for attacks in bare.values():
        named = {each.name: each for each in attacks}
        assert named["membership by loss"].succeeds
        assert named["membership by loss"].members == named["membership by loss"].others == 30
        assert any(name.startswith("inversion") for name in named)


def test_noise_hides_what_leaked(bare):
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    privacy = PrivacySettings(update_limit=0.5, update_noise=4.0, feature_limit=1.0, library_noise=4.0, seed=1)
    blurred = audit_run(sites(), settings(**LEARNT), 2, privacy=privacy, pool=5)
    for name, attacks in blurred.items():
        loss = next(each for each in attacks if each.name == "membership by loss")
        before = next(each for each in bare[name] if each.name == "membership by loss")
        assert loss.value < before.value - 0.1
        assert not loss.succeeds


def test_of_a_secure_sum_the_sum_is_attacked(bare, monkeypatch):
    seen = []
    real = room.audit_site
    monkeypatch.setattr(room, "audit_site", lambda site, sent, *rest: seen.append(sent) or real(site, sent, *rest))
    found = audit_run(sites(), settings(**LEARNT), 2, secure=True, pool=5)
    assert found.keys() == bare.keys()
    assert len({id(each.library) for each in seen}) == 1
    assert float(seen[0].library.counts[0].sum()) == 90  # of the three halves
    assert all(torch.equal(seen[0].weights[name], seen[2].weights[name]) for name in seen[0].weights)


def test_a_site_with_nothing_to_attack_has_no_attack():
    few = sites()
    few["west"] = replace(few["west"], trials=few["west"].trials.select(torch.arange(2)))
    found = audit_run(few, settings(model={"heads": ["retrieval"]}), 1)
    assert found["west"] == []
    assert found["north"]
    unlabelled = {name: replace(site, trials=replace(site.trials, labels=None)) for name, site in sites().items()}
    with pytest.raises(InputError, match="without labels"):
        audit_run(unlabelled, settings(model={"heads": ["retrieval"]}), 1)
