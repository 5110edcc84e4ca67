"""The folder of a run: what it was started with, its log, its checkpoints, and the decoder at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phosphene._version import __version__
from phosphene.errors import InputError
from phosphene.files import read_json, write_json
from phosphene.training.settings import MACHINE_KEYS

__all__ = ["RunFolder", "differences"]


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of settings, in words; where and how fast a run goes does not count.

    What is not there and what is None are the same: a setting that an older version did not know changes nothing.

    Examples
    --------
    >>> differences({"training": {"epochs": 3}}, {"training": {"epochs": 4, "new": None}})
    ['training.epochs was 3, is now 4']
    """
    left, right = _flat(found), _flat(wanted)
    ignored = {"software", "preset"} | {f"training.{key}" for key in MACHINE_KEYS}
    return [
        f"{key} was {left.get(key)!r}, is now {right.get(key)!r}"
        for key in sorted(left.keys() | right.keys())
        if key not in ignored and left.get(key) != right.get(key)
    ]


class RunFolder:
    """``config.json``, ``log.jsonl``, ``checkpoints/last`` and ``best`` (.safetensors), ``decoder/`` or another result.

    Parameters
    ----------
    path : Path
    settings : mapping
        Everything that decides the result of the run, as plain values.
    result : str
        Name of the folder in which the run ends.

    Raises
    ------
    InputError
        When the folder holds a run with other settings, naming them.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], result: str = "decoder") -> None:
        self.result = path / result
        self.path, self._settings = path, {"software": f"phosphene {__version__}", **settings}
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; a run needs a folder")
        self._known = (path / "config.json").exists()
        if self._known:
            found = read_json(path / "config.json")
            other = differences(found, self._settings) if isinstance(found, dict) else ["config.json is no object"]
            if other:
                raise InputError(
                    f"{path} holds a run with other settings: {'; '.join(other)}. "
                    "Give another folder, or remove this one to start anew"
                )

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self._known and (self.result / "config.json").exists()

    def begin(self) -> None:
        """Write the settings, unless they are there."""
        if not self._known:
            write_json(self.path / "config.json", self._settings)
