"""The study folder: the plain layout a lab can produce in an hour (see docs/study_folder.md).

::

    my-study/
      study.json        optional: name, licence, citation, scaling, unit
      stimuli.tsv       stimulus_id and any label columns (optional where the pictures or events name the stimuli)
      captions.tsv      stimulus_id, caption: as many rows a stimulus as there are captions (optional)
      splits.tsv        stimulus_id and one column a split with the roles train, test ... (optional)
      stimuli/          <stimulus_id>.png, or a folder of frames <stimulus_id>/ (optional)
      sub-01/
        trials.tsv      one row a response: stimulus_id, and session, run, onset, repeat where known
        responses.npy   (trials, voxels); or responses.nii[.gz], (x, y, z, trials) with mask.nii[.gz]
        voxels.tsv      i, j, k or vertex, hemisphere; x, y, z; ncsnr; roi_<NAME> (optional; made from a mask)
        roi_<NAME>.nii[.gz]   regions on the mask's grid (optional)
        recording.json  optional: space, affine, volume_shape, n_vertices, tr, delay
        func/           instead of trials and responses: *_bold.nii.gz with *_events.tsv; delay in recording.json
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np

from phosphene.errors import InputError
from phosphene.files import read_json
from phosphene.recordings.folds import folds_by, holdout
from phosphene.recordings.readers.blocks import find_runs, load_image, read_runs
from phosphene.recordings.recording import ROI_PREFIX
from phosphene.recordings.store import StudyWriter
from phosphene.settings import Settings
from phosphene.stimuli import ImageFiles, StimulusSet
from phosphene.stimuli.folder import find_images, read_captions
from phosphene.table import Table

__all__ = ["Person", "find_nifti", "import_folder", "name_events", "pack", "read_mask", "stack_tables", "voxel_columns"]

log = logging.getLogger(__name__)

_BLOCK = 256
_DELAY = 5.0  # s, two volumes of the usual TR of 2 to 2.5 s


class StudyFacts(Settings):
    """What ``study.json`` may say."""

    name: str = ""
    licence: str = ""
    citation: str = ""
    scaling: Literal["session", "none"] = "session"
    unit: str | None = None


class RecordingFacts(Settings):
    """What ``recording.json`` may say."""

    space: str = "unknown"
    affine: list[list[float]] | None = None
    volume_shape: tuple[int, int, int] | None = None
    n_vertices: tuple[int, int] | None = None
    tr: float | None = None
    delay: float | None = None


@dataclass
class Person:
    """One person's tables, and where the responses come from."""

    subject: str
    trials: Table
    voxels: Table
    facts: dict[str, Any]
    source: Any = field(repr=False)

    def blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.trials), _BLOCK):
            yield np.asarray(self.source[start : start + _BLOCK])
        # rows beyond the trials table are not dropped in silence: the writer refuses them
        if len(self.source) > len(self.trials):
            yield np.asarray(self.source[len(self.trials) :])


def import_folder(
    path: str | Path,
    out: str | Path,
    *,
    image_size: int | None = None,
    folds_column: str | None = None,
    folds: int | None = None,
    seed: int = 0,
    stimuli_alone: bool = False,
) -> Path:
    """Read a study folder into one study file.

    Parameters
    ----------
    path : str or Path
        The folder.
    out : str or Path
        The study file to write.
    image_size : int, optional
        Centre-crop and resize pictures to so many pixels.
    folds_column : str, optional
        Add splits by this label column (or ``"stimulus_id"``): `folds` of them, or one for each group left out.
    folds : int, optional
        Number of folds.
    seed : int
        Of folds and of the holdout that is made where neither `splits.tsv` nor `folds_column` says anything.
    stimuli_alone : bool
        There are no people, but pictures, captions and labels of a site without a brain; all of them are for training
        where nothing says otherwise. Such a file is opened by ``Study.open(path, stimuli_alone=True)`` alone.

    Raises
    ------
    InputError
        Naming the file and line that is missing or wrong.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and f.name.startswith("sub-"))
    if stimuli_alone and (folders or not (root / "stimuli.tsv").exists()):
        raise InputError(
            f"{root} holds people, or no stimuli.tsv: stimuli alone are listed there, and nobody has seen them"
        )
    if not folders and not stimuli_alone:
        raise InputError(f"{root} holds no folder of a person (sub-01, sub-02 ...)")
    people = [_read_person(folder) for folder in folders]
    return pack(
        root,
        out,
        people,
        "folder",
        image_size=image_size,
        folds_column=folds_column,
        folds=folds,
        seed=seed,
        stimuli_alone=stimuli_alone,
    )


def pack(
    root: Path,
    out: str | Path,
    people: list[Person],
    reader: str,
    *,
    image_size: int | None = None,
    folds_column: str | None = None,
    folds: int | None = None,
    seed: int = 0,
    stimuli_alone: bool = False,
) -> Path:
    """Write people into a study file, with what `root` says of stimuli, captions, splits and facts.

    Parameters are those of `import_folder`; `reader` is noted in the recipe.
    """
    facts = StudyFacts.build(read_json(root / "study.json") if (root / "study.json").exists() else {})
    stimuli = read_stimuli(root, people, image_size)
    splits = read_splits(root, stimuli)
    if folds_column is not None:
        splits |= folds_by(stimuli, folds_column, folds, seed)
    if not splits and stimuli_alone:
        splits = {"default": {"train": stimuli.ids}}
    if not splits:
        splits = {"default": holdout(stimuli, facts.unit or "stimulus_id", seed=seed)}
        log.warning("no splits.tsv: a seeded fifth of the stimuli is kept for test (split 'default')")
    with StudyWriter(
        out,
        name=facts.name or root.resolve().name,
        scaling=facts.scaling,
        unit=facts.unit,
        licence=facts.licence,
        citation=facts.citation,
        recipe={"reader": reader, "people": {p.subject: p.facts["made_from"] for p in people}},
        stimuli_alone=stimuli_alone,
    ) as writer:
        writer.stimuli(stimuli)
        for person in people:
            meta = {key: value for key, value in person.facts.items() if key != "made_from"}
            recording = writer.recording(person.subject, person.trials, person.voxels, **meta)
            for block in person.blocks():
                recording.append(block)
        writer.splits(splits)
    return Path(out)


def read_stimuli(root: Path, people: list[Person], image_size: int | None) -> StimulusSet:
    if (root / "stimuli.tsv").exists():
        table = Table.read_tsv(root / "stimuli.tsv", required=("stimulus_id",))
        ids = table["stimulus_id"].astype(str)
        labels = Table({name: table[name] for name in table.columns if name != "stimulus_id"}, rows=len(table))
    else:
        ids, labels = _shown(people)
    pixels = None
    if (root / "stimuli").is_dir():
        files = find_images(root / "stimuli", ids.tolist())
        pixels = ImageFiles(list(files.values()), image_size)
    captions = read_captions(root / "captions.tsv", ids.tolist()) if (root / "captions.tsv").exists() else None
    return StimulusSet(ids, pixels=pixels, captions=captions, labels=labels)


def _shown(people: list[Person]) -> tuple[np.ndarray, Table]:
    """Without a list, stimuli are what was shown; what trials always say alike of a stimulus becomes its label."""
    records = [record for person in people for record in person.trials.to_records()]
    names = [str(record["stimulus_id"]) for record in records]
    ids = np.array(sorted(set(names)), dtype=str)
    labels = {}
    for column in ("label", "session", "run"):
        if all(column in record for record in records):
            said = {(name, record[column]) for name, record in zip(names, records, strict=True)}
            if len(said) == len(ids):
                labels[column] = [value for _, value in sorted(said)]
    return ids, Table(labels, rows=len(ids))


def read_splits(root: Path, stimuli: StimulusSet) -> dict[str, dict[str, np.ndarray]]:
    path = root / "splits.tsv"
    if not path.exists():
        return {}
    table = Table.read_tsv(path, required=("stimulus_id",))
    ids = table["stimulus_id"].astype(str)
    splits = {}
    for name in table.columns:
        if name != "stimulus_id":
            roles = table[name].astype(str)
            splits[name] = {role: ids[roles == role] for role in np.unique(roles) if role not in ("", "n/a")}
    if not splits:
        raise InputError(f"{path}: no column besides stimulus_id; name a split by its column, e.g. default")
    stimuli.rows(ids)  # an unknown id is found here, not when a fold is used
    return splits


def _read_person(folder: Path) -> Person:
    facts = RecordingFacts.build(read_json(folder / "recording.json") if (folder / "recording.json").exists() else {})
    if (folder / "func").is_dir():
        return _from_bold(folder, facts)
    trials = Table.read_tsv(folder / "trials.tsv", required=("stimulus_id",))
    array = folder / "responses.npy"
    volume = find_nifti(folder, "responses")
    if array.exists():
        return _from_array(folder, array, trials, facts)
    if volume is not None:
        return _from_volume(folder, volume, trials, facts)
    raise InputError(f"{folder}: missing responses.npy, responses.nii.gz or func/ with *_bold.nii.gz")


def _from_array(folder: Path, path: Path, trials: Table, facts: RecordingFacts) -> Person:
    try:
        source = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable array of numbers: {error}") from error
    if source.ndim != 2 or source.dtype.kind not in "fiu":
        raise InputError(f"{path}: responses must be numbers (trials, voxels), found {source.dtype} {source.shape}")
    if (folder / "voxels.tsv").exists():
        voxels = Table.read_tsv(folder / "voxels.tsv")
        if len(voxels) != source.shape[1]:
            raise InputError(
                f"{folder}: the voxels table has {len(voxels)} rows, the responses have {source.shape[1]} voxels"
            )
    else:
        voxels = Table({"voxel": np.arange(source.shape[1])})
    made_from = {"responses": path.name, "mask": "none"}
    return Person(folder.name, trials, voxels, {**facts.model_dump(), "made_from": made_from}, source)


def _from_volume(folder: Path, path: Path, trials: Table, facts: RecordingFacts) -> Person:
    image = load_image(path)
    mask, voxels = read_mask(folder, image)
    if len(image.shape) != 4 or image.shape[:3] != mask.shape:
        raise InputError(f"{path}: expected (x, y, z, trials) on the mask's grid {mask.shape}, found {image.shape}")
    meta = facts.model_dump() | {"affine": image.affine.tolist(), "volume_shape": mask.shape}
    source = np.asanyarray(image.dataobj)[mask].T
    return Person(folder.name, trials, voxels, {**meta, "made_from": {"responses": path.name, "mask": "mask"}}, source)


def _from_bold(folder: Path, facts: RecordingFacts) -> Person:
    runs = find_runs(folder / "func")
    image = load_image(runs[0].bold)
    mask, voxels = read_mask(folder, image)
    delay = _DELAY if facts.delay is None else facts.delay
    read = list(read_runs(runs, mask, delay))
    trials = stack_tables([name_events(table) for table, _, _ in read])
    meta = facts.model_dump() | {"affine": image.affine.tolist(), "volume_shape": mask.shape}
    meta |= {"tr": read[0][2], "delay": delay}
    words = f"event means of {len(runs)} runs, each without linear trend, z-scored over time"
    made_from = {"responses": words, "mask": "mask"}
    source = np.concatenate([means for _, means, _ in read])
    return Person(folder.name, trials, voxels, {**meta, "made_from": made_from}, source)


def name_events(events: Table) -> Table:
    """Give events a stimulus: their own id, the name of their file, or condition and place in the run."""
    if "stimulus_id" in events:
        return events
    if "stim_file" in events:
        return events.with_columns(stimulus_id=[Path(name).stem for name in events["stim_file"].tolist()])
    if "trial_type" not in events:
        raise InputError("events need a column stimulus_id, stim_file or trial_type")
    names: list[str] = []
    count: dict[str, int] = {}
    for kind, session, run in zip(events["trial_type"], events["session"], events["run"], strict=True):
        key = f"{kind}_ses-{session}_run-{run}" if session > 1 else f"{kind}_run-{run}"
        count[key] = count.get(key, 0) + 1
        names.append(key if count[key] == 1 else f"{key}_{count[key]}")
    return events.with_columns(stimulus_id=names, label=events["trial_type"])


def stack_tables(tables: list[Table]) -> Table:
    shared = [name for name in tables[0].columns if all(name in table for table in tables)]
    return Table({name: np.concatenate([table[name] for table in tables]) for name in shared})


def find_nifti(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in (".nii.gz", ".nii") if (path := folder / f"{stem}{suffix}").exists()), None)


def read_mask(folder: Path, image: Any) -> tuple[np.ndarray, Table]:
    """The mask of a person's folder and its voxels, with the regions that lie beside it."""
    path = find_nifti(folder, "mask")
    if path is None:
        raise InputError(f"{folder}: missing mask.nii.gz, which says which voxels of the volumes are used")
    mask = np.asanyarray(load_image(path).dataobj) > 0
    mask = mask.reshape(mask.shape[:3])
    if not mask.any():
        raise InputError(f"{path}: the mask is empty")
    columns = voxel_columns(mask, image.affine)
    for roi in sorted(folder.glob(f"{ROI_PREFIX}*.nii*")):
        region = np.asanyarray(load_image(roi).dataobj)
        region = region.reshape(region.shape[:3])
        if region.shape != mask.shape:
            raise InputError(f"{roi}: expected the mask's grid {mask.shape}, found {region.shape}")
        columns[roi.name.split(".nii")[0]] = region[mask] > 0
    return mask, Table(columns)


def voxel_columns(mask: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """Columns ``i, j, k`` and ``x, y, z`` (mm) of the voxels of a mask."""
    index = np.argwhere(mask)
    mm = nibabel.affines.apply_affine(affine, index)
    return {axis: index[:, n] for n, axis in enumerate("ijk")} | {axis: mm[:, n] for n, axis in enumerate("xyz")}
