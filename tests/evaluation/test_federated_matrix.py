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
from phosphene.federation.trials import Inputs, Trials

CELL = Cell("made", "instance", 0.5, 0)
FMRI = torch.tensor([True, False, False])
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
    with pytest.raises(InputError, match="in test: not alike"):
        replace(hospitals, train={**train, "site-0": blind(train["site-0"])})
    with pytest.raises(InputError, match="and none in test: not alike"):
        replace(hospitals, test={})
    with pytest.raises(InputError, match="40 training trials, 50 are to be kept"):
        skewed(hospitals, 50, None, 0)
    with pytest.raises(InputError, match="the trials of public have no people"):
        skewed(replace(hospitals, train={**train, "public": blind(train["site-0"])}), 20, None, 0)


# -- sites that lack something -------------------------------------------------------------------------------------


def blind(trials):
    """The same stimuli without anybody who saw them."""
    inputs = Inputs(np.full(len(trials), ""), {}, trials.inputs.image, trials.inputs.text, trials.present & ~FMRI)
    return Trials(inputs, trials.ids, trials.labels)


def without(trials, modality):
    return trials.hiding(trials.present & (torch.arange(3) != modality))


@pytest.fixture(scope="module")
def lacking(hospitals):
    """Sites with all, without text, without a brain."""
    train = {**hospitals.train, "site-1": without(hospitals.train["site-1"], 2)}
    train["site-2"] = blind(train["site-2"])
    return replace(hospitals, train=train, test={name: hospitals.test[name] for name in ("site-0", "site-1")})


@pytest.mark.parametrize("kind", ["instance", "site"])
def test_what_is_hidden_is_hidden_of_what_sites_hold(lacking, kind):
    for rate in (0.0, 0.3):
        cell = replace(CELL, kind=kind, rate=rate)
        sites = lacking.sites(cell, plan().settings(ARMS["pmcmfl"], "ce", 0))
        present = {name: site.trials.present for name, site in sites.items()}
        assert not present["site-1"][:, 2].any()
        assert not present["site-2"][:, 0].any()
        assert all(each.any(dim=1).all() for each in present.values())
        shares = sum(float(each.float().mean(dim=0).sum()) for each in present.values())
        assert (shares == 7) if not rate else (5 <= shares < 7)


def test_every_way_of_training_bears_sites_that_lack_something(lacking, tmp_path):
    names = ("pmcmfl", "local", "fedproto", "moon", "central", "central-by-pattern")
    records = run_matrix(lacking, plan({name: ARMS[name] for name in names}), [CELL], tmp_path, progress=False)
    for record in records:
        assert set(record["patterns"]["fmri"]["sites"]) == {"site-0", "site-1"}
        assert record["fractions"]["site-2"]["missing fmri"] == 1


def test_settings_are_chosen_where_a_site_holds_everything(lacking):
    apart = held_out(lacking)
    assert set(apart.test) == {"site-0"}
    assert set(apart.train) == {"site-0", "site-1", "site-2"}
    with pytest.raises(InputError, match="no site holds fmri, image and text"):
        held_out(replace(lacking, train={**lacking.train, "site-0": without(lacking.train["site-0"], 1)}))
