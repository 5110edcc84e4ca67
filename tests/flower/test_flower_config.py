"""What the server and what a site may configure, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

import tomllib

from phosphene.errors import InputError
from phosphene.federation import FederationSettings
from phosphene.federation.flower import RunSettings, SiteSettings
from phosphene.federation.flower.server import federate_over

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
        ({"privacy": "library_noise=2"}, "privacy: library_noise has no use"),
        ({"privacy": "noise=2"}, "noise"),
        ({"rounds": 0}, "rounds"),
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
        ({"privacy": "update_limit=1 shares=2"}, "secure sums, which are not available on this engine"),
        ({"privacy": "feature_limit=1", "set": "library.site_min_count=3"}, "site_min_count"),
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
        ({"text": ""}, {"text": "/home/of/others"}, "comes from the server and is a path"),
        ({"stduy": "/data/b.h5"}, {}, "did you mean 'study'"),
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
