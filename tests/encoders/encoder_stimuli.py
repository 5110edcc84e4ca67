"""Stimuli with pixels, captions and labels, random and small."""

from __future__ import annotations

import numpy as np

from phosphene.stimuli import StimulusSet

_NOUNS = ["dog", "child", "woman", "cook", "runner", "painter", "dancer"]
_VERBS = ["throws", "paints", "washes", "holds", "kicks"]
_THINGS = ["ball", "fence", "dish", "guitar", "rope", "kite", "bread", "ladder", "boat", "drum", "mop"]


def make_stimuli(n: int = 24, seed: int = 0, side: tuple[int, int] = (40, 52)) -> StimulusSet:
    rng = np.random.default_rng(seed)
    captions = []
    for _ in range(n):
        noun, verb, thing = rng.choice(_NOUNS), rng.choice(_VERBS), rng.choice(_THINGS)
        captions.append([f"A {noun} {verb} the {thing}.", f"the {thing} of a {noun}"][: 1 + rng.integers(2)])
    return StimulusSet(
        [f"s{i:02d}" for i in range(n)],
        pixels=rng.integers(0, 256, (n, *side, 3)).astype(np.uint8),
        captions=captions,
        labels={"label": [f"class{i % 4}" for i in range(n)], "room": [f"room{i % 2}" for i in range(n)]},
    )
