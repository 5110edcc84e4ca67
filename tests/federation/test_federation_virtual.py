"""From virtual brains at three sites to decoding held-out stimuli from the brain alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from federation_sites import run, same

import phosphene as ph
from phosphene.federation.classes import LabelClasses
from phosphene.federation.client import client_update, site_model
from phosphene.federation.inference import predict
from phosphene.federation.missing import fractions, missing_pattern
from phosphene.federation.server import first_state
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Agreement, SiteState, check_agreement
from phosphene.federation.trials import FMRI, Trials

ROUNDS = 3
SETTINGS = FederationSettings.preset(client={"epochs": 5, "batch_size": 32, "learning_rate": 2e-3}, model={"width": 32})


@pytest.fixture(scope="module")
def hospitals():
    """Three people at three sites, a third of the modalities missing; their test trials, complete."""
    study = ph.virtual.study(
        None, seed=1, subjects=3, sessions=1, repeats=1, runs=1, person={"voxels": 120, "noise": 0.3},
        stimuli={"test": 40, "common": 0, "own": 120, "size": 32, "captions": 1},
    )  # fmt: skip
    train, test = study.split("train"), study.split("test")
    image = ph.encode(study.stimuli, "z:pixels", fit_on=train.stimulus_ids, cache=False, progress=False)
    text = ph.encode(study.stimuli, "tfidf", fit_on=train.stimulus_ids, cache=False, progress=False)
    classes = LabelClasses.found(train.stimuli.labels, ["group"])
    agreement = Agreement(
        classes.names,
        *image.shape("pooled"),
        *text.shape("pooled"),
        SETTINGS.model.width,
        image.identity,
        text.identity,
    )
    sites, tests = [], []
    for person in study.subjects:
        own = train.subset([person])
        trials = Trials.of_study(own, image, text, classes.labels(own.stimuli.labels))
        present = missing_pattern(trials.ids, 0.3, seed=0, site=person)
        assert 0.2 < fractions(present)["missing fmri"] < 0.4
        sites.append(SiteState(f"site-{person}", trials.hiding(present), agreement))
        own = test.subset([person])
        tests.append(Trials.of_study(own, image, text, classes.labels(own.stimuli.labels)))
    assert check_agreement({site.site: site.agreement for site in sites}) == agreement
    assert not {name for site in sites for name in site.trials.ids} & {name for each in tests for name in each.ids}
    return sites, tests


@pytest.fixture(scope="module")
def trained(hospitals):
    return run(hospitals[0], SETTINGS, ROUNDS)


def test_the_loss_falls_at_every_site(trained):
    _, _, sent = trained
    for first, last in zip(sent[0], sent[-1], strict=True):
        assert last.metrics["loss task"] < 0.8 * first.metrics["loss task"]
        assert last.metrics["loss retrieval"] < 0.97 * first.metrics["loss retrieval"]


def test_the_brain_alone_tells_the_class_of_held_out_stimuli(hospitals, trained):
    """Against the share of the commonest class, which is more than the chance of 1 in 5.

    Over five studies it was 0.51 to 0.69, 0.68 on this one; ridge on all fMRI trials of each person comes to 0.77 here.
    """
    shared, sites, _ = trained
    hits, labels = [], hospitals[1][0].labels
    brain = torch.zeros(len(labels), 3, dtype=torch.bool)
    brain[:, FMRI] = True
    for site, test in zip(sites, hospitals[1], strict=True):
        found = predict(site_model(site, shared, SETTINGS), test.inputs.hiding(brain), shared.library)
        hits.append((found.logits.argmax(dim=1) == test.labels.argmax(dim=1)).numpy())
    accuracy, commonest = np.mean(hits), labels.mean(dim=0).max().item()
    assert commonest < 0.4
    assert accuracy > commonest + 0.25, accuracy


def test_a_site_served_again_sends_the_same_bits(hospitals, trained):
    again, _ = client_update(hospitals[0][1], first_state(hospitals[0][1].agreement, SETTINGS), SETTINGS)
    assert same(again.to_tensors()[0], trained[2][0][1].to_tensors()[0])
