"""What records say, on records whose answers are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from phosphene.errors import InputError
from phosphene.evaluation.federated_summary import Records, claims, paired, rows, share_closed
from phosphene.evaluation.federated_tables import choices_table, markdown
from phosphene.evaluation.missing_modalities import PATTERNS, RETRIEVED

N_BOOT, SITES = 100, ("a", "b")
WAYS = ("brain_to_image", "image_to_brain")


def record(arm, value, seed=0, rate=0.5, kind="instance", pattern_values=None, noise=0.0):
    """An arm whose accuracy is `value` under every pattern, a point more at site a than at b."""
    shake = noise * np.random.default_rng(seed).normal(size=N_BOOT)  # the same for all arms: paired
    patterns = {}
    for name in PATTERNS:
        at = (pattern_values or {}).get(name, value)
        sites = {"a": {"accuracy": at + 0.005, "ECE": 0.1}, "b": {"accuracy": at - 0.005, "ECE": 0.2}}
        draws = {"accuracy": (at + shake).tolist()}
        if name in RETRIEVED:
            draws["top-1"] = [0.1] * N_BOOT
            for each in sites.values():
                each |= {f"{metric} {way}": 0.1 for metric in ("top-1", "two-way") for way in WAYS}
        mean = {metric: float(np.mean([each[metric] for each in sites.values()])) for metric in sites["a"]}
        worst = {metric: {"site": "b", "value": sites["b"][metric]} for metric in mean}
        patterns[name] = {"mean": mean, "worst": worst, "sites": sites, "draws": draws}
    return {
        "condition": "made", "kind": kind, "rate": rate, "seed": seed, "arm": arm, "patterns": patterns,
        "leak_with_labels": {name: {"mean": {"accuracy": 1.0}} for name in PATTERNS if name != "all"},
        "chance": {"accuracy": 0.2, "commonest": 0.25, "top-1": 0.01, "two-way": 0.5, "gallery": 100.0},
        "fractions": {"all": {"missing fmri": rate, "complete": 1 - rate, "only fmri": 0.1}},
        "cost": {"bytes_up": 1000.0, "bytes_down": 1000.0, "seconds": 1.0, "cpu_s": 1.0, "rounds": 3},
    }  # fmt: skip


def test_a_constant_difference_has_no_spread_however_noisy_the_stimuli():
    pairs = [(record("x", 0.6, seed, noise=0.05), record("y", 0.55, seed, noise=0.05)) for seed in range(3)]
    found = paired(pairs, list(PATTERNS), "accuracy")
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.05, 0.05, 0.05))
    assert (found["p"], found["p_floor"], found["over"]) == (0.25, 0.25, "seeds")  # of three seeds, all of one sign


def test_the_interval_and_the_test_are_of_the_seeds_differences():
    values = (0.4, 0.5, 0.6, 0.58, 0.55)
    pairs = [(record("x", value, seed, noise=0.1), record("y", 0.5, seed)) for seed, value in enumerate(values)]
    found = paired(pairs, ["fmri"], "accuracy")
    differences = np.array(values) - 0.5
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["mean"] == pytest.approx(differences.mean())
    flips = np.array(list(itertools.product((-1, 1), repeat=5))) @ differences
    assert found["p"] == pytest.approx((np.abs(flips) >= abs(differences.sum()) - 1e-9).mean())
    assert found["p_floor"] == 0.0625
    assert paired(pairs, ["fmri"], "accuracy")["by_seed"][2] == pytest.approx(0.1)
    with pytest.raises(InputError, match="nothing can be paired"):
        paired([], ["fmri"], "accuracy")


def test_the_interval_covers_nothing_as_often_as_it_says_and_the_test_rejects_no_more():
    rng = np.random.default_rng(0)
    base = [record("y", 0.5, seed) for seed in range(5)]
    covered, rejected = 0, 0
    for _ in range(400):
        pairs = [({**one, "patterns": {"fmri": moved(one["patterns"]["fmri"], rng.normal())}}, one) for one in base]
        found = paired(pairs, ["fmri"], "accuracy")
        covered += found["low"] <= 0 <= found["high"]
        rejected += found["p"] < 0.0625
    assert 0.92 < covered / 400 < 0.98
    assert rejected == 0


def moved(scores, by):
    return {**scores, "mean": {"accuracy": scores["mean"]["accuracy"] + by}}


def test_of_one_seed_there_is_a_bootstrap_of_its_stimuli_and_the_tables_say_so():
    one, other = record("pmcmfl", 0.6, noise=0.05), record("dropout-token", 0.55)
    found = paired([(one, other)], ["fmri"], "accuracy")
    draws = np.subtract(one["patterns"]["fmri"]["draws"]["accuracy"], 0.55)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert (found["over"], found["p_floor"]) == ("stimuli", pytest.approx(1 / 101))
    assert "One seed: 95 % bootstrap over its test stimuli alone" in markdown(Records([one, other]))
    several = markdown(matrix())
    assert "95 % t intervals over 2 seeds, p of an exact sign-flip test" in several
    assert "0.5 (floor 0.5)" in several
    assert "bootstrap" not in several


def test_the_interval_of_a_share_is_fiellers_and_none_where_the_gap_may_be_nothing():
    ours, gaps = np.array([0.1, 0.12, 0.08, 0.11, 0.1]), np.array([0.2, 0.22, 0.19, 0.2, 0.21])

    def triples(gap):
        rows = enumerate(zip(ours, gap, strict=True))
        return [(record("x", 0.5 + o, s), record("zero", 0.5, s), record("bound", 0.5 + g, s)) for s, (o, g) in rows]

    found = share_closed(triples(gaps), "accuracy")
    for end in (found["low"], found["high"]):  # there a t test is just at its level
        assert stats.ttest_1samp(ours - end * gaps, 0.0).pvalue == pytest.approx(0.05)
    assert found["low"] < found["share"] < found["high"]
    vague = triples([0.5, -0.4, 0.3, -0.2, 0.1])
    assert (share_closed(vague, "accuracy")["low"], share_closed(vague, "accuracy")["over"]) == (None, "seeds")
    made = [each for triple in vague for each in triple]
    for each, name in zip(made, ("pmcmfl", "fedavg-zero", "central-by-pattern") * 5, strict=True):
        each["arm"] = name
    assert "[no interval: the gap may be nothing]" in markdown(Records(made))


def test_the_share_that_is_closed():
    triples = [(record("x", 0.7, s), record("zero", 0.6, s), record("bound", 0.8, s)) for s in (0, 1)]
    found = share_closed(triples, "accuracy")
    assert found["share"] == pytest.approx(0.5)
    assert found["gap"] == pytest.approx(0.2)
    assert found["low"] == pytest.approx(0.5)
    assert share_closed([(x, bound, zero) for x, zero, bound in triples], "accuracy") is None


def matrix():
    made = []
    for seed in (0, 1):
        made += [record("pmcmfl", 0.7, seed, pattern_values={"text": 0.5}), record("dropout-token", 0.65, seed)]
        made += [record("fedavg-zero", 0.6, seed), record("central-by-pattern", 0.8, seed)]
        made += [record("fedavg-zero", 0.3, seed, rate=0.0)]
    return Records(made)


def test_the_claims_are_those_of_the_issue():
    found = claims(matrix())
    mean = (6 * 0.1 - 0.1) / 7
    assert found["above_zero_fill"]["mean"]["mean"] == pytest.approx(mean)
    assert found["gap_closed"]["mean"]["share"] == pytest.approx(mean / 0.2)
    beaten = found["against_dropout_token"]
    assert beaten["mean"]["mean"] == pytest.approx((6 * 0.05 - 0.15) / 7)
    assert len(beaten["cells"]) == len(PATTERNS)
    assert [each["pattern"] for each in beaten["wholly_below_minus_1_point"]] == ["text"]
    single = {each["pattern"]: each["mean"] for each in found["one_modality"]}
    assert single == pytest.approx({"fmri": 0.4, "image": 0.4, "text": 0.2})


def test_what_was_not_run_is_not_claimed():
    found = claims(Records([record("pmcmfl", 0.7), record("dropout-token", 0.6)]))
    assert "above_zero_fill" not in found
    assert "gap_closed" not in found
    assert "one_modality" not in found
    with pytest.raises(InputError, match="no record"):
        Records([])


def test_tables_hold_chance_the_leak_by_its_name_and_realised_shares():
    records = matrix()
    made = next(row for row in rows(records) if row["arm"] == "pmcmfl" and row["rate"] == 0.5)
    assert made["patterns"]["fmri"]["accuracy"] == pytest.approx({"mean": 0.7, "sd": 0.0, "worst": 0.695})
    assert made["seeds"] == [0, 1]
    assert made["by_seed"] == pytest.approx([(6 * 0.7 + 0.5) / 7] * 2, abs=1e-5)
    table = markdown(records)
    assert "### made: 50% missing in training, by instance" in table
    assert "Realised: missing fmri 50.0%, complete 50.0%." in table
    assert "| chance | 20.0 |" in table
    assert "| LEAK: pmcmfl, leak_with_labels |  | 100.0 |" in table
    assert "never trained for absence" in table
    assert "+40.0 [+40.0, +40.0]" in table


def test_what_noise_promises_stands_beneath_the_table():
    noisy = record("noise-0.1", 0.5)
    noisy["cost"]["epsilon"] = {"trial": 12.34, "site": None}
    assert "noise-0.1: epsilon 12.3 per trial, no promise per site" in markdown(Records([record("pmcmfl", 0.7), noisy]))


def test_candidates_are_listed_and_the_first_best_is_marked():
    row = {"settings": {"client": {"learning_rate": 0.001}}, "score": 0.5, "cells": 1}
    table = choices_table({"x": [row, {**row, "settings": {}}]})
    assert "| x | client.learning_rate = 0.001 | 50.0 | x |" in table
    assert "| x | as published | 50.0 |  |" in table


def test_a_seed_that_lacks_a_cell_is_not_in_the_mean_over_cells():
    """Cells differ by 10 points: a seed with the better one alone would be 5 points above the others."""
    arms = {"pmcmfl": (0.60, 0.70), "fedavg-zero": (0.58, 0.58), "dropout-token": (0.58, 0.58)}
    made = [
        record(arm, value, seed, kind=kind)
        for seed in (0, 1, 2)
        for arm, both in arms.items()
        for kind, value in zip(("instance", "site"), both, strict=True)
    ]
    partial = [each for each in made if (each["seed"], each["kind"]) != (2, "instance")]
    for name in ("above_zero_fill", "against_dropout_token"):
        whole, part = (claims(Records(each))[name]["mean"] for each in (made, partial))
        assert whole["mean"] == part["mean"] == pytest.approx(0.07)
        assert (sorted(whole["by_seed"]), sorted(part["by_seed"])) == ([0, 1, 2], [0, 1])
    split = [each for each in made if each["kind"] == ("instance" if each["seed"] else "site")]
    assert "above_zero_fill" not in claims(Records(split))
