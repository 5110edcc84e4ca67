"""Private experts that start where everybody's ridge is with a person's own responses counted more often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phosphene.alignment import Aligner, make_aligner
from phosphene.decoders import Decoder
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.encoders import Targets
from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.training import fit
from phosphene.training.newcomer import add_subject

TWO = ["sub-01", "sub-02"]
STILL: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-9, "stage2": {"epochs": 1, "learning_rate": 1e-9}}


@pytest.fixture(scope="module")
def aligner(study: Study) -> Aligner:
    return make_aligner("anatomical").fit(study.split("train").subset(TWO))


@pytest.fixture(scope="module")
def counted(study: Study, targets: Targets, aligner: Aligner) -> WillsAligner:
    return of_two(study, targets, aligner, 5.0)


def of_two(study: Study, targets: Targets, aligner: Aligner, weight: float) -> WillsAligner:
    words: dict[str, Any] = {"preset": "few", "subjects": TWO, "aligner": aligner, "progress": False}
    found = fit("wills-aligner", study, targets, own_weight=weight, training=STILL, **words)
    assert isinstance(found, WillsAligner)
    return found


def left_over(decoder: WillsAligner, study: Study, targets: Targets, subject: str) -> float:
    """Squared error on the person's own training stimuli."""
    ids, responses = study.split("train").averaged(subject)
    return float(np.square(decoder.predict(responses, subject, what="target") - targets.of(ids)).mean())


def test_the_more_their_own_responses_count_the_better_these_are_met(
    study: Study, targets: Targets, aligner: Aligner, counted: WillsAligner
) -> None:
    little = of_two(study, targets, aligner, 0.5)
    for subject in TWO:
        errors = [left_over(each, study, targets, subject) for each in (counted, little)]
        with counted.commonality():
            errors.append(left_over(counted, study, targets, subject))
        assert errors == sorted(errors)
        assert errors[0] < 0.99 * errors[-1]


def test_a_newcomer_is_met_the_same_way_and_kept_on_disk(
    study: Study, targets: Targets, counted: WillsAligner, tmp_path: Path
) -> None:
    added = add_subject(counted, study, targets, "sub-03", sessions=1, progress=False)
    test = study.split("test").responses("sub-03")
    with added.commonality():
        common = added.predict(test, "sub-03")
    said = added.predict(test, "sub-03")
    assert np.abs(said - common).max() > 1e-3
    added.save(tmp_path / "decoder")
    np.testing.assert_array_equal(Decoder.load(tmp_path / "decoder").predict(test, "sub-03"), said)
    alone = added.merged("sub-03")
    np.testing.assert_allclose(alone.predict(test, "sub-03"), said, atol=1e-4, rtol=1e-3)
    assert not any(name.startswith("shared_ridge.") for name in alone.state_dict())
    before = counted.state_dict()
    assert all(torch.equal(tensor, added.state_dict()[name]) for name, tensor in before.items())


def test_without_a_private_expert_on_a_linear_path_the_weight_is_refused(study: Study, targets: Targets) -> None:
    words: dict[str, Any] = {"subjects": TWO, "progress": False, "own_weight": 2.0, "width": 16, "blocks": 1}
    with pytest.raises(InputError, match=r"own_weight = 2\.0 has no use: for private experts on a linear path"):
        fit("wills-aligner", study, targets, preset="small", private=False, **words)
