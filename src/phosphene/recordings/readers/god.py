"""Generic Object Decoding (Horikawa and Kamitani 2017): one bdpy HDF5 file a person, columns told by metadata.

A file is a table of samples by columns; metadata say of every column whether it is a voxel (and of which region), a
label or a fact of the design. Two spellings are read::

    Subject1.h5    dataSet (samples, columns)    metaData/key, metaData/value (keys, columns), metaData/description
    Subject1.h5    dataset (samples, columns)    metadata/key, metadata/value (keys, columns), metadata/description
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.files import scratch_folder
from phosphene.recordings.readers.staging import Staged
from phosphene.recordings.readers.tree import Needs
from phosphene.recordings.recording import ROI_PREFIX
from phosphene.recordings.store import StudyWriter
from phosphene.stimuli import ImageFiles, StimulusSet
from phosphene.stimuli.folder import IMAGE_SUFFIXES
from phosphene.table import Table

__all__ = ["import_god"]

log = logging.getLogger(__name__)

LICENCE = "as stated at figshare 7387130; pictures: ImageNet terms, on request from the authors"
CITATION = (
    "Horikawa, Kamitani. Generic decoding of seen and imagined objects using hierarchical visual features. "
    "Nature Communications 8, 15037 (2017). doi:10.1038/ncomms15037"
)
HINT = "Which files, from where: docs/readers.md."
ROLES = {1: "train", 2: "test", 3: "imagery"}
EXPECTED = {"train": 1200, "test": 1750}
_SPELLINGS = (("dataSet", "metaData"), ("dataset", "metadata"))
_DESIGN = {"Session": "session", "Run": "run", "Block": "block", "image_index": "image_index"}
_BLOCK = 256


@dataclass(frozen=True)
class _Person:
    """One person's file: what its columns are."""

    name: str
    path: Path
    data: str
    values: dict[str, np.ndarray]

    def column(self, key: str) -> np.ndarray | None:
        """The sample column a key marks, by its place; None where there is none."""
        if key not in self.values:
            return None
        return np.flatnonzero(self.values[key] == 1)


def import_god(
    path: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[int] | None = None,
    roi: str = "VC",
    imagery: bool = False,
    images: str | Path | None = None,
    image_size: int | None = None,
) -> Path:
    """Read the preprocessed GOD files into one study file.

    Parameters
    ----------
    path : str or Path
        The folder with ``Subject1.h5`` to ``Subject5.h5``.
    out : str or Path
        The study file to write.
    subjects : sequence of int, optional
        1 to 5. Default: every file that is there.
    roi : str
        Voxels of this region (``VC``: all of visual cortex), or ``all`` that have any region.
    imagery : bool
        Whether imagery trials come too, as stimuli of their own (``imagery-...``) in the role ``imagery``.
    images : str or Path, optional
        Folder with the pictures (``n01518878_10042.JPEG``, in any subfolder). Imagery shows the test picture of its
        category: what was imagined, not what was seen.
    image_size : int, optional
        Centre-crop and resize pictures to N x N.

    Raises
    ------
    InputError
        With the list of everything that is missing or damaged.
    """
    root = Path(path)
    people = _survey(root, subjects, roi)
    trials = {person.name: _trials(person, imagery) for person in people}
    ids, category, role = _shown(trials)
    pixels = _pixels(Path(images), ids, category, role, image_size) if images is not None else None
    stimuli = StimulusSet(ids, pixels=pixels, labels={"category": category})
    with scratch_folder(out) as scratch:
        read = {person.name: _stage(person, roi, trials[person.name], scratch) for person in people}
        recipe = {
            "reader": "god",
            "mask": f"ROI_{roi}" if roi != "all" else "any ROI",
            "unit": "as published: one value a stimulus block, normalised by the authors",
            "voxels_left_out": {name: staged.dropped for name, (_, staged) in read.items()},
        }
        with StudyWriter(
            out, name="god", scaling="none", unit="category", licence=LICENCE, citation=CITATION, recipe=recipe
        ) as writer:
            writer.stimuli(stimuli)
            for name, (voxels, staged) in read.items():
                columns = [column for column in trials[name].columns if column not in ("row", "role", "category")]
                table = Table({column: trials[name][column] for column in columns})
                recording = writer.recording(name, table, voxels.take(staged.keep), space="native")
                for block in staged.blocks():
                    recording.append(block)
            writer.splits({"default": {kind: ids[role == kind] for kind in ROLES.values() if np.any(role == kind)}})
    return Path(out)


def _survey(root: Path, subjects: Sequence[int] | None, roi: str) -> list[_Person]:
    needs = Needs(root, "GOD", HINT)
    if subjects is None:
        numbers = [n for n in range(1, 6) if (root / f"Subject{n}.h5").is_file()]
        if not numbers:
            needs.add("Subject1.h5 (or another person's)")
    else:
        wrong = [n for n in subjects if n not in range(1, 6)]
        if wrong:
            raise unknown("GOD subject", wrong[0], map(str, range(1, 6)))
        numbers = sorted(set(subjects))
    people = []
    for number in numbers:
        path = needs.file(f"Subject{number}.h5", "responses and design")
        person = _describe(needs, number, path) if path.is_file() else None
        if person is not None:
            for key in ("DataType", "stimulus_id"):
                if person.column(key) is None:
                    needs.add(f"{path.name}: metadata key {key} (known: {', '.join(person.values)})")
            if roi != "all" and f"ROI_{roi}" not in person.values:
                needs.add(f"{path.name}: metadata key ROI_{roi} (known: {', '.join(_regions(person))})")
            people.append(person)
    needs.check()
    return people


def _regions(person: _Person) -> list[str]:
    return [key for key in person.values if key.startswith("ROI_")]


def _describe(needs: Needs, number: int, path: Path) -> _Person | None:
    try:
        with h5py.File(path, "r") as file:
            for data, meta in _SPELLINGS:
                if data in file and meta in file and {"key", "value"} <= set(file[meta]):
                    keys = [_text(key) for key in file[meta]["key"][...].ravel().tolist()]
                    values = np.asarray(file[meta]["value"][...], dtype=np.float64)
                    width = file[data].shape[1] if file[data].ndim == 2 else -1
                    if values.shape != (len(keys), width):
                        needs.add(
                            f"{path.name}: metadata of shape {values.shape} for {len(keys)} keys and {width} columns"
                        )
                        return None
                    return _Person(f"sub-{number:02d}", path, data, dict(zip(keys, values, strict=True)))
            needs.add(
                f"{path.name}: dataSet with metaData, or dataset with metadata; found {', '.join(file) or 'nothing'}"
            )
    except (OSError, KeyError, ValueError) as error:
        needs.add(f"{path.name}: truncated or damaged ({error})")
    return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def _opened(person: _Person) -> Iterator[Any]:
    try:
        with h5py.File(person.path, "r") as file:
            yield file[person.data]
    except OSError as error:
        if isinstance(error, InputError) or error.errno is not None:
            raise
        raise InputError(f"{person.path} is truncated or damaged: {error}") from error


def _trials(person: _Person, imagery: bool) -> Table:
    with _opened(person) as data:
        read: dict[str, np.ndarray] = {}
        for key in ("DataType", "stimulus_id", *_DESIGN):
            columns = person.column(key)
            if columns is not None and len(columns):
                read[key] = data[:, int(columns[0])].astype(np.float64)
    kind = read["DataType"]
    strange = np.setdiff1d(kind, list(ROLES))
    if len(strange):
        raise InputError(
            f"{person.path}: DataType must be 1 (train), 2 (test) or 3 (imagery), found {strange.tolist()}"
        )
    rows = np.flatnonzero((kind != 3) | imagery)
    role = np.array([ROLES[int(k)] for k in kind[rows]])
    for name, expected in EXPECTED.items():
        if np.sum(role == name) != expected:
            log.warning("%s: %d %s trials, GOD has %d", person.name, np.sum(role == name), name, expected)
    names = [stimulus_name(value) for value in read["stimulus_id"][rows]]
    ids = [f"imagery-{name}" if of == "imagery" else name for name, of in zip(names, role, strict=True)]
    design = {column: read[key][rows].astype(np.int64) for key, column in _DESIGN.items() if key in read}
    category = [name.split("_")[0] for name in names]
    return Table({"stimulus_id": ids, **design, "row": rows, "role": role, "category": category})


def stimulus_name(value: float) -> str:
    """Picture name of a stimulus number: synset before the point, picture in six places after it.

    Examples
    --------
    >>> stimulus_name(1518878.010042)
    'n01518878_10042'
    """
    synset = int(np.floor(value + 5e-7))
    picture = round((value - synset) * 1e6)
    return f"n{synset:08d}_{picture}" if picture else f"n{synset:08d}"


def _shown(trials: dict[str, Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, categories and roles of all stimuli."""
    said: dict[str, tuple[str, str]] = {}
    for table in trials.values():
        for name, category, role in zip(table["stimulus_id"], table["category"], table["role"], strict=True):
            if said.setdefault(str(name), (str(category), str(role)))[1] != role:
                raise InputError(f"stimulus {name} is of the parts {said[str(name)][1]} and {role}")
    ids = np.array(sorted(said), dtype=str)
    return ids, np.array([said[name][0] for name in ids.tolist()]), np.array([said[name][1] for name in ids.tolist()])


def _pixels(
    folder: Path, ids: np.ndarray, category: np.ndarray, role: np.ndarray, image_size: int | None
) -> ImageFiles:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    files = {f.stem: f for f in sorted(folder.rglob("*")) if f.suffix.lower() in IMAGE_SUFFIXES}
    imagined = {
        c: name for name, c, r in zip(ids.tolist(), category.tolist(), role.tolist(), strict=True) if r == "test"
    }
    needs = Needs(folder, "GOD picture", HINT)
    chosen = []
    for name, of, part in zip(ids.tolist(), category.tolist(), role.tolist(), strict=True):
        shown = imagined.get(of, f"test picture of {of}") if part == "imagery" else name
        if shown in files:
            chosen.append(files[shown])
        else:
            needs.add(f"{shown}.JPEG")
    needs.check()
    return ImageFiles(chosen, image_size)


def _stage(person: _Person, roi: str, trials: Table, scratch: Path) -> tuple[Table, Staged]:
    """Voxels in the order of the file, and their responses."""
    regions = {key: person.values[key] == 1 for key in _regions(person)}
    inside = np.any(list(regions.values()), axis=0) if roi == "all" else regions[f"ROI_{roi}"]
    columns = np.flatnonzero(inside)
    if not len(columns):
        raise InputError(f"{person.path}: no voxel is in region {roi}")
    table: dict[str, Any] = {"voxel": columns}
    for axes in ("xyz", "ijk"):
        if all(f"voxel_{axis}" in person.values for axis in axes):
            dtype = np.int64 if axes == "ijk" else np.float64
            table |= {axis: person.values[f"voxel_{axis}"][columns].astype(dtype) for axis in axes}
    table |= {f"{ROI_PREFIX}{key[len('ROI_') :]}": mask[columns] for key, mask in regions.items()}
    staged = Staged(scratch / person.name, len(columns))
    rows = trials["row"]
    with _opened(person) as data:
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            block = data[part[0] : part[-1] + 1][part - part[0]]
            staged.append(block[:, columns], session=1)
    staged.finish()
    return Table(table), staged
