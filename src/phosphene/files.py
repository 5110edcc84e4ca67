"""Files written whole or not at all, digests, and the few folders phosphene looks into."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FolderFormat",
    "atomic_path",
    "cache_root",
    "check_keys",
    "data_root",
    "digest",
    "read_json",
    "refuse_filled",
    "scratch_folder",
    "write_json",
    "write_text",
]

_NAMED = 3  # strange files that an error names
_YOUNG = 60.0  # seconds; a scratch folder is locked at once, but not in the same breath


@contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """A hidden folder beside `path` for the time of the block; gone afterwards, whatever happens.

    What a killed process left for the same path is removed first: the system has released its lock.

    Raises
    ------
    InputError
        When the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    lock = _locked(folder)
    try:
        yield folder
    except Exception as error:  # HDF5 and safetensors report a full disk as errors of their own
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full):
            raise InputError(
                f"the disk is full: {path} was not written, what stood there before is unchanged"
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_left_behind(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        try:
            old = time.time() - left.stat().st_mtime > _YOUNG
        except OSError:  # its owner has just finished
            continue
        if old and (lock := _locked(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process ends; None where another holds it, or none can."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block succeeds.

    The block may create a file or a folder there. On any exception, Ctrl-C included, the temporary is removed
    and whatever stood at `path` before is untouched. Of folders only an empty one is replaced: one that holds
    something is for `FolderFormat.written` to judge.

    Parameters
    ----------
    path : str or Path
        Where the result must end up. Missing parent folders are made.

    Raises
    ------
    InputError
        When the disk is full, the folder cannot be written, or a folder that holds something would be replaced.
    """
    with _replacing(_absolute(path)) as (temporary, scratch):
        yield temporary
        if temporary.is_dir():
            refuse_filled(path)
        elif Path(path).is_dir():
            raise InputError(f"{path} is a folder, where a file is to be written: name another path")
        _share_tensors(temporary, scratch)


def _absolute(path: str | Path) -> Path:
    try:
        return Path(path).absolute()
    except FileNotFoundError as error:
        raise InputError(f"{path} is nowhere: the folder this runs in was deleted, go to another one") from error


@contextmanager
def _replacing(path: Path) -> Iterator[tuple[Path, Path]]:
    """A path inside a scratch folder, and that folder; what is made there replaces what stands at `path`."""
    with scratch_folder(path) as scratch:
        temporary = scratch / path.name
        yield temporary, scratch
        if temporary.is_dir() and path.is_dir():
            path.replace(scratch / "replaced")
        temporary.replace(path)


def refuse_filled(path: str | Path, why: str = "") -> None:
    """Refuse a folder that holds anything at all, before something is written in its place.

    Raises
    ------
    InputError
        Naming what lies there; for a file, too.
    """
    _refuse(Path(path), _files_in(path), why)


def _files_in(path: str | Path) -> Iterator[str]:
    """Names of all files in a folder and the folders below it, found as they are asked for; links count as files.

    Raises
    ------
    InputError
        For a file, a link to nothing, and the folder this process stands in, which cannot be replaced.
    """
    place = _absolute(path)
    if place.is_symlink() and not place.exists():
        raise InputError(f"{path} is a link to nothing, where a folder is to be written: name another folder")
    if place.exists() and not place.is_dir():
        raise InputError(f"{path} is a file, where a folder is to be written: name another folder")
    with suppress(FileNotFoundError):  # a process in a folder that was deleted stands in no other
        if Path.cwd().is_relative_to(place.resolve()):
            raise InputError(f"{path} is the folder this runs in, which cannot be replaced: name another folder")
    for folder, folders, files in os.walk(place):
        folders.sort()
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name).relative_to(place).as_posix() for name in sorted([*files, *links]))


def _refuse(path: Path, strange: Iterable[str], why: str) -> None:
    """Refuse to lose the first few of these files; no more of them are looked for."""
    if found := list(islice(strange, _NAMED + 1)):
        more = " and more" if len(found) > _NAMED else ""
        raise InputError(
            f"{path} holds files that would be lost ({', '.join(found[:_NAMED])}{more}){why}: name another folder, "
            "or move them away"
        )


@dataclass(frozen=True)
class FolderFormat:
    """A kind of folder that is written whole: only one of its own kind, with nothing else in it, is ever replaced.

    Attributes
    ----------
    kind : str
        In words, such as ``"an aligner"``.
    format : str or int, optional
        What the first of its files says under ``"format"``; None where it says nothing.
    files : tuple of str
        Patterns of all its files, by their paths in the folder, where ``*`` stands for no ``/``; the first is a JSON
        file.
    keys : tuple of str
        What else the first of its files has, where the format alone does not tell it from that of another kind.
    """

    kind: str
    format: str | int | None
    files: tuple[str, ...]
    keys: tuple[str, ...] = ()

    def within(self, folder: str) -> tuple[str, ...]:
        """Patterns of its files where it lies in a folder of another kind."""
        return tuple(f"{folder}/{pattern}" for pattern in self.files)

    def check(self, path: str | Path) -> None:
        """Refuse a place where writing would lose somebody's files; to be asked before long work.

        Raises
        ------
        InputError
            For a file, a link to nothing, the folder this process stands in, and a folder that holds what this format
            does not know.
        """
        path, found = Path(path), _files_in(path)
        if self._tells(path):
            _refuse(path, (name for name in found if not self._knows(name)), f" beside those of {self.kind}")
        else:
            _refuse(path, found, f", and is not {self.kind}")

    def _tells(self, path: Path) -> bool:
        try:
            content = read_json(path / self.files[0])
        except InputError:
            return False
        told = isinstance(content, dict) and content.keys() >= set(self.keys)
        return told and (self.format is None or content.get("format") == self.format)

    def _knows(self, name: str) -> bool:
        return any(PurePosixPath("/", name).match(f"/{pattern}") for pattern in self.files)  # from the root: the whole

    @contextmanager
    def written(self, path: str | Path) -> Iterator[Path]:
        """Yield a new temporary folder beside `path`; it replaces `path` when the block succeeds, see `atomic_path`.

        Raises
        ------
        InputError
            As of `check`, and when the disk is full or the folder cannot be written.
        """
        self.check(path)
        with _replacing(_absolute(path)) as (temporary, scratch):
            temporary.mkdir()
            yield temporary
            self.check(path)
            _share_tensors(temporary, scratch)


def _share_tensors(written: Path, scratch: Path) -> None:
    """Let tensors be read by whom the umask allows, as all else beside them: safetensors keeps them to their owner."""
    files = written.rglob("*.safetensors") if written.is_dir() else [written]
    if tensors := [file for file in files if file.suffix == ".safetensors"]:
        probe = scratch / ".mode"
        probe.touch()
        for file in tensors:
            file.chmod(probe.stat().st_mode & 0o777)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. NaN is refused: JSON has no word for it."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or damaged one gets an error naming it."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error


def check_keys(what: str, found: Any, needed: Sequence[str], lead: str = "", only: bool = True) -> None:
    """Refuse a table of a JSON file that lacks a key, or has one that nobody reads.

    Parameters
    ----------
    what : str
        The file, and what it is of.
    found : object
        What was read.
    needed : sequence of str
    lead : str
        Names of the tables above, with their dots.
    only : bool
        Whether there may be no other keys.

    Raises
    ------
    InputError
    """
    if not isinstance(found, Mapping):
        raise InputError(f"{what} is damaged: {lead.rstrip('.')} must be a table, found {type(found).__name__}")
    if missing := [key for key in needed if key not in found]:
        raise InputError(f"{what} is damaged: it lacks {', '.join(lead + key for key in missing)}")
    if only and (strange := [key for key in found if key not in needed]):
        raise InputError(f"{what} is damaged: {unknown('key', lead + strange[0], [lead + key for key in needed])}")


def digest(*parts: bytes | str | np.ndarray) -> str:
    """Hash of the parts in order: the first 32 hexadecimal digits of SHA-256.

    Arrays enter with dtype and shape, so that equal bytes of another shape differ.

    Examples
    --------
    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str | bytes):
            raw = part.encode() if isinstance(part, str) else part
            sha.update(f"{len(raw)}:".encode())
            sha.update(raw)
        else:
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(part.tobytes())
    return sha.hexdigest()[:32]


def data_root() -> Path | None:
    """Folder of real data sets: ``PHOSPHENE_DATA``, else ``../shared/data`` where it exists, else None.

    The second is looked for beside the working folder and beside the checkout.
    """
    named = os.environ.get("PHOSPHENE_DATA")
    if named:
        return Path(named)
    candidates = (Path.cwd().parent, Path(__file__).resolve().parents[3])
    return next((base / "shared" / "data" for base in candidates if (base / "shared" / "data").is_dir()), None)


def cache_root() -> Path:
    """Folder of caches: ``PHOSPHENE_CACHE``, else ``~/.cache/phosphene``."""
    named = os.environ.get("PHOSPHENE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "phosphene"
