"""Pictures and clips from a folder: one file (or one folder of frames) a stimulus."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from phosphene.errors import InputError
from phosphene.stimuli.archive import ArchiveMember
from phosphene.stimuli.stimulus_set import StimulusSet
from phosphene.table import Table

__all__ = ["IMAGE_SUFFIXES", "ImageFiles", "common_side", "find_images", "read_captions", "read_folder"]

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ImageFile = Path | ArchiveMember


class ImageFiles:
    """Pixels of image files, decoded when asked for: ``(n, H, W, 3)``, or clips from folders of frames.

    Parameters
    ----------
    files : sequence of Path or ArchiveMember, or of sequences of them
        One file a stimulus, or its frames in order.
    size : int, optional
        Centre-crop to a square and resize to this many pixels. Without it all must have one size.

    Raises
    ------
    InputError
        Naming a missing or unreadable file, or two files of different sizes.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Sequence[ImageFile | Sequence[ImageFile]], size: int | None = None) -> None:
        if not files:
            raise InputError("no image files were given")
        self._files = files
        self._size = size
        self.shape = (len(files), *self._common_shape())

    def _common_shape(self) -> tuple[int, ...]:
        first: tuple[tuple[int, ...], ImageFile] | None = None
        for entry in self._files:
            frames = [entry] if isinstance(entry, ImageFile) else list(entry)
            sizes = {_header(frame) for frame in frames} if self._size is None else {(self._size, self._size)}
            shape = (*((len(frames),) if not isinstance(entry, ImageFile) else ()), *min(sizes), 3)
            if len(sizes) > 1:
                raise InputError(f"the frames from {frames[0]} on have different sizes: {sorted(sizes)}")
            if first is None:
                first = (shape, frames[0])
            elif shape != first[0]:
                raise InputError(
                    f"images of different sizes: {first[1]} is {_words(first[0])}, {frames[0]} is {_words(shape)}; "
                    "give a size (--image-size N) to crop and resize all"
                )
        assert first is not None
        return first[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.arange(len(self._files))[rows]
        return (
            np.stack([self._read(self._files[row]) for row in chosen])
            if len(chosen)
            else np.empty((0, *self.shape[1:]), np.uint8)
        )

    def _read(self, entry: ImageFile | Sequence[ImageFile]) -> np.ndarray:
        if isinstance(entry, ImageFile):
            return _decode(entry, self._size)
        return np.stack([_decode(frame, self._size) for frame in entry])


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[:-1]))


def _header(path: ImageFile) -> tuple[int, int]:
    with _opened(path) as image:
        return image.height, image.width


def _opened(path: ImageFile) -> Image.Image:
    try:
        return Image.open(path if isinstance(path, Path) else io.BytesIO(path.read_bytes()))
    except FileNotFoundError as error:
        raise InputError(f"{path}: the stimulus is missing on disk") from error
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is not a readable image: {error}") from error


def _decode(path: ImageFile, size: int | None) -> np.ndarray:
    with _opened(path) as image:
        try:
            image = image.convert("RGB")
        except OSError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        if size is not None:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        return np.asarray(image, dtype=np.uint8)


def common_side(files: Sequence[ImageFile | Sequence[ImageFile]]) -> int | None:
    """A side for pictures of different sizes, the median of their shorter sides; None where all are equal."""
    frames = [frame for entry in files for frame in ([entry] if isinstance(entry, ImageFile) else entry)]
    sizes = [_header(frame) for frame in frames]
    return None if len(set(sizes)) == 1 else int(np.median([min(size) for size in sizes]))


def find_images(folder: Path, ids: Sequence[str] | None = None) -> dict[str, Path | list[Path]]:
    """Map stimulus ids to image files: ``<id>.png`` and the like, or the frames in ``<id>/``, in name order."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    found: dict[str, Path | list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            frames = sorted(f for f in entry.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
            if frames:
                found[entry.name] = frames
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            if entry.stem in found:
                raise InputError(f"{folder}: more than one image for stimulus {entry.stem!r}")
            found[entry.stem] = entry
    if ids is None:
        return found
    missing = [name for name in ids if name not in found]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ids)} stimuli are missing in {folder}, such as {', '.join(missing[:5])} "
            f"(looked for <stimulus_id> with {', '.join(IMAGE_SUFFIXES)}, or a folder of frames)"
        )
    return {name: found[name] for name in ids}


def read_captions(path: Path, ids: Sequence[str]) -> list[list[str]]:
    """Captions by stimulus from a table with columns ``stimulus_id`` and ``caption``; other ids are an error."""
    table = Table.read_tsv(path, required=("stimulus_id", "caption"))
    by_id: dict[str, list[str]] = {name: [] for name in ids}
    for row, (name, caption) in enumerate(
        zip(table["stimulus_id"].astype(str).tolist(), table["caption"].astype(str).tolist(), strict=True), start=2
    ):
        if name not in by_id:
            raise InputError(f"{path}, line {row}: stimulus_id {name!r} is not among the {len(by_id)} stimuli")
        by_id[name].append(caption)
    return list(by_id.values())


def read_folder(path: str | Path, size: int | None = None, *, fit: bool = False) -> StimulusSet:
    """Read a folder of pictures (or of folders of frames) as stimuli named by their file names.

    A ``captions.tsv`` (columns ``stimulus_id``, ``caption``) beside the pictures is read where it exists.

    Parameters
    ----------
    path : str or Path
        The folder.
    size : int, optional
        Centre-crop and resize to ``size x size`` pixels; needed when the files differ in size.
    fit : bool
        Where they differ in size and none is given, take the median of their shorter sides.
    """
    folder = Path(path)
    found = find_images(folder)
    if not found:
        raise InputError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    ids = list(found)
    if fit and size is None and (size := common_side(list(found.values()))) is not None:
        log.info("%s: pictures of different sizes, centre-cropped and resized to %d x %d pixels", folder, size, size)
    captions = read_captions(folder / "captions.tsv", ids) if (folder / "captions.tsv").exists() else None
    return StimulusSet(ids, pixels=ImageFiles(list(found.values()), size), captions=captions)
