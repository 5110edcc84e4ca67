"""Image files inside zip archives, read without unpacking."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from phosphene.errors import InputError

__all__ = ["ArchiveMember", "list_archive"]


@lru_cache(maxsize=4)
def _opened(archive: Path, process: int) -> ZipFile:
    # One handle a process: a forked worker would share the position in the file with its parent.
    try:
        return ZipFile(archive)
    except (OSError, BadZipFile) as error:
        raise InputError(f"{archive} is not a readable zip archive: {error}") from error


@dataclass(frozen=True)
class ArchiveMember:
    """One file of a zip archive."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def read_bytes(self) -> bytes:
        """The file's content.

        Raises
        ------
        InputError
            When it is missing, damaged or locked by a password.
        """
        try:
            return _opened(self.archive, os.getpid()).read(self.name)
        except KeyError as error:
            raise InputError(f"{self}: the stimulus is missing in the archive") from error
        except (OSError, BadZipFile, RuntimeError, zlib.error) as error:
            raise InputError(f"{self} cannot be read: {error}") from error


def list_archive(archive: Path) -> list[str]:
    """Names of the files in a zip archive, in its own order."""
    return [entry.filename for entry in _opened(archive, os.getpid()).infolist() if not entry.is_dir()]
