"""The scorecard on disk and as text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.evaluation import Score, Scorecard
from phosphene.evaluation.scorecard import plain


def test_saved_and_loaded_it_is_the_same(scorecard, tmp_path):
    path = scorecard.save(tmp_path / "scores.json")
    assert Scorecard.load(path).to_dict() == scorecard.to_dict()
    assert json.loads(path.read_text()) == scorecard.to_dict()


def test_the_layout_others_rely_on(scorecard):
    content = scorecard.to_dict()
    assert content["format"] == "phosphene-scorecard/1"
    assert set(content) == {"format", "method", "protocol", "scores", "comparisons", "audits", "notes", "stimuli"}
    needed = {
        "method",
        "subject",
        "metric",
        "direction",
        "pool",
        "value",
        "chance",
        "interval",
        "null",
        "n",
        "protocol",
    }
    assert all(needed <= set(score) for score in content["scores"])
    assert set(content["scores"][0]["null"]) == {"mean", "std", "p"}
    facts = content["protocol"]
    assert facts["study"]["name"] == "linear"
    assert facts["splits"] == ["default"]
    assert (facts["role"], facts["repeats"], facts["unit"], facts["seed"]) == ("test", "all", "stimulus", 0)
    assert facts["training_stimuli"] == {"default": 45}
    assert "torch" in facts["versions"]
    text = json.dumps(content)
    assert "NaN" not in text


def test_an_interrupted_save_leaves_the_old_file(scorecard, tmp_path, monkeypatch):
    path = scorecard.save(tmp_path / "scores.json")
    before = path.read_text()
    monkeypatch.setattr("phosphene.evaluation.scorecard._json", lambda value: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        scorecard.save(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_not_a_number_becomes_null():
    assert plain({"a": np.float32("nan"), "b": np.array([1, 2]), "c": (np.inf, True)}) == {
        "a": None,
        "b": [1, 2],
        "c": [None, True],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "not a scorecard"),
        ('{"format": "phosphene-scorecard/9"}', "this version reads"),
        ('{"format": "phosphene-scorecard/1"}', "incomplete scorecard"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Scorecard.load(path)


def test_the_table_names_directions_as_others_do(scorecard):
    table = scorecard.table()
    assert "brain_to_image: called brain retrieval, as in the MindEye tables" in table
    assert "image_to_brain: called image retrieval, as in the MindEye tables" in table
    assert "sub-01" not in table
    assert "sub-01" in scorecard.table(subjects=None)
    lines = [line for line in table.splitlines() if line.startswith("decoder") and " top-1 " in line]
    assert "1.000" in lines[0]
    assert "0.067" in lines[0]


def test_scores_are_found_by_field(scorecard):
    assert len(scorecard.find(metric="top-1", direction="brain_to_image", subject="sub-02")) == 2 * 4
    with pytest.raises(InputError, match="no field 'metrics'"):
        scorecard.find(metrics="top-1")
    with pytest.raises(InputError, match="0 scores match top-3"):
        scorecard.get("top-3")


def test_a_score_survives_a_round_trip(scorecard):
    score = scorecard.scores[0]
    assert Score.from_dict(json.loads(json.dumps(score.to_dict()))) == score
