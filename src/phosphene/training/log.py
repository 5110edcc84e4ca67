"""The log of a run: one JSON object a line, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phosphene.errors import InputError
from phosphene.files import write_text

__all__ = ["CHANGE", "RunLog", "append", "read_log"]

CHANGE = "change"
"""Event of a line that tells of changed settings."""


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Lines of a log; a last line that was cut off is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line to a log; a full disk is an `InputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # a later stage has nothing else in its folder yet
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(record)) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


class RunLog:
    """Appends lines to ``log.jsonl``; without a path it keeps quiet.

    Parameters
    ----------
    path : Path, optional
    step : int
        Step from which the run goes on; lines of later steps come from work that was lost and are removed, but not
        those that tell of changed settings.
    """

    def __init__(self, path: Path | None, step: int = 0) -> None:
        self.path = path
        if path is not None and path.exists():
            kept = [
                record
                for record in read_log(path)
                if (step and record["step"] <= step) or record.get("event") == CHANGE
            ]
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; a full disk is an `InputError`, and the last checkpoint stays."""
        if self.path is not None:
            append(self.path, record)
