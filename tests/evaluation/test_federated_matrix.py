"""The matrix: the same data and masks for every arm, records kept, settings chosen on what is no test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hospitals_made import CLASSES, COMMON, made_hospitals

from phosphene.errors import InputError
from phosphene.evaluation import federated_matrix
from phosphene.evaluation.federated_matrix import Plan, chosen_of, run_matrix, tune
from phosphene.evaluation.federated_rivals import ABLATIONS, ARMS
from phosphene.evaluation.hospitals import Cell, held_out, skewed

CELL = Cell("made", "instance", 0.5, 0)
SOME = {name: ARMS[name] for name in ("pmcmfl", "fedavg-zero")}


@pytest.fixture(scope="module")
def hospitals():
    return made_hospitals(n=40, n_test=12)


def plan(arms=SOME, **changes):
    return Plan(arms, common=COMMON, rounds=1, n_boot=20, **changes)


@pytest.mark.parametrize("kind", ["instance", "site"])
def test_masks_are_those_of_the_seed_and_of_no_arm(hospitals, kind):
    cell = replace(CELL, kind=kind)
    made = [hospitals.sites(cell, plan().settings(ARMS[name], "ce", 0)) for name in ("pmcmfl", "local")]
    other = hospitals.sites(replace(cell, seed=1), plan().settings(ARMS["pmcmfl"], "ce", 1))
    held = [torch.cat([each[name].trials.present for name in sorted(each)]) for each in (*made, other)]
    assert torch.equal(held[0], held[1])
    assert not torch.equal(held[0], held[2])
    assert not held[0].all()


def test_records_are_the_same_bits_in_another_folder_and_read_back_in_the_same(hospitals, tmp_path):
    first = run_matrix(hospitals, plan(), [CELL], tmp_path / "a", progress=False)
    cut = tmp_path / "a" / "records" / f"{CELL.words}-fedavg-zero.json"
    cut.unlink()
    again = run_matrix(hospitals, plan(), [CELL], tmp_path / "a", progress=False)
    for one, other in zip(first, again, strict=True):
        assert one["patterns"] == other["patterns"]
        assert one["fractions"] == other["fractions"]
    assert again[0] == first[0]  # seconds and all: it was read
    assert len(first[0]["patterns"]["fmri"]["draws"]["accuracy"]) == 20


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rounds": 2}, "rounds"),
        ({"common": {"model": {"width": 8, "adapter": "learned"}}}, "settings"),
        ({"n_boot": 10}, "n_boot"),
    ],
)
def test_a_record_of_something_else_is_refused(hospitals, tmp_path_factory, change, what):
    folder = tmp_path_factory.getbasetemp() / "kept-matrix"
    run_matrix(hospitals, plan(), [CELL], folder, progress=False)
    with pytest.raises(InputError, match=f"made with other {what}"):
        run_matrix(hospitals, replace(plan(), **change), [CELL], folder, progress=False)
    with pytest.raises(InputError, match="made with other data"):
        run_matrix(skewed(hospitals, 20, None, 0), plan(), [CELL], folder, progress=False)


def test_rules_of_inference_are_scored_on_one_training(hospitals, tmp_path, monkeypatch):
    trained = []
    plain_train = federated_matrix.train
    monkeypatch.setattr(
        federated_matrix, "train", lambda arm, *rest: trained.append(arm.name) or plain_train(arm, *rest)
    )
    arms = {
        "pmcmfl": ARMS["pmcmfl"],
        **{name: ABLATIONS[name] for name in ("rule-nearest", "rule-token", "no-contrast")},
    }
    records = run_matrix(hospitals, plan(arms), [CELL], tmp_path, progress=False)
    assert trained == ["pmcmfl", "no-contrast"]
    scores = {each["arm"]: each["patterns"]["text"]["draws"]["accuracy"] for each in records}
    assert scores["rule-nearest"] != scores["rule-token"]


def test_tuning_never_sees_the_test_and_takes_the_best(hospitals, tmp_path):
    apart = held_out(hospitals)
    test = {name for each in hospitals.test.values() for name in each.ids.tolist()}
    train = {name for each in hospitals.train.values() for name in each.ids.tolist()}
    seen = {name for each in (*apart.train.values(), *apart.test.values()) for name in each.ids.tolist()}
    assert seen == train
    assert not seen & test
    tried = tune(apart, plan({"token": ARMS["token"]}), [CELL], tmp_path, progress=False)["token"]
    assert [row["settings"] for row in tried] == list(ARMS["token"].candidates)
    chosen = chosen_of({"token": tried})["token"]
    assert max(row["score"] for row in tried) == next(row["score"] for row in tried if row["settings"] == chosen)


def test_several_classes_go_through_the_matrix(tmp_path):
    hospitals = made_hospitals(n=24, n_test=12, several=True)
    records = run_matrix(hospitals, plan(), [CELL], tmp_path, progress=False)
    assert {each["asked"]["settings"]["objective"]["task"] for each in records} == {"bce"}
    assert all(0 <= each["patterns"]["fmri"]["mean"]["mAP"] <= 1 for each in records)


# -- hospitals -----------------------------------------------------------------------------------------------------


def test_a_small_dirichlet_parameter_deals_classes_unevenly():
    hospitals = made_hospitals(n=200, n_test=12, sites=6)
    spread = {}
    for alpha in (None, 0.1):
        dealt = skewed(hospitals, 60, alpha, 3)
        assert {len(trials) for trials in dealt.train.values()} == {60}
        table = np.array([list(shares.values()) for shares in dealt.shares.values()])
        assert np.allclose(table.sum(axis=1), 1, atol=1e-3)
        spread[alpha] = table.max(axis=1).mean()
        again = skewed(hospitals, 60, alpha, 3)
        assert again.fingerprint == dealt.fingerprint != skewed(hospitals, 60, alpha, 4).fingerprint
    assert spread[None] < 1 / CLASSES + 0.15
    assert spread[0.1] > 0.75


def test_hospitals_that_cannot_be_compared_are_refused(hospitals):
    train, test = hospitals.train, hospitals.test
    with pytest.raises(InputError, match="not alike"):
        replace(hospitals, test={"site-0": test["site-0"]})
    with pytest.raises(InputError, match="are in training, such as s0-0"):
        replace(hospitals, test={**test, "site-0": train["site-0"]})
    with pytest.raises(InputError, match="no training trial of p1"):
        replace(hospitals, test={**test, "site-0": test["site-1"]})
    hidden = test["site-0"].present.clone()
    hidden[0, 1] = False
    with pytest.raises(InputError, match="lack a modality"):
        replace(hospitals, test={**test, "site-0": test["site-0"].hiding(hidden)})
    with pytest.raises(InputError, match="no labels"):
        replace(hospitals, test={**test, "site-0": replace(test["site-0"], labels=None)})
    with pytest.raises(InputError, match="40 training trials, 50 are to be kept"):
        skewed(hospitals, 50, None, 0)
