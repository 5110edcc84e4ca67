"""One-hot labels."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.encoders import encode, make_encoder
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet


def test_one_hot_in_sorted_order(stimuli: StimulusSet) -> None:
    targets = encode(stimuli, "labels", fit_on=stimuli.ids)
    expected = np.eye(4)[np.arange(len(stimuli)) % 4]
    np.testing.assert_array_equal(targets.of(stimuli.ids), expected)
    assert targets.kinds == ("pooled",)
    assert encode(stimuli, "labels:room", fit_on=stimuli.ids).shape("pooled") == (2,)


def test_numbers_are_labels_too() -> None:
    numbered = StimulusSet(["a", "b", "c"], labels={"label": [10, 2, 10]})
    np.testing.assert_array_equal(
        make_encoder("labels").fit(numbered).encode(numbered).pooled, [[1, 0], [0, 1], [1, 0]]
    )


def test_a_label_unseen_in_training_is_an_error(stimuli: StimulusSet) -> None:
    with pytest.raises(InputError, match=r"label 'class1' .* does not occur in the training.*class0"):
        encode(stimuli, "labels", fit_on=stimuli.ids[::4])
