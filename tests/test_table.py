"""Tables: typing of text, round trips, and errors that name file and line."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.table import Table


def test_tsv_round_trip_keeps_types(tmp_path):
    table = Table({"id": ["a", "b\tc"], "n": [1, 2], "x": [0.5, np.nan], "on": [True, False], "code": ["007", "010"]})
    table.write_tsv(tmp_path / "t.tsv")
    back = Table.read_tsv(tmp_path / "t.tsv")
    assert [back[name].dtype.kind for name in back.columns] == ["U", "i", "f", "b", "U"]
    assert back["id"].tolist() == ["a", "b\tc"]
    assert back["code"].tolist() == ["007", "010"]
    assert np.isnan(back["x"][1])


def test_hdf5_round_trip(tmp_path):
    table = Table({"id": ["ä", "b"], "n": [1, 2]})
    with h5py.File(tmp_path / "t.h5", "w") as file:
        table.write_hdf5(file.create_group("t"))
        Table({}, rows=3).write_hdf5(file.create_group("empty"))
        assert Table.read_hdf5(file["t"]) == table
        assert len(Table.read_hdf5(file["empty"])) == 3


def test_na_is_nan_and_words_stay_words(tmp_path):
    (tmp_path / "t.tsv").write_text("x\ty\nn/a\tcat\n1.5\tn/a\n")
    table = Table.read_tsv(tmp_path / "t.tsv")
    assert np.isnan(table["x"][0])
    assert table["y"].tolist() == ["cat", "n/a"]


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n1\t2\n3\n")
    with pytest.raises(InputError, match=r"t\.tsv, line 3: 1 fields, the header has 2"):
        Table.read_tsv(path)
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match="missing column stimulus_id; found a, b"):
        Table.read_tsv(path, required=("stimulus_id",))
    path.write_text("a\ta\n1\t2\n")
    with pytest.raises(InputError, match="occurs twice"):
        Table.read_tsv(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not readable text"):
        Table.read_tsv(path)


def test_columns_are_checked_and_cannot_be_written_to():
    table = Table({"a": [1, 2]})
    with pytest.raises(ValueError, match="read-only"):
        table["a"][0] = 5
    with pytest.raises(InputError, match="column 'b' has 3 rows"):
        Table({"a": [1, 2], "b": [1, 2, 3]})
    with pytest.raises(InputError, match="unknown column 'c'"):
        table["c"]
    assert table.take([1]).to_records() == [{"a": 2}]
