"""`phosphene pivot`: brain to text by the image beside straight training, in pairs; what it keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phosphene import virtual
from phosphene.cli import app
from phosphene.decoders import Decoder
from phosphene.errors import InputError
from phosphene.training import Pivot

SIZES = {"subjects": 2, "sessions": 2, "repeats": 2, "person": {"voxels": 60}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stimuli = {"test": 15, "common": 20, "own": 30, "size": 32, "captions": 1}
    return virtual.study(seed=4, stimuli=stimuli, **SIZES).save(tmp_path_factory.mktemp("pivot") / "study.h5")


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    _invoke("fit", "ridge", file, "--targets", "gabor", "--out", folder)
    return folder


def _invoke(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def _pivot(run: Path, file: Path, out: Path, *words: object) -> str:
    return _invoke("pivot", run, file, "--text", "z:tfidf-svd8", "--out", out, "--bootstrap", 50, *words)


def test_both_ways_to_text_and_their_difference(file: Path, run: Path, tmp_path: Path) -> None:
    said = _pivot(run, file, tmp_path, "--captions", 30, "--json", tmp_path / "copy.json")
    told = json.loads((tmp_path / "text.json").read_text())
    assert told == json.loads((tmp_path / "copy.json").read_text())
    assert told["captioned_stimuli"] == 30
    assert f"{tmp_path}: 30 training stimuli with captions" in said.replace("\n", "")
    image, straight = told["cards"]
    assert (image["method"], image["pivot_pairs"]) == ("by the image", 30)
    assert (straight["method"], straight["pivot_pairs"]) == ("straight to text", None)
    gallery = image["scores"][0]["gallery"]
    assert f"chance {1 / gallery:.3f}  {gallery} captions" in said
    assert "by the image minus straight to text, paired on the same captions, 2 people" in said
    rows = {(row["metric"], row["direction"]): row for row in told["comparison"]["rows"]}
    means = [
        next(s["value"] for s in card["scores"] if (s["subject"], s["metric"], s["direction"]) == ("mean", *key))
        for key in [("two-way", "text_to_brain")]
        for card in (image, straight)
    ]
    assert rows["two-way", "text_to_brain"]["difference"] == pytest.approx(means[0] - means[1])
    # both have learnt from the same captions
    direct = Decoder.load(tmp_path / "direct" / "base" / "decoder")
    pairs = Pivot.load(tmp_path / "pivot").provenance["training_content"]
    assert set(direct.provenance["training_content"]) == set(pairs)


def test_a_pivot_and_a_direct_decoder_of_before(file: Path, run: Path, tmp_path: Path) -> None:
    _pivot(run, file, tmp_path / "one", "--direct", "none", "--set", "pivot.epochs=0")
    assert not (tmp_path / "one" / "direct").exists()
    assert "comparison" not in json.loads((tmp_path / "one" / "text.json").read_text())
    _invoke("encode", file, "--encoder", "z:tfidf-svd8", "--out", tmp_path / "text")
    _invoke("fit", "ridge", file, "--targets", tmp_path / "text", "--out", tmp_path / "direct")
    words = ["--text", tmp_path / "text", "--out", tmp_path / "two", "--direct", tmp_path / "direct"]
    _invoke("pivot", run, file, *words, "--subject", "sub-02")
    told = json.loads((tmp_path / "two" / "text.json").read_text())
    assert told["comparison"]["subjects"] == ["sub-02"]
    _invoke("pivot", run, file, *words[:4], "--pivot", tmp_path / "two" / "pivot", "--direct", "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--direct", "somewhere"], "unknown --direct 'somewhere'. Known: a run folder, fit, none"),
        (["--captions", 500], r"training stimuli that sub-01, sub-02 saw have captions, 500 were asked for"),
        (["--set", "training.epochs=2"], "unknown table of settings 'training'. Known: direct, pivot"),
        (["--direct", "none", "--set", "direct.epochs=2"], "settings of direct training are for --direct fit"),
        (["--pivot", "p", "--captions", 5], "are for one that is fitted now, found --pivot"),
        (["--set", "direct.epochs=2"], "ridge is fitted in closed form"),
        (["--role", "tests"], "unknown role of split 'default': 'tests'; did you mean 'test'"),
        (["--role", "train"], "such as"),
        (["--subject", "sub-09"], "unknown subject 'sub-09'"),
        (["--split", "fold-9"], "unknown split of .*'fold-9'"),
        (["--targets", "nowhere"], "nowhere is not a folder of targets"),
        (["--text", "z:gabor"], "encoder 'z:gabor' looks at pictures; embeddings of captions are needed"),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(map(str, each)),
)
def test_what_is_refused(words: list[object], message: str, file: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        _pivot(run, file, tmp_path, *words)
    if "--direct" in words:  # said before anything is fitted
        assert not (tmp_path / "pivot").exists()
