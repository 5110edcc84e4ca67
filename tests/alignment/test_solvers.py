"""The mathematics of functional alignment against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
from sklearn.linear_model import Ridge

from phosphene.alignment import solvers
from phosphene.errors import InputError


def _data(n: int, p: int, q: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    return x - x.mean(axis=0), y - y.mean(axis=0)


@pytest.mark.parametrize("shape", [(30, 50, 7), (50, 30, 7), (20, 20, 20)])
def test_ridge_is_that_of_scikit_learn(shape: tuple[int, int, int]) -> None:
    x, y = _data(*shape)
    penalty = 0.3
    oracle = Ridge(alpha=penalty * np.square(x).sum() / len(x), fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(solvers.ridge_map(x, y, penalty), oracle.coef_.T, atol=1e-9)
    new = np.random.default_rng(1).normal(size=(5, shape[1]))
    path = list(solvers.ridge_path(x, y, new, [penalty, 3.0]))
    np.testing.assert_allclose(path[0], oracle.predict(new), atol=1e-9)
    np.testing.assert_allclose(path[1], new @ solvers.ridge_map(x, y, 3.0), atol=1e-9)


def test_a_rotation_and_a_scale_are_found_again() -> None:
    rng = np.random.default_rng(2)
    x, _ = _data(60, 12, 1)
    rotation = scipy.linalg.qr(rng.normal(size=(12, 12)))[0]
    found = solvers.procrustes_map(x, 2.5 * x @ rotation, 12)
    np.testing.assert_allclose(found, 2.5 * rotation, atol=1e-9)


def test_procrustes_is_that_of_scipy_and_keeps_distances() -> None:
    x, y = _data(80, 15, 15)
    rotation, strength = scipy.linalg.orthogonal_procrustes(x, y)
    found = solvers.procrustes_map(x, y, 15)
    np.testing.assert_allclose(found, strength / np.square(x).sum() * rotation, atol=1e-9)
    part = solvers.procrustes_map(x, y, 6)
    values = np.linalg.svd(part, compute_uv=False)
    np.testing.assert_allclose(values[:6], values[0])
    np.testing.assert_allclose(values[6:], 0, atol=1e-12)
    path = list(solvers.procrustes_path(x, y, x[:4], [6, 15]))
    np.testing.assert_allclose(path[0], x[:4] @ part, atol=1e-9)


def test_a_shared_response_is_found_behind_orthonormal_maps() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(60, 5)) * [5, 4, 3, 2, 1]
    shared -= shared.mean(axis=0)
    maps = [scipy.linalg.qr(rng.normal(size=(p, 5)), mode="economic")[0] for p in (20, 30, 25)]
    found, response = solvers.shared_response([shared @ w.T for w in maps], 5, 10)
    for weights, truth in zip(found, maps, strict=True):
        np.testing.assert_allclose(weights.T @ weights, np.eye(5), atol=1e-9)
        np.testing.assert_allclose(weights @ weights.T, truth @ truth.T, atol=1e-6)  # the same subspace
    # up to one rotation for all
    rotation = scipy.linalg.orthogonal_procrustes(response, shared)[0]
    np.testing.assert_allclose(response @ rotation, shared, atol=1e-6)


def test_the_objective_never_rises() -> None:
    data = [_data(40, p, 1, seed)[0] for seed, p in enumerate((25, 30, 35))]

    def error(rounds: int) -> float:
        maps, shared = solvers.shared_response(data, 6, rounds)
        return sum(float(np.square(x - shared @ w.T).sum()) for x, w in zip(data, maps, strict=True))

    errors = [error(rounds) for rounds in (1, 2, 4, 8, 16)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_the_right_number_of_features_is_chosen() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(size=(120, 8))
    data = [shared @ rng.normal(size=(8, 40)) + 0.8 * rng.normal(size=(120, 40)) for _ in range(3)]
    data = [x - x.mean(axis=0) for x in data]
    folds = solvers.inner_folds(np.arange(120), 4)
    assert solvers.choose_features(data, folds, (1, 2, 8, 30), 10) == 8


def test_the_penalty_grows_with_noise() -> None:
    rng = np.random.default_rng(5)
    latent = rng.normal(size=(80, 5))
    clean = latent @ rng.normal(size=(5, 60))
    target = latent @ rng.normal(size=(5, 10))
    folds = solvers.inner_folds(np.arange(80), 4)
    chosen = [
        solvers.choose(solvers.ridge_path, clean + s * rng.normal(size=clean.shape), target, folds, (0.001, 0.1, 10.0))
        for s in (0.01, 6.0)
    ]
    assert chosen[0] < chosen[1]


def test_units_stay_together_in_folds() -> None:
    units = np.repeat(["a", "b", "c", "d", "e"], 4)
    folds = solvers.inner_folds(units, 3)
    assert len(folds) == 3
    for train, validation in folds:
        assert not set(units[train]) & set(units[validation])
        assert len(train) + len(validation) == 20
    assert sorted(np.concatenate([validation for _, validation in folds])) == list(range(20))
    with pytest.raises(InputError, match="at least two units"):
        solvers.inner_folds(np.array(["a", "a"]), 4)
