"""Masks of missing modalities: from seed and site, at the rate that was asked for, never all gone."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.federation.missing import Missing, fractions, missing_pattern, site_patterns

IDS = [f"t{i}" for i in range(4000)]


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.8])
def test_instances_keep_something_and_follow_the_rate(rate):
    present = missing_pattern(IDS, rate, seed=1, site="a")
    assert present.any(axis=1).all()
    found = fractions(present)
    some = 1 - rate**3  # of independent draws, those that leave something
    assert found["complete"] == pytest.approx((1 - rate) ** 3 / some, abs=0.03)
    for name in ("fmri", "image", "text"):
        assert found[f"missing {name}"] == pytest.approx((rate - rate**3) / some, abs=0.03)


def test_same_seed_and_site_same_masks():
    one = missing_pattern(IDS, 0.5, seed=1, site="a")
    assert np.array_equal(one, missing_pattern(IDS, 0.5, seed=1, site="a"))
    assert not np.array_equal(one, missing_pattern(IDS, 0.5, seed=2, site="a"))
    assert not np.array_equal(one, missing_pattern(IDS, 0.5, seed=1, site="b"))


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.8])
def test_site_patterns_leave_every_site_one_and_every_modality_a_site(rate):
    sites = ["a", "b", "c", "d"]
    patterns = np.array(list(site_patterns(sites, rate, seed=3).values()))
    assert patterns.any(axis=1).all()
    assert patterns.any(axis=0).all()
    assert (~patterns).sum() == min(round(rate * 12), 8)
    rows = missing_pattern(IDS[:5], rate, "site", seed=3, site="c", sites=sites)
    assert (rows == patterns[2]).all()
    assert np.array_equal(site_patterns(sites[::-1], rate, seed=3)["c"], patterns[2])


def test_what_is_not_there_to_begin_with_stays_away():
    available = np.ones((4000, 3), dtype=bool)
    available[2000:, 0] = False
    present = missing_pattern(IDS, 0.5, seed=1, site="a", available=available)
    assert not present[2000:, 0].any()
    assert present.any(axis=1).all()
    assert present[2000:].mean(axis=0) == pytest.approx([0, 2 / 3, 2 / 3], abs=0.03)  # of two, one always stays
    held = site_patterns(["a", "b"], 0.5, seed=0)
    brain = next(name for name, pattern in held.items() if pattern.sum() == 1)
    with pytest.raises(InputError, match="have nothing that its pattern leaves"):
        missing_pattern(IDS, 0.5, "site", 0, brain, ["a", "b"], np.tile(~held[brain], (4000, 1)))
    with pytest.raises(InputError, match="something in each row"):
        missing_pattern(IDS, 0.5, available=np.zeros((4000, 3), dtype=bool))


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9])
def test_patterns_of_sites_are_drawn_among_what_they_hold(rate):
    held = {"a": (True, True, False), "b": (False, True, True), "c": (True, True, True), "d": (False, False, True)}
    patterns = site_patterns(held, rate, seed=3)
    assert list(patterns) == list(held)
    assert not any((patterns[name] & ~np.array(has)).any() for name, has in held.items())
    table = np.array(list(patterns.values()))
    assert table.any(axis=1).all()
    assert table.any(axis=0).all()
    assert table.sum() == max(8 - round(rate * 8), 4)
    everything = dict.fromkeys(held, (True, True, True))
    assert all(
        np.array_equal(site_patterns(everything, rate, 3)[n], site_patterns(list(held), rate, 3)[n]) for n in held
    )


def test_what_is_to_be_missing_is_checked_when_it_is_said():
    assert Missing(0.3) == Missing(0.3, "instance", 0)
    with pytest.raises(InputError, match="rate of missing modalities"):
        Missing(1.0)
    with pytest.raises(InputError, match="did you mean 'site'"):
        Missing(0.5, "sight")


def test_fractions_name_the_combinations():
    found = fractions(np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1], [0, 1, 0]], dtype=bool))
    assert found["only fmri+text"] == 0.5
    assert found["missing image"] == 0.5
    assert found["complete"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.0}, "lies in"),
        ({"rate": 0.5, "kind": "sites"}, "kind of missing pattern"),
        ({"rate": 0.5, "kind": "site", "site": "x", "sites": ["a", "b"]}, "unknown site 'x'"),
        ({"rate": 0.5, "kind": "site", "site": "a", "sites": ["a", "a"]}, "different names"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        missing_pattern(IDS[:3], **arguments)
