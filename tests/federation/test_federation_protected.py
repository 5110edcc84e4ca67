"""A round under protection: what is sent is blurred, what trains is bounded by the trial, and the server takes it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from federation_sites import AGREEMENT, made_sites, same, settings

from phosphene.errors import InputError
from phosphene.federation.accounting import Accountant, Release
from phosphene.federation.aggregation import difference, total_norm
from phosphene.federation.client import client_update, local_library, site_model
from phosphene.federation.library import PrototypeLibrary
from phosphene.federation.noise import NoiseSource
from phosphene.federation.privacy import PrivacySettings, Protection
from phosphene.federation.protected import check_private, planned_releases, protected_update
from phosphene.federation.secure_sum import SecureSum
from phosphene.federation.server import first_state, server_update
from phosphene.federation.trial_sgd import TrialSgdSettings

QUIET = PrivacySettings(update_limit=0.05, update_noise=1e-9, feature_limit=2.0, library_noise=1e-9, seed=0)
LOUD = PrivacySettings(update_limit=0.05, update_noise=1.0, feature_limit=2.0, library_noise=1.0, seed=0)
CLASSIFY = {"retrieval_weight": 0.0, **{f"contrast_{part}": 0.0 for part in ("fmri", "image", "text", "fusion")}}


@pytest.fixture(scope="module")
def start():
    chosen = settings()
    return chosen, made_sites()[1], first_state(AGREEMENT, chosen)


@pytest.mark.parametrize("changes", [{}, {"model": {"adapter": "ridge"}}, {"objective": {"model_contrast": 0.1}}])
def test_where_weights_alone_are_limited_the_rest_is_that_of_an_unprotected_round_to_the_bit(changes):
    chosen = settings(**changes)
    site, shared = made_sites()[1], first_state(AGREEMENT, chosen)
    plain, kept = client_update(site, shared, chosen)
    sent, also = protected_update(site, shared, chosen, PrivacySettings(update_limit=0.05, update_noise=1.0, seed=0))
    assert same(sent.library.to_tensors(), plain.library.to_tensors())
    assert same(also.private, kept.private)
    assert same(also.last, kept.last)
    assert sent.n_present == plain.n_present
    assert not same(sent.weights, plain.weights)
    assert sent.metrics == {}


def test_without_noise_worth_the_name_it_is_the_clipped_update_and_the_library_of_received_weights(start):
    chosen, site, shared = start
    plain, kept = client_update(site, shared, chosen)
    sent, after = protected_update(site, shared, chosen, QUIET)
    assert same(after.private, kept.private)
    moved, clipped = (difference(each.weights, shared.weights) for each in (plain, sent))
    assert total_norm(moved) > 0.05
    assert total_norm(clipped) == pytest.approx(0.05, rel=1e-4)
    scale = 0.05 / total_norm(moved)
    assert all(torch.allclose(clipped[name], moved[name] * scale, atol=1e-6) for name in moved)
    limited = chosen.model_copy(update={"library": chosen.library.model_copy(update={"feature_limit": 2.0})})
    received = local_library(site_model(kept, shared, chosen), site.trials, shared.library, limited)
    torch.testing.assert_close(sent.library.sums, received.sums, rtol=0, atol=1e-5)
    torch.testing.assert_close(sent.library.counts, received.counts, rtol=0, atol=1e-5)
    assert not torch.allclose(plain.library.sums, received.sums, atol=1e-3)
    assert sent.metrics == {}


def test_leaving_one_trial_out_moves_image_and_text_prototypes_within_the_sensitivity(start):
    """The whole way of a round, with its training: features of other trials do not move along."""
    chosen, site, shared = start
    tight = QUIET.model_copy(update={"feature_limit": 0.5})
    protection = Protection(tight, 16)
    bound = protection.sum_deviation / tight.library_noise * (2 / 4) ** 0.5  # of two parts of four
    weight = protection.sum_deviation / protection.count_deviation

    def moved(one, other):
        """Of image and text; fMRI and fusion go through the private adapter, which is told as not covered."""
        apart = torch.cat([(one.sums - other.sums)[1:3].flatten(), weight * (one.counts - other.counts)[1:3].flatten()])
        return float(apart.norm())

    plain, sent = client_update(site, shared, chosen)[0], protected_update(site, shared, chosen, tight)[0]
    under, bare = [], []
    for out in range(0, len(site.trials), 9):
        rows = torch.tensor([row for row in range(len(site.trials)) if row != out])
        fewer = replace(site, trials=site.trials.select(rows))
        under.append(moved(sent.library, protected_update(fewer, shared, chosen, tight)[0].library))
        bare.append(moved(plain.library, client_update(fewer, shared, chosen)[0].library))
    assert 0.5 * bound < max(under) <= bound + 1e-4
    assert max(bare) > bound


def test_the_seed_of_the_noise_decides_and_without_one_nothing_repeats(start):
    chosen, site, shared = start
    one, again = (protected_update(site, shared, chosen, LOUD)[0] for _ in range(2))
    assert same(one.to_tensors()[0], again.to_tensors()[0])
    free = LOUD.model_copy(update={"seed": None})
    assert not same(protected_update(site, shared, chosen, free)[0].weights, one.weights)
    other = protected_update(site, replace(shared, round=1), chosen, LOUD)[0]
    assert not torch.equal(other.library.counts, one.library.counts)


def test_the_server_takes_noised_libraries_where_it_knows_and_refuses_them_where_not(start):
    chosen, _, shared = start
    sent = [protected_update(site, shared, chosen, LOUD)[0] for site in made_sites()]
    assert any(bool((each.library.counts < 0).any()) for each in sent)
    after = server_update(shared, sent, chosen, noised=True)
    assert after.report.refused == {}
    assert set(after.report.used) == {"north", "south", "west"}
    wanted = sum(each.library.counts for each in sent)
    kept = wanted >= chosen.library.min_count
    assert torch.equal(after.library.counts[kept], wanted[kept])
    assert "counts from -" in server_update(shared, sent, chosen).report.refused["north"]


def test_under_masks_noised_libraries_add_up_to_the_same_bits(start):
    chosen, _, shared = start
    sent = {site.site: protected_update(site, shared, chosen, LOUD)[0].library for site in made_sites()}
    summation = SecureSum(sent, turn=1)
    masked = [summation.mask(name, {"sums": library.sums, "counts": library.counts}) for name, library in sent.items()]
    wanted, found = PrototypeLibrary.total(sent.values()), summation.total(masked)
    assert torch.equal(found["sums"], wanted.sums)
    assert torch.equal(found["counts"], wanted.counts)


def test_a_least_count_keeps_cells_of_noise_from_being_read():
    protection = Protection(LOUD, 16)
    empty = torch.zeros(4, 500, 1, dtype=torch.float64)
    source = NoiseSource(0)
    total = sum(protection.library(torch.zeros(4, 500, 1, 16).double(), empty, source)[1] for _ in range(5))
    assert float((total >= protection.least_count(5)).double().mean()) < 0.004
    assert float((total >= protection.least_count(5) / 3).double().mean()) > 0.1


def test_private_training_goes_per_trial_and_says_what_it_costs(start):
    pytest.importorskip("opacus", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    _, site, shared = start
    chosen = settings(objective=CLASSIFY)
    privacy = PrivacySettings(feature_limit=2.0, trial_sgd=TrialSgdSettings(noise=0.5, batch_size=12), seed=3)
    one, kept = protected_update(site, shared, chosen, privacy)
    again, _ = protected_update(site, shared, chosen, privacy)
    assert same(one.to_tensors()[0], again.to_tensors()[0])
    assert kept.round == 1
    with pytest.raises(InputError, match="has trained in round 1, the server is done with 0"):
        protected_update(kept, shared, chosen, privacy)
    assert kept.private.keys() == client_update(site, shared, chosen)[1].private.keys()
    assert all(not torch.equal(one.weights[name], shared.weights[name]) for name in ("tokens", "fusion.mix.weight"))
    assert planned_releases(site, chosen, privacy) == [
        Release("gradients", 0.5, steps=round(len(site.trials) / 12), rate=12 / len(site.trials)),
        Release("library", 1.0),
    ]
    assert [each.what for each in planned_releases(site, chosen, LOUD)] == ["weights", "library"]


def test_settings_that_break_the_promise_are_refused():
    per_trial = PrivacySettings(trial_sgd=TrialSgdSettings())
    with pytest.raises(InputError, match="negative of the others"):
        check_private(settings(), per_trial)
    with pytest.raises(InputError, match=r"client\.clip"):
        check_private(settings(objective=CLASSIFY, client={"clip": 1.0}), per_trial)
    with pytest.raises(InputError, match="site_min_count looks at counts before the noise"):
        check_private(settings(library={"site_min_count": 2.0}), LOUD)
    with pytest.raises(InputError, match=r"library\.feature_limit is 3 and"):
        check_private(settings(library={"feature_limit": 3.0}), LOUD)
    shared_noise = LOUD.model_copy(update={"shares": 3})
    with pytest.raises(InputError, match=r"server\.weighting must be equal, it is trials"):
        check_private(settings(server={"weighting": "trials"}), shared_noise)
    check_private(settings(server={"weighting": "equal"}), shared_noise)
    check_private(settings(objective=CLASSIFY), per_trial)


@pytest.mark.parametrize(
    ("changes", "privacy", "words"),
    [
        ({"library": {"weighting": "sites"}}, LOUD, "single sites, which are noise"),
        ({"preset": "modality-dropout"}, LOUD, "neither training nor inference reads prototypes"),
        (
            {"objective": {**CLASSIFY, "model_contrast": 1.0}},
            PrivacySettings(trial_sgd=TrialSgdSettings()),
            r"objective\.model_contrast to 0",
        ),
    ],
)
def test_settings_without_a_use_under_protection_are_refused(changes, privacy, words):
    with pytest.raises(InputError, match=words):
        check_private(settings(**changes), privacy)


def test_prototypes_that_nobody_reads_are_not_sent_and_cost_nothing(start):
    pytest.importorskip("dp_accounting", reason="PRIVACY EXTRA ABSENT: install phosphene[privacy]")
    _, site, shared = start
    chosen = settings("modality-dropout")
    clipped = PrivacySettings(update_limit=0.05, update_noise=4.0, seed=0)
    assert planned_releases(site, chosen, clipped) == [Release("weights", 4.0)]
    assert protected_update(site, shared, chosen, clipped)[0].library.is_empty
    accountant = Accountant(1e-5)
    accountant.spend(site.site, planned_releases(site, chosen, clipped))
    promise = accountant.guarantee("trial")
    assert promise.epsilon < 5
    assert not any("prototypes" in each for each in promise.not_protected)
    accountant.spend(site.site, planned_releases(site, settings(), clipped))
    assert math.isinf(accountant.epsilon("trial"))  # where they are read, they are sent, as they are


def test_an_average_by_sites_is_refused_for_noise_on_counts_alone():
    check_private(settings(library={"weighting": "sites"}), PrivacySettings(update_limit=1.0))
