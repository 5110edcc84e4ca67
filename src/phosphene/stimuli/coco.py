"""Captions in the JSON form of COCO: a list of images, and a list of annotations that point to them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from phosphene.errors import InputError
from phosphene.files import read_json
from phosphene.stimuli.folder import ImageFiles, common_side
from phosphene.stimuli.stimulus_set import StimulusSet

__all__ = ["read_coco"]

log = logging.getLogger(__name__)


def read_coco(
    annotations: str | Path, images: str | Path, size: int | None = None, *, fit: bool = False
) -> StimulusSet:
    """Read captioned images from COCO-style JSON; pictures are decoded when they are read.

    The JSON holds ``images`` (each with ``id`` and ``file_name``) and ``annotations`` (each with ``image_id`` and
    ``caption``); all else in it is left aside. Images without a caption are left out, and the log says how many.

    Parameters
    ----------
    annotations : str or Path
        The JSON file, such as ``captions_val2017.json``.
    images : str or Path
        Folder to which the file names are relative.
    size : int, optional
        Centre-crop and resize to ``size x size`` pixels; needed when the files differ in size.
    fit : bool
        Where they differ in size and none is given, take the median of their shorter sides.

    Returns
    -------
    StimulusSet
        Ids are the image ids as text, in the order of ``images``; the label ``file_name``; captions without outer
        spaces, in the order of ``annotations``.

    Raises
    ------
    InputError
        For a file that is not of this form, ids that occur twice, captions that are empty or belong to no image, and
        image files that are missing; counted, the first of them named.
    """
    path, folder = Path(annotations), Path(images)
    content = read_json(path)
    named = _images(path, content)
    captions = _captions(path, content, named)
    kept = [name for name in named if captions[name]]
    if not kept:
        raise InputError(f"{path} holds no captions")
    if len(kept) < len(named):
        log.warning("%s: %d of %d images have no caption and are left out", path, len(named) - len(kept), len(named))
    files = [folder / named[name] for name in kept]
    _require_files(path, folder, files)
    if fit and size is None and (size := common_side(files)) is not None:
        log.info("%s: pictures of different sizes, centre-cropped and resized to %d x %d pixels", folder, size, size)
    return StimulusSet(
        kept,
        pixels=ImageFiles(files, size),
        captions=[captions[name] for name in kept],
        labels={"file_name": [named[name] for name in kept]},
    )


def _entries(path: Path, content: Any, part: str, keys: dict[str, tuple[type, ...]]) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or not isinstance(content.get(part), list):
        raise InputError(f"{path} is not COCO-style JSON: it must be an object with lists 'images' and 'annotations'")
    for row, entry in enumerate(content[part]):
        for key, kinds in keys.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, kinds) or isinstance(value, bool):
                words = " or ".join({int: "a whole number", str: "text"}[kind] for kind in kinds)
                raise InputError(f"{path}: {part}[{row}] needs {key!r} ({words}), found {value!r}")
    return content[part]


def _images(path: Path, content: Any) -> dict[str, str]:
    """File name by image id."""
    entries = _entries(path, content, "images", {"id": (int, str), "file_name": (str,)})
    _require_unique(path, "image ids", (entry["id"] for entry in entries))
    named = {str(entry["id"]): entry["file_name"] for entry in entries}
    for name, file_name in named.items():
        inside = PurePosixPath(file_name)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(
                f"{path}: image {name} must have a file name inside the images folder, found {file_name!r}"
            )
    return named


def _captions(path: Path, content: Any, named: dict[str, str]) -> dict[str, list[str]]:
    """Captions by image id."""
    entries = _entries(path, content, "annotations", {"image_id": (int, str), "caption": (str,)})
    _require_unique(path, "annotation ids", (entry["id"] for entry in entries if "id" in entry))
    captions: dict[str, list[str]] = {name: [] for name in named}
    empty, lost = [], []
    for row, entry in enumerate(entries):
        name, caption = str(entry["image_id"]), entry["caption"].strip()
        if name not in captions:
            lost.append(f"{name} (annotation {entry.get('id', row)})")
        elif not caption:
            empty.append(f"image {name} (annotation {entry.get('id', row)})")
        else:
            captions[name].append(caption)
    if lost:
        raise InputError(f"{path}: {len(lost)} captions belong to no listed image, such as {', '.join(lost[:5])}")
    if empty:
        raise InputError(f"{path}: {len(empty)} captions are empty, such as that of {', '.join(empty[:5])}")
    return captions


def _require_unique(path: Path, what: str, ids: Iterable[Any]) -> None:
    twice = [name for name, count in Counter(map(str, ids)).items() if count > 1]
    if twice:
        raise InputError(f"{path}: {len(twice)} {what} occur more than once, such as {', '.join(twice[:5])}")


def _require_files(path: Path, folder: Path, files: list[Path]) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder (the images of {path})")
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(files)} images of {path} are missing in {folder}, such as {', '.join(missing[:5])}"
        )
