"""Sites of a study: what a site does not hold is not there, and public stimuli are none of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from phosphene.encoders import Targets
from phosphene.encoders.pixels import PixelGridEncoder
from phosphene.errors import InputError, LeakageError
from phosphene.federation import ClusterClasses, FederationSettings, LabelClasses, Missing, StudySites, dealt, federate
from phosphene.federation.holdings import PUBLIC, held_at, held_words
from phosphene.federation.sites import classes_asked
from phosphene.recordings import Study

HOLDS = {"site-1": ("fmri", "image"), "site-2": ("fmri", "text"), "site-3": ("image", "text")}


@pytest.fixture(scope="module")
def study(virtual_people: Callable[..., Path]) -> Study:
    """Four virtual people; besides, a split whose training part has stimuli of the test."""
    with Study.open(virtual_people(test=8)) as opened:
        roles = opened.roles()
        other = {"train": roles["train"][10:] + roles["test"][:1], "test": roles["test"][1:]}
        yield opened.with_splits({"other": other}).using("default")


@pytest.fixture(scope="module")
def made(study: Study) -> Callable[..., StudySites]:
    rng = np.random.default_rng(0)
    ids = study.stimuli.ids
    image, text = (
        Targets(ids, None, rng.normal(size=(len(ids), n)).astype(np.float32), PixelGridEncoder()) for n in (6, 5)
    )
    classes = LabelClasses.found(study.split("train").stimuli.labels, ["group"])

    def make(classes=classes, **others) -> StudySites:
        return StudySites(study, dealt(study.subjects, 4), classes, image, text, **others)

    return make


def test_what_a_site_does_not_hold_is_not_there(made, study):
    sites = made(holds=HOLDS).sites(16)
    held = {name: site.trials.present.any(dim=0).tolist() for name, site in sites.items()}
    assert held == {
        "site-1": [True, True, False],
        "site-2": [True, False, True],
        "site-3": [False, True, True],
        "site-4": [True, True, True],
    }
    assert not sites["site-1"].trials.inputs.text.any()
    assert not sites["site-2"].trials.inputs.image.any()
    assert sites["site-2"].trials.inputs.image.shape[1] == 6
    blind = sites["site-3"].trials
    assert blind.inputs.responses == {}
    seen = set(study.split("train").trials("sub-03")["stimulus_id"].tolist())
    assert set(blind.ids.tolist()) == seen
    assert len(blind) == len(seen)
    assert blind.labels.sum(dim=1).eq(1).all()
    assert len({site.agreement for site in sites.values()}) == 1


def test_sites_that_hold_all_are_the_same_beside_others(made):
    alone, beside = (made(holds=holds).site("site-4", 16, Missing(0.4)) for holds in ({}, HOLDS))
    assert torch.equal(alone.trials.present, beside.trials.present)
    assert torch.equal(alone.trials.inputs.image, beside.trials.inputs.image)


@pytest.mark.parametrize("kind", ["instance", "site"])
def test_what_is_missing_is_drawn_among_what_is_held(made, kind):
    everything = made(holds=HOLDS, public="train")
    for seed in range(4):
        for name, site in everything.sites(16, Missing(0.6, kind, seed)).items():
            present = site.trials.present
            assert present.any(dim=1).all()
            assert not present[
                :, [modality not in everything.held(name) for modality in ("fmri", "image", "text")]
            ].any()
        shares = [
            site.trials.present.float().mean(dim=0) for site in everything.sites(16, Missing(0.6, kind, seed)).values()
        ]
        assert float(torch.stack(shares).sum()) < 0.8 * sum(len(everything.held(name)) for name in everything.names)


def test_public_stimuli_are_a_site_without_a_brain(made, study):
    everything = made(public="train", holds={PUBLIC: ("image",)})
    public = everything.site(PUBLIC, 16).trials
    assert public.ids.tolist() == study.split("train").stimulus_ids.tolist()
    assert public.present[0].tolist() == [False, True, False]
    assert everything.people[PUBLIC] == []
    assert set(everything.tests()) == {"site-1", "site-2", "site-3", "site-4"}
    assert set(made(holds=HOLDS).tests()) == {"site-1", "site-2", "site-4"}
    assert made(holds=HOLDS).tests()["site-1"].complete.all()


def test_no_stimulus_of_the_test_is_public(made, study):
    with pytest.raises(LeakageError, match=r"8 public stimuli \(test\) are of the test part"):
        made(public="test")
    with pytest.raises(LeakageError, match=r"1 public stimuli \(other/train\) are of the test part"):
        made(public="other/train")
    with pytest.raises(LeakageError, match="of the test part"):
        made(public="all")
    paired = study.with_splits({})
    paired.unit = "group"  # every group has stimuli in both parts
    with pytest.raises(LeakageError, match="of one unit with its stimuli"):
        StudySites(paired, {"a": ["sub-01"]}, made().classes, made().image, made().text, public="train")
    with pytest.raises(LeakageError, match="of one unit with its stimuli"):
        classes_asked(paired, made().image, clusters=3, public="train")


def test_a_round_with_and_without_brains_trains_every_encoder(made):
    settings = FederationSettings.preset(model={"width": 8}, client={"epochs": 1})
    done = federate(made(holds=HOLDS, public="train").sites(8), settings, 2, progress=False)
    assert set(done.history[-1].used) == {"site-1", "site-2", "site-3", "site-4", PUBLIC}
    assert done.history[-1].unmoved == []
    assert done.sites[PUBLIC].private == {}
    assert done.sites["site-3"].private == {}
    assert {name.partition("/")[0] for name in done.sites["site-4"].private} == {"sub-04"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"holds": {"site-9": ("fmri",)}}, r"unknown site 'site-9'.*site-1, site-2, site-3, site-4"),
        ({"holds": {PUBLIC: ("image",)}}, "unknown site 'public'"),
        ({"holds": {PUBLIC: ("fmri", "image")}, "public": "train"}, "it holds image, text or one of them"),
        ({"public": "nobody"}, "unknown role .*'nobody'"),
        ({"public": "fold-7/train"}, "unknown split 'fold-7'"),
    ],
)
def test_sites_that_cannot_be_are_refused(made, given, message):
    with pytest.raises(InputError, match=message):
        made(**given)


def test_clusters_need_pictures_everywhere_and_keep_apart_from_the_test(made, study):
    image, train = made().image, study.split("train").stimulus_ids
    clusters = ClusterClasses.fit(image, train, 3)
    assert made(classes=clusters).site("site-1", 8).trials.labels.shape[1] == 3
    with pytest.raises(InputError, match="site-2 holds no image, and clusters are of image embeddings"):
        made(classes=clusters, holds=HOLDS)
    with pytest.raises(LeakageError, match="8 test stimuli were used to fit the clusters"):
        made(classes=ClusterClasses.fit(image, study.stimuli.ids, 3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["site-1"], r"SITE=MODALITIES, such as site-1=fmri,image; found 'site-1'"),
        (["site-1="], "SITE=MODALITIES"),
        (["=fmri"], "SITE=MODALITIES"),
        (["site-1=,"], "each named once; found ','"),
        (["site-1=fmri,fmri"], "each named once"),
        (["site-1=fmir"], r"unknown modality 'fmir'; did you mean 'fmri'\? Known: fmri, image, text"),
        (["site-1=fmri", "site-1=image"], "what site-1 holds is said twice"),
    ],
)
def test_what_sites_hold_is_said_in_words(words, message):
    with pytest.raises(InputError, match=message):
        held_at(words)
    assert held_at(["b=text,fmri", "a=image"]) == {"b": ("fmri", "text"), "a": ("image",)}
    assert held_words("") == ("fmri", "image", "text")
