"""Several labels a stimulus: found by pattern, counted once, refused where they are none."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.stimuli.multilabel import find_classes, label_matrix
from phosphene.table import Table

LABELS = Table(
    {
        "shape_0": ["ball", "box", "ring"],
        "shape_1": ["none", "ball", ""],
        "things": ["dog; cat", "n/a", "cat"],
        "indoors": [True, False, False],
        "angle": [0.5, 1.5, 2.5],
    }
)


def test_classes_of_all_kinds_of_columns() -> None:
    assert find_classes(LABELS, ["shape_*", "things", "indoors"]) == ("ball", "box", "cat", "dog", "indoors", "ring")


def test_a_stimulus_has_every_class_it_shows_once() -> None:
    matrix = label_matrix(LABELS, ["shape_*", "things", "indoors"], ["ball", "cat", "indoors"])
    np.testing.assert_array_equal(matrix, [[True, True, True], [True, False, False], [False, True, False]])


def test_classes_that_training_never_showed_are_left_out() -> None:
    assert label_matrix(LABELS, ["shape_*"], ["star"]).sum() == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [(["colour_*"], "no label column is called 'colour_\\*'"), (["angle"], "holds numbers"), (["shape_9"], "shape_9")],
)
def test_columns_that_hold_no_classes(columns: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_classes(LABELS, columns)


def test_columns_without_any_class() -> None:
    with pytest.raises(InputError, match="hold no class"):
        find_classes(Table({"a": ["none", ""]}), ["a"])
