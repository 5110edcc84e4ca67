"""Bootstrap coverage, validity of the permutation p, noise ceiling against known variances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from phosphene.errors import InputError
from phosphene.evaluation import metrics, statistics


def test_weighted_summary_equals_resampling_by_hand():
    generator = np.random.default_rng(0)
    for n in (1, 2, 7, 8):
        values = generator.normal(size=n)
        weights = generator.multinomial(n, np.full(n, 1 / n), size=50)
        repeated = [np.repeat(values, row) for row in weights]
        np.testing.assert_allclose(
            statistics.weighted_summary(values, weights, "mean"), [row.mean() for row in repeated]
        )
        np.testing.assert_allclose(
            statistics.weighted_summary(values, weights, "median"), [np.median(row) for row in repeated]
        )


def test_an_empty_resample_is_nan_and_skipped():
    values, weights = np.array([1.0, 3.0]), np.array([[0, 0], [1, 1]])
    for summary in ("mean", "median"):
        assert statistics.weighted_summary(values, weights, summary).tolist()[1:] == [2.0]
        assert np.isnan(statistics.weighted_summary(values, weights, summary)[0])
    mean = statistics.bootstrap_people(np.array([[np.nan, 1.0], [4.0, 2.0]]))
    assert mean.tolist() == [4.0, 1.5]


def test_resampler_draws_units_within_splits_and_shares_them():
    units = {"fold-0": np.array(["a", "a", "b", "c"]), "fold-1": np.array(["d", "e"])}
    resampler = statistics.Resampler(units, n_boot=200, seed=3)
    weights = resampler.weights("fold-0", units["fold-0"])
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 1:].sum(axis=1) == 3).all()
    assert (resampler.weights("fold-1", units["fold-1"]).sum(axis=1) == 2).all()
    np.testing.assert_array_equal(resampler.weights("fold-0", np.array(["c", "a"])), weights[:, [3, 0]])
    again = statistics.Resampler(units, n_boot=200, seed=3)
    np.testing.assert_array_equal(again.weights("fold-0", units["fold-0"]), weights)
    assert (resampler.people(4).sum(axis=1) == 4).all()


def test_bootstrap_over_units_covers_the_truth_where_one_over_stimuli_does_not():
    generator = np.random.default_rng(11)
    covered = {"unit": 0, "stimulus": 0}
    trials = 300
    units = np.repeat(np.arange(40), 4).astype(str)
    alone = np.arange(160).astype(str)
    for trial in range(trials):
        values = np.repeat(generator.normal(size=40), 4) + 0.3 * generator.normal(size=160)
        for name, names in (("unit", units), ("stimulus", alone)):
            resampler = statistics.Resampler({"default": names}, n_boot=300, seed=trial)
            boot = statistics.weighted_summary(values, resampler.weights("default", names), "mean")
            low, high = statistics.percentile_interval(boot)
            covered[name] += low <= 0.0 <= high
    assert 0.89 <= covered["unit"] / trials <= 0.985
    assert covered["stimulus"] / trials < 0.8


def test_bootstrap_over_people_covers_the_population_mean():
    generator = np.random.default_rng(5)
    covered, trials = 0, 200
    names = np.arange(50).astype(str)
    for trial in range(trials):
        person = generator.normal(scale=1.0, size=(12, 1))
        values = person + generator.normal(size=(12, 50))
        resampler = statistics.Resampler({"default": names}, n_boot=300, seed=trial)
        weights = resampler.weights("default", names)
        boot = np.stack([statistics.weighted_summary(row, weights, "mean") for row in values])
        low, high = statistics.percentile_interval(statistics.bootstrap_people(boot, resampler.people(12)))
        covered += low <= 0.0 <= high
    assert 0.87 <= covered / trials <= 0.99


def test_permutations_are_permutations_shared_between_people_and_keep_units_whole():
    ids = np.array([f"s{i}" for i in range(12)])
    units = np.array([f"u{i // 2}" for i in range(12)])
    shuffler = statistics.Shuffler(ids, units, n_perm=300, seed=1)
    drawn = shuffler.permutations(ids)
    assert (np.sort(drawn, axis=1) == np.arange(12)).all()
    assert (units[drawn[:, 0::2]] == units[drawn[:, 1::2]]).all()
    order = np.random.default_rng(0).permutation(12)
    elsewhere = shuffler.permutations(ids[order])
    shared = ids[order][elsewhere]
    np.testing.assert_array_equal(units[drawn[:, order]], np.vectorize(dict(zip(ids, units, strict=True)).get)(shared))
    # each stimulus goes everywhere equally often
    frequency = np.array([np.bincount(drawn[:, i], minlength=12) for i in range(12)]) / 300
    assert frequency.min() > 0.03
    assert frequency.max() < 0.16


def test_permutations_for_a_subset_and_for_strangers():
    ids = np.array(["c", "a", "b", "d"])
    shuffler = statistics.Shuffler(ids, ids, n_perm=50, seed=0)
    part = shuffler.permutations(np.array(["d", "c"]))
    assert (np.sort(part, axis=1) == [0, 1]).all()
    assert 0 < part[:, 0].mean() < 1
    with pytest.raises(InputError, match="not part of the split"):
        shuffler.permutations(np.array(["a", "z"]))


def test_permutation_p_is_uniform_under_the_null_and_small_for_an_effect():
    generator = np.random.default_rng(2)
    ids = np.array([f"s{i:02d}" for i in range(25)])
    p_values = []
    for trial in range(200):
        table = metrics.two_way(metrics.count_all(generator.normal(size=(25, 25))))
        drawn = statistics.Shuffler(ids, ids, n_perm=99, seed=trial).permutations(ids)
        null = table[np.arange(25), drawn].mean(axis=1)
        p_values.append(statistics.null_summary(null, float(np.diag(table).mean()))["p"])
    assert scipy_stats.kstest(p_values, "uniform").pvalue > 0.01
    signal = metrics.two_way(metrics.count_all(generator.normal(size=(25, 25)) + 2 * np.eye(25)))
    assert statistics.null_summary(signal[np.arange(25), drawn].mean(axis=1), np.diag(signal).mean())["p"] <= 0.01


def test_shuffling_units_whole_keeps_the_size_of_the_test_where_free_shuffling_does_not():
    generator = np.random.default_rng(4)
    ids = np.array([f"s{i:02d}" for i in range(24)])
    units = np.array([f"u{i // 4}" for i in range(24)])
    rejected = {"whole": 0, "free": 0}
    for trial in range(200):
        # targets and predictions cluster by unit, but know nothing of each other
        predictions, targets = (
            np.repeat(generator.normal(size=(6, 5)), 4, axis=0) + 0.1 * generator.normal(size=(24, 5)) for _ in range(2)
        )
        table = metrics.two_way(metrics.count_all(metrics.similarity(predictions, targets)))
        for name, grouping in (("whole", units), ("free", ids)):
            drawn = statistics.Shuffler(ids, grouping, n_perm=99, seed=trial).permutations(ids)
            null = table[np.arange(24), drawn].mean(axis=1)
            rejected[name] += statistics.null_summary(null, float(np.diag(table).mean()))["p"] <= 0.05
    assert rejected["whole"] <= 20
    assert rejected["free"] >= 24


def test_null_summary_counts_towards_the_better_side():
    null = np.array([1.0, 2.0, 3.0, 4.0])
    assert statistics.null_summary(null, 4.0)["p"] == pytest.approx(2 / 5)
    assert statistics.null_summary(null, 1.0, higher_is_better=False)["p"] == pytest.approx(2 / 5)
    assert statistics.null_summary(null, 5.0)["mean"] == 2.5


def test_sign_flip_p_is_near_the_t_test():
    generator = np.random.default_rng(9)
    for shift in (0.0, 0.3, 0.6):
        differences = generator.normal(shift, 1.0, size=60)
        expected = scipy_stats.ttest_1samp(differences, 0.0).pvalue
        assert statistics.sign_flip_p(differences, 4000) == pytest.approx(expected, abs=0.03)
    assert statistics.sign_flip_p(np.zeros(5), 99) == 1.0


def test_noise_ceiling_finds_the_known_one_with_unequal_repeats():
    generator = np.random.default_rng(3)
    stimuli = np.concatenate([np.repeat(np.arange(400), 3), np.repeat(np.arange(400, 600), 2), np.arange(600, 650)])
    deviation = np.array([0.0, 0.5, 1.0, 2.0])
    signal = generator.normal(size=(650, 1)) * deviation
    responses = signal[stimuli] + generator.normal(size=(len(stimuli), 4))
    for averaged in (1, 3):
        expected = deviation**2 / (deviation**2 + 1 / averaged)
        np.testing.assert_allclose(statistics.noise_ceiling(responses, stimuli, averaged), expected, atol=0.05)


def test_noise_ceiling_needs_repeats():
    with pytest.raises(InputError, match="found 1 of 3"):
        statistics.noise_ceiling(np.zeros((4, 2)), np.array(["a", "a", "b", "c"]))
