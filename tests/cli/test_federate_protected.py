"""`phosphene federate` with protection: what is promised, what it costs, what leaks, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from federate_runs import BRIEF, DATA, NEEDS, NOISE, run
from typer.testing import CliRunner

from phosphene.cli import app
from phosphene.errors import InputError, LeakageError
from phosphene.federation import engine

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def study(virtual_people: Callable[..., Path]) -> Path:
    return virtual_people(test=12)


def _told(folder: Path) -> dict:
    return json.loads((folder / "told.json").read_text())


def test_a_plain_run_scores_every_pattern_and_says_what_guessing_gives(study: Path, tmp_path: Path) -> None:
    said = run(study, *BRIEF, "--rounds", 2, "--out", tmp_path / "run", "--json", tmp_path / "told.json")
    scores = _told(tmp_path)["scores"]
    assert f"  fmri: {scores['patterns']['fmri']['mean']['accuracy']:.3f} [" in said
    assert f"chance {scores['chances']['accuracy']:.3f}, the commonest class alone" in said
    assert "the picture found among 12 by what is shown, top-1; chance 0.083" in said
    assert set(_told(tmp_path)["test_trials"].values()) == {12}
    assert "privacy" not in _told(tmp_path)


def test_protection_tells_epsilon_unit_cost_and_what_is_left_out(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason=NEEDS)
    words = [study, *BRIEF, *NOISE, "--privacy", "seed=1", "--rounds", 2]
    said = run(*words, "--out", tmp_path / "run", "--json", tmp_path / "told.json")
    told = _told(tmp_path)
    for unit in ("trial", "site"):
        epsilon = told["privacy"]["units"][unit]["epsilon"]
        assert epsilon > 0
        assert f"Per {unit} (" in said
        assert f"epsilon {epsilon:.3g} at delta 1e-05, rounds 2" in said
    assert "* a person, whose trials are many" in said
    assert "privacy.seed is given: who knows it takes the noise off again" in said
    assert "library.min_count is" in said  # cells of noise are not read
    assert "privacy (the server sees each site's contribution):" in said
    own, bare = (told[arm]["patterns"]["fmri"]["mean"]["accuracy"] for arm in ("scores", "unprotected"))
    assert f"; without protection {bare:.3f}, cost {bare - own:+.3f}" in said
    plain = tmp_path / "plain"
    run(study, *BRIEF, "--rounds", 2, "--out", plain / "run", "--json", plain / "told.json")
    assert _told(plain)["scores"] == told["unprotected"]
    run(*words, "--no-compare", "--out", tmp_path / "run", "--json", tmp_path / "told.json")
    assert "unprotected" not in _told(tmp_path)


def test_a_secure_run_sees_sums_and_splits_noise(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason=NEEDS)
    words = [study, *BRIEF, "--rounds", 1, "--secure", "--json", tmp_path / "told.json"]
    said = run(*words, "--out", tmp_path / "run")
    record = _told(tmp_path)["history"][0]
    assert record["seen"] == "sum"
    assert set(record["used"].values()) == {None}
    assert "server.max_ratio is off: of sums alone" in said
    plain = run(study, *BRIEF, "--rounds", 1, "--out", tmp_path / "plain")
    line = next(line for line in said.splitlines() if line.startswith("  fmri:"))
    assert line in plain
    shares = [*NOISE, "--privacy", "shares=4", "--set", "server.weighting=equal", "--no-compare"]
    said = run(*words, *shares, "--out", tmp_path / "split")
    assert "privacy (the server sees sums over sites alone):" in said
    assert "the noise is split among 4 sites" in said


@pytest.mark.parametrize("seeded", [True, False])
def test_a_protected_run_that_is_stopped_goes_on_and_counts_honestly(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: bool
) -> None:
    """Seeded noise is the same again, and costs once; other noise is another release, and is counted twice."""
    pytest.importorskip("dp_accounting", reason=NEEDS)
    words = [study, *BRIEF, *NOISE, "--no-compare", "--rounds", 3] + (["--privacy", "seed=1"] if seeded else [])
    run(*words, "--out", tmp_path / "whole", "--json", tmp_path / "told.json")
    whole = _told(tmp_path)["privacy"]["units"]["trial"]
    real, calls = engine.protected_update, []

    def stopped(*given):
        calls.append(given)
        if len(calls) == 6:  # the second site of the second round
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "protected_update", stopped)
        done = CliRunner().invoke(app, ["federate", *map(str, words), "--out", str(tmp_path / "run")])
    assert done.exit_code == 130
    run(*words, "--out", tmp_path / "run", "--json", tmp_path / "told.json")
    again = _told(tmp_path)["privacy"]["units"]["trial"]
    assert again["rounds"] == (3 if seeded else 4)
    assert (again["epsilon"] == whole["epsilon"]) == seeded
    assert again["epsilon"] >= whole["epsilon"]
    if seeded:
        assert (tmp_path / "run/round-00003/server/tensors.safetensors").read_bytes() == (
            tmp_path / "whole/round-00003/server/tensors.safetensors"
        ).read_bytes()


def test_private_training_is_for_the_classification_loss_alone(study: Path, tmp_path: Path) -> None:
    words = [study, *BRIEF, "--rounds", 1, "--no-compare", "--privacy", "trial_sgd.noise=2", "--out", tmp_path / "run"]
    with pytest.raises(InputError, match=r"contrast fmri.*retrieval.*In a contrastive loss every trial is also"):
        run(*words)
    assert not (tmp_path / "run").exists()
    pytest.importorskip("opacus", reason=NEEDS)
    plain = ["retrieval_weight", *(f"contrast_{part}" for part in ("fmri", "image", "text", "fusion"))]
    plain = [f"--set=objective.{name}=0" for name in plain]
    with pytest.raises(InputError, match=r"one in closed form is made of the trials as they are: set model\.adapter"):
        run(*words, *plain)
    said = run(*words, *plain, "--set", "model.adapter=learned")
    assert "gradients of training 2" in said


def test_clusters_of_public_stimuli_are_classes(study: Path, tmp_path: Path) -> None:
    words = [study, *DATA, "--set", "model.width=16", "--rounds", 1, "--out", tmp_path / "run"]
    run(*words, "--clusters", 5, "--public", "train", "--json", tmp_path / "told.json")
    told = _told(tmp_path)
    assert len(told["classes"]) == 5
    assert all(name.startswith("cluster-") for name in told["classes"])
    assert told["classes_from"] == "clusters of image embeddings of 96 public stimuli (train)"
    assert "accuracy" in told["scores"]["patterns"]["fmri"]["mean"]
    with pytest.raises(LeakageError, match=r"12 public stimuli .* are of the test part"):
        run(*words[:-1], tmp_path / "other", "--clusters", 5, "--public", "test")
    with pytest.raises(LeakageError, match="are of the test part"):
        run(*words[:-1], tmp_path / "other", "--clusters", 5, "--public", "all")
    with pytest.raises(InputError, match=r"agreement\.classes"):
        run(*words, "--clusters", 4, "--public", "train")


def test_the_report_holds_run_and_audit(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason=NEEDS)
    words = [study, *BRIEF, *NOISE, "--audit", "--rounds", 2, "--fault", "drop:site-2:1"]
    said = run(*words, "--out", tmp_path / "run", "--report", tmp_path / "page.html", "--json", tmp_path / "told.json")
    told = _told(tmp_path)
    assert told["audit"].keys() == {"unprotected", "protected"}
    assert told["audit"]["protected"].keys() == set(told["sites"])
    assert "audit, protected, half of every site's stimuli held back" in said
    page = (tmp_path / "page.html").read_text()
    for words in ("site-3", "it dropped out", "Not protected", f"{told['privacy']['units']['trial']['epsilon']:.3g}"):
        assert words in page
