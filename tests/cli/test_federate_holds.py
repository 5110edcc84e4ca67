"""`phosphene federate`: sites that lack a modality, or a brain, on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from federate_runs import BRIEF, DATA, run

from phosphene import encoders
from phosphene.errors import InputError, LeakageError

HOLDS = ["--holds", "site-1=fmri,image", "--holds", "site-2=fmri,text", "--holds", "site-3=image,text"]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def study(virtual_people: Callable[..., Path]) -> Path:
    return virtual_people(test=8)


@pytest.fixture
def unencoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be encoded."""

    def encoded(name: str, *asked: object, **others: object) -> None:
        raise AssertionError(f"{name} is encoded")

    monkeypatch.setattr(encoders, "targets_named", encoded)


def test_sites_that_lack_something_train_and_are_told(study: Path, tmp_path: Path) -> None:
    words = [study, *BRIEF, *HOLDS, "--public-site", "train", "--missing", 0.3, "--out", tmp_path / "run"]
    words += ["--json", tmp_path / "told.json", "--report", tmp_path / "page.html", "--audit"]
    run(*words, "--rounds", 1)
    said = run(*words, "--rounds", 2)
    assert "site-3: no brain; 24 trials, missing fmri 1.00" in said
    assert "public: no brain; 96 trials, missing fmri 1.00" in said
    assert "nothing is scored at site-3, public: there is no brain" in said
    assert "round 2: 5 sites" in said
    assert "  public: " in said.partition("audit, unprotected")[2]
    told = json.loads((tmp_path / "told.json").read_text())
    assert set(told["scores"]["patterns"]["fmri"]["sites"]) == {"site-1", "site-2", "site-4"}
    assert told["sites"]["public"] == told["sites"]["site-3"] == []
    assert told["holds"]["site-1"] == ["fmri", "image"]
    lacking = {name: share[f"missing {what}"] for (name, what), share in _lacks(told)}
    assert lacking == {"site-1": 1.0, "site-2": 1.0, "site-3": 1.0, "public": 1.0}
    page = (tmp_path / "page.html").read_text()
    assert "no brain" in page
    assert "3 virtual people at 5 sites" in page


def _lacks(told: dict) -> list:
    pairs = [("site-1", "text"), ("site-2", "image"), ("site-3", "fmri"), ("public", "fmri")]
    return [(pair, told["fractions"][pair[0]]) for pair in pairs]


def test_sums_and_noise_hold_for_sites_without_a_brain(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    words = ["--sites", 2, "--holds", "site-2=image", "--public-site", "train", "--missing", 0.3, "--pattern", "site"]
    words += ["--secure", "--privacy", "update_limit=1", "--privacy", "seed=3", "--rounds", 1, "--no-compare"]
    said = run(study, *BRIEF, *words, "--out", tmp_path / "run")
    assert "round 1: 3 sites" in said
    assert "accuracy on the test part" in said


def test_a_federation_without_any_brain_is_trained_and_not_scored(study: Path, tmp_path: Path) -> None:
    words = ["--sites", 1, "--holds", "site-1=image,text", "--public-site", "train", "--rounds", 1]
    said = run(study, *BRIEF, *words, "--out", tmp_path / "run")
    assert "nothing is scored at site-1, public: there is no brain" in said
    assert "accuracy" not in said


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["--holds", "site-9=fmri"], InputError, r"unknown site 'site-9'; did you mean .*Known: site-1"),
        (["--holds", "site-1=fmir"], InputError, "did you mean 'fmri'.*Known: fmri, image, text"),
        (["--holds", "site-1="], InputError, "SITE=MODALITIES"),
        (["--holds", "site-1=,"], InputError, "each named once"),
        (["--holds", "site-1=fmri", "--holds", "site-1=image"], InputError, "what site-1 holds is said twice"),
        (["--holds", "public=image"], InputError, "unknown site 'public'"),
        (["--holds", "public=fmri", "--public-site", "train"], InputError, "it holds image, text or one of them"),
        (["--public-site", "test"], LeakageError, "are of the test part"),
        (["--public-site", "tran"], InputError, "did you mean 'train'"),
        (["--public-site", "fold-7/train"], InputError, "unknown split 'fold-7'"),
        (["--sites", 5], InputError, "--sites lies in 1 to 4"),
        (["--public", "train"], InputError, "--public has no use without --clusters"),
    ],
)
@pytest.mark.parametrize("command", ["federate", "federate-matrix"])
def test_what_is_refused_is_refused_before_anything_is_encoded(
    study: Path, tmp_path: Path, unencoded: None, command: str, words: list, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(study, *BRIEF, "--rounds", 1, "--out", tmp_path / "run", *words, command=command)
    assert not (tmp_path / "run").exists()


CLUSTERS = ["--clusters", 4, "--public", "train"]


@pytest.mark.parametrize("command", ["federate", "federate-matrix"])
def test_clusters_that_cannot_be_are_refused_before_anything_is_encoded(
    study: Path, tmp_path: Path, unencoded: None, command: str
) -> None:
    words = [study, *DATA, "--out", tmp_path / "run"]
    with pytest.raises(InputError, match="site-2 holds no image, and clusters are of image embeddings"):
        run(*words, *CLUSTERS, "--holds", "site-2=fmri,text", command=command)
    with pytest.raises(InputError, match="public holds no image, and clusters are of image embeddings"):
        run(*words, *CLUSTERS, "--public-site", "train", "--holds", "public=text", command=command)
    with pytest.raises(LeakageError, match=r"8 public stimuli \(test\) are of the test part"):
        run(*words, "--clusters", 4, "--public", "test", command=command)


def test_a_matrix_in_which_nothing_could_be_scored_is_refused_before_anything_is_encoded(
    study: Path, tmp_path: Path, unencoded: None
) -> None:
    words = [study, *BRIEF, "--sites", 2, "--out", tmp_path / "m"]
    blind = [f"--holds=site-{number}=image,text" for number in (1, 2)]
    with pytest.raises(InputError, match="no site holds fmri: nothing would be scored"):
        run(*words, *blind, command="federate-matrix")
    lacking = [f"--holds=site-{number}=fmri,text" for number in (1, 2)]
    with pytest.raises(InputError, match="--tune chooses where a site holds fmri, image, text, and none does"):
        run(*words, *lacking, "--tune", command="federate-matrix")


def test_the_check_that_nothing_is_encoded_would_notice(study: Path, tmp_path: Path, unencoded: None) -> None:
    with pytest.raises(AssertionError, match="z:pixels is encoded"):
        run(study, *BRIEF, "--rounds", 1, "--out", tmp_path / "run")
