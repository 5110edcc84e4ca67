"""Attacks: at chance where there is nothing to find, far above it on toys that leak, and less under noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from phosphene.errors import InputError
from phosphene.federation.audit import (
    confidence_scores,
    distance_scores,
    loss_scores,
    membership,
    prototype_inversion,
)
from phosphene.federation.noise import NoiseSource
from phosphene.federation.privacy import PrivacySettings, Protection

WIDTH = 16


def overfitted(several=False):
    """Logits of a wide network that knows 60 trials of random labels by heart, and of 60 others like them."""
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(120, 20, generator=rng), torch.randint(0, 4, (120,), generator=rng)
    target = functional.one_hot(y, 4).float() if several else y
    measure = functional.binary_cross_entropy_with_logits if several else functional.cross_entropy
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 128), nn.GELU(), nn.Linear(128, 4))
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        measure(module(x[:60]), target[:60]).backward()
        optimiser.step()
    with torch.no_grad():
        return module(x), target


def test_the_auc_is_that_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 8, 90) + 1.0, rng.integers(0, 8, 70).astype(float)
    wanted = roc_auc_score(np.r_[np.ones(90), np.zeros(70)], np.r_[members, others])
    found = membership("x", members, others)
    assert found.value == pytest.approx(wanted, rel=1e-12)
    assert found.low < found.value < found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for turn in range(100):
        found = membership("x", rng.normal(size=60), rng.normal(size=60), boots=200, seed=turn)
        covered += found.low <= 0.5 <= found.high
    assert 86 <= covered <= 100


@pytest.mark.parametrize("several", [False, True])
def test_an_overfitted_network_gives_its_trials_away(several):
    logits, labels = overfitted(several)
    for scores in (loss_scores(logits, labels), confidence_scores(logits, several)):
        found = membership("x", scores[:60], scores[60:])
        assert found.value > 0.8
        assert found.succeeds
        assert "leaks" in found.told()


def test_networks_that_saw_neither_half_give_nobody_away():
    found = []
    for seed in range(20):
        torch.manual_seed(seed)
        logits, labels = nn.Linear(20, 4)(torch.randn(200, 20)).detach(), torch.randint(0, 4, (200,))
        for scores in (loss_scores(logits, labels), confidence_scores(logits)):
            found.append(membership("x", scores[:100], scores[100:], boots=200))
    assert np.mean([each.value for each in found]) == pytest.approx(0.5, abs=5 * 0.041 / np.sqrt(40))
    assert sum(each.succeeds for each in found) <= 5  # 1 of 40 expected
    assert any("not told from chance" in each.told() for each in found)


def site(per_class, others=60, classes=12, seed=0):
    """Trials around class means, and the prototypes of those that took part: what a site's library would hold."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, WIDTH, generator=rng)
    members = centres[:, None] + torch.randn(classes, per_class, WIDTH, generator=rng)
    outside = centres[:, None] + torch.randn(classes, others, WIDTH, generator=rng)
    rows = torch.arange(classes)
    return {
        "prototypes": members.mean(dim=1),
        "counts": torch.full((classes,), float(per_class)),
        "members": members.flatten(0, 1),
        "member_of": rows.repeat_interleave(per_class),
        "others": outside.flatten(0, 1),
        "other_of": rows.repeat_interleave(others),
    }


def test_prototypes_of_few_trials_point_at_them_and_those_of_many_do_not():
    found = {count: prototype_inversion(**site(count))[0] for count in (1, 3, 10, 200)}
    values = [found[count].value for count in (1, 3, 10, 200)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert found[3].succeeds
    assert found[200].value == pytest.approx(1 / 20, abs=0.02)
    assert found[200].chance == 1 / 20


def test_noise_hides_what_a_prototype_of_one_trial_shows():
    given = site(1)
    protection = Protection(PrivacySettings(feature_limit=4.0, library_noise=1.0), WIDTH)
    sums = given["prototypes"].double()
    blurred = protection.library(sums, given["counts"].double(), NoiseSource(0))[0]
    found = prototype_inversion(**{**given, "prototypes": blurred.float()})[0]
    assert found.value < 0.25
    assert not found.succeeds


def test_distance_to_prototypes_tells_members_of_small_classes():
    for count, leaks in ((2, True), (300, False)):
        given = site(count, others=300 if count == 300 else 60)
        scores = [
            distance_scores(given[who], given["prototypes"], given[f"{who[:-1]}_of"]) for who in ("members", "others")
        ]
        assert membership("distance", *scores).succeeds is leaks
    nearest = distance_scores(given["members"], given["prototypes"])
    own = distance_scores(given["members"], given["prototypes"], given["member_of"])
    assert bool((nearest >= own).all())


def test_inversion_by_count_comes_in_groups():
    rows = [site(count, seed=count, classes=4) for count in (1, 6, 30)]
    joint = {name: torch.cat([each[name] for each in rows]) for name in ("prototypes", "counts", "members", "others")}
    joint |= {
        name: torch.cat([each[name] + 4 * at for at, each in enumerate(rows)]) for name in ("member_of", "other_of")
    }
    found = prototype_inversion(**joint, edges=(2, 10))
    assert [each.name for each in found] == [
        "inversion, all counts",
        "inversion, counts below 2",
        "inversion, counts from 2 to below 10",
        "inversion, counts from 10",
    ]
    assert [each.members for each in found] == [148, 4, 24, 120]
    assert found[1].value > found[2].value > found[3].value


def test_the_probability_to_be_found_is_that_of_all_draws():
    """Against every draw of two of four others, with a tie."""
    others = torch.tensor([0.1, 0.4, 0.6, 0.9])
    angle = lambda values: torch.stack([values, (1 - values**2).sqrt()], dim=1)  # noqa: E731
    member = torch.tensor([0.6])
    found = prototype_inversion(
        torch.tensor([[1.0, 0.0]]), torch.ones(1), angle(member), torch.zeros(1, dtype=torch.int64),
        angle(others), torch.zeros(4, dtype=torch.int64), pool=3, boots=2,
    )[0]  # fmt: skip
    strict = [all(other < 0.6 - 1e-6 for other in drawn) for drawn in itertools.combinations(others.tolist(), 2)]
    loose = [all(other < 0.6 + 1e-6 for other in drawn) for drawn in itertools.combinations(others.tolist(), 2)]
    assert found.value == pytest.approx((np.mean(strict) + np.mean(loose)) / 2)
    assert found.chance == pytest.approx(1 / 3)


def test_arrays_that_do_not_belong_together_are_refused():
    given = site(2)
    for change, words in (
        ({"member_of": given["member_of"] + 1}, "row of one of 12"),
        ({"counts": torch.ones(3)}, "as many counts"),
        ({"members": torch.zeros(24, 3)}, "features"),
        ({"pool": 1}, "a pool holds"),
        ({"pool": 90}, "take a smaller pool"),
    ):
        with pytest.raises(InputError, match=words):
            prototype_inversion(**{**given, **change})
    for bad in (np.array([1.0]), np.array([np.nan, 1.0])):
        with pytest.raises(InputError, match="scores of others"):
            membership("x", np.zeros(3), bad)
    with pytest.raises(InputError, match="at least one prototype"):
        distance_scores(given["members"], torch.zeros(0, WIDTH))
