"""What a federation scores by pattern of inference, and what no label may change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hospitals_made import COMMON, made_hospitals
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from phosphene.errors import InputError
from phosphene.evaluation.federated_matrix import Plan, predictions
from phosphene.evaluation.federated_rivals import ARMS, train
from phosphene.evaluation.hospitals import Cell
from phosphene.evaluation.missing_modalities import (
    PATTERNS,
    RETRIEVED,
    calibration_error,
    chances,
    leak_with_labels,
    one_class_each,
    score_pattern,
    shown,
)
from phosphene.evaluation.statistics import Resampler
from phosphene.federation.inference import Predicted

N_BOOT = 20


@pytest.fixture(scope="module")
def hospitals():
    return made_hospitals()


@pytest.fixture(scope="module")
def networks(hospitals):
    """The published recipe's masks at one learning rate that lets them be learned."""
    plan = Plan({}, common=COMMON)
    arm = replace(ARMS["pmcmfl"], changes={"masks": {"label": 1.0}, "inference": {"rule": "nearest"}})
    settings = plan.settings(arm, hospitals.task, 0)
    trained = train(arm, hospitals.sites(Cell("made", "instance", 0.5, 0), settings), settings, 8)
    return {
        name: trained.network(name, trials.inputs.people, settings, "fmri") for name, trials in hospitals.test.items()
    }


def resampler(hospitals):
    return Resampler({"test": np.array(sorted(hospitals.units))}, N_BOOT, 0)


def scored(hospitals, said, pattern, task="ce"):
    return score_pattern(said, hospitals.test, pattern, resampler(hospitals), hospitals.units, task)


def permuted(hospitals):
    test = {}
    for name, trials in hospitals.test.items():
        order = torch.randperm(len(trials), generator=torch.Generator().manual_seed(3))
        test[name] = replace(trials, labels=trials.labels[order])
    return replace(hospitals, test=test)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_permuted_labels_leave_every_prediction_as_it_was(hospitals, networks, pattern):
    found = predictions(networks, hospitals.test, pattern)
    again = predictions(networks, permuted(hospitals).test, pattern)
    for name in found:
        assert torch.equal(found[name].logits, again[name].logits)
        assert torch.equal(found[name].embedding, again[name].embedding)
        assert torch.equal(found[name].z, again[name].z)


def test_the_leak_scores_well_on_labels_that_mean_nothing(hospitals, networks):
    """Permuted labels have nothing to do with the trials: what still finds them was told."""
    other = permuted(hospitals)
    leaks = {name: leak_with_labels(networks[name], trials, "text") for name, trials in other.test.items()}
    honest = predictions(networks, other.test, "text")
    told, found = (scored(other, each, "text")["mean"]["accuracy"] for each in (leaks, honest))
    assert found < 0.5
    assert told > found + 0.2


def test_what_is_hidden_is_gone_and_a_pattern_needs_complete_trials(hospitals):
    inputs = hospitals.test["site-0"].inputs
    brains = shown(inputs, "fmri")
    assert not brains.image.any()
    assert not brains.text.any()
    with pytest.raises(InputError, match="has only fmri"):
        shown(brains, "image")
    with pytest.raises(InputError, match="unknown pattern of inference"):
        shown(inputs, "eeg")


def test_scores_are_those_of_scikit_learn(hospitals, networks):
    said = predictions(networks, hospitals.test, "fmri+text")
    found = scored(hospitals, said, "fmri+text")
    for name, trials in hospitals.test.items():
        truth, answer = trials.labels.argmax(dim=1).numpy(), said[name].logits.argmax(dim=1).numpy()
        assert found["sites"][name]["accuracy"] == pytest.approx(accuracy_score(truth, answer))
        assert found["sites"][name]["macro-F1"] == pytest.approx(f1_score(truth, answer, average="macro"))
        cosines = said[name].embedding @ torch.nn.functional.normalize(trials.inputs.image, dim=1).T
        best = (cosines.argmax(dim=1) == torch.arange(len(trials))).float().mean().item()
        assert found["sites"][name]["top-1 brain_to_image"] == pytest.approx(best)
    values = {name: each["accuracy"] for name, each in found["sites"].items()}
    assert found["worst"]["accuracy"]["value"] == min(values.values())
    assert found["worst"]["ECE"]["value"] == max(each["ECE"] for each in found["sites"].values())
    assert found["mean"]["accuracy"] == pytest.approx(np.mean(list(values.values())))
    assert len(found["draws"]["accuracy"]) == len(found["draws"]["top-1"]) == N_BOOT
    assert np.mean(found["draws"]["accuracy"]) == pytest.approx(found["mean"]["accuracy"], abs=0.06)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_retrieval_is_scored_only_where_the_picture_is_hidden(hospitals, networks, pattern):
    found = scored(hospitals, predictions(networks, hospitals.test, pattern), pattern)
    assert ("top-1 brain_to_image" in found["mean"]) == (pattern in RETRIEVED) == ("top-1" in found["draws"])
    assert pattern not in RETRIEVED or not PATTERNS[pattern][1]


def test_several_classes_are_scored_by_mean_average_precision():
    hospitals = made_hospitals(n=10, several=True)
    rng = torch.Generator().manual_seed(0)
    said = {
        name: Predicted(torch.randn(each.labels.shape, generator=rng), None, torch.zeros(len(each), 2))
        for name, each in hospitals.test.items()
    }
    found = scored(hospitals, said, "fmri", "bce")
    trials = hospitals.test["site-1"]
    expected = average_precision_score(trials.labels.numpy(), said["site-1"].logits.numpy(), average="macro")
    assert found["sites"]["site-1"]["mAP"] == pytest.approx(expected)
    assert set(found["mean"]) == {"mAP", "ECE"}
    assert set(chances(hospitals.test)) == {"mAP", "top-1", "two-way", "gallery"}


def test_one_stimulus_of_an_unknown_class_does_not_turn_accuracy_into_another_metric(hospitals):
    trials = hospitals.test["site-1"]
    labels = trials.labels.clone()
    labels[7] = 0
    spoilt = {**hospitals.test, "site-1": replace(trials, labels=labels)}
    with pytest.raises(InputError, match="none that is known: 1 stimuli of site-1, such as t-7"):
        one_class_each(spoilt)
    with pytest.raises(InputError, match="such as t-7"):
        replace(hospitals, test=spoilt)
    assert one_class_each(hospitals.test)
    labels[8] = 1  # with several classes a trial may well have none
    assert not one_class_each(spoilt)


def test_calibration_is_the_gap_between_saying_and_being_right():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    honest = (rng.random(20_000) < confidence).astype(float)
    assert calibration_error(confidence, honest) < 0.02
    assert calibration_error(np.ones(10), np.zeros(10)) == 1.0


def test_chance_is_that_of_the_data(hospitals):
    found = chances(hospitals.test)
    share = hospitals.test["site-0"].labels.mean(dim=0).max().item()
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["commonest"] == pytest.approx(share)
    truth = hospitals.test["site-0"].labels.argmax(dim=1).numpy()
    constant = np.full(len(truth), np.bincount(truth).argmax())
    assert found["macro-F1"] == pytest.approx(f1_score(truth, constant, average="macro", zero_division=0))
    assert found["top-1"] == pytest.approx(1 / 40)
    assert found["gallery"] == 40
