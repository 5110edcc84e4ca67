"""Rounds of which the server sees sums alone: the same result, the same bits when resumed, and what cannot be had."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from federation_sites import interrupting, made_sites, run, same, settings

from phosphene.errors import FederationError, InputError
from phosphene.federation import engine, secure_round
from phosphene.federation.client import client_update
from phosphene.federation.engine import RoundFailure, federate
from phosphene.federation.faults import Fault
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.secure_round import Summed, check_summable, mean_loss, server_update_of_sum, summand
from phosphene.federation.secure_sum import Masked
from phosphene.federation.server import first_state, server_update
from phosphene.federation.state import SiteState

OPEN = {"server": {"max_ratio": None}}


def sites(n: int = 8) -> dict[str, SiteState]:
    return {site.site: site for site in made_sites(n=n)}


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float) -> bool:
    return one.keys() == other.keys() and all(float((one[name] - other[name]).abs().max()) <= within for name in one)


def plain_sum(sent, chosen) -> Summed:
    """The sum without masks: what `secure_sum` gives to rounding."""
    parts = [summand(each, chosen) for each in sent]
    return Summed(
        tuple(each.site for each in sent), sent[0].round, {name: sum(part[name] for part in parts) for name in parts[0]}
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"weighting": "equal"}, {"weighting": "modality"}, {"aggregator": "fedadam"}],
    ids=["trials", "equal", "modality", "fedadam"],
)
def test_the_server_makes_of_the_sum_what_it_makes_of_the_parts(changes):
    chosen = settings(server={**OPEN["server"], **changes})
    shared, _, sent = run(list(sites().values()), chosen, 1)
    again = server_update_of_sum(first_state(shared.agreement, chosen), plain_sum(sent[0], chosen), chosen)
    assert close(again.weights, shared.weights, 1e-7)
    assert close(again.moments, shared.moments, 1e-7)
    assert same(again.library.to_tensors(), shared.library.to_tensors())
    assert again.report.used == dict.fromkeys(sorted(sites()))


def test_a_secure_round_is_the_plain_one_within_the_step_of_fixed_point():
    """Half a step of 2^-30 a site, over the trials of all, and the rounding to float32."""
    chosen = settings(**OPEN)
    plain, secure = federate(sites(), chosen, 1), federate(sites(), chosen, 1, secure=True)
    trials = sum(len(site.trials) for site in sites().values())
    largest = max(float(each.abs().max()) for each in plain.shared.weights.values())
    assert close(secure.shared.weights, plain.shared.weights, 3 * 2.0**-31 / trials + largest * 2.0**-23)
    assert same(secure.shared.library.to_tensors(), plain.shared.library.to_tensors())
    assert same(secure.sites["south"].private, plain.sites["south"].private)
    assert plain.history[0].seen == "contributions"
    told = [record.metrics[name]["loss total"] for record in plain.history for name in ("north", "south", "west")]
    weights = [len(sites()[name].trials) for name in ("north", "south", "west")]
    assert secure.history[0].metrics == {"all sites": {"loss total": pytest.approx(np.average(told, weights=weights))}}


def test_the_server_is_given_nothing_but_masked_numbers(monkeypatch):
    real, seen = engine.add_up, []

    def watching(summation, sent):
        seen.extend(sent)
        return real(summation, sent)

    monkeypatch.setattr(engine, "add_up", watching)
    monkeypatch.setattr(engine, "server_update", lambda *_: pytest.fail("the server saw contributions"))
    done = federate(sites(), settings(**OPEN), 2, secure=True)
    assert len(seen) == 6
    assert all(isinstance(each, Masked) for each in seen)
    zeros = np.mean([np.mean(each.values == 0) for each in seen])
    assert zeros == 0  # prototypes of absent classes, which are zeros, are hidden too
    record = done.history[1]
    assert record.seen == "sum"
    assert record.used == {"north": None, "south": None, "west": None}
    assert record.metrics.keys() == {"all sites"}
    assert record.bytes_up["north"] == 8 * len(seen[0].values)


def test_a_secure_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    chosen = settings(**OPEN)
    whole = federate(sites(), chosen, 3, secure=True)
    with monkeypatch.context() as patch:
        interrupting(patch, engine, "client_update", 5)
        with pytest.raises(KeyboardInterrupt):
            federate(sites(), chosen, 3, secure=True, out=tmp_path)
    done = federate(sites(), chosen, 3, secure=True, out=tmp_path)
    assert same(done.shared.to_tensors()[0], whole.shared.to_tensors()[0])
    assert [asdict(replace(record, seconds=0)) for record in done.history] == [
        asdict(replace(record, seconds=0)) for record in whole.history
    ]
    assert "norm" not in json.dumps([asdict(record) for record in done.history])
    with pytest.raises(InputError, match="secure is False, was True"):
        federate(sites(), chosen, 3, out=tmp_path)


def four(n: int = 8) -> dict[str, SiteState]:
    first = made_sites(n=n)[0]
    return {**sites(n), "wold": replace(first, site="wold")}


def test_masks_of_sites_that_fail_are_taken_out_again():
    chosen = settings(**OPEN)
    faults = [Fault.parse(words) for words in ("drop:west:1", "nan:west:2", "delay:west:3:90")]
    done = federate(four(), chosen, 3, secure=True, faults=faults, deadline=60)
    plain = federate(four(), chosen, 3, faults=faults, deadline=60)
    assert [list(record.used) for record in done.history] == [["north", "south", "wold"]] * 3
    reasons = [record.missing["west"] for record in done.history]
    assert reasons[0] == "it dropped out"
    assert "not finite" in reasons[1]
    assert reasons[2] == "no answer within 60 s"
    assert close(done.shared.weights, plain.shared.weights, 1e-3)


def test_a_sum_of_too_few_is_not_read():
    chosen = settings(**OPEN)
    with pytest.raises(RoundFailure, match=r"no sum of fewer than 3 is read\. Missing: west: it dropped out") as failed:
        federate(sites(), chosen, 2, secure=True, faults=[Fault.parse("drop:west:2")])
    assert failed.value.last.shared.round == 1
    two = {name: site for name, site in sites().items() if name != "west"}
    with pytest.raises(InputError, match="at least 3 sites here, and 2 of 2 are asked"):
        federate(two, chosen, 1, secure=True)
    with pytest.raises(InputError, match="2 of 3 are asked"):
        federate(sites(), chosen, 1, secure=True, participation=0.6)
    shares = PrivacySettings(update_limit=1.0, shares=4)
    with pytest.raises(InputError, match="at least 4 sites here"):
        federate(sites(), settings(server={"max_ratio": None, "weighting": "equal"}), 1, secure=True, privacy=shares)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({}, r"server\.max_ratio would look at single updates"),
        ({"max_ratio": None, "max_norm": 3.0}, r"server\.max_norm would look"),
        ({"max_ratio": None, "update_limit": 3.0}, r"server\.update_limit would look"),
        ({"max_ratio": None, "aggregator": "median"}, "'median' compares single sites"),
        ({"max_ratio": None, "aggregator": "trimmed-mean"}, "'trimmed-mean' compares single sites"),
    ],
)
def test_what_looks_at_single_contributions_is_refused(server, words, tmp_path):
    with pytest.raises(InputError, match=words):
        federate(sites(), settings(server=server), 1, secure=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rubbish_in_a_sum_is_an_error_and_not_a_state():
    chosen = settings(**OPEN)
    states = list(sites().values())
    shared = first_state(states[0].agreement, chosen)
    summed = plain_sum([client_update(site, shared, chosen)[0] for site in states], chosen)
    fewer = {**summed.tensors, "library/counts": summed.tensors["library/counts"] - 1000}
    with pytest.raises(FederationError, match="a site sends rubbish"):
        server_update_of_sum(shared, replace(summed, tensors=fewer), chosen)
    with pytest.raises(FederationError, match="of round 4, this is round 1"):
        server_update_of_sum(shared, replace(summed, round=4), chosen)
    with pytest.raises(FederationError, match="a sum of 3 sites, 4 are needed"):
        server_update_of_sum(shared, summed, settings(server={"max_ratio": None, "quorum": 4}))
    silent = {**summed.tensors, "loss/trials": torch.zeros(()), "loss/sum": torch.zeros(())}
    assert mean_loss(replace(summed, tensors=silent)) is None


def test_noise_that_is_split_is_the_whole_noise_of_the_sum():
    """Of three shares each site adds 1/sqrt(3): what the sum deviates by is one noise, and epsilon says so."""
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    given = {"update_limit": 1.0, "update_noise": 4.0, "feature_limit": 2.0, "library_noise": 4.0}
    chosen = settings(server={"max_ratio": None, "weighting": "equal"})
    deviations, epsilons = [], []
    for shares in (1, 3):
        privacy = PrivacySettings(**given, shares=shares, seed=7)
        done = federate(sites(), chosen, 1, privacy=privacy, secure=True)
        clear = federate(sites(), chosen, 1)
        counts = [each.shared.library.counts for each in (done, clear)]
        deviations.append(float((counts[0] - counts[1])[counts[0] != 0].std()))
        epsilons.append(done.accountant.epsilon("trial"))
        assert done.history[0].metrics == {}
    assert epsilons[0] == epsilons[1]
    assert deviations[1] < 0.8 * deviations[0]
    assert any("by itself: the noise is split" in words for words in done.accountant.guarantee("trial").not_protected)


def test_a_group_of_tensors_that_nobody_trained_stays_as_it_is():
    chosen = settings(server={"max_ratio": None, "weighting": "modality"})
    states = list(sites().values())
    shared = first_state(states[0].agreement, chosen)
    sent = [replace(client_update(site, shared, chosen)[0], n_present=(0, 5, 5)) for site in states]
    after = server_update_of_sum(shared, plain_sum(sent, chosen), chosen)
    trunk = [name for name in shared.weights if name.startswith("fmri.")]
    assert trunk
    assert all(torch.equal(after.weights[name], shared.weights[name]) for name in trunk)
    assert close(after.weights, server_update(shared, sent, chosen).weights, 1e-7)
    assert secure_round.LEAST == 3


def test_prototypes_weighted_by_single_sites_are_refused():
    with pytest.raises(InputError, match=r"library\.weighting = sites divides by counts of single sites"):
        check_summable(settings(library={"weighting": "sites"}, server={"max_ratio": None}))
