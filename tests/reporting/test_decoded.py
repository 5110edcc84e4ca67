"""The page of decoded responses: pictures where there are some, words where not, nothing left unescaped."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
from made import HOSTILE, frame

from phosphene.rendering import Decoded, Gallery
from phosphene.reporting import decoded as room
from phosphene.reporting import report_decoded
from phosphene.stimuli import StimulusSet


def decoded(n: int = 4) -> tuple[Decoded, StimulusSet]:
    """Responses of two people with two matches each, and the pictures of the gallery."""
    captions = [[HOSTILE], ["a second thing"], []]
    stimuli = StimulusSet(["x", "y", "z"], pixels=np.stack([frame(i) for i in range(3)]), captions=captions)
    gallery = Gallery(stimuli.ids, np.eye(3, dtype=np.float32), captions)
    facts = {
        "software": "phosphene 0",
        "decoder": "ridge",
        "encoder": "gabor",
        "target": {"kind": "pooled", "shape": [3]},
        "gallery": {"items": 3, "search": "exact"},
        "averaged": False,
    }
    names = np.array([f"trial-{i:04d}" for i in range(n)])
    similarities, rows = np.tile([0.9, 0.25], (n, 1)), np.tile([[0, 2], [1, 0]], (n, 1))[:n]
    people = np.array(["sub-01", "sub-02"])[np.arange(n) % 2]
    return Decoded(people, names, np.zeros((n, 3), np.float32), similarities, rows, gallery, facts), stimuli


def test_every_response_with_its_matches_in_order(tmp_path: Path) -> None:
    found, stimuli = decoded()
    text = report_decoded(found, tmp_path / "page.html", stimuli=stimuli, command="phosphene decode a b").read_text()
    assert text.count("<article") == 4
    assert text.count("data:image/webp") == 8
    assert HOSTILE not in text
    assert html.escape(HOSTILE).replace("&quot;", "&#34;") in text
    assert text.index("trial-0000") < text.index("similarity 0.90") < text.index("similarity 0.25")
    assert "phosphene decode a b" in text
    assert "What was really seen is not known here" in text


def test_without_pictures_words_stand_for_the_items(tmp_path: Path) -> None:
    found, _ = decoded()
    text = report_decoded(found, tmp_path / "page.html").read_text()
    assert "data:image/webp" not in text
    assert "a second thing" in text


def test_a_long_recording_is_cut_and_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "MOST", 3)
    found, stimuli = decoded(8)
    text = report_decoded(found, tmp_path / "page.html", stimuli=stimuli).read_text()
    assert text.count("<article") == 3
    assert "The first 3 of 8 responses" in text
