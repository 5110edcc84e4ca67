"""What the server and what a site may configure, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

import math
import tomllib

from phosphene.errors import InputError
from phosphene.federation import FederationSettings
from phosphene.federation.flower import RunSettings, SiteSettings
from phosphene.federation.flower.server import federate_over
from phosphene.federation.privacy import PrivacySettings, Protection

RUN = {"classes": "group", "out": "/runs/a"}
APP = Path(__file__).parents[2] / "examples" / "federated" / "app" / "pyproject.toml"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rouns": 3}, "rouns.*did you mean 'rounds'"),
        ({"secure-sum": True}, "secure summation is not available on this engine"),
        ({"classes": ""}, "name the label columns"),
        ({"out": "runs/a"}, "out is 'runs/a': give the path from the root"),
        ({"study": "a.h5"}, "study is 'a.h5'"),
        ({"pattern": "site"}, "pattern has no use"),
        ({"pattern": "sight", "missing": 0.5}, "pattern"),
        ({"set": "seed=3"}, "the seed is a setting of the run"),
        ({"set": "model=3"}, r"TABLE\.KEY=VALUE"),
        ({"set": "model.widht=3"}, "widht"),
        ({"preset": "pmcmfl"}, "pmcmfl"),
        ({"privacy": "library_noise=2"}, r"privacy\.library_noise has no use"),
        ({"privacy": "noise=2"}, "noise"),
        ({"privacy": "update_limit=1 shares=2"}, "secure sums, which are not available on this engine"),
        ({"rounds": 0}, "rounds"),
        ({"clusters": "a" * 32}, "classes has no use: the classes are clusters"),
        ({"classes": "", "class-names": "a,b", "clusters": "a" * 32}, "class_names has no use"),
        ({"classes": "", "clusters": "/data/clusters.safetensors"}, "a digest of 32 hexadecimal digits"),
        ({"clusters-file": "/data/c"}, "clusters_file has no use without clusters"),
        (
            {"classes": "", "clusters": "a" * 32, "clusters-file": "c"},
            "clusters_file is 'c': give the path from the root",
        ),
        ({"holds": "site-1"}, "SITE=MODALITIES"),
        ({"holds": "site-1=fmir"}, "did you mean 'fmri'"),
        ({"holds": "site-1=fmri site-1=image"}, "what site-1 holds is said twice"),
    ],
)
def test_runs_that_make_no_sense_are_refused(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RunSettings.of_config({**RUN, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": ""}, "out is empty"),
        ({"quorum": 3}, "the quorum is 3, and 2 of 2 sites are asked"),
        ({"quorum": 2, "participation": 0.5}, "the quorum is 2, and 1 of 2 sites are asked"),
        ({"privacy": "delta=1e-6"}, "privacy protects nothing"),
        ({"privacy": "feature_limit=1", "set": "library.site_min_count=3"}, "site_min_count"),
        ({"privacy": "trial_sgd.noise=2"}, "contrast fmri.*retrieval.*In a contrastive loss every trial is also"),
    ],
)
def test_runs_are_refused_before_any_site_is_asked(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        federate_over(None, RunSettings.of_config({**RUN, **given}))


def test_settings_are_those_of_the_command_line() -> None:
    run = RunSettings.of_config({**RUN, "set": "model.width=16 client.epochs=1", "seed": 3, "quorum": 2})
    same = FederationSettings.preset(seed=3, model={"width": 16}, client={"epochs": 1}, server={"quorum": 2})
    assert run.federation() == same
    assert run.protection() is None


def test_the_least_count_is_raised_with_noise_unless_it_is_given() -> None:
    protection = Protection(PrivacySettings(feature_limit=1.0, library_noise=2.0), 16)
    given = {**RUN, "sites": 3, "set": "model.width=16", "privacy": "feature_limit=1 library_noise=2"}
    run = RunSettings.of_config(given)
    assert run.federation().library.min_count == math.ceil(protection.least_count(3)) > 2
    assert run.notes == [f"library.min_count is {run.federation().library.min_count:g}: three deviations of the noise "
                         "on counts"]  # fmt: skip
    kept = RunSettings.of_config({**given, "set": "model.width=16 library.min_count=4"})
    assert (kept.federation().library.min_count, kept.notes) == (4, [])
    without = RunSettings.of_config({**given, "privacy": "update_limit=1"})
    assert (without.federation().library.min_count, without.notes) == (2, [])


def test_the_app_of_the_examples_lists_every_setting() -> None:
    listed = tomllib.loads(APP.read_text())["tool"]["flwr"]["app"]["config"]
    assert {name.replace("-", "_") for name in listed} == set(RunSettings.model_fields)
    assert RunSettings.build({name.replace("-", "_"): value for name, value in listed.items()}) == RunSettings()


OWN = {"site": "north", "study": "/data/a.h5", "keep": "/data/keep", "targets": "pixels", "text": "/data/text"}


@pytest.mark.parametrize(
    ("given", "run", "message"),
    [
        ({"site": ""}, {}, "a site has a name"),
        ({"partition-id": 0, "num-partitions": 2}, {}, "a site has a name"),
        ({"study": ""}, {"study": "/etc/shadow"}, "lacks study"),
        ({"keep": ""}, {"keep": "/elsewhere"}, "lacks keep"),
        ({"targets": ""}, {}, "lacks targets"),
        ({"text": ""}, {"text": "/elsewhere/text"}, "comes from the server and is a path"),
        ({"stduy": "/data/b.h5"}, {}, "did you mean 'study'"),
        ({"holds": "fmri,pictures"}, {}, "unknown modality 'pictures'"),
        ({"holds": ","}, {}, "each named once"),
        ({}, {"holds": "north=fmri"}, "a site of its own says what it holds"),
        ({}, {"missing": 0.3}, "a site of its own hides nothing"),
        ({}, {"classes": "", "clusters": "a" * 32, "clusters-file": "/elsewhere"}, "lacks clusters"),
        ({"site": "", "partition-id": 0, "num-partitions": 2, "holds": "fmri"}, {}, "holds has no use"),
        ({"privacy": "update_limt=1"}, {}, "did you mean 'update_limit'"),
        ({"privacy": "update_limit=1 seed=3"}, {}, "a site with a name takes part in no run that has one"),
        ({"epsilon-limit": 3.0}, {}, "epsilon-limit has no use without privacy"),
        (
            {"site": "", "partition-id": 0, "num-partitions": 2, "privacy": "update_limit=1"},
            {},
            "where one study is dealt to sites, the run says them",
        ),
    ],
)
def test_a_site_reads_and_writes_what_it_names_itself(given: dict, run: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SiteSettings.of_config({**OWN, **given}, RunSettings.of_config({**RUN, **run}))


def test_a_site_of_its_own_is_not_given_a_simulation() -> None:
    own = SiteSettings.of_config(OWN, RunSettings.of_config({**RUN, "text": "tfidf", "study": "/other.h5"}))
    assert (own.study, own.text) == ("/data/a.h5", "/data/text")
    dealt = {"partition-id": 0, "num-partitions": 2}
    run = RunSettings.of_config({**RUN, "study": "/s.h5", "keep": "/k", "targets": "pixels", "text": "tfidf"})
    assert SiteSettings.of_config(dealt, run).study == "/s.h5"
    with pytest.raises(InputError, match="people has no use"):
        SiteSettings.of_config({**dealt, "people": "a"}, run)


@pytest.mark.parametrize(
    ("own", "run", "words"),
    [
        ("", "", ""),
        ("", "update_limit=1", ""),
        ("", "update_limit=1 seed=5", "privacy.seed comes from the server"),
        ("update_limit=1 feature_limit=2", "feature_limit=2.0 update_limit=1.0", ""),
        ("update_limit=1 feature_limit=2", "update_limit=1", "this site's is"),
        ("update_limit=1", "update_limit=1 update_noise=0.5", "this site's is"),
        ("update_limit=1", "update_limit=1 delta=0.01", "this site's is"),
        ("update_limit=1", "update_limit=1 seed=0", "privacy.seed comes from the server"),
        ("update_limit=1", "", "this site's is"),
    ],
)
def test_a_site_takes_part_with_privacy_that_the_server_cannot_undo(own: str, run: str, words: str) -> None:
    asked = RunSettings.of_config({**RUN, "privacy": run})
    objection = SiteSettings.of_config({**OWN, "privacy": own}, asked).objection(asked)
    assert words in objection
    assert bool(words) == bool(objection)


def test_a_site_of_a_simulation_takes_the_seed_of_its_noise_from_the_run() -> None:
    given = {**RUN, "study": "/s.h5", "keep": "/k", "targets": "pixels", "text": "gabor"}
    asked = RunSettings.of_config({**given, "privacy": "update_limit=1 seed=5"})
    assert SiteSettings.of_config({"partition-id": 0, "num-partitions": 2}, asked).objection(asked) == ""
