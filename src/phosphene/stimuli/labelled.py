"""Labelled pictures as captioned ones: folders named after classes, captions from labels and prompts."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from phosphene.errors import InputError
from phosphene.stimuli.archive import ArchiveMember, list_archive
from phosphene.stimuli.folder import IMAGE_SUFFIXES, ImageFile, ImageFiles, common_side
from phosphene.stimuli.stimulus_set import StimulusSet

__all__ = ["PROMPTS", "check_captions", "fill_prompts", "labelled", "read_class_folders"]

log = logging.getLogger(__name__)

PROMPTS = ("a picture of a {}", "a photo of a {}", "a {}")
_SOURCES = "; they stand in captions.tsv beside the pictures, or are made from labels (--labels COLUMN)"


def fill_prompts(words: Sequence[str], prompts: Sequence[str] = PROMPTS) -> tuple[tuple[str, ...], ...]:
    """Put words into prompts: every prompt for each word.

    "a {}" becomes "an ..." before a vowel, and underscores in a word become spaces.

    Raises
    ------
    InputError
        For no prompts, a prompt without exactly one ``{}``, an empty word.

    Examples
    --------
    >>> fill_prompts(["airplane", "fire_truck"], ["a photo of a {}"])
    (('a photo of an airplane',), ('a photo of a fire truck',))
    """
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"prompts must be a sequence of at least one, found {prompts!r}")
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise InputError(f"a prompt must have one {{}} for the label, found {prompt!r}")
    spoken = [str(word).replace("_", " ").strip() for word in words]
    if "" in spoken:
        raise InputError(f"word {spoken.index('')} for the prompts is empty")
    return tuple(tuple(_filled(prompt, word) for prompt in prompts) for word in spoken)


def _filled(prompt: str, word: str) -> str:
    if word[0].lower() in "aeiou":
        prompt = re.sub(r"\b([Aa]) \{\}", r"\1n {}", prompt)
    return prompt.replace("{}", word)


def labelled(stimuli: StimulusSet, column: str, prompts: Sequence[str] = PROMPTS) -> StimulusSet:
    """The same stimuli with captions made from a label: one caption a prompt, in place of those they had.

    Parameters
    ----------
    stimuli : StimulusSet
    column : str
        Label column of words (or whole numbers).
    prompts : sequence of str
        Each with one ``{}``.

    Raises
    ------
    InputError
        For a column that is not there or holds fractions, for empty labels (named by stimulus), wrong prompts.

    Examples
    --------
    >>> pets = StimulusSet(["a", "b"], labels={"kind": ["cat", "owl"]})
    >>> labelled(pets, "kind", ["a {}"]).captions
    (('a cat',), ('an owl',))
    """
    words = stimuli.labels[column]
    if words.dtype.kind not in "Uiu":
        raise InputError(f"label column {column!r} must hold words, found {words.dtype}")
    empty = [name for name, word in zip(stimuli.ids.tolist(), words.tolist(), strict=True) if not str(word).strip()]
    if empty:
        raise InputError(f"{len(empty)} stimuli have no {column!r}, such as {', '.join(empty[:5])}")
    texts = {word: fill_prompts([str(word)], prompts)[0] for word in dict.fromkeys(words.tolist())}
    return stimuli.with_captions([texts[word] for word in words.tolist()])


def check_captions(stimuli: StimulusSet) -> None:
    """Refuse stimuli to learn words from of which some have no caption, or an empty one.

    Raises
    ------
    InputError
        Counting them and naming the first.
    """
    for what, hint, wrong in (
        ("have no caption", _SOURCES, [not texts for texts in stimuli.captions]),
        ("have an empty caption", "", [any(not text.strip() for text in texts) for texts in stimuli.captions]),
    ):
        names = [name for name, bad in zip(stimuli.ids.tolist(), wrong, strict=True) if bad]
        if names:
            raise InputError(f"{len(names)} of {len(stimuli)} stimuli {what}, such as {', '.join(names[:5])}{hint}")


def read_class_folders(
    path: str | Path, size: int | None = None, *, part: str = "", column: str = "category", fit: bool = False
) -> StimulusSet:
    """Read pictures sorted into folders named after their classes: ``<class>/<picture>``, in a folder or a zip file.

    Parameters
    ----------
    path : str or Path
        The folder above the classes, or a zip archive (read without unpacking).
    size : int, optional
        Centre-crop and resize to ``size x size`` pixels; needed when the files differ in size.
    part : str
        Folder inside `path` that holds the classes, such as ``"train"``.
    column : str
        Label column for the class.
    fit : bool
        Where the pictures differ in size and none is given, take the median of their shorter sides.

    Returns
    -------
    StimulusSet
        Ids ``<class>-<file name without suffix>``, sorted by class and name; :func:`labelled` gives them captions.

    Raises
    ------
    InputError
        When there are no such folders, for an unreadable archive or picture.
    """
    path = Path(path)
    found = _in_archive(path, part) if path.is_file() else _in_folder(path / part)
    if not found:
        raise InputError(f"{path / part} holds no folders of images ({', '.join(IMAGE_SUFFIXES)}) named after classes")
    files: list[ImageFile] = [file for _, _, file in found]
    if fit and size is None and (size := common_side(files)) is not None:
        log.info("%s: pictures of different sizes, centre-cropped and resized to %d x %d pixels", path, size, size)
    return StimulusSet(
        [f"{kind}-{name}" for kind, name, _ in found],
        pixels=ImageFiles(files, size),
        labels={column: [kind for kind, _, _ in found]},
    )


def _in_folder(folder: Path) -> list[tuple[str, str, ImageFile]]:
    if not folder.is_dir():
        raise InputError(f"{folder} is neither a folder nor a zip archive")
    return [
        (kind.name, file.stem, file)
        for kind in sorted(folder.iterdir())
        if kind.is_dir()
        for file in sorted(kind.iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]


def _in_archive(archive: Path, part: str) -> list[tuple[str, str, ImageFile]]:
    above = PurePosixPath(part).parts
    found: list[tuple[str, str, ImageFile]] = []
    for name in sorted(list_archive(archive)):
        inside = PurePosixPath(name)
        if inside.suffix.lower() in IMAGE_SUFFIXES and inside.parts[:-2] == above:
            found.append((inside.parts[-2], inside.stem, ArchiveMember(archive, name)))
    return found
