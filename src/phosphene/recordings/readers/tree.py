"""What a reader needs of a tree of files: all that is missing or damaged is told at once, before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py

from phosphene.errors import InputError

__all__ = ["Needs"]

_SHOWN = 100  # lines of a list of missing files


class Needs:
    """Collects what is missing, then refuses once with the whole list.

    Parameters
    ----------
    root : Path
        The tree; paths are told relative to it.
    what : str
        What the tree should be, e.g. ``"NSD"``.
    hint : str
        Where such a tree comes from: the last line of the refusal.

    Examples
    --------
    >>> needs = Needs(Path("/nowhere"), "NSD", "see docs/readers.md")
    >>> _ = needs.file("nsddata/experiments/nsd/nsd_expdesign.mat", "which image each trial showed")
    >>> len(needs.missing)
    1
    """

    def __init__(self, root: Path, what: str, hint: str) -> None:
        self.root, self.what, self.hint = root, what, hint
        self.missing: list[str] = []

    def file(self, path: str | Path, purpose: str) -> Path:
        """Want one file; returns its full path."""
        full = self.root / path
        if not full.is_file():
            self.missing.append(f"{path} ({purpose})")
        return full

    def one_of(self, paths: Sequence[str | Path], purpose: str) -> Path:
        """Want one of several files; returns the first that exists (else the first)."""
        for path in paths:
            if (self.root / path).is_file():
                return self.root / path
        self.missing.append(f"{' or '.join(map(str, paths))} ({purpose})")
        return self.root / paths[0]

    def dataset(self, path: str | Path, name: str, purpose: str) -> tuple[int, ...] | None:
        """Want a dataset in an HDF5 file; returns its shape, None where it cannot be had."""
        full = self.file(path, purpose)
        if not full.is_file():
            return None
        try:
            with h5py.File(full, "r") as file:
                if name in file:
                    return tuple(file[name].shape)
                found = ", ".join(sorted(file)) or "nothing"
                self.missing.append(f"{path}: dataset {name!r} ({purpose}); the file holds {found}")
        except OSError as error:
            self.missing.append(f"{path}: truncated or damaged ({error})")
        return None

    def add(self, line: str) -> None:
        """Note something else that is wrong."""
        self.missing.append(line)

    def check(self) -> None:
        """Refuse if anything was noted.

        Raises
        ------
        InputError
            With one line for everything that is missing.
        """
        if not self.missing:
            return
        lines = self.missing[:_SHOWN]
        if len(self.missing) > _SHOWN:
            lines.append(f"and {len(self.missing) - _SHOWN} more")
        listed = "\n".join(f"  {line}" for line in lines)
        raise InputError(
            f"{self.root} is not a complete {self.what} tree; {len(self.missing)} missing or damaged:\n"
            f"{listed}\n{self.hint}"
        )
