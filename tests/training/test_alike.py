"""A decoder trained once more for other targets: the same people, settings and sessions; some stimuli alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_study import QUICK, tiny_study

from phosphene.decoders import Decoder
from phosphene.encoders import Targets, make_encoder
from phosphene.errors import InputError
from phosphene.training import adapt, fit, fit_alike
from phosphene.training.alike import captioned

SIZES = {"n_stimuli": 120, "n_test": 30, "repeats": 2, "voxels": (14, 12, 13), "width": 6, "sessions": 3}
SMALL = {"width": 12, "blocks": 1, "projector": 6, "start_rank": 6, "dropout": 0.1}
PEOPLE = ["sub-01", "sub-02"]
SHORT = {**QUICK, "epochs": 2}


@pytest.fixture(scope="module")
def world():
    study, images = tiny_study(**SIZES)
    text = images.pooled @ np.random.default_rng(5).normal(size=(6, 9))
    return study, images, Targets(images.ids, None, text.astype("float32"), make_encoder("pixels"))


@pytest.fixture(scope="module")
def base(world):
    study, images, _ = world
    return fit("mindtuner", study, images, subjects=PEOPLE, training=SHORT, seed=4, progress=False, **SMALL)


@pytest.fixture(scope="module")
def adapted(world, base):
    study, images, _ = world
    words = {"arm": "lora", "rank": 2, "seed": 7, "training": {**SHORT, "learning_rate": 2e-3}}
    return adapt(base, study, images, "sub-03", sessions=1, progress=False, **words)


def same(one, two):
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(each, second[name]) for name, each in first.items())


def test_everything_but_the_targets_is_the_same(world, adapted, tmp_path):
    study, images, texts = world
    found = fit_alike(adapted, study, texts, progress=False, out=tmp_path)
    assert (found.target_shape, found.encoder) == ((9,), texts.encoder)
    for facts, before in ((found.provenance, adapted.provenance), (found.apart["sub-03"], adapted.apart["sub-03"])):
        for key in ("seed", "training"):
            assert facts[key] == before[key]
    assert found.config == adapted.config
    told, before = found.apart["sub-03"], adapted.apart["sub-03"]
    assert (told["arm"], told["n_sessions"], told["n_trials"]) == ("lora", 1, before["n_trials"])
    assert told["adapter"] == before["adapter"]
    assert same(found, Decoder.load(tmp_path / "people" / "sub-03" / "decoder"))
    assert same(adapted, fit_alike(adapted, study, images, progress=False))  # and for the same targets it is the same


def test_other_settings_of_training_and_closed_forms(world, base):
    study, images, texts = world
    found = fit_alike(base, study, texts, progress=False, training={"learning_rate": 1e-4})
    assert found.provenance["training"] == {**base.provenance["training"], "learning_rate": 1e-4}
    ridge = fit("ridge", study, images, subjects=PEOPLE, progress=False, penalty="shared")
    again = fit_alike(ridge, study, texts, progress=False)
    assert (again.config, list(again.subjects)) == (ridge.config, PEOPLE)


def test_some_stimuli_alone_are_trained_on(world, base, adapted, tmp_path):
    study, images, texts = world
    some = study.roles()["train"][5:50]
    found = fit_alike(adapted, study, texts, stimuli=some, progress=False)
    assert set(found.provenance["training_content"]) == set(some)
    assert set(found.apart["sub-03"]["training_content"]) < set(some)
    words = {"subjects": PEOPLE, "training": SHORT, "seed": 4, "progress": False, **SMALL}
    every = fit("mindtuner", study, images, stimuli=study.roles()["train"][::-1], **words)
    assert same(base, every)  # all of them, in whatever order, is as if they were not named
    run = {"sessions": 1, "training": SHORT, "progress": False, "out": tmp_path}
    adapt(base, study, images, "sub-03", stimuli=some, **run)
    with pytest.raises(InputError, match="training_stimuli was"):
        adapt(base, study, images, "sub-03", stimuli=some[1:], **run)
    with pytest.raises(InputError, match="1 stimuli are not in the train part"):
        fit("mindtuner", study, images, stimuli=["stim-001"], **words)


def test_stimuli_with_captions_are_drawn_evenly_from_what_people_saw(world, adapted):
    study = world[0]
    every = captioned(adapted, study)
    assert every.tolist() == study.roles()["train"]  # everybody saw everything, sub-03 a third of it
    few = captioned(adapted, study, 12, seed=1)
    assert len(set(few)) == 12
    assert few.tolist() == [name for name in every.tolist() if name in set(few)]
    first = study.recordings["sub-03"].trials
    early = set(first["stimulus_id"][first["session"] == 1].tolist())
    assert len(early & set(few)) >= 4
    assert few.tolist() != captioned(adapted, study, 12, seed=2).tolist()
    with pytest.raises(InputError, match=r"90 training stimuli that .* saw have captions, 91 were asked for"):
        captioned(adapted, study, 91)


def test_what_cannot_be_made_again_is_refused(world, base, adapted):
    study, images, texts = world
    alone = adapt(base, study, images, "sub-03", arm="full", training=SHORT, progress=False)
    with pytest.raises(InputError, match="of the arm 'full' of one person alone; train one for these targets"):
        fit_alike(alone, study, texts, progress=False)
    lent = copy.deepcopy(adapted)
    lent.apart["sub-03"]["borrowed"] = {}
    with pytest.raises(InputError, match="adapted to beside an aligner"):
        fit_alike(lent, study, texts, progress=False)
    bare = copy.deepcopy(base)
    bare.provenance = {}
    with pytest.raises(InputError, match="how it was fitted is not kept"):
        fit_alike(bare, study, texts, progress=False)
