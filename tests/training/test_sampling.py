"""Which samples make up a step."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.training.sampling import BatchSampler, split_validation, step_seed


def test_every_pass_uses_every_sample_once_and_people_give_equal_shares():
    sampler = BatchSampler({"a": 10, "b": 7}, batch_size=6, seed=0)
    streams = {"a": [], "b": []}
    for step in range(70):
        drawn = sampler.draw(step)
        assert [len(rows) for rows in drawn.values()] == [3, 3]
        for name, rows in drawn.items():
            streams[name].extend(rows.tolist())
    for name, count in (("a", 10), ("b", 7)):
        passes = [streams[name][i : i + count] for i in range(0, 210 - count + 1, count)]
        assert all(sorted(one) == list(range(count)) for one in passes)
        assert passes[0] != passes[1]


def test_any_step_can_be_drawn_without_those_before_it():
    first, second = (BatchSampler({"a": 11, "b": 5}, 4, seed=3) for _ in range(2))
    walked = [first.draw(step) for step in range(20)]
    for step in (19, 4, 11):
        assert all(np.array_equal(second.draw(step)[name], rows) for name, rows in walked[step].items())
    assert any(not np.array_equal(BatchSampler({"a": 11, "b": 5}, 4, seed=4).draw(0)[n], walked[0][n]) for n in "ab")


def test_a_person_with_few_samples_gives_all_of_them():
    sampler = BatchSampler({"a": 3}, batch_size=100, seed=0)
    assert sampler.shares == {"a": 3}
    assert sampler.steps_per_epoch == 1


def test_too_small_batches_are_refused():
    with pytest.raises(InputError, match=r"batch_size = 4 over 3 people leaves 1 samples for a .* and 2 processes"):
        BatchSampler({"a": 9, "b": 9, "c": 9}, batch_size=4, seed=0, processes=2)
    with pytest.raises(InputError, match="no training trials for b"):
        BatchSampler({"a": 9, "b": 0}, batch_size=4, seed=0)


def test_mixing_weights_follow_the_beta_law():
    sampler = BatchSampler({"a": 4000}, 2000, seed=0)
    partner, share = sampler.mixing(5, probability=0.5, beta=0.3)["a"]
    assert sorted(partner.tolist()) == list(range(2000))
    assert np.mean(share == 1) == pytest.approx(0.5, abs=0.05)
    mixed = share[share < 1]
    assert mixed.mean() == pytest.approx(0.5, abs=0.06)
    assert mixed.var() == pytest.approx(1 / (4 * (2 * 0.3 + 1)), abs=0.03)
    assert np.array_equal(partner, BatchSampler({"a": 4000}, 2000, seed=0).mixing(5, 0.5, 0.3)["a"][0])
    assert not np.array_equal(partner, sampler.mixing(6, 0.5, 0.3)["a"][0])


def test_step_seeds_differ_between_steps_ranks_and_runs():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_validation_split_keeps_units_whole():
    units = np.repeat([f"action-{i}" for i in range(20)], 3)
    aside = split_validation(units, 0.2, seed=1)
    assert aside.sum() == 12
    assert not set(units[aside]) & set(units[~aside])
    assert np.array_equal(aside, split_validation(units, 0.2, seed=1))
    assert not np.array_equal(aside, split_validation(units, 0.2, seed=2))
    assert split_validation(units, 0.0, seed=1).sum() == 0
    assert split_validation(np.array(["a", "b", "c"]), 0.5, seed=0).sum() == 2
    with pytest.raises(InputError, match="three units"):
        split_validation(np.array(["a", "b", "b"]), 0.1, seed=0)


def test_only_units_that_may_be_are_set_aside():
    units = np.repeat(np.arange(10), 2).astype(str)
    every = np.ones(20, dtype=bool)
    assert np.array_equal(split_validation(units, 0.3, 0, every), split_validation(units, 0.3, 0))
    some = np.isin(units, ["1", "4", "7", "9"])
    aside = split_validation(units, 0.3, 0, some)
    assert aside.sum() == 6
    assert not (aside & ~some).any()
    assert np.array_equal(split_validation(units, 0.9, 0, some), some)
