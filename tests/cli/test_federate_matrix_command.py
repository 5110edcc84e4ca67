"""`phosphene federate-matrix`: from a study file to tables, gone on with after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phosphene.cli import app
from phosphene.errors import InputError, LeakageError
from phosphene.evaluation.federated_rivals import ARMS

BRIEF = ["--set", "model.width=8", "--set", "client.epochs=1", "--targets", "z:pixels", "--text", "tfidf"]
BRIEF += ["--classes", "group", "--sites", "2", "--rounds", "1", "--seeds", "0"]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def study(virtual_people: Callable[..., Path]) -> Path:
    return virtual_people(test=10, subjects=2)


def _run(*words: object) -> str:
    done = CliRunner().invoke(app, ["federate-matrix", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_matrix_is_printed_written_and_gone_on_with(study: Path, tmp_path: Path) -> None:
    words = [study, *BRIEF, "--out", tmp_path / "m", "--arms", "pmcmfl,dropout-token,fedavg-zero"]
    said = _run(*words, "--rates", "0,0.5")
    assert "site-1: sub-01; 24 training trials" in said
    assert "### study: nothing missing" in said
    assert "### study: 50% missing in training, by site" in said
    assert "Realised: missing fmri " in said
    assert "LEAK: pmcmfl, leak_with_labels" in said
    assert "never trained for absence" in said
    assert "no arm was tuned" in said
    held = json.loads((tmp_path / "m" / "matrix.json").read_text())
    assert {(row["kind"], row["rate"]) for row in held["rows"]} == {("instance", 0), ("instance", 0.5), ("site", 0.5)}
    assert len(held["claims"]["against_dropout_token"]["cells"]) == 3 * 7
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "m" / "records").iterdir()}
    assert len(before) == 9
    _run(*words, "--rates", "0,0.5,0.8", "--patterns", "site")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((tmp_path / "m" / "records").iterdir())) == 9 + 3 + 3  # nothing missing, as a pattern of sites
    with pytest.raises(InputError, match="made with other rounds"):
        _run(*words, "--rates", "0", "--rounds", "2")


def test_clusters_of_public_stimuli_are_classes(study: Path, tmp_path: Path) -> None:
    words = [*BRIEF, "--out", tmp_path / "m", "--arms", "dropout-token", "--rates", "0.5", "--patterns", "instance"]
    words = [word for word in words if word not in ("--classes", "group")]
    said = _run(study, *words, "--clusters", 3, "--public", "train")
    assert "site-1: sub-01; 24 training trials (cluster-000-" in said
    held = json.loads((tmp_path / "m" / "matrix.json").read_text())
    assert len(held["classes"]) == 3
    assert held["classes_from"] == "clusters of image embeddings of 48 public stimuli (train)"
    with pytest.raises(LeakageError, match=r"10 public stimuli .* are of the test part"):
        _run(study, *words, "--clusters", 3, "--public", "test")
    with pytest.raises(InputError, match="--clusters needs --public"):
        _run(study, *words, "--clusters", 3)
    with pytest.raises(InputError, match="give one of them"):
        _run(study, *words)


def test_sites_that_lack_something_are_compared_and_told(study: Path, tmp_path: Path) -> None:
    words = [study, *BRIEF, "--out", tmp_path / "m", "--arms", "pmcmfl,dropout-token,fedavg-zero", "--rates", "0,0.5"]
    said = _run(*words, "--holds", "site-2=fmri,text", "--public-site", "train")
    assert "site-2: sub-02; 24 training trials" in said
    assert "site-2 holds fmri, text\n" in said
    assert "public: no brain; 48 training trials" in said
    assert "public holds image, text: it is not scored" in said
    assert "### study: nothing hidden of what sites hold" in said
    assert "Realised: missing fmri 50.0%, missing image 25.0%, missing text 0.0%, complete 25.0%." in said
    assert "never trained for absence" not in said  # nobody here was trained on complete trials alone
    held = json.loads((tmp_path / "m" / "matrix.json").read_text())
    assert held["holds"] == {
        "site-1": ["fmri", "image", "text"],
        "site-2": ["fmri", "text"],
        "public": ["image", "text"],
    }
    record = json.loads((tmp_path / "m" / "records" / "study-site-0.5-seed0-pmcmfl.json").read_text())
    assert set(record["patterns"]["image"]["sites"]) == {"site-1", "site-2"}
    assert record["fractions"]["public"]["missing fmri"] == record["fractions"]["site-2"]["missing image"] == 1
    with pytest.raises(InputError, match="made with other data"):
        _run(*words)


def test_tuning_is_written_down_before_the_comparison(study: Path, tmp_path: Path) -> None:
    words = [*BRIEF, "--out", tmp_path / "m", "--rates", "0.5", "--patterns", "instance"]
    said = _run(study, *words, "--arms", "dropout-token,no-contrast", "--tune")
    choices = json.loads((tmp_path / "m" / "choices.json").read_text())
    assert set(choices["chosen"]) == {"dropout-token", "pmcmfl"}  # an ablation stands over the choice of its model
    assert {name: len(each) for name, each in choices["tried"].items()} == {
        name: len(ARMS[name].candidates) for name in ("dropout-token", "pmcmfl")
    }
    best = max(choices["tried"]["dropout-token"], key=lambda row: row["score"])
    assert choices["chosen"]["dropout-token"] == best["settings"]
    record = json.loads((tmp_path / "m" / "records" / "study-instance-0.5-seed0-dropout-token.json").read_text())
    used = record["asked"]["settings"]
    assert used["client"]["learning_rate"] == best["settings"]["client"]["learning_rate"]
    assert used["masks"]["dropout"] == best["settings"]["masks"]["dropout"]
    assert "client.learning_rate = 0.003" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "fedsgd"], "unknown arm 'fedsgd'"),
        (["--arms", ","], "list with commas"),
        (["--rates", "half"], "--rates takes numbers"),
        (["--rates", "1.0"], "rate of missing modalities"),
        (["--patterns", "sight"], "did you mean 'site'"),
        (["--sites", 3], "--sites lies in 1 to 2"),
        (["--set", "masks.dropout=0.1"], "what arms differ in"),
        (["--set", "client.learning_rate=0.1"], "each has its own"),
        (["--clusters", 3, "--public", "train"], "give one of them"),
    ],
)
def test_what_cannot_be_compared_is_refused(study: Path, tmp_path: Path, words: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _run(study, *BRIEF, "--out", tmp_path / "m", *words)
    assert not (tmp_path / "m").exists()
