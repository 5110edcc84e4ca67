"""One self-describing HDF5 file for a whole study: streamed in, read lazily, checksummed, written atomically.

Layout (version 1)::

    /                      attributes: format, version, software, name, scaling, unit, licence, citation, recipe,
                           digest
    /stimuli/ids, hashes   (n,) text
    /stimuli/pixels        (n, H, W, 3) or (n, frames, H, W, 3) uint8, one stimulus a chunk (where there are pixels)
    /stimuli/captions      text (m,) and row (m,): caption m belongs to stimulus row[m]
    /stimuli/labels        a table: one dataset a column
    /recordings/<subject>  attributes: space, affine ...; responses (trials, voxels) chunked by trial, with Fletcher-32
                           sums of every chunk and a SHA-256 over all; tables trials and voxels
    /splits/<name>         (n,) text: the role of every stimulus
    /scaling/<name>/<subject>   sessions, mean, deviation taken from the training trials of that split
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from phosphene._version import __version__
from phosphene.errors import InputError, unknown
from phosphene.files import atomic_path
from phosphene.recordings.recording import Recording, complete_trials
from phosphene.recordings.scaling import SCALINGS, SessionScaler
from phosphene.recordings.study import Splits, Study, content_digest, roles_of
from phosphene.stimuli import StimulusSet
from phosphene.table import Table

__all__ = ["FORMAT", "RecordingWriter", "StudyWriter", "open_study", "save_study", "verify"]

FORMAT, VERSION = "phosphene-study", 1
_CHUNK_BYTES = 64 * 2**10
_ROOM = 2**20
_TEXT = h5py.string_dtype()


@contextmanager
def _new_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for writing that can be closed on a full disk too.

    HDF5 keeps what it could not write and tries again when the file is closed, and when the process ends; failing there
    it crashes the process. So there must be room for the small things before it begins, and a file that will be thrown
    away gets its rest written to nowhere.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as probe:
            os.posix_fallocate(probe.fileno(), 0, _ROOM)
    file = h5py.File(path, "w")
    descriptor = file.id.get_vfd_handle()
    try:
        yield file
        file.flush()
    except BaseException:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
        raise
    finally:
        _closed(file)


def _closed(file: h5py.File, attempts: int = 3) -> None:
    """Close; the first attempt may still meet what had failed before."""
    for attempt in range(attempts):
        try:
            file.close()
            return
        except (OSError, RuntimeError):
            if attempt == attempts - 1:
                raise


class RecordingWriter:
    """Takes one person's responses block by block."""

    def __init__(self, group: h5py.Group, subject: str, shape: tuple[int, int], dtype: str) -> None:
        self._subject = subject
        self._row = 0
        self._sha = hashlib.sha256()
        rows = max(1, min(shape[0] or 1, _CHUNK_BYTES // max(1, shape[1] * np.dtype(dtype).itemsize)))
        self._data = group.create_dataset(
            "responses", shape=shape, dtype=dtype, chunks=(rows, max(1, shape[1])), fletcher32=True
        )

    def append(self, block: Any) -> None:
        """Write the next trials, ``(n, voxels)``.

        Raises
        ------
        InputError
            For a wrong voxel count, too many trials, or values that are not finite.
        """
        block = np.asarray(block)
        if block.ndim != 2 or block.shape[1] != self._data.shape[1]:
            raise InputError(
                f"{self._subject}: responses must be (trials, {self._data.shape[1]} voxels), found shape {block.shape}"
            )
        if self._row + len(block) > self._data.shape[0]:
            raise InputError(
                f"{self._subject}: more than the {self._data.shape[0]} trials of the trials table were given"
            )
        block = block.astype(self._data.dtype)
        finite = np.isfinite(block)
        if not finite.all():
            trial, voxel = np.argwhere(~finite)[0]
            raise InputError(
                f"{self._subject}: {np.sum(~finite)} responses are NaN or infinite, the first in trial "
                f"{self._row + trial} at voxel {voxel}; mask such voxels or drop such trials first"
            )
        self._data[self._row : self._row + len(block)] = block
        self._sha.update(np.ascontiguousarray(block).tobytes())
        self._row += len(block)

    def finish(self) -> None:
        """Check that every trial came, and note the checksum."""
        if self._row != self._data.shape[0]:
            raise InputError(
                f"{self._subject}: the trials table has {self._data.shape[0]} rows, "
                f"the responses have {self._row} trials"
            )
        self.sha256 = self._sha.hexdigest()
        self._data.attrs["sha256"] = self.sha256


class StudyWriter:
    """Write a study piece by piece; the file appears at `path` only when the block ends well.

    Parameters
    ----------
    path : str or Path
        The study file.
    name, scaling, unit, licence, citation, recipe, stimuli_alone
        As of `Study`.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "study.h5"
    >>> with StudyWriter(path, name="tiny", scaling="none") as writer:
    ...     writer.stimuli(StimulusSet(["a"]))
    ...     person = writer.recording("sub-01", Table({"stimulus_id": ["a"]}), Table({"i": [0], "j": [0], "k": [0]}))
    ...     person.append(np.ones((1, 1)))
    >>> Study.open(path).subjects
    ['sub-01']
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str = "study",
        scaling: str = "session",
        unit: str | None = None,
        licence: str = "",
        citation: str = "",
        recipe: Mapping[str, Any] | None = None,
        stimuli_alone: bool = False,
    ) -> None:
        if scaling not in SCALINGS:
            raise unknown("scaling", scaling, SCALINGS)
        self._stimuli_alone = stimuli_alone
        self._path = Path(path)
        self._facts = {
            "format": FORMAT,
            "version": VERSION,
            "software": f"phosphene {__version__}",
            "name": name,
            "scaling": scaling,
            "unit": unit or "",
            "licence": licence,
            "citation": citation,
            "recipe": json.dumps(dict(recipe or {})),
        }
        self._stimuli: StimulusSet | None = None
        self._splits: Splits = {}
        self._people: dict[str, RecordingWriter] = {}

    def __enter__(self) -> StudyWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            self._file = stack.enter_context(_new_file(temporary))
            self._file.attrs.update(self._facts)
            self._file.create_group("recordings")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with self._stack:  # whatever is raised in here leaves nothing behind at the path
            if error is not None:
                raise error
            self._finish()

    def stimuli(self, stimuli: StimulusSet) -> None:
        """Write the stimuli: call once, before `splits`."""
        self._stimuli = stimuli
        group = self._file.create_group("stimuli")
        group.create_dataset("ids", data=stimuli.ids.astype(object), dtype=_TEXT)
        if stimuli.fps is not None:
            group.attrs["fps"] = stimuli.fps
        if stimuli.frame_shape is not None:
            shape = (len(stimuli), *stimuli.frame_shape)
            pixels = group.create_dataset(
                "pixels", shape=shape, dtype="uint8", chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
            )
            for rows, block in stimuli.blocks():
                pixels[rows] = block
            if not stimuli.hashes_known:  # taken from what was written, so that a slow source is walked through once
                stimuli = StimulusSet(stimuli.ids, pixels, stimuli.captions, stimuli.labels, stimuli.fps)
        group.create_dataset("hashes", data=stimuli.hashes.astype(object), dtype=_TEXT)
        captions = group.create_group("captions")
        text = [caption for several in stimuli.captions for caption in several]
        row = np.repeat(np.arange(len(stimuli)), [len(several) for several in stimuli.captions])
        captions.create_dataset("text", data=np.array(text, dtype=object), dtype=_TEXT)
        captions.create_dataset("row", data=row)
        stimuli.labels.write_hdf5(group.create_group("labels"))

    def recording(
        self,
        subject: str,
        trials: Table,
        voxels: Table,
        n_voxels: int | None = None,
        dtype: str = "float32",
        **meta: Any,
    ) -> RecordingWriter:
        """Begin a person; append the responses in the order of `trials`.

        Parameters
        ----------
        subject : str
            A name not yet in the file.
        trials, voxels : Table
            As of `Recording`.
        n_voxels : int, optional
            For checking: must be the length of `voxels`.
        dtype : {"float32", "float16"}
            How responses are stored.
        **meta
            ``space, affine, volume_shape, n_vertices, tr, delay`` as of `Recording`.
        """
        if subject in self._people:
            raise InputError(f"subject {subject!r} occurs twice")
        if n_voxels is not None and n_voxels != len(voxels):
            raise InputError(
                f"{subject}: the voxels table has {len(voxels)} rows, the responses have {n_voxels} voxels"
            )
        shape = (len(trials), len(voxels))
        # building the recording checks names, tables and meta before anything is written
        described = Recording(subject, np.broadcast_to(np.float32(0), shape), trials, voxels, **meta)
        group = self._file["recordings"].create_group(subject)
        group.attrs["order"] = len(self._people)
        group.attrs["meta"] = json.dumps(described.meta())
        complete_trials(trials, subject).write_hdf5(group.create_group("trials"))
        voxels.write_hdf5(group.create_group("voxels"))
        self._people[subject] = RecordingWriter(group, subject, shape, dtype)
        return self._people[subject]

    def splits(self, splits: Splits) -> None:
        """Set the named splits by stimulus."""
        self._splits = splits

    def _finish(self) -> None:
        if self._stimuli is None:
            raise InputError(f"{self._path}: no stimuli were written")
        for person in self._people.values():
            person.finish()
        group = self._file.create_group("splits", track_order=True)
        for split, roles in self._splits.items():
            of = roles_of(split, roles, self._stimuli)
            group.create_dataset(split, data=of.astype(object), dtype=_TEXT)
        study = _read(self._file, self._path, self._stimuli_alone)
        if study.scaling == "session":
            self._write_scaling(study)
        shas = {subject: str(person.sha256) for subject, person in self._people.items()}
        self._file.attrs["digest"] = content_digest(study, shas)

    def _write_scaling(self, study: Study) -> None:
        for split in study.split_names:
            for subject in study.subjects:
                scaler = study.using(split).scaler(subject)
                assert scaler is not None
                group = self._file.create_group(f"scaling/{split}/{subject}")
                group.attrs["source"] = scaler.source
                group.create_dataset("sessions", data=scaler.sessions)
                group.create_dataset("mean", data=scaler.mean)
                group.create_dataset("deviation", data=scaler.deviation)


def save_study(study: Study, path: str | Path) -> Path:
    """Write `study` into one file; returns its path."""
    facts = {name: getattr(study, name) for name in ("name", "scaling", "unit", "licence", "citation", "recipe")}
    with StudyWriter(path, **facts, stimuli_alone=not study.recordings) as writer:
        writer.stimuli(study.stimuli)
        for subject, recording in study.recordings.items():
            dtype = str(getattr(recording.responses, "dtype", "float32"))
            person = writer.recording(
                subject,
                recording.trials,
                recording.voxels,
                dtype=dtype if dtype in ("float16", "float32") else "float32",
                **recording.meta(),
            )
            for _, block in recording.blocks():
                person.append(block)
        writer.splits({split: study.roles(split) for split in study.split_names})
    return Path(path)


def open_study(path: str | Path, stimuli_alone: bool = False) -> Study:
    """Open a study file lazily; see `Study.open`."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is not a readable HDF5 file (truncated or damaged): {error}") from error
    try:
        if file.attrs.get("format") != FORMAT:
            raise InputError(
                f"{path} is not a phosphene study (no format mark {FORMAT!r}); see: phosphene import --help"
            )
        if int(file.attrs["version"]) > VERSION:
            raise InputError(f"{path} was written by a newer phosphene ({file.attrs['software']}); update to read it")
        study = _read(file, path, stimuli_alone)
        study._stored_digest = str(file.attrs["digest"])
    except (KeyError, OSError, RuntimeError) as error:
        file.close()
        raise InputError(f"{path} is a damaged study file: {error}") from error
    except InputError:
        file.close()
        raise
    study._close = file.close
    return study


def verify(path: str | Path) -> list[str]:
    """Read everything once and compare with the checksums; returns what is wrong, in words."""
    wrong = []
    with open_study(path) as study:
        for subject, recording in study.recordings.items():
            data: Any = recording.responses
            sha = hashlib.sha256()
            try:
                for start in range(0, recording.n_trials, 256):
                    sha.update(np.ascontiguousarray(data[start : start + 256]).tobytes())
            except OSError as error:
                wrong.append(f"{subject}: responses are damaged ({error})")
                continue
            if sha.hexdigest() != data.attrs["sha256"]:
                wrong.append(f"{subject}: responses differ from their checksum")
    return wrong


def _read(file: h5py.File, path: Path, stimuli_alone: bool) -> Study:
    shown = file["stimuli"]
    ids = shown["ids"].asstr()[...]
    captions: list[list[str]] = [[] for _ in ids]
    for row, text in zip(shown["captions/row"][...], shown["captions/text"].asstr()[...], strict=True):
        captions[row].append(text)
    stimuli = StimulusSet(
        ids,
        pixels=shown.get("pixels"),
        captions=captions,
        labels=Table.read_hdf5(shown["labels"]),
        fps=float(shown.attrs["fps"]) if "fps" in shown.attrs else None,
        hashes=shown["hashes"].asstr()[...],
    )
    groups = sorted(file["recordings"].items(), key=lambda item: int(item[1].attrs["order"]))
    recordings = [
        Recording(
            subject,
            group["responses"],
            Table.read_hdf5(group["trials"]),
            Table.read_hdf5(group["voxels"]),
            **json.loads(group.attrs["meta"]),
        )
        for subject, group in groups
    ]
    splits = {
        split: {role: ids[of == role] for role in _in_order(of) if role}
        for split, of in ((name, data.asstr()[...]) for name, data in file["splits"].items())
    }
    facts = {name: str(file.attrs[name]) for name in ("name", "scaling", "licence", "citation")}
    study = Study(
        stimuli,
        recordings,
        splits,
        unit=str(file.attrs["unit"]) or None,
        recipe=json.loads(file.attrs["recipe"]),
        stimuli_alone=stimuli_alone,
        **facts,
    )
    for split, people in file.get("scaling", {}).items():
        for subject, group in people.items():
            study._scalers[split, subject, None] = SessionScaler(
                group["sessions"][...], group["mean"][...], group["deviation"][...], str(group.attrs["source"])
            )
    return study


def _in_order(roles: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(roles))
