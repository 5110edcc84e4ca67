"""Clipping, noise and what they cost: by brute force, by measured deviation, and by dp-accounting itself."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from phosphene.errors import FederationError, InputError
from phosphene.federation.accounting import Accountant, Release
from phosphene.federation.aggregation import total_norm
from phosphene.federation.library import PrototypeLibrary, clip_rows
from phosphene.federation.noise import NoiseSource
from phosphene.federation.privacy import PrivacySettings, Protection, clip_labels, library_sensitivity

WIDTH = 5
BOTH = PrivacySettings(
    update_limit=0.5, update_noise=2.0, feature_limit=1.5, library_noise=3.0, classes_per_trial=2, seed=1
)


def library(features, held, labels, centre, centres=2):
    """Sums and counts by a loop over trials: (4, C, K, d) and (4, C, K)."""
    sums = torch.zeros(4, labels.shape[1], centres, features.shape[2], dtype=torch.float64)
    counts = torch.zeros(sums.shape[:3], dtype=torch.float64)
    for n, part, c in itertools.product(range(len(features)), range(4), range(labels.shape[1])):
        if held[n, part]:
            sums[part, c, centre[n, c]] += labels[n, c].double() * features[n, part].double()
            counts[part, c, centre[n, c]] += labels[n, c].double()
    return sums, counts


def trials(n=12, classes=4, seed=0, size=5.0):
    rng = torch.Generator().manual_seed(seed)
    features = size * torch.randn(n, 4, WIDTH, generator=rng)
    held = torch.rand(n, 4, generator=rng) < 0.8
    return features, held, torch.rand(n, classes, generator=rng), torch.randint(0, 2, (n, classes), generator=rng)


def joint(sums, counts, weight):
    return torch.cat([sums.flatten(), weight * counts.flatten()])


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_no_trial_moves_sums_and_counts_further_than_the_sensitivity(classes):
    beta = WIDTH**-0.25
    bound = library_sensitivity(1.5, classes, WIDTH, beta)
    furthest = 0.0
    for seed in range(8):
        features, held, labels, centre = trials(seed=seed)
        features, labels = clip_rows(features, 1.5), clip_labels((labels * 2).clamp(max=1), classes)
        whole = joint(*library(features, held, labels, centre), beta * 1.5)
        for out in range(len(features)):
            kept = [n for n in range(len(features)) if n != out]
            less = joint(*library(features[kept], held[kept], labels[kept], centre[kept]), beta * 1.5)
            furthest = max(furthest, float((whole - less).norm()))
    assert 0.5 * bound < furthest <= bound


def test_the_sensitivity_is_reached_and_not_only_a_bound():
    """A trial of all parts, labels of 1 and features as long as allowed."""
    features = torch.zeros(1, 4, WIDTH)
    features[..., 0] = 1.5
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    sums, counts = library(features, torch.ones(1, 4).bool(), labels, torch.zeros(1, 3, dtype=torch.int64))
    beta = 0.7
    assert float(joint(sums, counts, beta * 1.5).norm()) == pytest.approx(
        library_sensitivity(1.5, 2, WIDTH, beta), rel=1e-4
    )


def test_what_is_not_clipped_passes_the_sensitivity():
    features, held, labels, centre = trials()
    beta = WIDTH**-0.25
    moved = joint(*library(features[:1], held[:1], labels[:1], centre[:1]), beta * 1.5)
    assert float(moved.norm()) > library_sensitivity(1.5, 2, WIDTH, beta)


def test_the_real_library_stays_within_the_sensitivity():
    """Its rounding to a grid is part of the bound."""
    features, held, labels, _ = trials(n=40, seed=3)
    features, labels = clip_rows(features, 1.5), clip_labels(labels.round(), 2)
    bound = library_sensitivity(1.5, 2, WIDTH, 0.6)
    for n in range(len(features)):
        one = PrototypeLibrary.of(features[n : n + 1], held[n : n + 1], labels[n : n + 1])
        assert float(joint(one.sums, one.counts, 0.6 * 1.5).norm()) <= bound


def test_clipped_features_and_labels():
    features, _, labels, _ = trials()
    clipped = clip_rows(features, 1.5)
    norms = features.norm(dim=-1)
    assert torch.allclose(clipped.norm(dim=-1), norms.clamp(max=1.5), rtol=1e-5)
    assert torch.equal(clipped[norms <= 1.5], features[norms <= 1.5])
    kept = clip_labels(labels, 2)
    assert bool(((kept > 0).sum(dim=1) == 2).all())
    assert torch.equal(kept.max(dim=1).values, labels.max(dim=1).values)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        clip_labels(labels * 3, 2)


@pytest.mark.parametrize("seed", [None, 4])
def test_noise_has_the_stated_deviation_and_no_mean(seed):
    drawn = NoiseSource(seed).normal((300, 400), 2.5)
    n = drawn.numel()
    assert abs(float(drawn.mean())) < 5 * 2.5 / math.sqrt(n)
    assert float(drawn.std()) == pytest.approx(2.5, rel=5 / math.sqrt(2 * n))
    assert float((drawn / 2.5).pow(4).mean()) == pytest.approx(3.0, abs=5 * math.sqrt(96 / n))
    assert float((drawn.abs() > 2.5 * 1.959964).double().mean()) == pytest.approx(0.05, abs=5 * math.sqrt(0.0475 / n))


def test_a_seeded_source_repeats_for_the_same_names_and_a_system_one_never():
    assert torch.equal(*(NoiseSource(7, "site-2", 3).normal((9,), 1.0) for _ in range(2)))
    assert not torch.equal(NoiseSource(7, "site-2", 4).normal((9,), 1.0), NoiseSource(7, "site-2", 3).normal((9,), 1.0))
    assert not torch.equal(*(NoiseSource().normal((9,), 1.0) for _ in range(2)))


def test_weights_sums_and_counts_get_noise_of_the_stated_deviation():
    protection = Protection(BOTH, WIDTH)
    update = {"b": torch.ones(200, 100), "a": torch.ones(100)}
    sent, norm = protection.update(update, NoiseSource(0))
    assert norm == pytest.approx(math.sqrt(20100))
    residue = torch.cat([(sent[name] - update[name] * 0.5 / norm).flatten() for name in update])
    assert protection.update_deviation == 1.0
    assert float(residue.std()) == pytest.approx(1.0, rel=0.03)
    sums, counts = torch.zeros(4, 100, 2, WIDTH, dtype=torch.float64), torch.zeros(4, 100, 2, dtype=torch.float64)
    noisy_sums, noisy_counts = protection.library(sums, counts, NoiseSource(0))
    beta = WIDTH**-0.25
    reach = library_sensitivity(1.5, 2, WIDTH, beta)
    assert protection.sum_deviation == 3.0 * reach
    assert float(noisy_sums.std()) == pytest.approx(3.0 * reach, rel=0.06)
    assert float(noisy_counts.std()) == pytest.approx(3.0 * reach / (beta * 1.5), rel=0.1)
    assert bool((noisy_counts != 0).all())  # absent classes are not told by their silence
    assert torch.equal((noisy_sums * 2.0**30).round(), noisy_sums * 2.0**30)


def test_the_default_weight_of_counts_is_near_the_best():
    """Mean squared error of a noisy prototype, by simulation, against other weights."""
    mean, n, width = torch.zeros(64, dtype=torch.float64), 400.0, 64
    mean[0] = 1.0

    def error(weight):
        settings = PrivacySettings(feature_limit=1.0, library_noise=2.0, count_weight=weight)
        protection = Protection(settings, width)
        sums, counts = protection.library(
            (n * mean).expand(4000, width).contiguous(), torch.full((4000,), n, dtype=torch.float64), NoiseSource(3)
        )
        return float((sums / counts[:, None] - mean).square().sum(dim=1).mean())

    best = error(None)
    assert best < min(error(width**-0.25 * factor) for factor in (0.3, 3.0))
    assert best < error(1.0)


def test_without_limits_everything_is_sent_as_it_is_and_said_so():
    protection = Protection(PrivacySettings(), WIDTH)
    features, held, labels, centre = trials()
    update = {"w": torch.randn(4)}
    assert torch.equal(protection.update(update, NoiseSource(0))[0]["w"], update["w"])
    sums, counts = library(features, held, labels, centre)
    assert torch.equal(protection.library(sums, counts, NoiseSource(0))[0], sums)
    accountant = Accountant(1e-5)
    accountant.spend("a", protection.releases())
    guarantee = accountant.guarantee("trial")
    assert math.isinf(guarantee.epsilon)
    assert guarantee.covered == ()
    assert "no promise" in guarantee.told()
    assert "weights: sent without noise" in guarantee.told()
    assert guarantee.to_dict()["epsilon"] is None
    assert set(PrivacySettings().without_use()) == {
        "update_noise", "library_noise", "classes_per_trial", "count_weight", "shares",
    }  # fmt: skip


def test_nothing_that_is_not_finite_hides_under_noise():
    protection = Protection(BOTH, WIDTH)
    with pytest.raises(InputError, match="not finite"):
        protection.update({"w": torch.tensor([torch.nan])}, NoiseSource(0))
    with pytest.raises(InputError, match="sums of a library"):
        protection.library(torch.full((1, 2), torch.inf).double(), torch.zeros(1).double(), NoiseSource(0))


def epsilon_of(*events, delta=1e-5):
    dp = pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    accountant = dp.rdp.RdpAccountant()
    for make, count in events:
        accountant.compose(make(dp), count)
    return accountant.get_epsilon(delta)


def test_the_accountant_is_the_composition_of_dp_accounting():
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    accountant = Accountant(1e-6)
    for turn in range(7):
        accountant.spend("a", Protection(BOTH, WIDTH).releases(library=turn < 5))
    accountant.spend("b", [Release("gradients", 1.1, steps=30, rate=0.1), Release("weights", 2.0)])
    of_a = epsilon_of((lambda dp: dp.GaussianDpEvent(1.0), 7), (lambda dp: dp.GaussianDpEvent(3.0), 5), delta=1e-6)
    of_b = epsilon_of(
        (lambda dp: dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.1)), 30),
        (lambda dp: dp.GaussianDpEvent(1.0), 1),
        delta=1e-6,
    )
    assert accountant.epsilon("trial", "a") == pytest.approx(of_a, rel=1e-12)
    assert accountant.epsilon("trial", "b") == pytest.approx(of_b, rel=1e-12)
    assert accountant.epsilon("trial") == max(accountant.epsilon("trial", "a"), accountant.epsilon("trial", "b"))
    of_site = epsilon_of((lambda dp: dp.GaussianDpEvent(2.0), 7), delta=1e-6)
    assert accountant.epsilon("site", "a") == pytest.approx(of_site, rel=1e-12)


def test_two_gaussians_cost_what_one_of_their_joint_noise_costs():
    """Weights and library as one mechanism: 1/z^2 adds up, which the accountant was never told."""
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    accountant = Accountant(1e-5)
    accountant.spend("a", [Release("weights", 6.0), Release("library", 4.0)])
    one = epsilon_of((lambda dp: dp.GaussianDpEvent((1 / 3.0**2 + 1 / 4.0**2) ** -0.5), 1))
    assert accountant.epsilon("trial") == pytest.approx(one, rel=1e-9)


def test_a_clipped_update_moves_by_up_to_two_limits_with_one_trial():
    """Why a trial's noise on weights counts half: two clipped updates may point in opposite directions."""
    protection = Protection(BOTH, WIDTH)
    quiet = Protection(BOTH.model_copy(update={"update_noise": 1e-12}), WIDTH)
    one = quiet.update({"w": torch.tensor([5.0, 0.0])}, NoiseSource(0))[0]
    other = quiet.update({"w": torch.tensor([-5.0, 0.0])}, NoiseSource(0))[0]
    moved = total_norm({"w": one["w"] - other["w"]})
    assert moved == pytest.approx(2 * BOTH.update_limit, rel=1e-4)
    assert protection.update_deviation / moved == pytest.approx(BOTH.update_noise / 2, rel=1e-4)


def test_an_accountant_goes_on_from_its_state():
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    accountant = Accountant(1e-5, limit=50.0)
    for _ in range(3):
        accountant.spend("a", Protection(BOTH, WIDTH).releases())
    accountant.spend("b", [Release("gradients", 1.0, steps=4, rate=0.5)])
    again = Accountant.of_state(json.loads(json.dumps(accountant.state())))
    for each in (accountant, again):
        each.spend("a", Protection(BOTH, WIDTH).releases())
    assert again.guarantee("trial") == accountant.guarantee("trial")
    assert again.rounds == {"a": 4, "b": 1}
    assert again.limit == 50.0
    for broken in ({}, {"delta": 1e-5, "limit": None, "rounds": {}, "spent": {"a": [{"what": "weights"}]}}):
        with pytest.raises(InputError, match="state of an accountant"):
            Accountant.of_state(broken)


def test_a_site_that_would_pass_the_limit_releases_nothing_and_pays_nothing():
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    accountant, cost = Accountant(1e-5, limit=4.0), [Release("library", 4.0)]
    while accountant.epsilon("trial") < 3.0:
        accountant.spend("site-9", cost)
    with pytest.raises(FederationError, match="limit is 4"):
        accountant.spend("site-9", cost * 20)
    before = accountant.epsilon("trial", "site-9")
    assert before <= 4.0
    assert accountant.rounds["site-9"] >= 2
    with pytest.raises(FederationError, match="site-9"):
        accountant.spend("site-9", cost * 20)
    assert accountant.epsilon("trial", "site-9") == before
    accountant.spend("site-8", cost)  # others go on


def test_a_promise_says_what_it_holds_for_and_what_not():
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    accountant = Accountant(1e-5)
    for _ in range(2):
        accountant.spend("site-1", Protection(BOTH, WIDTH).releases())
    trial, site = accountant.guarantee("trial"), accountant.guarantee("site")
    assert trial.covered == ("weights", "prototypes (sums and counts)")
    assert trial.noise == {"weights": 1.0, "library": 3.0}
    assert (trial.rounds, trial.site) == (2, "site-1")
    assert any("private adapter" in entry for entry in trial.not_protected)
    assert site.covered == ("weights",)
    assert site.noise == {"weights": 2.0}
    assert "prototypes (sums and counts): one site can change them without bound" in site.told()
    for words in (f"epsilon {trial.epsilon:.3g} at delta 1e-05, rounds 2", "one trial of a site", "Not protected"):
        assert words in trial.told()


def test_only_prototypes_or_gradients_promise_nothing_for_a_site():
    accountant = Accountant(1e-5)
    accountant.spend("a", [Release("library", 3.0)])
    accountant.spend("b", [Release("gradients", 3.0, rate=0.1)])
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    assert math.isinf(accountant.epsilon("site", "a"))
    assert math.isinf(accountant.epsilon("site", "b"))


def test_noise_that_is_split_is_whole_in_the_sum_and_is_told_so():
    whole, split = (Protection(BOTH.model_copy(update={"shares": shares}), WIDTH) for shares in (1, 4))
    sums, counts = torch.zeros(4, 400, 2, WIDTH, dtype=torch.float64), torch.zeros(4, 400, 2, dtype=torch.float64)
    total = sum(split.library(sums, counts, NoiseSource(0, site))[0] for site in range(4))
    assert float(total.std()) == pytest.approx(whole.sum_deviation, rel=0.03)
    update = sum(split.update({"w": torch.zeros(20_000)}, NoiseSource(1, site))[0]["w"] for site in range(4))
    assert float(update.std()) == pytest.approx(whole.update_deviation, rel=0.03)
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    one, other = Accountant(1e-5), Accountant(1e-5)
    one.spend("a", whole.releases())
    other.spend("a", split.releases())
    assert one.epsilon("trial") == other.epsilon("trial")
    assert "split among 4 sites" in other.guarantee("trial").told()
    assert "split among" not in one.guarantee("trial").told()
    assert Accountant.of_state(other.state()).guarantee("site") == other.guarantee("site")


def test_private_training_stands_for_weights_that_are_not_clipped():
    trained = [Release("gradients", 1.0, steps=5, rate=0.2)]
    bare = Protection(PrivacySettings(feature_limit=1.0), WIDTH)
    assert [release.what for release in bare.releases(gradients=trained)] == ["gradients", "library"]
    assert bare.releases()[0] == Release("weights", None)
    assert [release.what for release in Protection(BOTH, WIDTH).releases(gradients=trained)] == [
        "gradients", "weights", "library",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: Release("logits", 1.0),
        lambda: Release("weights", 0.0),
        lambda: Release("weights", math.nan),
        lambda: Release("library", 1.0, rate=0.5),
        lambda: Release("gradients", 1.0, steps=0),
        lambda: Release("gradients", 1.0, shares=2),
        lambda: Accountant(0.0),
        lambda: Accountant(1e-5, limit=0.0),
        lambda: Accountant(1e-5).guarantee("trial"),
        lambda: NoiseSource(-1),
        lambda: NoiseSource(0).normal((2,), -1.0),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(InputError):
        make()


def test_an_unknown_unit_or_site_is_refused():
    accountant = Accountant(1e-5)
    accountant.spend("a", [Release("library", 3.0)])
    with pytest.raises(InputError, match="unit of protection"):
        accountant.epsilon("person")
    with pytest.raises(InputError, match="unknown site"):
        accountant.epsilon("trial", "b")
