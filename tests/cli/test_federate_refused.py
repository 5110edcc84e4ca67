"""`phosphene federate`: what cannot be had is refused before any training, and bad runs are told in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from federate_runs import BRIEF, DATA, run

from phosphene.errors import FederationError, InputError
from phosphene.federation import classes
from phosphene.recordings import Study

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def study(virtual_people: Callable[..., Path]) -> Path:
    return virtual_people(test=6, own=16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--secure", "--set", "server.aggregator=median"], "'median' compares single sites"),
        (["--secure", "--set", "server.aggregator=trimmed-mean"], "'trimmed-mean' compares single sites"),
        (["--secure", "--set", "server.update_limit=5"], r"server\.update_limit would look at single"),
        (["--secure", "--set", "server.max_ratio=5"], r"server\.max_ratio would look at single"),
        (["--secure", "--set", "server.max_norm=5"], r"server\.max_norm would look at single"),
        (["--secure", "--sites", 2], "at least 3 sites here, and 2 of 2 are asked"),
        (["--privacy", "update_limit=1", "--privacy", "shares=4"], "noise that is split needs secure sums"),
        (["--privacy", "update_limit=0"], "update_limit"),
        (["--privacy", "update_limt=1"], "unknown setting"),
        (["--privacy", "update_noise=2"], r"privacy\.update_noise has no use: without update_limit"),
        (["--privacy", "feature_limit=1", "--set", "library.site_min_count=3"], "counts before the noise"),
        (["--privacy", "delta=0.00001"], "protects nothing"),
        (["--compare"], "--compare has no use"),
        (["--public", "train"], "--public has no use without --clusters"),
        (["--clusters", 4], "give one of them"),
    ],
)
def test_what_is_refused_leaves_nothing(study: Path, tmp_path: Path, words: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(study, *BRIEF, "--rounds", 1, "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of them"),
        (["--clusters", 4], "--clusters needs --public"),
        (["--clusters", 4, "--public", "nobody"], "nobody"),
        (["--clusters", 4, "--public", "fold-7/train"], "fold-7"),
        (["--clusters", 1, "--public", "train"], "at least 2"),
    ],
)
def test_classes_that_cannot_be_had_are_refused(study: Path, tmp_path: Path, words: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(study, *DATA, "--rounds", 1, "--out", tmp_path / "run", *words)


def test_bad_runs_are_told_in_words(study: Path, tmp_path: Path) -> None:
    """A site without a complete trial, prototypes of too few trials, and a round in which nobody sends anything."""
    said = run(study, *BRIEF, "--rounds", 1, "--missing", 0.3, "--pattern", "site", "--out", tmp_path / "pattern")
    assert "has no complete trial: nothing of it enters the prototypes of the fusion" in said
    said = run(study, *BRIEF, "--rounds", 1, "--set", "library.min_count=1000", "--out", tmp_path / "few")
    assert "prototypes held back, of too few trials" in said
    assert "no prototype of " in said
    drops = [f"--fault=drop:site-{number}:1" for number in range(1, 5)]
    with pytest.raises(FederationError, match="0 usable contributions, 1 are needed"):
        run(study, *BRIEF, "--rounds", 1, *drops, "--out", tmp_path / "empty")


def test_a_test_stimulus_of_an_unknown_class_is_refused_before_training(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Study.open(study) as opened:
        unknown = str(opened.split("test").stimuli.labels["group"][0])
    found = classes.find_classes
    known = staticmethod(lambda *asked: tuple(each for each in found(*asked) if each != unknown))
    monkeypatch.setattr(classes, "find_classes", known)
    with pytest.raises(InputError, match="some are of none that is known: "):
        run(study, *BRIEF, "--rounds", 1, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
