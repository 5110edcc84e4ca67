"""The folder of a run: what it was started with, its log, its checkpoints, and the decoder at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phosphene._version import __version__
from phosphene.errors import InputError
from phosphene.files import read_json, refuse_filled, write_json
from phosphene.training.log import CHANGE, append
from phosphene.training.settings import MACHINE_KEYS

__all__ = ["CHANGEABLE", "RunFolder", "differences", "note_stop"]

CHANGEABLE = frozenset({"learning_rate", "gradient_clip", "precision"})
"""Settings of training that may change where a run stopped because a number was not finite."""

_CONFIG, _STOPPED, _CHANGES = "config.json", "stopped", "changes"


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
    return [f"{key} was {old!r}, is now {new!r}" for key, (old, new) in _changed(found, wanted).items()]


def _changed(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Old and new value of what differs."""
    left, right = _flat(_without_history(found)), _flat(wanted)
    ignored = {"software", "preset"} | _of_training(wanted, MACHINE_KEYS)
    return {
        key: [left.get(key), right.get(key)]
        for key in sorted(left.keys() | right.keys())
        if key not in ignored and left.get(key) != right.get(key)
    }


def _of_training(settings: Mapping[str, Any], keys: frozenset[str]) -> set[str]:
    """These keys with the names of all tables that describe a training: one, or one for every stage."""
    stages = {name for name, table in settings.items() if isinstance(table, Mapping) and table.keys() >= MACHINE_KEYS}
    return {f"{table}.{key}" for table in {"training", *stages} for key in keys}


def _without_history(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in (_STOPPED, _CHANGES)}


def note_stop(path: Path, step: int, what: str) -> None:
    """Note in a run folder that its run stopped after so many steps, because a number was not finite.

    The next call may then change the settings in `CHANGEABLE`; with the old ones it would meet the same number.

    Parameters
    ----------
    path : Path
        The run folder, or the folder of a stage in it.
    step : int
        Steps done.
    what : str
        What happened, in words.
    """
    for file in (path / _CONFIG, path.parent / _CONFIG):
        if file.exists():
            write_json(file, {**read_json(file), _STOPPED: {"step": step, "what": what}})
            return


class RunFolder:
    """``config.json``, ``log.jsonl``, ``checkpoints/last`` and ``best`` (.safetensors), ``decoder/`` or another result.

    Parameters
    ----------
    path : Path
    settings : mapping
        Everything that decides the result of the run, as plain values.
    result : str
        Name of the folder in which the run ends.

    Attributes
    ----------
    changes : list of dict
        Settings that were changed after a stop: after which ``step``, ``what`` had happened, and what ``changed``.

    Raises
    ------
    InputError
        When the folder holds a run with other settings, naming them, or a result that no run in it has made.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], result: str = "decoder") -> None:
        self.result = path / result
        self.path, self._settings = path, {"software": f"phosphene {__version__}", **settings}
        self.changes: list[dict[str, Any]] = []
        self._changes_now = False
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; a run needs a folder")
        self.known = (path / _CONFIG).exists()
        if self.known:
            self._compare(read_json(path / _CONFIG))
        if not self.finished:
            refuse_filled(self.result, f" when the run at {path} ends, and are not of that run")

    def _compare(self, found: Any) -> None:
        """Refuse another run's folder; after a stop some settings may have changed."""
        if not isinstance(found, dict):
            raise InputError(f"{self.path / _CONFIG} is no object: it is not that of a run")
        self.changes = list(found.get(_CHANGES, []))
        changed, stop = _changed(found, self._settings), found.get(_STOPPED)
        allowed = _of_training(self._settings, CHANGEABLE)
        if stop and changed and changed.keys() <= allowed and not self.finished:
            self.changes.append({**stop, "changed": changed})
            self._changes_now = True
        elif changed:
            raise InputError(
                f"{self.path} holds a run with other settings: {'; '.join(differences(found, self._settings))}. "
                "Give another folder, or remove this one to start anew"
            )

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """File of the log."""
        return self.path / "log.jsonl"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.known and (self.result / "config.json").exists()

    def begin(self) -> None:
        """Write the settings, unless they are there; the log tells where they were changed."""
        if not self.known:
            write_json(self.path / _CONFIG, self._settings)
        elif self._changes_now:
            append(self.log, {"event": CHANGE, **self.changes[-1]})
            write_json(self.path / _CONFIG, {**self._settings, _CHANGES: self.changes})
