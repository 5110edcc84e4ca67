"""Training settings and the schedules that follow from them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from phosphene.errors import InputError
from phosphene.training import schedules
from phosphene.training.settings import MACHINE_KEYS, TrainingConfig


def test_unknown_key_is_refused_and_the_nearest_suggested():
    with pytest.raises(InputError, match="did you mean 'learning_rate'"):
        TrainingConfig.build({"learning_rat": 1e-3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrastive": "none"}, "mse_weight or cosine_weight"),
        ({"contrastive_weight": 0.0}, "above 0"),
        ({"learn_temperature": True, "temperature_end": 0.1}, "excludes"),
        ({"learn_temperature": True, "contrastive": "none", "mse_weight": 1.0}, "contrastive part"),
        ({"patience": 3, "validation_fraction": 0}, "patience needs"),
        ({"monitor": "accuracy"}, "monitor"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig.build(settings)


def test_machine_keys_exist():
    assert set(TrainingConfig.model_fields) >= MACHINE_KEYS


def test_every_key_is_documented():
    for key in TrainingConfig.model_fields:
        assert key in (TrainingConfig.__doc__ or ""), key


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_learning_rate_rises_to_the_peak_and_falls_to_the_floor(schedule):
    config = TrainingConfig(learning_rate=0.5, schedule=schedule, warmup=0.2, final_learning_rate=0.1)
    rates = [schedules.learning_rate(step, 100, config) for step in range(100)]
    assert max(rates) == rates[20] == pytest.approx(0.5)
    assert all(b > a for a, b in pairwise(rates[:21]))
    assert all(b < a for a, b in pairwise(rates[20:]))
    assert rates[-1] == pytest.approx(0.05)
    first = 0.5 / 25 if schedule == "one-cycle" else 0.5 / 21
    assert rates[0] == pytest.approx(first)


def test_constant_schedule_and_tiny_runs():
    config = TrainingConfig(schedule="constant", warmup=0.0)
    assert {schedules.learning_rate(step, 10, config) for step in range(10)} == {config.learning_rate}
    for schedule in ("cosine", "one-cycle", "constant"):
        short = TrainingConfig(schedule=schedule, warmup=0.5)
        assert all(
            math.isfinite(schedules.learning_rate(step, total, short)) for total in (1, 2) for step in range(total)
        )


def test_mindeye_course_of_the_temperature():
    config = TrainingConfig(
        mixing_fraction=0.33,
        mixing_temperature=0.006,
        temperature=0.004,
        temperature_end=0.0075,
        contrastive="softclip",
    )
    course = [schedules.temperature(step, 100, config) for step in range(100)]
    mixing = [schedules.is_mixing(step, 100, config) for step in range(100)]
    assert mixing == [True] * 33 + [False] * 67
    assert set(course[:33]) == {0.006}
    assert course[33] == pytest.approx(0.004)
    assert course[-1] == pytest.approx(0.0075)
    assert all(b >= a for a, b in pairwise(course[33:]))
