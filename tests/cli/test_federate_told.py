"""What `phosphene federate` tells or refuses of a run: its audit, what cannot be compared, and what was not trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from federate_runs import BRIEF, NEEDS, NOISE, run

from phosphene.errors import InputError
from phosphene.federation import audit_run, engine
from phosphene.recordings import Study

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def study(virtual_people: Callable[..., Path]) -> Path:
    return virtual_people(test=8)


def test_the_audit_is_of_the_run_with_all_that_befell_it(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        audit_run, "federate", lambda *given, **how: asked.append(how) or engine.federate(*given, **how)
    )
    befell = ["--fault", "drop:site-2:1", "--fault", "delay:site-3:1:90", "--deadline", 60, "--quorum", 2]
    words = [study, *BRIEF, "--audit", "--rounds", 1, "--out", tmp_path / "run", "--json", tmp_path / "told.json"]
    said = run(*words, *befell)
    audit = json.loads((tmp_path / "told.json").read_text())["audit"]["unprotected"]
    assert [site for site, attacks in audit.items() if not attacks] == ["site-2", "site-3"]
    assert "site-2: nothing could be attacked: nothing of it counted" in said
    assert said.count("    no inversion: no prototype of it can be read, or too few others") == 2  # of few trials each
    assert said.count("    membership by ") == 2
    assert [fault.words for fault in asked[0]["faults"]] == ["drop:site-2:1", "delay:site-3:1:90"]
    assert (asked[0]["deadline"], asked[0]["quorum"], asked[0]["participation"]) == (60, 2, 1.0)
    words[words.index(tmp_path / "run")] = tmp_path / "other"
    with pytest.raises(InputError, match=r"Audit without privacy\.epsilon_limit"):
        run(*words, "--privacy", "trial_sgd.noise=2", "--privacy", "epsilon_limit=3", "--no-compare")
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_compared_is_refused_when_asked_for_and_else_said(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason=NEEDS)
    with Study.open(study) as opened:
        untested = opened.with_splits({"default": {"train": opened.roles()["train"]}}).save(tmp_path / "untested.h5")
    words = [untested, *BRIEF, *NOISE, "--rounds", 1, "--out", tmp_path / "run"]
    with pytest.raises(InputError, match=r"--compare has no use: nothing is scored: site-1.* has no test trials"):
        run(*words, "--compare")
    assert not (tmp_path / "run").exists()
    said = run(*words, "--report", tmp_path / "page.html")
    assert "what protection costs in accuracy is not measured: nothing is scored" in said
    assert not (tmp_path / "run/unprotected").exists()
    assert "nothing was scored that could be compared" in (tmp_path / "page.html").read_text()
    assert "what protection costs in accuracy" not in run(*words, "--no-compare")


def test_a_run_goes_on_under_the_same_protection_alone(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason=NEEDS)
    words = [study, *BRIEF, "--no-compare", "--out", tmp_path / "run", "--rounds"]
    run(*words, 1, *NOISE)
    for other, differs in (
        ([*NOISE[:1], "--privacy", "update_noise=2", *NOISE[2:]], r"privacy\.update_noise is 2\.0, was 4\.0"),
        ([*NOISE, "--privacy", "delta=1e-4"], r"privacy\.delta is 0\.0001, was 1e-05"),
        ([*NOISE, "--privacy", "epsilon_limit=9"], r"privacy\.epsilon_limit is 9\.0, was None"),
        ([], r"privacy.* was "),
        ([*NOISE, "--secure"], "secure is True, was False"),
    ):
        with pytest.raises(InputError, match=rf"belongs to another run: .*{differs}"):
            run(*words, 2, *other)
    run(*words, 2, *NOISE)


def test_a_run_goes_on_with_the_same_data_alone_and_says_whose_differ(study: Path, tmp_path: Path) -> None:
    words = [study, *BRIEF, "--out", tmp_path / "run", "--rounds", 1]
    run(*words)
    told = "site-1 has other trials or labels, or others are hidden; site-2 has"
    with pytest.raises(InputError, match=rf"belongs to another run: {told}.*Resume with what was"):
        run(*words, "--missing", 0.3)
    with pytest.raises(InputError, match=r"site-1 has .*; site-2 has .*; site-3 is not there any more; site-4 is not"):
        run(*words, "--sites", 2)
    with pytest.raises(InputError, match="another run: public is new"):
        run(*words, "--public-site", "train")
    with pytest.raises(InputError, match=r"another run: settings\.client\.learning_rate is 0\.1, was 0\.001"):
        run(*words, "--set", "client.learning_rate=0.1")


@pytest.mark.parametrize("only", ["retrieval_weight", "contrast_fusion", "model_contrast"])
def test_private_training_refuses_each_contrastive_loss_by_itself(study: Path, tmp_path: Path, only: str) -> None:
    plain = {f"contrast_{part}": 0.0 for part in ("fmri", "image", "text", "fusion")} | {"retrieval_weight": 0.0}
    weights = [f"--set=objective.{name}={value}" for name, value in (plain | {only: 0.1}).items()]
    words = [study, *BRIEF, "--rounds", 1, "--privacy", "trial_sgd.noise=2", "--set", "model.adapter=learned"]
    with pytest.raises(InputError, match=r"In a contrastive loss every trial is also a negative|MOON"):
        run(*words, *weights, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_too_few_sites_train_is_told(study: Path, tmp_path: Path) -> None:
    few = ["--holds", "site-1=fmri,image", "--holds", "site-2=fmri,image", "--set", "server.aggregator=median"]
    words = [study, *BRIEF, *few, "--set", "server.weighting=modality", "--rounds", 2, "--out", tmp_path / "run"]
    said = run(*words, "--report", tmp_path / "page.html")
    assert said.count("the encoder of text stayed as it was (too few sites had it)") == 2
    assert "the encoder of text was never trained: in every round too few sites had text" in said
    assert "the encoder of words stayed as it was in every round" in (tmp_path / "page.html").read_text()
