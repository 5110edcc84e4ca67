"""From a BOLD time series and its events to one response an event: the mean of its volumes after the delay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import scipy.signal

from phosphene.errors import InputError
from phosphene.table import Table

__all__ = ["BoldRun", "event_means", "find_runs", "load_image", "normalise_run", "read_runs", "without_rest"]

_REST = {"rest", "baseline", "fixation", "null", "n/a"}


@dataclass(frozen=True)
class BoldRun:
    """One run: its volumes and its events."""

    bold: Path
    events: Path
    session: int
    run: int


def load_image(path: Path) -> Any:
    """Open a NIfTI (or GIFTI) file; a missing or damaged one is named."""
    try:
        return nibabel.load(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable image: {error}") from error


def find_runs(folder: Path) -> list[BoldRun]:
    """BIDS-named runs: every ``*_bold.nii[.gz]`` with its ``*_events.tsv``.

    Raises
    ------
    InputError
        Naming the runs whose events are missing.
    """
    runs: list[BoldRun] = []
    missing = []
    for bold in sorted([*folder.glob("*_bold.nii.gz"), *folder.glob("*_bold.nii")]):
        events = folder / re.sub(r"_bold\.nii(\.gz)?$", "_events.tsv", bold.name)
        if not events.exists():
            missing.append(events.name)
            continue
        session, run = (re.search(rf"(?:^|_){key}-(\d+)", bold.name) for key in ("ses", "run"))
        runs.append(BoldRun(bold, events, int(session[1]) if session else 1, int(run[1]) if run else len(runs) + 1))
    if missing:
        raise InputError(f"{folder}: missing {', '.join(missing)}")
    if not runs:
        raise InputError(f"{folder} holds no *_bold.nii.gz")
    return runs


def without_rest(events: Table) -> Table:
    """Events without those whose ``trial_type`` is rest, baseline, fixation or the like."""
    if "trial_type" not in events:
        return events
    return events.take(~np.isin(np.char.lower(events["trial_type"].astype(str)), list(_REST)))


def normalise_run(series: np.ndarray) -> np.ndarray:
    """Linear trend removed and z-scored over time, voxel by voxel; a series ``(volumes, voxels)`` of one run.

    No label enters, so a run of the test part may be treated by itself. Constant voxels stay zero.
    """
    detrended = scipy.signal.detrend(series.astype(np.float64), axis=0, type="linear")
    deviation = detrended.std(axis=0)
    return np.divide(detrended, deviation, out=np.zeros_like(detrended), where=deviation > 1e-9)


def event_means(
    series: np.ndarray, onset: np.ndarray, duration: np.ndarray, tr: float, delay: float, name: str
) -> np.ndarray:
    """Mean volume of each event, ``(events, voxels)``: volumes acquired in [onset + delay, onset + duration + delay).

    Parameters
    ----------
    series : (volumes, voxels) ndarray
    onset, duration : (events,) ndarray
        Seconds from the first volume.
    tr : float
        Seconds between volumes.
    delay : float
        Haemodynamic delay in seconds.
    name : str
        What to call the run in errors.
    """
    time = tr * np.arange(len(series))
    means = np.empty((len(onset), series.shape[1]))
    for row, (start, length) in enumerate(zip(onset + delay, duration, strict=True)):
        here = (time >= start - 1e-6) & (time < start + max(length, tr) - 1e-6)
        if not here.any():
            raise InputError(
                f"{name}: the event at {start - delay:g} s lies outside of the run, which ends at {time[-1] + tr:g} s"
            )
        means[row] = series[here].mean(axis=0)
    return means


def read_runs(runs: list[BoldRun], mask: np.ndarray, delay: float) -> Iterator[tuple[Table, np.ndarray, float]]:
    """Trials, responses ``(events, voxels)`` and TR of each run; events called rest or baseline are left out."""
    for run in runs:
        image = load_image(run.bold)
        if len(image.shape) != 4 or image.shape[:3] != mask.shape:
            raise InputError(
                f"{run.bold}: expected (x, y, z, volumes) on the mask's grid {mask.shape}, found {image.shape}"
            )
        tr = float(image.header.get_zooms()[3])
        if not 0.1 <= tr <= 20:
            raise InputError(f"{run.bold}: the header's TR is {tr} s; set pixdim[4] to the seconds between volumes")
        events = without_rest(Table.read_tsv(run.events, required=("onset", "duration")))
        series = normalise_run(np.asanyarray(image.dataobj)[mask].T)
        means = event_means(
            series, events["onset"].astype(float), events["duration"].astype(float), tr, delay, run.bold.name
        )
        n = len(events)
        yield events.with_columns(session=np.full(n, run.session), run=np.full(n, run.run)), means, tr
