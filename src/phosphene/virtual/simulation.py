"""From settings to a study: stimuli, people, sessions; in memory, or streamed to disk a session at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from phosphene._version import __version__
from phosphene.errors import InputError, unknown
from phosphene.recordings import Recording, Study, StudyWriter
from phosphene.settings import load_preset
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.virtual.fields import stream
from phosphene.virtual.filters import one_thread
from phosphene.virtual.parts import finished_parts
from phosphene.virtual.people import VirtualPerson, calibrated, draw_person, drives
from phosphene.virtual.schedule import plan_trials
from phosphene.virtual.settings import StimulusSettings, VirtualSettings

__all__ = ["Truth", "VirtualStudy", "make_settings", "record", "simulate", "study", "write_study"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Splits = Mapping[str, Mapping[str, Sequence[str]]]
_REFERENCE = 400  # stimuli on which the size of the signals is fixed
_REFERENCE_START = 2**40  # number of the first of them, beyond the scenes of any study


@dataclass(frozen=True)
class Truth:
    """What is known of a virtual study and never of a real one.

    Attributes
    ----------
    settings : VirtualSettings
    seed : int
    people : dict of str to VirtualPerson
        Receptive fields, warp, tuning, ncsnr; ``people[name].respond(stimuli)`` gives noise-free responses.
    """

    settings: VirtualSettings
    seed: int
    people: dict[str, VirtualPerson]


@dataclass(frozen=True)
class VirtualStudy:
    """A simulated study and the ground truth behind it."""

    study: Study
    truth: Truth


@dataclass(frozen=True)
class _Plan:
    """Everything but the responses: who sees which of the stimuli when."""

    settings: VirtualSettings
    seed: int
    stimuli: StimulusSet
    reference: StimulusSet
    trials: dict[str, Table]
    splits: Splits

    def first_sessions(self, sessions: int | None) -> _Plan:
        """The first sessions of everybody; what nobody sees any more is dropped."""
        trials = {
            name: table.take(table["session"] <= (sessions or table["session"].max()))
            for name, table in self.trials.items()
        }
        shown = set(np.concatenate([table["stimulus_id"] for table in trials.values()]).tolist())
        splits = {
            split: {role: [name for name in ids if name in shown] for role, ids in roles.items()}
            for split, roles in self.splits.items()
        }
        stimuli = self.stimuli.select([name for name in self.stimuli.ids.tolist() if name in shown])
        return replace(self, stimuli=stimuli, trials=trials, splits=splits)


def make_settings(preset: str | VirtualSettings | None = "small", **settings: Any) -> VirtualSettings:
    """Settings of a virtual study: a preset with changes.

    Parameters
    ----------
    preset : str, VirtualSettings or None
        ``"demo"``, ``"small"``, ``"hours"``, ``"nsd"``; settings to start from; None for the bare defaults.
    **settings
        Fields of `VirtualSettings`; nested ones as mappings, e.g. ``person={"warp": 6.0}``.

    Raises
    ------
    InputError
        Naming an unknown preset, key, area or person and what is known.
    """
    if isinstance(preset, VirtualSettings):
        base = preset.model_dump(exclude_unset=True)
    else:
        base = load_preset("virtual", "study", preset) if preset else {}
    return VirtualSettings.build(base, settings)


def study(preset: str | VirtualSettings | None = "small", seed: int = 0, **settings: Any) -> Study:
    """Simulate a study in memory.

    Parameters
    ----------
    preset : str
        ``"demo"``, ``"small"``, ``"hours"``, ``"nsd"`` (the last two are better streamed: `write_study`).
    seed : int
        Same seed and settings: same study.
    **settings
        Changes to the preset, see `make_settings`.

    Examples
    --------
    >>> tiny = study("small", seed=1, subjects=1, sessions=2, person={"voxels": 60},
    ...              stimuli={"test": 4, "common": 0, "own": 12}, people={})  # doctest: +SKIP
    """
    return simulate(make_settings(preset, **settings), seed).study


def simulate(settings: VirtualSettings, seed: int = 0, *, progress: bool = True) -> VirtualStudy:
    """Simulate a study of procedural scenes in memory, with its ground truth."""
    plan = _scene_plan(settings, seed, settings.names)
    with one_thread():
        return _in_memory(replace(plan, stimuli=_looked_at(plan.stimuli)), progress)


def record(
    stimuli: StimulusSet,
    preset: str | VirtualSettings | None = "small",
    seed: int = 0,
    *,
    splits: Splits | None = None,
    progress: bool = True,
    **settings: Any,
) -> VirtualStudy:
    """Show any stimuli to virtual people, all to everybody.

    Meaning is taken from the scene graph where the labels hold one, else from text labels, else from the words of
    the captions. Where there are no pixels early voxels stay silent, where there is no meaning higher ones do.

    Parameters
    ----------
    stimuli : StimulusSet
        Pictures, or clips (the middle frame counts).
    preset, seed, **settings
        As of `study`; what the preset says about stimuli does not apply.
    splits : mapping, optional
        As of `Study`. Default: a random fifth of the stimuli is the test part.
    """
    plan = make_settings(preset, **settings)
    if splits is None:
        ids = stream(seed, "split").permutation(stimuli.ids)
        if len(ids) < 2:
            raise InputError(f"at least two stimuli are needed for a training and a test part, found {len(ids)}")
        n_test = max(1, len(ids) // 5)
        splits = {"default": {"train": sorted(ids[n_test:].tolist()), "test": sorted(ids[:n_test].tolist())}}
    trials = {name: plan_trials(plan, seed, name, stimuli.ids.tolist(), []) for name in plan.names}
    with one_thread():
        return _in_memory(_Plan(plan, seed, stimuli, _spread(stimuli), trials, splits), progress)


def write_study(
    path: str | Path,
    preset: str | VirtualSettings | None = "small",
    seed: int = 0,
    *,
    subjects: int | Sequence[str] | None = None,
    sessions: int | None = None,
    dtype: str = "float32",
    progress: bool = True,
    **settings: Any,
) -> Path:
    """Simulate a study person by person straight to disk; one session of responses is held at a time.

    The file appears at `path` when it is complete. A run that was interrupted or killed leaves its finished sessions in
    a hidden folder beside it; the same call goes on from there, to the same study. `subjects` and `sessions` cut out
    the first part of the study that the settings describe: what is in it does not depend on what is left out.

    Parameters
    ----------
    path : str or Path
    preset, seed, **settings
        As of `study`.
    subjects : int or sequence of str, optional
        The first so many people, or people by name.
    sessions : int, optional
        At most so many sessions a person.
    dtype : {"float32", "float16"}
        How responses are stored.

    Returns
    -------
    Path
    """
    path = Path(path)
    plan = make_settings(preset, **settings)
    chosen = _chosen(plan.names, subjects)
    if sessions is not None and sessions < 1:
        raise InputError(f"sessions must be at least 1, found {sessions}")
    part = _scene_plan(plan, seed, chosen).first_sessions(sessions)
    made_from = {"software": __version__, "dtype": dtype, "seed": seed, "settings": plan.model_dump(mode="json")}
    with one_thread(), finished_parts(path, made_from) as parts, StudyWriter(path, **_facts(part)) as writer:
        writer.stimuli(part.stimuli)
        for name, trials in part.trials.items():
            person = calibrated([draw_person(plan, seed, name)], part.reference)[0]
            target = writer.recording(name, trials, person.voxel_table(), dtype=dtype, **_space(person, plan))
            numbers = np.unique(trials["session"]).tolist()
            scans = _Scans(person, part.stimuli, trials, dtype)
            for session in _track(numbers, f"{name}: sessions", len(numbers), progress):
                target.append(parts.get(f"{name}-{session:03d}", partial(scans.session, session)))
        writer.splits(part.splits)
    return path


class _Scans:
    """What one person's sessions hold; their scenes are rendered once, and only if a session is asked for."""

    def __init__(self, person: VirtualPerson, stimuli: StimulusSet, trials: Table, dtype: str) -> None:
        self._person, self._stimuli, self._trials, self._dtype = person, stimuli, trials, dtype

    @cached_property
    def _looked_at(self) -> StimulusSet:
        return _looked_at(self._stimuli.select(np.unique(self._trials["stimulus_id"])))

    def session(self, number: int) -> np.ndarray:
        """Responses ``(trials, voxels)`` of one session."""
        shown = self._trials["stimulus_id"][self._trials["session"] == number]
        unique, where = np.unique(shown, return_inverse=True)
        signal = self._person.respond(self._looked_at.select(unique))
        return self._person.measure(signal[where], number).astype(self._dtype)


def _chosen(names: Sequence[str], subjects: int | Sequence[str] | None) -> list[str]:
    if subjects is None:
        return list(names)
    if isinstance(subjects, int):
        if not 1 <= subjects <= len(names):
            raise InputError(f"subjects must be between 1 and {len(names)}, found {subjects}")
        return list(names[:subjects])
    if len(subjects) == 0:
        raise InputError("no subjects were named; leave them out to simulate all")
    for name in subjects:
        if name not in names:
            raise unknown("subject", name, names)
    return [name for name in names if name in set(subjects)]


def _in_memory(plan: _Plan, progress: bool) -> VirtualStudy:
    people = [draw_person(plan.settings, plan.seed, name) for name in plan.trials]
    people = calibrated(people, plan.reference)
    rows = {name: plan.stimuli.rows(table["stimulus_id"]) for name, table in plan.trials.items()}
    seen = {name: np.unique(at) for name, at in rows.items()}
    signal = {p.name: np.empty((len(seen[p.name]), p.n_voxels), dtype=np.float32) for p in people}
    n_blocks = -(-len(plan.stimuli) // 200)
    for block, drive in _track(drives(plan.stimuli, 200), "showing stimuli", n_blocks, progress):
        for person in people:
            first, last = np.searchsorted(seen[person.name], [block.start, block.stop])
            if last > first:
                signal[person.name][first:last] = person.signal(drive.take(seen[person.name][first:last] - block.start))
    recordings = []
    for person in people:
        trials = plan.trials[person.name]
        at = np.searchsorted(seen[person.name], rows[person.name])
        responses = np.empty((len(trials), person.n_voxels), dtype=np.float32)
        for session in np.unique(trials["session"]).tolist():
            now = trials["session"] == session
            responses[now] = person.measure(signal[person.name][at[now]], session)
        recordings.append(
            Recording(person.name, responses, trials, person.voxel_table(), **_space(person, plan.settings))
        )
    result = Study(plan.stimuli, recordings, plan.splits, **_facts(plan))
    return VirtualStudy(result, Truth(plan.settings, plan.seed, {person.name: person for person in people}))


def _facts(plan: _Plan) -> dict[str, Any]:
    recipe = {"source": "phosphene.virtual", "seed": plan.seed, "settings": plan.settings.model_dump(mode="json")}
    return {"name": plan.settings.name, "scaling": "session", "licence": "CC0-1.0", "recipe": recipe}


def _space(person: VirtualPerson, settings: VirtualSettings) -> dict[str, Any]:
    return {
        "space": "virtual",
        "affine": person.sheet.affine,
        "volume_shape": person.sheet.volume_shape,
        "tr": settings.tr,
        "delay": settings.delay,
    }


def _spread(stimuli: StimulusSet) -> StimulusSet:
    """Up to `_REFERENCE` stimuli from all over the set."""
    return stimuli.select(stimuli.ids[stimuli.spread(_REFERENCE)])


def _scene_plan(settings: VirtualSettings, seed: int, chosen: Sequence[str]) -> _Plan:
    plan = settings.stimuli
    stimuli, parts = _scenes(plan, seed, settings.names, chosen)
    shared = [*parts["test"], *parts["unseen"]]
    trials = {name: plan_trials(settings, seed, name, shared, [*parts["common"], *parts[name]]) for name in chosen}
    train = [*parts["common"], *(stimulus for name in chosen for stimulus in parts[name])]
    roles = {"train": train, "test": parts["test"], "unseen": parts["unseen"]}
    splits = {"default": {role: ids for role, ids in roles.items() if ids}}
    # scenes that are in no study: the size of a person's signals does not depend on who else takes part
    reference = _family(plan, _REFERENCE, seed, _REFERENCE_START)
    return _Plan(settings, seed, stimuli, reference, trials, splits).first_sessions(None)


def _scenes(
    plan: StimulusSettings, seed: int, everybody: Sequence[str], chosen: Sequence[str]
) -> tuple[StimulusSet, dict[str, list[str]]]:
    """The scenes that the chosen people see, rendered when looked at, and their ids by part.

    The numbers of a part's scenes depend on the whole study, so that leaving people out changes no scene.
    """
    sizes = {"test": plan.test, "common": plan.common, **dict.fromkeys(everybody, plan.own), "unseen": plan.unseen}
    start, sets = 0, {}
    for part, size in sizes.items():
        if size and (part not in everybody or part in chosen):
            sets[part] = _family(plan, size, seed, start, "unseen" if part == "unseen" else "train")
        start += size
    return _joined(list(sets.values())), {part: sets[part].ids.tolist() if part in sets else [] for part in sizes}


def _family(plan: StimulusSettings, n: int, seed: int, start: int, role: str = "train") -> StimulusSet:
    from phosphene.stimuli.scenes import scene_set

    if plan.holdout is None:
        return scene_set(n, seed, plan.size, start, captions=plan.captions)
    return scene_set(n, seed, plan.size, start, role, plan.captions, rule=plan.holdout)


def _joined(sets: Sequence[StimulusSet]) -> StimulusSet:
    """Sets of scenes one after the other; pixels stay lazy."""
    return StimulusSet(
        np.concatenate([one.ids for one in sets]),
        pixels=_Stacked(sets),
        captions=[captions for one in sets for captions in one.captions],
        labels={name: np.concatenate([one.labels[name] for one in sets]) for name in sets[0].labels.columns},
        hashes=np.concatenate([one.hashes for one in sets]),
    )


class _Stacked:
    """Pixels of several sets, read when asked for."""

    dtype = np.dtype(np.uint8)

    def __init__(self, sets: Sequence[StimulusSet]) -> None:
        self._sets = sets
        self._edges = np.cumsum([0, *map(len, sets)])
        self.shape = (int(self._edges[-1]), *(sets[0].frame_shape or ()))

    def __getitem__(self, rows: Any) -> np.ndarray:
        wanted = np.arange(self.shape[0])[rows]
        pixels = np.empty((len(wanted), *self.shape[1:]), dtype=np.uint8)
        owner = np.searchsorted(self._edges, wanted, side="right") - 1
        for number in np.unique(owner):
            here = owner == number
            pixels[here] = self._sets[number].pixels(wanted[here] - self._edges[number])
        return pixels


def _looked_at(stimuli: StimulusSet) -> StimulusSet:
    """The same stimuli with their pixels in memory: rendered once, read often."""
    if not stimuli.has_pixels:
        return stimuli
    pixels = np.concatenate([block for _, block in stimuli.blocks()])
    return StimulusSet(stimuli.ids, pixels, stimuli.captions, stimuli.labels, stimuli.fps, stimuli.hashes)


def _track(items: Iterable[T], words: str, total: int, progress: bool) -> Iterator[T]:
    """Walk through `items` with a progress bar, where somebody is looking."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return iter(
        track(
            items, words, total=total, console=console, transient=True, disable=not (progress and console.is_terminal)
        )
    )
