"""Noise: shares of its parts, smoothness in space, shared patterns; drift between sessions."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.virtual.fields import stream
from phosphene.virtual.noise import NoiseModel, draw_noise, noise_block, session_state

TRIALS = 3000


@pytest.fixture(scope="module")
def places() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 60, (120, 3))


def block(places: np.ndarray, shares: tuple[float, float, float], length: float = 10.0, rank: int = 3) -> np.ndarray:
    model = draw_noise(0, "sub-01", places, length, rank, shares)
    return noise_block(model, stream(0, "test"), TRIALS)


@pytest.mark.parametrize("shares", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.25, 0.15, 0.6)])
def test_noise_has_unit_variance_whatever_its_parts(places: np.ndarray, shares: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(block(places, shares).std(0), 1, atol=0.08)


def test_smooth_noise_falls_off_with_distance(places: np.ndarray) -> None:
    correlation = np.corrcoef(block(places, (1, 0, 0)).T)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    pairs = np.triu_indices(len(places), 1)
    near, far = distance[pairs] < 8, distance[pairs] > 40
    expected = np.exp(-(distance[pairs][near] ** 2) / (2 * 10.0**2))
    assert correlation[pairs][near].mean() == pytest.approx(expected.mean(), abs=0.1)
    assert abs(correlation[pairs][far].mean()) < 0.1


def test_shared_noise_is_of_low_rank_and_the_rest_is_independent(places: np.ndarray) -> None:
    values = np.linalg.eigvalsh(np.cov(block(places, (0, 0.5, 0.5)).T))[::-1]
    # three patterns stand out of a floor of 0.5 that independent noise spreads by (1 +- sqrt(V / N))^2
    ceiling = 0.5 * (1 + np.sqrt(len(places) / TRIALS)) ** 2
    assert (values > 1.3 * ceiling).sum() == 3


def model(places: np.ndarray) -> NoiseModel:
    return draw_noise(0, "sub-01", places, 10.0, 3, (0.3, 0.2, 0.5))


def test_drift_is_a_random_walk_over_sessions(places: np.ndarray) -> None:
    state = {n: session_state(model(places), 0, "sub-01", n, drift=0.3) for n in (1, 2, 3, 12)}
    step = state[2][0] - state[1][0]
    next_step = state[3][0] - state[2][0]
    assert 0.05 < step.std() < 0.6
    assert not np.allclose(step, next_step)
    far = [session_state(model(places), seed, "sub-01", 30, 0.3)[0].std() for seed in range(5)]
    close = [session_state(model(places), seed, "sub-01", 1, 0.3)[0].std() for seed in range(5)]
    assert np.mean(far) > 2 * np.mean(close)
    assert len({state[n][2] for n in state}) == 4


def test_without_drift_sessions_are_alike(places: np.ndarray) -> None:
    baseline, slope, gain = session_state(model(places), 0, "sub-01", 5, drift=0.0)
    assert not baseline.any()
    assert not slope.any()
    assert gain == 1.0
