"""Metrics against slow loops, scipy, scikit-learn and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import spatial, stats
from sklearn.metrics import top_k_accuracy_score

from phosphene.errors import InputError
from phosphene.evaluation import metrics


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def noisy_pair(generator: np.random.Generator, n: int = 40, width: int = 12, noise: float = 1.5):
    targets = generator.normal(size=(n, width))
    return targets + noise * generator.normal(size=(n, width)), targets


@pytest.mark.parametrize("kind", ["cosine", "pearson"])
def test_similarity_equals_scipy(generator, kind):
    a, b = generator.normal(2.0, 1.0, size=(7, 5000)), generator.normal(-1.0, 3.0, size=(4, 5000)).astype(np.float32)
    expected = 1 - spatial.distance.cdist(a, b.astype(float), {"cosine": "cosine", "pearson": "correlation"}[kind])
    np.testing.assert_allclose(metrics.similarity(a, b, kind), expected, atol=1e-12)


def test_vectors_without_direction_are_similar_to_nothing(generator):
    b = generator.normal(size=(3, 6))
    assert (metrics.similarity(np.zeros((2, 6)), b) == 0).all()
    assert (metrics.similarity(np.full((2, 6), 0.1), b, "pearson") == 0).all()
    assert (metrics.similarity(np.full((2, 6), 0.1), b, "cosine") != 0).all()


def test_similarity_refuses_what_it_cannot_compare(generator):
    a = generator.normal(size=(3, 6))
    with pytest.raises(InputError, match=r"cosine, pearson"):
        metrics.similarity(a, a, "euclid")
    with pytest.raises(InputError, match=r"\(3, 6\) and \(3, 5\)"):
        metrics.similarity(a, a[:, :5])
    a[1, 2] = np.nan
    with pytest.raises(InputError, match="NaN"):
        metrics.similarity(a, a)


def test_counts_and_rank_equal_a_slow_loop_with_ties(generator):
    similarities = generator.integers(0, 5, size=(12, 9)).astype(float)
    everything = metrics.count_all(similarities)
    for i, j in itertools.product(range(12), range(9)):
        others = np.delete(similarities[i], j)
        assert everything.greater[i, j] == (others > similarities[i, j]).sum()
        assert everything.ties[i, j] == (others == similarities[i, j]).sum()
    oracle = stats.rankdata(-similarities, axis=1, method="average")
    np.testing.assert_array_equal(metrics.rank(everything), oracle)
    truth = generator.integers(0, 9, size=12)
    own = metrics.count_true(similarities, truth)
    np.testing.assert_array_equal(metrics.rank(own), oracle[np.arange(12), truth])


def test_rounding_does_not_break_a_tie():
    similarities = np.array([[0.3, 0.1 + 0.2, 0.5]])
    assert similarities[0, 0] != similarities[0, 1]
    assert metrics.count_true(similarities).ties.tolist() == [1]


def test_top_k_without_ties_equals_scikit_learn(generator):
    predictions, targets = noisy_pair(generator)
    similarities = metrics.similarity(predictions, targets)
    for k in (1, 3, 5):
        oracle = top_k_accuracy_score(np.arange(40), similarities, k=k)
        assert metrics.top_k(metrics.count_true(similarities), k).mean() == pytest.approx(oracle)


def test_top_k_with_ties_is_the_share_of_orders_that_hit(generator):
    similarities = np.array([[2.0, 2.0, 3.0, 2.0, 1.0]])
    own = metrics.count_true(similarities, np.array([0]))
    for k in range(1, 6):
        hits = []
        for order in itertools.permutations(range(5)):
            ranked = sorted(order, key=lambda j: -similarities[0, j])  # sorted() is stable: ties fall by `order`
            hits.append(ranked.index(0) < k)
        assert metrics.top_k(own, k)[0] == pytest.approx(np.mean(hits))


def test_two_candidates_tied_count_one_half():
    own = metrics.count_true(np.array([[1.0, 1.0]]))
    assert metrics.top_k(own, 1).tolist() == [0.5]
    assert metrics.two_way(own).tolist() == [0.5]


def test_two_way_equals_all_comparisons_one_by_one(generator):
    predictions, targets = noisy_pair(generator, n=15)
    predictions[3] = predictions[4]
    correlation = np.array([[stats.pearsonr(p, t)[0] for t in targets] for p in predictions])
    for name, table in (("brain_to_image", correlation), ("image_to_brain", correlation.T)):
        wins = np.zeros(15)
        for i in range(15):
            for j in range(15):
                if i != j:
                    wins[i] += (
                        1.0 if table[i, i] > table[i, j] + 1e-9 else 0.5 * (abs(table[i, i] - table[i, j]) < 1e-9)
                    )
        function = getattr(metrics, f"two_way_{name}")
        np.testing.assert_allclose(function(predictions, targets, "pearson"), wins / 14)


def test_directions_are_transposes_of_each_other(generator):
    predictions, targets = noisy_pair(generator)
    np.testing.assert_array_equal(
        metrics.two_way_image_to_brain(predictions, targets), metrics.two_way_brain_to_image(targets, predictions)
    )
    assert not np.array_equal(
        metrics.two_way_image_to_brain(predictions, targets), metrics.two_way_brain_to_image(predictions, targets)
    )


def test_a_mean_predictor_is_at_chance_in_both_directions(generator):
    targets = generator.normal(size=(30, 700)).astype(np.float32)
    predictions = np.tile(targets.mean(axis=0), (30, 1))
    similarities = metrics.similarity(predictions, targets)
    back = metrics.count_true(similarities.T)
    assert (back.ties == 29).all()
    assert metrics.top_k(back, 1).mean() == pytest.approx(1 / 30)
    forth = metrics.count_true(similarities)
    assert metrics.top_k(forth, 1).mean() == pytest.approx(1 / 30)
    assert metrics.two_way(forth).mean() == pytest.approx(0.5)


def test_pool_expectation_equals_every_possible_pool():
    similarities = np.array([[5.0, 7.0, 5.0, 1.0, 5.0, 6.0, 0.0]])
    own = metrics.count_true(similarities)
    for pool, k in itertools.product((2, 4, 7), (1, 2, 3)):
        hits = []
        for others in itertools.combinations(range(1, 7), pool - 1):
            part = metrics.count_true(similarities[:, [0, *others]])
            hits.append(metrics.top_k(part, k)[0])
        assert metrics.pool_top_k(own, k, pool)[0] == pytest.approx(np.mean(hits))


def test_drawn_pools_scatter_around_the_expectation_and_follow_their_seed(generator):
    predictions, targets = noisy_pair(generator, n=120, noise=1.5)
    own = metrics.count_true(metrics.similarity(predictions, targets))
    expected = metrics.pool_top_k(own, 1, 50)
    drawn = metrics.draw_pool_hits(own, 1, 50, draws=400, seed=1)
    error = np.sqrt((expected * (1 - expected)).sum() / 400) / 120
    assert abs(drawn.mean() - expected.mean()) < 4 * error
    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_array_equal(drawn[:7], metrics.draw_pool_hits(own, 1, 50, draws=7, seed=1))
    assert not np.array_equal(drawn[:7], metrics.draw_pool_hits(own, 1, 50, draws=7, seed=2))


def test_drawn_pools_equal_pools_drawn_by_hand(generator):
    similarities = generator.integers(0, 6, size=(20, 20)).astype(float)
    own = metrics.count_true(similarities)
    by_hand = []
    for _ in range(600):
        hits = []
        for i in range(20):
            others = generator.choice(np.delete(np.arange(20), i), size=7, replace=False)
            part = metrics.count_true(similarities[i, [i, *others]][None])
            hits.append(metrics.top_k(part, 2)[0])
        by_hand.append(np.mean(hits))
    drawn = metrics.draw_pool_hits(own, 2, 8, draws=600).mean(axis=1)
    spread = np.sqrt(np.var(drawn) / 600 + np.var(by_hand) / 600)
    assert abs(drawn.mean() - np.mean(by_hand)) < 4 * spread
    assert np.std(drawn) == pytest.approx(np.std(by_hand), rel=0.2)


def test_a_pool_as_large_as_the_gallery_is_the_gallery(generator):
    everything = metrics.count_all(generator.integers(0, 9, size=(10, 10)).astype(float))
    np.testing.assert_allclose(metrics.pool_top_k(everything, 3, 10), metrics.top_k(everything, 3))
    np.testing.assert_allclose(
        metrics.draw_pool_hits(metrics.Counts(everything.greater[0], everything.ties[0], 10), 3, 10, draws=1)[0],
        metrics.top_k(metrics.Counts(everything.greater[0], everything.ties[0], 10), 3),
    )


def test_a_pool_larger_than_the_gallery_is_refused():
    own = metrics.count_true(np.eye(5))
    with pytest.raises(InputError, match="pool of 6 cannot be drawn from 5"):
        metrics.pool_top_k(own, 1, 6)
    with pytest.raises(InputError, match="allowed: 2 to 5"):
        metrics.draw_pool_hits(own, 1, 1, draws=2)


def test_csls_equals_a_slow_loop_and_lifts_a_hub(generator):
    similarities = generator.normal(size=(12, 9))
    expected = np.empty_like(similarities)
    for i, j in itertools.product(range(12), range(9)):
        right = np.sort(similarities[i])[-4:].mean()
        down = np.sort(similarities[:, j])[-4:].mean()
        expected[i, j] = 2 * similarities[i, j] - right - down
    np.testing.assert_allclose(metrics.csls(similarities, 4), expected)
    hubby = np.eye(30) * 0.3 + generator.normal(scale=0.02, size=(30, 30))
    hubby[:, 0] += 0.5
    before, after = (metrics.top_k(metrics.count_true(s), 1).mean() for s in (hubby, metrics.csls(hubby)))
    assert before < 0.1
    assert after > 0.9


def test_class_centroids(generator):
    targets, labels = generator.normal(size=(9, 4)), np.array(list("abcabcabb"))
    classes, centroids = metrics.class_centroids(targets, labels)
    assert classes.tolist() == ["a", "b", "c"]
    for name, centroid in zip(classes, centroids, strict=True):
        np.testing.assert_allclose(centroid, targets[labels == name].mean(axis=0))


@pytest.mark.parametrize("name", ["top-1", "top-5", "median-rank", "two-way", "accuracy"])
def test_chance_is_what_random_similarities_give(generator, name):
    chosen = metrics.metric(name)
    values = []
    for _ in range(300):
        own = metrics.count_true(generator.normal(size=(21, 21)))
        per_query = chosen.values(own)
        values.append(np.median(per_query) if chosen.summary == "median" else per_query.mean())
    error = np.std(values) / np.sqrt(300)
    assert abs(np.mean(values) - chosen.chance(np.full(21, 21))) < 4 * error


def test_pool_chance():
    assert metrics.metric("top-1", pool=300).chance(np.full(982, 982)) == pytest.approx(1 / 300)


def test_median_rank_chance_over_unequal_galleries():
    assert metrics.median_rank_chance(np.full(5, 20)) == 10.5
    assert metrics.median_rank_chance(np.full(5, 21)) == 11
    mixed = metrics.median_rank_chance(np.array([10] * 50 + [30] * 50))
    population = np.concatenate([np.tile(np.arange(1, 11), 30), np.tile(np.arange(1, 31), 10)])
    assert mixed == np.median(population)


@pytest.mark.parametrize("name", ["top-0", "top-x", "recall", "median"])
def test_unknown_metric_lists_the_known(name):
    with pytest.raises(InputError, match=r"two-way"):
        metrics.metric(name)


def test_two_way_needs_two_candidates():
    with pytest.raises(InputError, match="at least 2"):
        metrics.two_way(metrics.count_true(np.ones((1, 1))))
