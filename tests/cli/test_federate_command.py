"""`phosphene federate`: from a study file to a run that can be resumed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from federate_runs import BRIEF, run

from phosphene.errors import InputError
from phosphene.federation import dealt

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def study(virtual_people: Callable[..., Path]) -> Path:
    return virtual_people(test=8)


def test_a_run_with_faults_is_told_and_goes_on(study: Path, tmp_path: Path) -> None:
    words = [study, *BRIEF, "--sites", 3, "--missing", 0.5, "--out", tmp_path / "run", "--json", tmp_path / "told.json"]
    words += ["--fault", "drop:site-2:1", "--fault", "delay:site-3:1:90", "--deadline", 60]
    said = run(*words, "--rounds", 1)
    assert "site-1: sub-01, sub-02; 48 trials, missing fmri 0." in said
    assert "round 1: 1 sites, loss " in said
    assert "site-2 missing (it dropped out)" in said
    assert "site-3 missing (no answer within 60 s)" in said
    said = run(*words, "--rounds", 2)
    assert "round 2: 3 sites" in said
    told = json.loads((tmp_path / "told.json").read_text())
    assert [len(record["used"]) for record in told["history"]] == [1, 3]
    assert 0.3 < told["fractions"]["site-1"]["missing image"] < 0.6
    with pytest.raises(InputError, match=r"settings\.seed is 1, was 0"):
        run(*words, "--rounds", 2, "--seed", 1)


def test_a_whole_site_can_miss_a_modality(study: Path, tmp_path: Path) -> None:
    words = ["--missing", 0.3, "--pattern", "site", "--rounds", 1, "--preset", "modality-dropout"]
    run(study, *BRIEF, *words, "--out", tmp_path / "run", "--json", tmp_path / "told.json")
    shares = json.loads((tmp_path / "told.json").read_text())["fractions"]
    assert {share[f"missing {name}"] for share in shares.values() for name in ("fmri", "image", "text")} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sites", 5], "--sites lies in 1 to 4"),
        (["--fault", "drop:site-9:1"], "unknown site 'site-9'"),
        (["--fault", "drop"], "KIND:SITE:ROUNDS"),
        (["--deadline", 5], "no use without delays"),
        (["--pattern", "site"], "--pattern has no use"),
        (["--missing", 0.5, "--pattern", "sight"], "did you mean 'site'"),
        (["--missing", 1.5], "rate of missing modalities"),
        (["--quorum", 5], "quorum is 5"),
        (["--set", "seed=3"], "--seed"),
        (["--set", "model=3"], r"model\.width=64"),
        (["--set", "model.widht=3"], "unknown setting"),
        (["--preset", "pmcmfl"], "pmcmfl"),
        (["--classes", "colour-of-hair"], "colour-of-hair"),
    ],
)
def test_what_is_refused_leaves_nothing(study: Path, tmp_path: Path, words: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(study, *BRIEF, "--rounds", 1, "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_people_are_dealt_in_order() -> None:
    assert dealt(list("abcde"), 3) == {"site-1": ["a", "b"], "site-2": ["c", "d"], "site-3": ["e"]}
