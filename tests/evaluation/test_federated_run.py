"""Scores of a run: every site's own network on its own test trials, with chance, interval and the worst site."""

from __future__ import annotations

import numpy as np
import pytest
from hospitals_made import COMMON, made_hospitals

from phosphene.errors import InputError
from phosphene.evaluation.federated_run import score_run
from phosphene.evaluation.missing_modalities import PATTERNS, shown
from phosphene.federation import Agreement, FederationSettings, SiteState, federate, predict, site_model
from phosphene.settings import merge

SETTINGS = FederationSettings.preset(**merge(COMMON, {"client": {"learning_rate": 5e-3}}))


@pytest.fixture(scope="module")
def run():
    hospitals = made_hospitals(n=60, n_test=24)
    (image, image_encoder), (text, text_encoder) = hospitals.image, hospitals.text
    agreement = Agreement(hospitals.classes, image, text, SETTINGS.model.width, image_encoder, text_encoder)
    sites = {name: SiteState(name, trials, agreement) for name, trials in hospitals.train.items()}
    done = federate(sites, SETTINGS, 3)
    return done, hospitals.test, hospitals.units, score_run(done, hospitals.test, SETTINGS, hospitals.units, n_boot=200)


def test_scores_are_those_of_every_sites_own_network(run):
    done, tests, _, scores = run
    assert scores["patterns"].keys() == PATTERNS.keys()
    by_hand = {}
    for name, site in done.sites.items():
        model = site_model(site, done.shared, SETTINGS)
        found = predict(
            model,
            shown(tests[name].inputs, "fmri"),
            done.shared.library,
            SETTINGS.inference,
            SETTINGS.library.min_count,
        )
        by_hand[name] = float((found.logits.argmax(dim=1) == tests[name].labels.argmax(dim=1)).double().mean())
    brain = scores["patterns"]["fmri"]
    assert {name: each["accuracy"] for name, each in brain["sites"].items()} == pytest.approx(by_hand)
    assert brain["mean"]["accuracy"] == pytest.approx(np.mean(list(by_hand.values())))
    assert brain["worst"]["accuracy"]["value"] == pytest.approx(min(by_hand.values()))


def test_means_lie_in_their_intervals_and_chance_is_told(run):
    scores = run[3]
    for found in scores["patterns"].values():
        for metric, (low, high) in found["intervals"].items():
            if metric in found["mean"]:
                assert low <= found["mean"][metric] <= high
                assert low < high
    assert scores["chances"]["accuracy"] == pytest.approx(1 / 3)
    assert scores["chances"]["top-1"] == pytest.approx(1 / 24)
    assert scores["patterns"]["fmri"]["intervals"]["accuracy"][0] > scores["chances"]["commonest"]


def test_intervals_of_average_precision_hold_the_value_too():
    """Trials that come twice in a resample raise it: uncentred, intervals lie above the value they belong to."""
    hospitals = made_hospitals(n=40, n_test=24, several=True)
    settings = FederationSettings.preset(**COMMON, objective={"task": "bce"})
    (image, image_encoder), (text, text_encoder) = hospitals.image, hospitals.text
    agreement = Agreement(hospitals.classes, image, text, settings.model.width, image_encoder, text_encoder)
    sites = {name: SiteState(name, trials, agreement) for name, trials in hospitals.train.items()}
    found = score_run(federate(sites, settings, 1), hospitals.test, settings, hospitals.units, n_boot=200)
    for pattern in found["patterns"].values():
        low, high = pattern["intervals"]["mAP"]
        assert low < pattern["mean"]["mAP"] < high


def test_every_site_needs_test_trials(run):
    done, tests, units, _ = run
    with pytest.raises(InputError, match="of every site with a brain are needed, and of no other: site-2"):
        score_run(done, {name: each for name, each in tests.items() if name != "site-2"}, SETTINGS, units)
