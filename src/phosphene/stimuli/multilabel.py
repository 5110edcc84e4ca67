"""Several labels a stimulus: classes found in label columns, as one boolean matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from phosphene.errors import InputError
from phosphene.table import Table

__all__ = ["find_classes", "label_matrix"]

_ABSENT = frozenset({"", "none", "nan", "n/a"})


def find_classes(labels: Table, columns: Sequence[str]) -> tuple[str, ...]:
    """Classes that occur in some label columns, sorted: to be taken from training stimuli only.

    Parameters
    ----------
    labels : Table
        One row a stimulus.
    columns : sequence of str
        Names or patterns, such as ``"shape_*"``. Each value of a text column is a class, ``;`` stands between several;
        ``none``, ``n/a`` and empty text are no class. A column of booleans (or of 0 and 1) is a class of its own name.

    Raises
    ------
    InputError
        For a pattern that no column has, a column of other numbers, or columns without any class.

    Examples
    --------
    >>> table = Table({"shape_0": ["ball", "box"], "shape_1": ["none", "ball"], "indoors": [True, False]})
    >>> find_classes(table, ["shape_*", "indoors"])
    ('ball', 'box', 'indoors')
    """
    found = {name for _, row in _entries(labels, columns) for name in row}
    if not found:
        raise InputError(f"the label columns {', '.join(columns)} hold no class")
    return tuple(sorted(found))


def label_matrix(labels: Table, columns: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Which stimulus has which class, ``(stimuli, classes)`` bool; classes that are not listed are left out.

    Examples
    --------
    >>> table = Table({"shape_0": ["ball", "box"], "shape_1": ["none", "ball"]})
    >>> label_matrix(table, ["shape_*"], ["ball", "box"]).tolist()
    [[True, False], [True, True]]
    """
    place = {name: column for column, name in enumerate(classes)}
    matrix = np.zeros((len(labels), len(classes)), dtype=bool)
    for row, names in _entries(labels, columns):
        matrix[row, [place[name] for name in names if name in place]] = True
    return matrix


def _entries(labels: Table, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    for name in _matching(labels, columns):
        values: np.ndarray = labels[name]
        if values.dtype.kind in "bi" and set(np.unique(values).tolist()) <= {0, 1}:
            yield from ((row, [name]) for row in np.flatnonzero(values).tolist())
        elif values.dtype.kind in "US":
            for row, text in enumerate(values.tolist()):
                yield row, [word for word in map(str.strip, str(text).split(";")) if word.lower() not in _ABSENT]
        else:
            kind: Any = values.dtype
            raise InputError(f"label column {name} holds numbers ({kind}); classes are text, or true and false")


def _matching(labels: Table, columns: Sequence[str]) -> list[str]:
    found: list[str] = []
    for pattern in columns:
        names = [name for name in labels.columns if fnmatchcase(name, pattern)]
        if not names:
            raise InputError(f"no label column is called {pattern!r}; there are {', '.join(labels.columns) or 'none'}")
        found += [name for name in names if name not in found]
    return found
