"""A small immutable table of equal-length columns: trials, voxels, labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.files import atomic_path

__all__ = ["Table"]


class Table:
    """Equal-length columns by name; numbers and booleans as such, everything else as text.

    Parameters
    ----------
    columns : mapping of str to array_like
        One-dimensional columns of equal length.
    rows : int, optional
        Number of rows, needed only where there is no column.

    Examples
    --------
    >>> table = Table({"stimulus_id": ["a", "b"], "session": [1, 1]})
    >>> len(table), table.columns
    (2, ('stimulus_id', 'session'))
    """

    def __init__(self, columns: Mapping[str, Any], rows: int | None = None) -> None:
        self._columns: dict[str, np.ndarray] = {}
        for name, values in columns.items():
            array = np.asarray(values)
            if array.ndim != 1:
                raise InputError(f"column {name!r} must be one-dimensional, found shape {array.shape}")
            if array.dtype.kind not in "biufU":
                array = np.array([str(value) for value in array.tolist()], dtype=str)
            if rows is not None and len(array) != rows:
                raise InputError(f"column {name!r} has {len(array)} rows, the table has {rows}")
            rows = len(array)
            array = array.view()
            array.flags.writeable = False
            self._columns[name] = array
        self._rows = rows or 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return self._rows

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise unknown("column", name, self._columns)
        return self._columns[name]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Table)
            and self.columns == other.columns
            and all(np.array_equal(self[name], other[name]) for name in self.columns)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Table({len(self)} rows: {', '.join(self.columns)})"

    def take(self, rows: Any) -> Table:
        """Rows by index array, slice or boolean mask."""
        rows = np.arange(self._rows)[rows]
        return Table({name: column[rows] for name, column in self._columns.items()}, rows=len(rows))

    def with_columns(self, **columns: Any) -> Table:
        """A copy with columns added or replaced."""
        return Table({**self._columns, **columns}, rows=self._rows if self._columns else None)

    def to_records(self) -> list[dict[str, Any]]:
        """One plain dictionary a row."""
        lists = {name: column.tolist() for name, column in self._columns.items()}
        return [{name: values[row] for name, values in lists.items()} for row in range(self._rows)]

    @classmethod
    def read_tsv(cls, path: str | Path, required: Sequence[str] = ()) -> Table:
        """Read a tab- or comma-separated file with a header.

        A column becomes boolean, integer or float where every entry reads as one (``n/a`` and empty: NaN), else text.

        Raises
        ------
        InputError
            For a missing file, a row of another length (named), a missing required column.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not readable text: {error}") from error
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter="," if path.suffix == ".csv" else "\t"))
        if not lines:
            raise InputError(f"{path} is empty; a header line is needed")
        header, body = lines[0], [line for line in lines[1:] if line]
        if len(set(header)) < len(header):
            raise InputError(f"{path}: a column name occurs twice in {header}")
        for number, line in enumerate(body, start=2):
            if len(line) != len(header):
                raise InputError(f"{path}, line {number}: {len(line)} fields, the header has {len(header)}")
        missing = [name for name in required if name not in header]
        if missing:
            raise InputError(f"{path}: missing column {', '.join(missing)}; found {', '.join(header)}")
        return cls({name: _typed([line[i] for line in body]) for i, name in enumerate(header)}, rows=len(body))

    def write_tsv(self, path: str | Path) -> None:
        """Write tab-separated text with a header, atomically."""
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(zip(*(column.tolist() for column in self._columns.values()), strict=True))

    @classmethod
    def read_hdf5(cls, group: Any) -> Table:
        """Read from an open HDF5 group written by `write_hdf5`."""
        columns = {}
        for name in group.attrs["columns"]:
            dataset = group[name]
            columns[name] = dataset.asstr()[...] if dataset.dtype.kind == "O" else dataset[...]
        return cls(columns, rows=int(group.attrs["rows"]))

    def write_hdf5(self, group: Any) -> None:
        """Write the columns as datasets of an open, empty HDF5 group."""
        group.attrs["columns"] = list(self.columns)
        group.attrs["rows"] = self._rows
        for name, column in self._columns.items():
            group.create_dataset(name, data=column.astype(object) if column.dtype.kind == "U" else column)


def _typed(texts: list[str]) -> np.ndarray:
    blank = {"", "n/a", "nan", "NaN"}
    if texts and all(text in blank for text in texts):
        return np.array(texts, dtype=str)
    if texts and set(texts) <= {"True", "False"}:
        return np.array([text == "True" for text in texts])
    try:
        # "007" is a name, not a number: leading zeros would be lost
        if any(len(text) > 1 and text.lstrip("-").startswith("0") and text.lstrip("-").isdigit() for text in texts):
            return np.array(texts, dtype=str)
        return np.array([int(text) for text in texts], dtype=np.int64)
    except ValueError:
        pass
    try:
        return np.array([np.nan if text in blank else float(text) for text in texts], dtype=np.float64)
    except ValueError:
        return np.array(texts, dtype=str)
