"""Faults on request: how they are asked for, refused, and what is told of an error at a site."""

from __future__ import annotations

import pytest
import torch
from federation_sites import AGREEMENT, made_sites, settings

from phosphene.errors import FederationError, InputError
from phosphene.federation.client import client_update
from phosphene.federation.faults import Fault, check_faults, reason_of, spoiled
from phosphene.federation.server import first_state, server_update


@pytest.mark.parametrize(
    ("text", "rounds", "size"),
    [("drop:a:3", (3,), None), ("delay:a:1,3-5:90", (1, 3, 4, 5), 90.0), ("poison:a:2", (2,), 100.0)],
)
def test_a_fault_is_read_from_its_words_and_says_them_again(text, rounds, size):
    fault = Fault.parse(text)
    assert (fault.site, fault.rounds, fault.size) == ("a", rounds, size)
    assert Fault.parse(fault.words) == fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("drop:a", "KIND:SITE:ROUNDS"),
        ("drop:a:x", "rounds are 3"),
        ("drop:a:1-999999999", "rounds are 3"),
        ("drop:a:0", "counted from 1"),
        ("drop:a:5-3", "counted from 1"),
        ("dorp:a:1", "did you mean 'drop'"),
        ("delay:a:1", "needs seconds"),
        ("drop:a:1:5", "has no size"),
        ("poison:a:1:-2", "above 0"),
        ("poison:a:1:nan", "above 0"),
    ],
)
def test_words_that_are_no_fault_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        Fault.parse(text)


@pytest.mark.parametrize(
    ("texts", "deadline", "words"),
    [
        (["drop:z:1"], None, "unknown site 'z'"),
        (["drop:a:4"], None, "3 rounds"),
        (["drop:a:1-2", "nan:a:2"], None, "another fault in round 2"),
        (["delay:a:1:9"], None, "no use without a deadline"),
        (["drop:a:1"], 5.0, "no use without delays"),
        (["delay:a:1:9"], -1.0, "above 0"),
    ],
)
def test_faults_that_cannot_happen_are_refused(texts, deadline, words):
    with pytest.raises(InputError, match=words):
        check_faults([Fault.parse(text) for text in texts], ["a", "b"], 3, deadline)


def test_what_nan_and_poison_send_is_refused_by_the_server():
    chosen = settings()
    shared = first_state(AGREEMENT, chosen)
    sent = [client_update(site, shared, chosen)[0] for site in made_sites()]
    poisoned = spoiled(sent[0], shared, Fault.parse("poison:north:1"))
    name = "fusion.mix.weight"
    moved = sent[0].weights[name] - shared.weights[name]
    torch.testing.assert_close(poisoned.weights[name] - shared.weights[name], 100 * moved, rtol=1e-3, atol=1e-5)
    report = server_update(shared, [poisoned, *sent[1:]], chosen).report
    assert "more than" in report.refused["north"]
    report = server_update(shared, [spoiled(sent[0], shared, Fault.parse("nan:north:1")), *sent[1:]], chosen).report
    assert "not finite" in report.refused["north"]


def test_of_an_error_nothing_but_its_kind_is_told():
    class Secret7341(ValueError):
        pass

    secret = "patients/7341.h5: row 12 has 0.7341"
    errors = [kind(secret) for kind in (Secret7341, OSError, InputError, FederationError, KeyError, ZeroDivisionError)]
    told = [reason_of(error) for error in errors]
    assert len(set(told)) == 5
    assert not any("/" in words or "7341" in words for words in told)
