"""What the card of a model says of the scenes it was trained on, setting by setting."""

from __future__ import annotations

import pytest

from phosphene.training.pretraining.card import model_card
from phosphene.training.pretraining.settings import pretrain_settings

FACTS = {
    **{"preset": None, "start": None, "seed": 0, "parameters": 10, "untrained": [], "temperatures": {}, "biases": {}},
    **{"data": {"source": "scenes"}, "steps": 6, "batch_size": 12, "pairs_seen": 72},
    **{"precision": "float32", "hardware": "1 x a processor", "seconds": 60.0},
}
PLAIN = (
    "New scenes in every step, 64 x 64 pixels; 1 of 5 captions a scene in a step; 75 % of groups of 64 scenes have 2 "
    "colours and 2 materials; compositions held out by the rule 'shape-colour' occur in probes only."
)


@pytest.mark.parametrize(
    ("data", "old", "new"),
    [
        ({}, "", ""),
        ({"pool": 12000}, "New scenes in every step", "A pool of 12,000 scenes"),
        ({"plain": 0.4}, "captions a scene in a step", "captions a scene in a step, 40 % of them plain"),
        ({"plain": 1.0}, "captions a scene in a step", "captions a scene in a step, 100 % of them plain"),
        ({"sampled": 2, "captions": 4}, "1 of 5 captions", "2 of 4 captions"),
        (
            {"simple_batches": 1500},
            "in probes only.",
            "in probes only; the first 1,500 batches show one object with a plain caption.",
        ),
        ({"rule": "colour-material"}, "'shape-colour'", "'colour-material'"),
        (
            {"rule": "none"},
            "compositions held out by the rule 'shape-colour' occur in probes only",
            "every composition occurs in training",
        ),
        (
            {"hard_share": 0.5, "group": 8, "group_colours": 3, "group_materials": 1},
            "75 % of groups of 64 scenes have 2 colours and 2 materials",
            "50 % of groups of 8 scenes have 3 colours and 1 materials",
        ),
    ],
)
def test_the_card_says_which_scenes_and_captions_there_were(data: dict, old: str, new: str) -> None:
    lines = model_card(pretrain_settings(None, {"data": data}), FACTS, []).splitlines()
    assert [line for line in lines if " of groups of " in line] == [PLAIN.replace(old, new) if old else PLAIN]
    assert "**Trained on procedural scenes only**: no photograph, no text written by people." in lines
