"""Finished sessions of a simulation that is under way, so that a killed one goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.errors import InputError
from phosphene.files import atomic_path, read_json, write_json

__all__ = ["Parts", "finished_parts"]


class Parts:
    """A folder with one array a person and session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of this name: read where it was finished, else made and kept."""
        path = self._folder / f"{name}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or cut short by a crash of the machine
            made = make()
        with atomic_path(path) as temporary:
            np.save(temporary, made)
        return made


@contextmanager
def finished_parts(out: Path, made_from: Mapping[str, Any]) -> Iterator[Parts]:
    """A hidden folder beside `out` that outlives an interruption, and nothing else.

    It is emptied where it was left by work of another description, and removed when the block ends well or with an
    error; after Ctrl-C or a kill it stays for the next run.

    Parameters
    ----------
    out : Path
        The file that is being made.
    made_from : mapping
        Everything the arrays depend on, in words of JSON.
    """
    folder = out.parent / f".{out.name}.parts"
    try:
        same = read_json(folder / "made_from.json") == made_from
    except InputError:
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "made_from.json", made_from)
    try:
        yield Parts(folder)
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
