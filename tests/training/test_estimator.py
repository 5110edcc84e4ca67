"""The scikit-learn face: its tools work on it, and ridge agrees with scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from phosphene.training import DecoderRegressor


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 30)).astype("float32")
    return x, (x @ rng.normal(size=(30, 4)) + rng.normal(size=(80, 4))).astype("float32")


def test_clone_cross_validation_and_grid_search(arrays):
    estimator = DecoderRegressor("ridge", settings={"folds": 3})
    assert clone(estimator).get_params() == estimator.get_params()
    assert cross_val_score(estimator, *arrays, cv=3).mean() > 0.8
    grid = GridSearchCV(estimator, {"settings": [{"penalties": (1e6,)}, {"penalties": (0.01,)}]}, cv=3).fit(*arrays)
    assert grid.best_params_ == {"settings": {"penalties": (0.01,)}}


def test_agrees_with_scikit_learn(arrays):
    x, y = arrays
    ours = DecoderRegressor("ridge", settings={"penalties": (0.1,)}).fit(x, y)
    scaled = (x - x.mean(0)) / x.std(0)
    theirs = Ridge(alpha=0.1 * float((scaled**2).sum(1).mean())).fit(scaled, y)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(scaled), atol=1e-4)


def test_one_output_and_networks(arrays):
    x, y = arrays
    network = DecoderRegressor("lite-mind", training={"epochs": 2, "validation_fraction": 0.2})
    assert network.fit(x, y[:, 0]).predict(x).shape == (80,)


def test_scikit_learn_estimator_checks():
    failures = check_estimator(DecoderRegressor("ridge"), on_fail=None)
    wrong = [check["check_name"] for check in failures if check["status"] == "failed"]
    assert wrong == []
