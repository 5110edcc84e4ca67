"""Sums under pairwise masks: exact in any order, nothing visible alone, and what happens when a site drops out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from phosphene.errors import FederationError, InputError
from phosphene.federation.aggregation import fedavg
from phosphene.federation.secure_sum import (
    SecureSum,
    check_compatible,
    deal,
    mask,
    mean_of,
    of_fixed,
    to_fixed,
    unmask,
    with_weight,
)

SITES = ["clinic-a", "clinic-b", "clinic-c", "clinic-d"]


def contributions(seed=0):
    """On the grid of a library, as sums and counts are."""
    rng = torch.Generator().manual_seed(seed)
    return {
        site: {
            "sums": (torch.randn(3, 5, generator=rng, dtype=torch.float64) * 1e3 * 2**30).round() / 2**30,
            "counts": torch.randint(0, 90, (3,), generator=rng).double(),
        }
        for site in SITES
    }


def summed(given, sites):
    return {name: sum(given[site][name] for site in sites) for name in ("sums", "counts")}


def test_the_sum_is_exact_in_any_order():
    given = contributions()
    wanted = summed(given, SITES)
    for order in itertools.permutations(SITES):
        summation = SecureSum(SITES, turn=3)
        found = summation.total([summation.mask(site, given[site]) for site in order])
        assert torch.equal(found["sums"], wanted["sums"])
        assert torch.equal(found["counts"], wanted["counts"])


def test_numbers_between_the_grid_are_rounded_once_and_the_same_in_any_order():
    rng = torch.Generator().manual_seed(1)
    given = {site: {"w": torch.randn(50, generator=rng)} for site in SITES}
    sums = []
    for order in (SITES, SITES[::-1]):
        summation = SecureSum(SITES, turn=0)
        sums.append(summation.total([summation.mask(site, given[site]) for site in order])["w"])
    assert torch.equal(*sums)
    error = (sums[0] - sum(given[site]["w"].double() for site in SITES)).abs()
    assert float(error.max()) <= len(SITES) * 2.0**-31


def test_a_lone_contribution_looks_uniform_whatever_it_holds():
    secrets = deal(SITES, seed=5)
    zeros = mask({"w": torch.zeros(20_000)}, "clinic-b", secrets["clinic-b"], turn=1)
    shares = zeros.values.astype(np.float64) / 2.0**64
    assert kstest(shares, "uniform").pvalue > 1e-3
    bits = np.unpackbits(zeros.values.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.all(np.abs(bits - 0.5) < 5 * 0.5 / math.sqrt(20_000))
    signal = torch.linspace(-100, 100, 20_000)
    masked = mask({"w": signal}, "clinic-b", deal(SITES, seed=6)["clinic-b"], turn=1)
    correlation = np.corrcoef(masked.values.astype(np.float64), signal.numpy())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(20_000)


def test_all_but_one_summand_leave_that_one_hidden():
    """The sum of three of four, when nobody tells the fourth's secrets, is as uniform as one."""
    secrets = deal(SITES, seed=7)
    sent = [mask({"w": torch.ones(5000)}, site, secrets[site], turn=1) for site in SITES[:3]]
    total = sum(each.values for each in sent[1:]) + sent[0].values
    assert kstest(total.astype(np.float64) / 2.0**64, "uniform").pvalue > 1e-3


def test_other_rounds_have_other_masks():
    secrets = deal(SITES, seed=5)["clinic-a"]
    first, second = (mask({"w": torch.zeros(1000)}, "clinic-a", secrets, turn).values for turn in (1, 2))
    assert not np.any(first == second)


@pytest.mark.parametrize("gone", ["clinic-a", "clinic-c", "clinic-d"])
def test_masks_of_a_site_that_dropped_out_are_recovered(gone):
    given, here = contributions(), [site for site in SITES if site != gone]
    summation = SecureSum(SITES, turn=2)
    sent = {site: summation.mask(site, given[site]) for site in SITES}
    found = summation.total([sent[site] for site in here])
    wanted = summed(given, here)
    assert torch.equal(found["sums"], wanted["sums"])
    assert torch.equal(found["counts"], wanted["counts"])
    with pytest.raises(FederationError, match=f"{gone} came too late"):
        summation.total(list(sent.values()))


def test_without_the_secrets_of_the_missing_pairs_the_round_is_refused():
    given, secrets = contributions(), deal(SITES)
    sent = [mask(given[site], site, secrets[site], turn=2) for site in SITES[:3]]
    revealed = {(site, "clinic-d"): secrets[site]["clinic-d"] for site in SITES[:2]}
    with pytest.raises(FederationError, match="clinic-d dropped out and clinic-c does not tell"):
        unmask(sent, SITES, revealed)


def test_too_few_contributions_are_not_read():
    given, summation = contributions(), SecureSum(SITES, turn=4, least=3)
    sent = [summation.mask(site, given[site]) for site in SITES[:2]]
    with pytest.raises(FederationError, match="2 of 4 sites sent something in round 4"):
        summation.total(sent)
    for least in (1, 5):
        with pytest.raises(InputError, match="2 to 4"):
            SecureSum(SITES, turn=4, least=least)


def test_a_mask_is_used_once():
    given, summation = contributions(), SecureSum(SITES, turn=4)
    summation.mask("clinic-a", given["clinic-a"])
    with pytest.raises(InputError, match="clinic-a has sent something under the masks of round 4"):
        summation.mask("clinic-a", given["clinic-b"])


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_robust_aggregation_and_secure_summation_exclude_each_other(rule):
    with pytest.raises(InputError, match=f"nothing but the sum, and '{rule}' compares single sites"):
        check_compatible(rule)
    with pytest.raises(InputError, match="max_norm, max_ratio would look at single"):
        check_compatible("fedavg", max_norm=3.0, max_ratio=10.0, update_limit=None)
    check_compatible("fedadam", max_norm=None)


def test_weighted_means_come_out_as_of_fedavg():
    rng = torch.Generator().manual_seed(2)
    updates = {site: {"w": torch.randn(40, generator=rng)} for site in SITES}
    weights = dict(zip(SITES, (10.0, 250.0, 31.0, 7.0), strict=True))
    summation = SecureSum(SITES, turn=0)
    total = summation.total([summation.mask(site, with_weight(updates[site], weights[site])) for site in SITES])
    wanted = fedavg(list(updates.values()), list(weights.values()))
    assert torch.allclose(mean_of(total)["w"], wanted["w"], atol=1e-7)
    for broken in (
        lambda: with_weight({"weight": torch.zeros(1)}, 1.0),
        lambda: with_weight({}, 0.0),
        lambda: mean_of({}),
    ):
        with pytest.raises(InputError, match="weight"):
            broken()


def test_fixed_point_holds_its_range_and_says_so():
    most = 2.0**32 / 4
    edge = {"w": torch.tensor([most, -most], dtype=torch.float64)}
    total = sum(to_fixed(edge, sites=4)[0] for _ in range(4))
    assert of_fixed(total, (("w", (2,)),))["w"].tolist() == [4 * most, -4 * most]
    for bad in (2 * most, torch.nan, torch.inf):
        with pytest.raises(InputError, match="'w' holds numbers"):
            to_fixed({"w": torch.tensor([bad])}, sites=4)
    with pytest.raises(InputError, match="int64"):
        to_fixed({"n": torch.zeros(2, dtype=torch.int64)}, sites=2)
    with pytest.raises(InputError, match="0 to 52"):
        to_fixed(edge, sites=4, bits=60)
    with pytest.raises(InputError, match="nothing to add up"):
        to_fixed({}, sites=2)


def test_contributions_that_do_not_belong_together_are_refused():
    given, secrets = contributions(), deal(SITES)
    good = [mask(given[site], site, secrets[site], turn=2) for site in SITES]
    other_round = mask(given["clinic-d"], "clinic-d", secrets["clinic-d"], turn=3)
    other_shape = mask({"sums": torch.zeros(2)}, "clinic-d", secrets["clinic-d"], turn=2)
    for last in (other_round, other_shape):
        with pytest.raises(InputError, match="clinic-d sent other tensors"):
            unmask([*good[:3], last], SITES, {})
    with pytest.raises(InputError, match="one contribution of each"):
        unmask([good[0], good[0]], SITES, {})
    with pytest.raises(InputError, match="at least two sites"):
        deal(["alone"])
    with pytest.raises(InputError, match="takes no part"):
        SecureSum(SITES, turn=0).mask("stranger", given["clinic-a"])
