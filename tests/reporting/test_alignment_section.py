"""The report of a decoder with an aligner in front shows how much alike people are, before and after."""

from __future__ import annotations

from typing import Any

import pytest

from phosphene import virtual
from phosphene.alignment import make_aligner
from phosphene.decoders import Decoder
from phosphene.encoders import Targets, encode
from phosphene.evaluation import evaluate
from phosphene.recordings import Study
from phosphene.reporting import compose, render
from phosphene.training import fit


@pytest.fixture(scope="module")
def made() -> tuple[Study, Targets, Decoder]:
    sizes: dict[str, Any] = {"subjects": 2, "sessions": 2, "repeats": 2, "person": {"voxels": 120}}
    study = virtual.study(seed=2, stimuli={"test": 25, "common": 70, "own": 0, "size": 32}, **sizes)
    train = study.split("train")
    targets = encode(study.stimuli, "z:gabor", fit_on=train.stimulus_ids, cache=False, progress=False)
    decoder = fit("ridge", study, targets, aligner=make_aligner("ridge").fit(train), progress=False)
    return study, targets, decoder


def test_bars_before_and_after(made: tuple[Study, Targets, Decoder]) -> None:
    study, targets, decoder = made
    card = evaluate(decoder, study, targets, rivals=(), n_boot=10, n_perm=10, progress=False)
    page = compose(decoder, study, targets, card, importance=False)
    bars = {bar.region: bar for bar in page.alignment}
    assert bars["all places"].after > bars["all places"].before > 0
    assert "ridge aligner" in page.alignment_note
    html = render(page)
    assert "Between people" in html
    assert f"was {bars['V1'].before:.2f}" in html


def test_without_an_aligner_there_is_no_such_part(made: tuple[Study, Targets, Decoder]) -> None:
    study, targets, _ = made
    decoder = fit("ridge", study, targets, progress=False)
    card = evaluate(decoder, study, targets, rivals=(), n_boot=10, n_perm=10, progress=False)
    assert "Between people" not in render(compose(decoder, study, targets, card, importance=False))


def test_what_cannot_be_measured_is_said(made: tuple[Study, Targets, Decoder]) -> None:
    study, targets, decoder = made
    card = evaluate(decoder, study, targets, subjects=["sub-01"], rivals=(), n_boot=10, n_perm=10, progress=False)
    page = compose(decoder, study, targets, card, importance=False)
    assert not page.alignment
    assert "at least two people" in page.alignment_note
