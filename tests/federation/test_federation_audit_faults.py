"""The audit of a run to which something happens: what befalls the run befalls the audit, and a stopped one goes on."""

from __future__ import annotations

import pytest
from federation_sites import AGREEMENT, interrupting, made_trials, settings

from phosphene.errors import InputError
from phosphene.federation import Fault, RoundFailure, engine
from phosphene.federation import audit_run as room
from phosphene.federation.audit_run import audit_run
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.state import SiteState


def sites(*names: str) -> dict[str, SiteState]:
    """Of one person each."""
    return {
        name: SiteState(name, made_trials(seed, {f"p{seed}": 20}, 40, 3.0), AGREEMENT)
        for seed, name in enumerate(names or ("north", "south", "west"))
    }


def four_sites() -> dict[str, SiteState]:
    return sites("north", "south", "west", "east")


def test_what_befalls_the_run_befalls_the_audit(monkeypatch):
    """North drops out for good, west sends NaN in the end, and south is late: what counted last is attacked."""
    seen, real = [], room.audit_site
    monkeypatch.setattr(
        room, "audit_site", lambda site, sent, *rest: seen.append((site, sent)) or real(site, sent, *rest)
    )
    faults = [Fault.parse(words) for words in ("drop:north:2-3", "nan:west:3", "delay:south:3:90")]
    found = audit_run(four_sites(), settings(), 3, faults=faults, deadline=60.0, pool=5)
    assert {site.site: (site.round, sent.round) for site, sent in seen} == {
        "north": (1, 1), "west": (2, 2), "south": (2, 2), "east": (3, 3)
    }  # fmt: skip
    assert all(found.values())


def test_only_drawn_sites_are_attacked_and_a_site_that_never_counted_has_no_attack():
    found = audit_run(sites(), settings(), 1, participation=0.3)
    assert sorted(map(bool, found.values())) == [False, False, True]
    silent = [Fault("drop", "west", (1, 2))]
    found = audit_run(sites(), settings(), 2, faults=silent)
    assert [name for name, attacks in found.items() if not attacks] == ["west"]


def test_a_quorum_that_the_run_lacks_the_audit_lacks_too():
    with pytest.raises(RoundFailure, match=r"2 usable contributions, 3 are needed.*west: it dropped out"):
        audit_run(sites(), settings(), 1, quorum=3, faults=[Fault("drop", "west", (1,))])


@pytest.mark.parametrize("secure", [False, True])
def test_an_audit_goes_on_where_it_stopped_with_what_was_seen(tmp_path, monkeypatch, secure):
    chosen = settings(server={"max_ratio": None})
    more = {"faults": [Fault("drop", "north", (2, 3))], "secure": secure, "pool": 5, "out": tmp_path / "audit"}
    whole = audit_run(four_sites(), chosen, 3, **{**more, "out": None})
    with monkeypatch.context() as patch:
        interrupting(patch, engine, "server_update_of_sum" if secure else "server_update", 3)
        with pytest.raises(KeyboardInterrupt):
            audit_run(four_sites(), chosen, 3, **more)
    for _ in range(2):  # the second time it is read back
        assert audit_run(four_sites(), chosen, 3, **more) == whole


def test_what_an_audit_of_halves_cannot_say_is_refused():
    private = PrivacySettings(trial_sgd={"noise": 1.0}, epsilon_limit=5.0)
    with pytest.raises(InputError, match=r"fall silent in earlier rounds.*Audit without privacy\.epsilon_limit"):
        audit_run(sites(), settings(), 1, privacy=private)
