"""Settings: layers, assignments, and errors that name the key."""

from __future__ import annotations

import pytest
from pydantic import model_validator

from phosphene.errors import InputError
from phosphene.settings import Settings, load_preset, merge, parse_assignments, presets, read_config


class Inner(Settings):
    epochs: int = 3


class Outer(Settings):
    width: int = 8
    training: Inner = Inner()


def test_later_layers_win_and_defaults_stay():
    built = Outer.build({"width": 4, "training": {"epochs": 1}}, {"training": {"epochs": 9}})
    assert (built.width, built.training.epochs) == (4, 9)
    assert Outer.build(None).training.epochs == 3


def test_unknown_key_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'widht'; did you mean 'width'\? Known: training, width"):
        Outer.build({"widht": 4})
    with pytest.raises(InputError, match=r"training\.epoch.*Known: epochs"):
        Outer.build({"training": {"epoch": 4}})


def test_wrong_value_is_shown():
    with pytest.raises(InputError, match=r"width = 'wide'"):
        Outer.build({"width": "wide"})


def test_assignments_are_typed_and_nested():
    found = parse_assignments(["training.epochs=5", "name=ridge", "on=true", "grid=[1, 2]", "path=a/b.c"])
    assert found == {"training": {"epochs": 5}, "name": "ridge", "on": True, "grid": [1, 2], "path": "a/b.c"}
    with pytest.raises(InputError, match="KEY=VALUE"):
        parse_assignments(["epochs"])


def test_merge_leaves_its_arguments_alone():
    base = {"a": {"b": 1}}
    assert merge(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}


def test_config_files(tmp_path):
    (tmp_path / "a.toml").write_text("[training]\nepochs = 2\n")
    (tmp_path / "b.json").write_text('{"width": 2}')
    assert read_config(tmp_path / "a.toml") == {"training": {"epochs": 2}}
    assert read_config(tmp_path / "b.json") == {"width": 2}
    (tmp_path / "c.toml").write_text("= 2")
    for name, message in (("c.toml", "not readable TOML"), ("d.toml", "does not exist"), ("e.yaml", "found '.yaml'")):
        with pytest.raises(InputError, match=message):
            read_config(tmp_path / name)


def test_presets_are_found_and_unknown_ones_listed():
    assert "default" in presets("decoders", "ridge")
    with pytest.raises(InputError, match=r"unknown preset of ridge 'hours'.*default"):
        load_preset("decoders", "ridge", "hours")


def test_an_unknown_key_of_an_optional_table_names_the_keys_of_that_table():
    class Optional(Settings):
        training: Inner | None = None

    with pytest.raises(InputError, match=r"unknown setting of Inner: 'training\.limit'.*Known: epochs"):
        Optional.build({"training": {"limit": 2.0}})


def test_settings_that_do_not_agree_are_told_without_the_whole_table():
    class Pair(Settings):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _agree(self):
            if self.low > self.high:
                raise ValueError(f"low = {self.low} is above high = {self.high}")
            return self

    class Outer(Settings):
        pair: Pair = Pair.build()

    with pytest.raises(InputError) as told:
        Outer.build({"pair": {"low": 3}})
    assert str(told.value) == "wrong settings for Outer: pair: low = 3 is above high = 1"
