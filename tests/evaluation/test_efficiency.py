"""Curves over data and people: every point once, kept, and taken up; what a study is too small for is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from phosphene import virtual
from phosphene.alignment import make_aligner
from phosphene.encoders import Targets, encode
from phosphene.errors import InputError
from phosphene.evaluation.efficiency import efficiency
from phosphene.files import read_json
from phosphene.recordings import Study

BRIEF: dict[str, Any] = {"epochs": 2, "batch_size": 32}


@pytest.fixture(scope="module")
def made() -> tuple[Study, Targets]:
    sizes: dict[str, Any] = {"subjects": 3, "sessions": 2, "repeats": 2, "person": {"voxels": 80}}
    study = virtual.study(seed=4, stimuli={"test": 20, "common": 0, "own": 80, "size": 32}, **sizes)
    train = study.split("train").stimulus_ids
    return study, encode(study.stimuli, "z:gabor", fit_on=train, cache=False, progress=False)


def _run(made: tuple[Study, Targets], out: Path, **words: Any) -> Any:
    options = {"sessions": [0.5, 2], "people": [1, 2], "training": BRIEF, "adapting": BRIEF, **words}
    return efficiency(*made, "sub-02", out, progress=False, **options)


def test_every_point_once_and_taken_up(made: tuple[Study, Targets], tmp_path: Path) -> None:
    told: list[str] = []
    found = _run(made, tmp_path, report=told.append)
    # adapted after one and after two people, and alone, from half a session and from two
    assert [(p.arm, p.people, p.sessions) for p in found.points] == [
        ("both", 1, 0.5),
        ("from-scratch", 0, 0.5),
        ("both", 1, 2.0),
        ("from-scratch", 0, 2.0),
        ("both", 2, 0.5),
        ("both", 2, 2.0),
    ]
    assert len(told) == 6
    few, many = (next(p for p in found.points if p.sessions == s).trials for s in (0.5, 2))
    assert 0 < few < many / 3
    adapted = [p for p in found.points if p.arm == "both"]
    assert all(p.trained["adapters"] > 0 for p in adapted)
    assert "± is the deviation" in found.table()
    assert (tmp_path / "efficiency.png").stat().st_size > 1000
    assert read_json(tmp_path / "efficiency.json")["subject"] == "sub-02"
    kept = tmp_path / "seed-0" / "both-people-1-sessions-0.5" / "point.json"
    before = kept.stat().st_mtime_ns
    again = _run(made, tmp_path)
    assert kept.stat().st_mtime_ns == before
    assert again.table() == found.table()
    with pytest.raises(InputError, match=r"training\.epochs was 2, is now 3"):
        _run(made, tmp_path, adapting={**BRIEF, "epochs": 3})


def test_what_the_study_is_too_small_for_is_left_out_and_said(
    made: tuple[Study, Targets], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = _run(made, tmp_path, sessions=[2, 40], people=[2, 7], arms=["ridge-only"])
    assert [(p.people, p.sessions) for p in found.points] == [(2, 2.0)]
    assert "left out: 40" in caplog.text
    assert "left out: 7" in caplog.text


def test_every_arm_gets_the_settings_of_the_adapters_it_has(made: tuple[Study, Targets], tmp_path: Path) -> None:
    adapter = {"rank": 1, "skip_rank": 2}
    arms = ["lora", "skip-lora", "from-scratch"]
    _run(made, tmp_path, sessions=[2], people=[1], arms=arms, adapter=adapter)
    for arm, name in (("lora", "lora-people-1"), ("skip-lora", "skip-lora-people-1"), ("from-scratch", "from-scratch")):
        used = read_json(tmp_path / "seed-0" / f"{name}-sessions-2" / "config.json")["adapter"]
        assert (used["rank"] == 1) == (arm == "lora")
        assert (used["skip_rank"] == 2) == (arm == "skip-lora")


def test_an_arm_may_have_settings_of_its_own(made: tuple[Study, Targets], tmp_path: Path) -> None:
    adapting = {**BRIEF, "learning_rate": 1e-3, "full": {"learning_rate": 1e-5}}
    words = {"adapting": adapting, "adapter": {"voxel_dropout": 0.2, "full": {"voxel_dropout": 0.4}}}
    found = _run(made, tmp_path, sessions=[2], people=[1], arms=["lora", "full"], preset="few", **words)
    used = {
        p.arm: read_json(tmp_path / "seed-0" / f"{p.arm}-people-1-sessions-2" / "config.json") for p in found.points
    }
    assert {arm: config["training"]["learning_rate"] for arm, config in used.items()} == {"lora": 1e-3, "full": 1e-5}
    assert {arm: config["adapter"]["voxel_dropout"] for arm, config in used.items()} == {"lora": 0.2, "full": 0.4}
    assert {config["training"]["epochs"] for config in used.values()} == {2}
    # what was not given is the preset's that was named, for the adaptation too: "few" sets nothing aside
    assert {config["training"]["validation_fraction"] for config in used.values()} == {0.0}


def test_alone_nobody_is_trained_on_for_nothing(made: tuple[Study, Targets], tmp_path: Path) -> None:
    found = _run(made, tmp_path, sessions=[2], people=[1, 2], arms=["from-scratch"])
    assert len(found.points) == 1
    assert not (tmp_path / "seed-0" / "people-2").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"sessions": [10]}, "none of 10 is possible"),
        ({"people": [0]}, "more than 0"),
        ({"arms": ["loraa"]}, "unknown arm 'loraa'"),
        ({"seeds": [0, 1, 0]}, "seed 0 named twice among 0, 1, 0"),
        ({"arms": ["lora", "lora"]}, "arm lora named twice"),
        ({"arms": []}, "one arm and one seed are needed"),
        (
            {"arms": ["lora", "full"], "adapter": {"skip_rank": 2}},
            "skip_rank = 2 is a setting of the arms skip-lora and b",
        ),
        ({"adapter": {"skip_rnk": 2}}, "unknown setting of AdapterConfig: 'skip_rnk'"),
        (
            {"adapting": {"full": {"epochs": 2}}},
            "unknown arm with settings of its own: 'full'. Known: bo",
        ),
        (
            {"adapter": {"from-scratch": {"rank": 2}}},
            "rank = 2 is a setting of the arms lora and both, found arm 'from",
        ),
        ({"decoder": "lite-mind"}, "lite-mind has no shared weights to which a person could be adapted"),
        ({"decoder": "wills-aligner"}, "wills-aligner has no arms to compare: a new person gets gates"),
    ],
)
def test_bad_input(made: tuple[Study, Targets], tmp_path: Path, words: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        _run(made, tmp_path, **words)
    with pytest.raises(InputError, match="unknown subject"):
        efficiency(*made, "sub-09", tmp_path)


def test_arms_borrow_through_an_aligner_and_from_scratch_does_not(made: tuple[Study, Targets], tmp_path: Path) -> None:
    words: dict[str, Any] = {"sessions": [1], "people": [1, 2], "arms": ["ridge-only", "from-scratch"]}
    found = _run(made, tmp_path / "by-name", aligner="anatomical", **words)
    assert [(p.arm, p.people) for p in found.points] == [("ridge-only", 1), ("from-scratch", 0), ("ridge-only", 2)]
    seed = tmp_path / "by-name" / "seed-0"
    borrowed = {each.parent.name: "borrowed" in read_json(each) for each in seed.glob("*/config.json")}
    assert {name for name, has in borrowed.items() if has} == {
        "ridge-only-people-1-sessions-1",
        "ridge-only-people-2-sessions-1",
    }
    of_one = read_json(
        seed / "ridge-only-people-1-sessions-1" / "decoder" / "people" / "sub-02" / "adapter/config.json"
    )
    assert of_one["borrowed"]["people"] == ["sub-01"]
    assert found.facts["aligner"] == "anatomical"
    study = made[0]
    aligner = make_aligner("anatomical").fit(study.split("train").subset(["sub-01", "sub-03"]))
    same = _run(made, tmp_path / "given", aligner=aligner, **{**words, "people": [2]})
    assert same.facts["aligner"].startswith("anatomical ")
    assert same.points[0].scores == found.points[2].scores
    with pytest.raises(InputError, match="borrowed was"):
        _run(made, tmp_path / "by-name", **words)


def test_the_pool_and_what_was_scored_are_told(made: tuple[Study, Targets], tmp_path: Path) -> None:
    found = _run(made, tmp_path, sessions=[2], people=[1], arms=["ridge-only"])
    assert found.points[0].scores["top-1 image_to_brain"]["pool"]["size"] == 20
    assert "top-1 among 20 (chance 0.050); 20 test stimuli of split 'default', all repeats averaged" in found.table()
    told = read_json(tmp_path / "efficiency.json")
    assert told["facts"] == found.facts
    assert {"stimuli", "repeats", "unit", "software", "study_digest"} <= told["facts"].keys()


def test_an_aligner_that_nobody_uses_is_refused(made: tuple[Study, Targets], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'from-scratch' knows nothing of other people: an aligner has no use"):
        _run(made, tmp_path, arms=["from-scratch"], aligner="anatomical")
