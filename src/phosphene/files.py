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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phosphene.errors import InputError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "atomic_path",
    "cache_root",
    "data_root",
    "digest",
    "read_json",
    "scratch_folder",
    "write_json",
    "write_text",
]

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
    and whatever stood at `path` before is untouched. A folder that stood there is replaced.

    Parameters
    ----------
    path : str or Path
        Where the result must end up. Missing parent folders are made.

    Raises
    ------
    InputError
        When the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with scratch_folder(path) as scratch:
        temporary = scratch / path.name
        yield temporary
        _share_tensors(temporary, scratch)
        if temporary.is_dir() and path.is_dir():
            path.replace(scratch / "replaced")
        temporary.replace(path)


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
