"""Typed settings: presets in TOML files, ``--config FILE`` and ``--set a.b=c``; unknown keys are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from phosphene.errors import InputError, unknown
from phosphene.files import read_json

__all__ = ["Settings", "flattened", "load_preset", "merge", "parse_assignments", "presets", "read_config"]


class Settings(BaseModel):
    """Base of all settings: immutable, and a key that nobody reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def build(cls, *layers: Mapping[str, Any] | None) -> Self:
        """Merge layers (later ones win) over the defaults and validate.

        Raises
        ------
        InputError
            Naming every wrong key or value and, for an unknown key, the allowed ones.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merged = merge(merged, layer or {})
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise InputError(_explain(cls, error)) from error

    @classmethod
    def check_names(cls, table: Mapping[str, Any]) -> None:
        """Refuse a key that is no setting; whether values agree only a preset beside them can say.

        Raises
        ------
        InputError
            Naming it, and those that are.
        """
        for name in table:
            if name not in cls.model_fields:
                raise unknown(f"setting of {cls.__name__}:", name, cls.model_fields)

    def changed(self, names: Iterable[str]) -> list[str]:
        """Those of the named settings that are not at their defaults, as ``name = value``."""
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in names}
        return [f"{name} = {value!r}" for name, value in values.items() if value != fields[name].get_default()]

    def without_use(self) -> dict[str, str]:
        """Settings that the others leave without a use, and why, in words."""
        return {}

    def idle(self, given: Iterable[str]) -> dict[str, str]:
        """Those of the settings that were asked for which have no use, and why; those of a preset do not count."""
        without = self.without_use()
        return {name: without[name] for name in given if name in without}


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "settings"
        if item["type"] == "extra_forbidden":
            parent = cls
            for part in item["loc"][:-1]:
                annotation = parent.model_fields[str(part)].annotation if str(part) in parent.model_fields else None
                for kind in (annotation, *get_args(annotation)):  # a table may be optional
                    if isinstance(kind, type) and issubclass(kind, BaseModel):
                        parent = kind
            lines.append(str(unknown(f"setting of {parent.__name__}:", key, parent.model_fields)))
        elif isinstance(item["input"], Mapping):  # a whole table: the message names those that do not agree
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{key} = {item['input']!r}: {item['msg']}")
    return f"wrong settings for {cls.__name__}: " + "; ".join(lines)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; a value of `overrides` wins.

    Examples
    --------
    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(base)
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def flattened(values: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    """Nested tables as one, with names that are led by their tables'.

    Examples
    --------
    >>> flattened({"model": {"width": 64}, "seed": 0})
    {'model.width': 64, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{lead}{name}.") if isinstance(value, dict) else {f"{lead}{name}": value}
    return flat


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``["a.b=1", "name=ridge"]`` into a nested mapping; values are TOML, else plain text.

    Examples
    --------
    >>> parse_assignments(["training.epochs=3", "order=roi"])
    {'training': {'epochs': 3}, 'order': 'roi'}
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set takes KEY=VALUE with dots for nesting, found {assignment!r}")
        try:
            value: Any = tomllib.loads(f"v = {text.strip()}")["v"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        settings = merge(settings, value)
    return settings


def read_config(path: str | Path) -> dict[str, Any]:
    """Read settings from a ``.toml`` or ``.json`` file."""
    path = Path(path)
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: settings must be a JSON object, found {type(content).__name__}")
        return content
    if path.suffix != ".toml":
        raise InputError(f"{path}: settings are read from .toml or .json files, found {path.suffix or 'no suffix'!r}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not readable TOML: {error}") from error


def presets(kind: str, family: str) -> list[str]:
    """Names of the presets in ``presets/<kind>/<family>``."""
    folder = resources.files("phosphene") / "presets" / kind / family
    if not folder.is_dir():
        return []
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(kind: str, family: str, name: str) -> dict[str, Any]:
    """Read one preset, e.g. ``load_preset("decoders", "lite-mind", "small")``.

    Raises
    ------
    InputError
        For an unknown name, listing the known ones.
    """
    known = presets(kind, family)
    if name not in known:
        raise unknown(f"preset of {family}", name, known)
    entry = resources.files("phosphene") / "presets" / kind / family / f"{name}.toml"
    return tomllib.loads(entry.read_text(encoding="utf-8"))
