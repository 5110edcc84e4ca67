r"""Inter-subject correlation: how much alike people respond to the same stimuli, place by place.

For person s and place v, over stimuli i that all saw (means over repeats),

.. math:: r_v(s) = \mathrm{corr}_i(x_{s,i,v}, \tfrac{1}{|S|-1} \sum_{s' \ne s} x_{s',i,v})

Noise lowers it. Where stimuli were repeated it is held against the most that noise leaves, the geometric mean of the
reliabilities of both sides: correlations of the means over odd and over even repeats, brought to the full number of
repeats by Spearman-Brown. A region's normalised value is the mean of r over the mean of that bound, which a few
unreliable places cannot blow up.

Correlation place by place rewards maps that keep little: everybody's first component everywhere would score high. So
the report holds identification beside it: how often a person's pattern over all places is more like the others' mean
pattern for the same stimulus than for another one (pairwise, chance one half), which needs many dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.alignment import one_grid
from phosphene.alignment.anatomical import Anatomical
from phosphene.alignment.base import Aligner
from phosphene.alignment.pooled import Pooled, PooledSettings
from phosphene.alignment.shared import half_means, mean_responses, shared_stimuli, units_of
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["ALL_PLACES", "IscReport", "IscRow", "inter_subject_correlation", "leave_one_out", "measurable", "unaligned"]

log = logging.getLogger(__name__)

ALL_PLACES = "all"
_LEAST = 10  # a correlation over fewer stimuli is noise
_PLACES = 2048  # of a block
_SILENT = 0.05  # a bound below this is noise itself


@dataclass(frozen=True)
class IscRow:
    """One region.

    Attributes
    ----------
    roi : str
        Its name, or ``"all"``.
    n_places : int
    value : float or None
        Mean over people of the mean over places; None where nothing varies. People whose own value is None have no
        part in it.
    interval : (float, float) or None
        Percentile bootstrap interval over stimuli (over units, where the study names one).
    normalised : float or None
        Share of what noise leaves; None without repeats, or where repeats agree on nothing.
    by_subject : dict of str to float
    """

    roi: str
    n_places: int
    value: float | None
    interval: tuple[float, float] | None
    normalised: float | None
    by_subject: dict[str, float | None]


@dataclass(frozen=True)
class IscReport:
    """Inter-subject correlation by region, with what it was measured on.

    Attributes
    ----------
    identification : float
        Share of pairs of stimuli told apart by the others' patterns over all places, mean over people; chance 0.5.
    """

    label: str
    template: str
    role: str
    split: str
    n_stimuli: int
    subjects: list[str]
    level: float
    identification: float
    rows: list[IscRow]

    def row(self, roi: str = ALL_PLACES) -> IscRow:
        """The row of a region."""
        for row in self.rows:
            if row.roi == roi:
                return row
        raise InputError(f"no inter-subject correlation of {roi!r}; known: {', '.join(r.roi for r in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def leave_one_out(aligned: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Correlation of each person with the mean of the others.

    Parameters
    ----------
    aligned : (people, stimuli, places) array
        NaN where a person covers nothing; the mean is taken over the others who cover a place.
    weights : (B, stimuli) array, optional
        How often each stimulus counts, for a bootstrap; default: once.

    Returns
    -------
    (people, B, places) float64 ndarray
        B is one without weights. NaN where one side does not vary, or nobody else covers a place.
    """
    weights = np.ones((1, aligned.shape[1])) if weights is None else np.asarray(weights, dtype=np.float64)
    share = weights / weights.sum(axis=1, keepdims=True)
    x = np.asarray(aligned, dtype=np.float64)
    result = np.empty((x.shape[0], len(weights), x.shape[2]))
    for person, (a, b) in enumerate(zip(x, _others(x), strict=True)):
        missing = ~(np.isfinite(a) & np.isfinite(b)).all(axis=0)
        a, b = np.where(missing, 0.0, a - a.mean(axis=0)), np.where(missing, 0.0, b - b.mean(axis=0))
        mean_a, mean_b = share @ a, share @ b
        covariance = share @ (a * b) - mean_a * mean_b
        power = (share @ a**2 - mean_a**2) * (share @ b**2 - mean_b**2)
        floor = 1e-12 * np.maximum((a**2).mean(axis=0) * (b**2).mean(axis=0), 1e-30)
        safe = np.where(power > floor, power, np.nan)
        result[person] = np.where(missing, np.nan, covariance / np.sqrt(safe))
    return result


def _others(x: np.ndarray) -> np.ndarray:
    """Mean over the others who cover a place, ``(people, n, V)``; NaN where nobody does."""
    known = np.isfinite(x)
    filled = np.where(known, x, 0.0)
    count = known.sum(axis=0) - known
    return np.where(count > 0, (filled.sum(axis=0) - filled) / np.maximum(count, 1), np.nan)


class _Identification:
    """Likeness of patterns over places, gathered block by block."""

    def __init__(self, people: int, stimuli: int) -> None:
        self._dot = np.zeros((people, stimuli, stimuli))
        self._own, self._rest = np.zeros((2, people, stimuli))

    def add(self, aligned: np.ndarray) -> None:
        """Places of a block, ``(people, n, V)``; each place is centred over stimuli."""
        x = np.asarray(aligned, dtype=np.float64)
        for person, (a, b) in enumerate(zip(x, _others(x), strict=True)):
            both = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
            a, b = a[:, both] - a[:, both].mean(axis=0), b[:, both] - b[:, both].mean(axis=0)
            self._dot[person] += a @ b.T
            self._own[person] += np.square(a).sum(axis=1)
            self._rest[person] += np.square(b).sum(axis=1)

    def value(self) -> float:
        """Share of pairs told apart; ties count one half."""
        scale = np.sqrt(self._own[:, :, None] * self._rest[:, None, :])
        cosine = self._dot / np.maximum(scale, 1e-300)
        same = np.diagonal(cosine, axis1=1, axis2=2)[:, :, None]
        n = cosine.shape[1]
        wins = (same > cosine).sum() + ((same == cosine).sum() - n * len(cosine)) / 2
        return float(wins / (len(cosine) * n * (n - 1)))


class _RegionMeans:
    """Means over the places of each region, gathered block by block: resamples of a whole mesh would fill gigabytes."""

    def __init__(self, regions: Mapping[str, np.ndarray], people: int, n_boot: int) -> None:
        self._regions = regions
        self._total, self._count = ({name: np.zeros((people, n_boot)) for name in regions} for _ in range(2))

    def add(self, places: np.ndarray, values: np.ndarray) -> None:
        """Values of a block of places, ``(people, B, V)``; NaN does not count."""
        known = np.isfinite(values)
        filled = np.where(known, values, 0.0)
        for name, mask in self._regions.items():
            if (inside := mask[places]).any():
                self._total[name] += filled[:, :, inside].sum(axis=2)
                self._count[name] += known[:, :, inside].sum(axis=2)

    def of(self, name: str) -> np.ndarray:
        """Means of one region, ``(people, B)``."""
        total, count = self._total[name], self._count[name]
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _reliability(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman-Brown of the correlation of two halves ``(stimuli, places)``, at least zero, ``(places,)``."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    r = np.divide((a * b).sum(axis=0), scale, out=np.full(len(scale), np.nan), where=scale > 0)
    r = np.maximum(r, 0.0)
    return 2 * r / (1 + r)


def _bound(halves: np.ndarray) -> np.ndarray:
    """Most that noise leaves of each person's correlation, ``(people, places)``; halves are ``(2, people, n, V)``."""
    bound = np.empty((halves.shape[1], halves.shape[3]))
    rest = np.stack([_others(half) for half in halves])
    for person in range(halves.shape[1]):
        bound[person] = np.sqrt(_reliability(*halves[:, person]) * _reliability(*rest[:, person]))
    return bound


def inter_subject_correlation(
    aligner: Aligner,
    view: StudyView,
    *,
    label: str | None = None,
    n_boot: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> IscReport:
    """Measure how much alike the people of the view respond, in the template of an aligner, by region.

    Parameters
    ----------
    aligner : Aligner
        Not fitted on these stimuli.
    view : StudyView
        Usually the test part; what all of its people saw is used.
    label : str, optional
        How the report names it; default the aligner's name.
    n_boot : int
        Resamples of stimuli; 0 gives no intervals.
    level : float
        Of the interval.
    seed : int

    Raises
    ------
    LeakageError
        When the aligner was fitted on any of them.
    InputError
        With fewer than two people, or fewer than ten stimuli that all of them saw.
    """
    _check_numbers(n_boot, level)
    ids = measurable(view)
    if aligner.functional:
        aligner.check_apart(ids, view.stimuli.select(ids).hashes)
    means = {s: mean_responses(view, s, ids) for s in view.subjects}
    halves = {s: half_means(view, s, ids) for s in view.subjects}
    weights = _resamples(units_of(view, ids), n_boot, seed)
    value, bound = [], []
    identification = _Identification(len(view.subjects), len(ids))
    regions = {ALL_PLACES: np.ones(aligner.template.size, dtype=bool), **aligner.template.rois}
    boot = _RegionMeans(regions, len(view.subjects), n_boot)
    for places in _blocks(aligner.template.size):
        parts = {s: aligner.person(s).take(places) for s in view.subjects}
        aligned = np.stack([parts[s].apply(means[s]) for s in view.subjects])
        identification.add(aligned)
        value.append(leave_one_out(aligned)[:, 0])
        if n_boot:
            boot.add(places, leave_one_out(aligned, weights))
        both = [[parts[s].apply(half) for half in pair] for s, pair in halves.items() if pair is not None]
        if len(both) == len(parts):
            bound.append(_bound(np.stack(both, axis=1)))
    of_all, most = np.concatenate(value, axis=1), np.concatenate(bound, axis=1) if bound else None
    rows = [
        _row(name, mask, view.subjects, of_all, boot.of(name), most, level)
        for name, mask in regions.items()
        if mask.any()
    ]
    if silent := [subject for subject, found in rows[0].by_subject.items() if found is None]:
        log.warning(
            "no inter-subject correlation of %s (nobody else covers a place of theirs, or nothing varies there): the "
            "mean is over %d of %d people",
            ", ".join(silent),
            len(view.subjects) - len(silent),
            len(view.subjects),
        )
    return IscReport(
        label=label or aligner.name,
        template=aligner.template.name,
        role=view.role,
        split=view.split_name,
        n_stimuli=len(ids),
        subjects=list(view.subjects),
        level=level,
        identification=identification.value(),
        rows=rows,
    )


def measurable(view: StudyView) -> np.ndarray:
    """Ids of the stimuli of a view that inter-subject correlation is measured on: those that all of its people saw.

    Raises
    ------
    InputError
        With fewer than two people, or fewer than ten such stimuli.
    """
    if len(view.subjects) < 2:
        raise InputError(f"inter-subject correlation needs at least two people, found {', '.join(view.subjects)}")
    return shared_stimuli(view, view.subjects, _LEAST, "Inter-subject correlation compares responses to equal stimuli")


def _check_numbers(n_boot: int, level: float) -> None:
    if n_boot < 0:
        raise InputError(f"n_boot, the number of resamples, must be 0 or more, found {n_boot}")
    if not 0 < level < 1:
        raise InputError(f"level, the share of resamples in an interval, must be between 0 and 1, found {level:g}")


def _blocks(size: int) -> Iterator[np.ndarray]:
    for start in range(0, size, _PLACES):
        yield np.arange(start, min(start + _PLACES, size))


def _resamples(units: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """How often each stimulus counts in each resample of units, ``(n_boot, n)``."""
    unique, codes = np.unique(units, return_inverse=True)
    chances = np.full(len(unique), 1 / len(unique))
    return np.random.default_rng(seed).multinomial(len(unique), chances, size=n_boot)[:, codes]


def _row(
    roi: str,
    mask: np.ndarray,
    subjects: Sequence[str],
    value: np.ndarray,
    drawn: np.ndarray,
    bound: np.ndarray | None,
    level: float,
) -> IscRow:
    """One region; `value` and `bound` are (people, places) of the template, `drawn` (people, B) of the region."""
    people = [_mean(part[mask]) for part in value]
    known = [one for one in people if one is not None]
    interval = None
    if drawn.shape[1] and known:
        # who covers nothing of the region has no part in the value, and none in its interval
        covering = drawn[[one is not None for one in people]]
        low, high = np.nanquantile(np.nanmean(covering, axis=0), [(1 - level) / 2, (1 + level) / 2])
        interval = (float(low), float(high))
    normalised = None
    if bound is not None and known:
        most = [_mean(np.where(np.isfinite(v[mask]), b[mask], np.nan)) for v, b in zip(value, bound, strict=True)]
        ratios = [v / m for v, m in zip(people, most, strict=True) if v is not None and m is not None and m > _SILENT]
        normalised = float(np.mean(ratios)) if ratios else None
    return IscRow(
        roi=roi,
        n_places=int(mask.sum()),
        value=float(np.mean(known)) if known else None,
        interval=interval,
        normalised=normalised,
        by_subject=dict(zip(subjects, people, strict=True)),
    )


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def unaligned(view: StudyView) -> Aligner:
    """What people are compared by before alignment: their common grid, else voxels in scanner order.

    Without a common grid the voxels of each region (where everybody has regions) are pooled in the order in which the
    scanner lists them to the smallest number that anybody has.
    """
    if one_grid.why_not(view) is None:
        return Anatomical().fit(view)
    regions = [set(view.rois(subject)) for subject in view.subjects]
    return Pooled(PooledSettings(within="roi" if set.intersection(*regions) else "brain")).fit(view)
