"""Intervals, nulls and paired differences: bootstrap over units and people, permutation of stimuli.

The unit of resampling is what the split holds out together: a stimulus, or a group of them (an action, a class).
People are the second unit. The same resamples and permutations serve every method and every person, so differences
are paired and the mean over people keeps the dependence between people who saw the same stimuli.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from phosphene.errors import InputError

__all__ = [
    "Resampler",
    "Shuffler",
    "bootstrap_people",
    "exact_sign_flip_p",
    "noise_ceiling",
    "null_summary",
    "percentile_interval",
    "sign_flip_p",
    "weighted_summary",
]


@dataclass
class Resampler:
    """Bootstrap weights over units, drawn within each split, shared by all people and methods.

    Parameters
    ----------
    units : mapping of split name to array of unit names
        Every unit of each split; repeated names are one unit.
    n_boot : int
        Number of resamples.
    seed : int

    Examples
    --------
    >>> resampler = Resampler({"default": np.array(["a", "b", "b"])}, n_boot=100, seed=0)
    >>> resampler.weights("default", np.array(["b", "a"])).shape
    (100, 2)
    """

    units: Mapping[str, np.ndarray]
    n_boot: int
    seed: int = 0
    _drawn: dict[str, tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n_boot < 0:
            raise InputError(f"n_boot, the number of resamples, must be 0 or more, found {self.n_boot}")
        self._drawn = {}
        for number, (split, names) in enumerate(self.units.items()):
            unique = np.unique(names)
            generator = np.random.default_rng((self.seed, 1, number))
            chances = np.full(len(unique), 1.0 / len(unique))
            self._drawn[split] = (unique, generator.multinomial(len(unique), chances, size=self.n_boot))

    def weights(self, split: str, units: np.ndarray) -> np.ndarray:
        """How often each query counts in each resample: (n_boot, n) int."""
        unique, drawn = self._drawn[split]
        return drawn[:, np.searchsorted(unique, units)]

    def people(self, n_people: int) -> np.ndarray:
        """How often each person counts in each resample: (n_boot, n_people) int."""
        generator = np.random.default_rng((self.seed, 2))
        return generator.multinomial(n_people, np.full(n_people, 1.0 / n_people), size=self.n_boot)


@dataclass
class Shuffler:
    """Permutations of stimuli within one split; units move as blocks.

    Under the null hypothesis a prediction belongs to any stimulus of its split. Stimuli of one unit (two exemplars
    of an action) resemble each other, so does what is predicted for them: shuffling them apart would make the null
    too narrow. Units are shuffled whole and their stimuli within; where units have unequal sizes, they are laid
    out one after the other in shuffled order, which keeps them together but for the seams.

    Parameters
    ----------
    ids, units : (n,) arrays
        All stimuli of the split and the unit of each.
    n_perm : int
    seed : int or sequence of int
    """

    ids: np.ndarray
    units: np.ndarray
    n_perm: int
    seed: int | tuple[int, ...] = 0
    _keys: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        unique, codes = np.unique(self.units, return_inverse=True)
        unit_order = generator.permuted(np.tile(np.arange(len(unique)), (self.n_perm, 1)), axis=1)
        item_order = generator.permuted(np.tile(np.arange(len(self.ids)), (self.n_perm, 1)), axis=1)
        self._keys = unit_order[:, codes] * len(self.ids) + item_order

    def permutations(self, ids: np.ndarray) -> np.ndarray:
        """For those of the stimuli a person saw: (n_perm, n) int, the stimulus each prediction is given.

        People who saw the same stimuli get the same permutations.
        """
        order = np.argsort(self.ids, kind="stable")
        positions = order[np.minimum(np.searchsorted(self.ids[order], ids), len(order) - 1)]
        if not np.array_equal(self.ids[positions], ids):
            raise InputError("permutations were asked for stimuli that are not part of the split")
        together = np.argsort(self.units[positions], kind="stable")
        shuffled = np.argsort(self._keys[:, positions], axis=1)
        permuted = np.empty((self.n_perm, len(ids)), dtype=np.int64)
        permuted[:, together] = shuffled
        return permuted


def weighted_summary(values: np.ndarray, weights: np.ndarray, summary: Literal["mean", "median"]) -> np.ndarray:
    """Mean or median of values counted as often as each row of weights says.

    Parameters
    ----------
    values : (n,) array
    weights : (n_boot, n) int array
    summary : {"mean", "median"}

    Returns
    -------
    (n_boot,) float64
        NaN where a resample holds none of the values.
    """
    totals = weights.sum(axis=1)
    if summary == "mean":
        return np.divide(weights @ values, totals, out=np.full(len(weights), np.nan), where=totals > 0)
    order = np.argsort(values)
    ordered, cumulative = values[order], np.cumsum(weights[:, order], axis=1)
    # the values at positions (t - 1) // 2 and t // 2 of the resample: equal for odd t, the two middle ones else
    lower = np.argmax(cumulative > ((totals - 1) // 2)[:, None], axis=1)
    upper = np.argmax(cumulative > (totals // 2)[:, None], axis=1)
    return np.where(totals > 0, (ordered[lower] + ordered[upper]) / 2.0, np.nan)


def bootstrap_people(resampled: np.ndarray, people: np.ndarray | None = None) -> np.ndarray:
    """Mean over people in every resample.

    Parameters
    ----------
    resampled : (n_people, n_boot) array
        Each person's value under the same resamples of units.
    people : (n_boot, n_people) int array, optional
        Resampled people, for an interval that speaks of people not recorded; by default the people are fixed.

    Returns
    -------
    (n_boot,) float64
    """
    weights = np.ones(resampled.T.shape) if people is None else people.astype(float)
    present = np.isfinite(resampled.T)
    weights = weights * present
    totals = weights.sum(axis=1)
    sums = (weights * np.where(present, resampled.T, 0.0)).sum(axis=1)
    return np.divide(sums, totals, out=np.full(len(totals), np.nan), where=totals > 0)


def percentile_interval(resampled: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval."""
    tail = (1.0 - level) / 2.0
    low, high = np.nanquantile(resampled, [tail, 1.0 - tail])
    return float(low), float(high)


def null_summary(null: np.ndarray, value: float, higher_is_better: bool = True) -> dict[str, float]:
    """Mean and standard deviation of a null, and the one-sided p of the observed value.

    ``p = (1 + #{null at least as good}) / (1 + n_perm)``: never 0, and valid however few the permutations.

    Examples
    --------
    >>> null_summary(np.array([0.1, 0.2, 0.3]), 0.9)["p"]
    0.25
    """
    # sums in another order differ by rounding; equal values are as good
    slack = 1e-10 * max(1.0, abs(value))
    as_good = null >= value - slack if higher_is_better else null <= value + slack
    return {
        "mean": float(null.mean()),
        "std": float(null.std(ddof=1)) if len(null) > 1 else 0.0,
        "p": float((1 + as_good.sum()) / (1 + len(null))),
    }


def sign_flip_p(differences: np.ndarray, n_perm: int, seed: int = 0) -> float:
    """Two-sided p of a mean paired difference: each unit's sign is flipped at random.

    Parameters
    ----------
    differences : (n_units,) array
        Sum (or mean) of the differences within each unit.
    """
    generator = np.random.default_rng((seed, 3))
    signs = generator.integers(0, 2, size=(n_perm, len(differences)), dtype=np.int8) * 2 - 1
    null = np.abs(signs @ differences)
    observed = abs(float(differences.sum()))
    return float((1 + (null >= observed * (1 - 1e-12) - 1e-12).sum()) / (1 + n_perm))


def exact_sign_flip_p(differences: np.ndarray) -> float:
    r"""Two-sided p of a mean paired difference of a few units: all flips of their signs are counted.

    Of n units p is at least :math:`2^{1-n}`. Time and memory grow as :math:`2^n`; `sign_flip_p` is for many.

    Parameters
    ----------
    differences : (n_units,) array

    Examples
    --------
    >>> exact_sign_flip_p(np.array([0.1, 0.2, 0.1, 0.3, 0.1]))
    0.0625
    """
    sums = np.zeros(1)
    for each in differences:
        sums = np.concatenate([sums + each, sums - each])
    observed = abs(float(differences.sum()))
    return float((np.abs(sums) >= observed * (1 - 1e-12) - 1e-12).mean())


def noise_ceiling(responses: np.ndarray, stimuli: np.ndarray, averaged: int | None = None) -> np.ndarray:
    """Share of each voxel's variance over stimuli that any model could explain.

    With noise variance ``s2`` (pooled within stimuli) and signal variance ``v = max(var_total - s2, 0)``, the ceiling
    for responses averaged over r repeats is ``v / (v + s2 / r)`` (Allen et al., 2022, eq. of the noise ceiling).

    Parameters
    ----------
    responses : (n_trials, V) array
    stimuli : (n_trials,) array
        Stimulus of each trial; those seen once are left out.
    averaged : int, optional
        r; by default the harmonic mean of the number of repeats.

    Returns
    -------
    (V,) float64, within [0, 1]

    Raises
    ------
    InputError
        When fewer than two stimuli were repeated.
    """
    names, codes, counts = np.unique(stimuli, return_inverse=True, return_counts=True)
    kept = counts[codes] > 1
    if (counts > 1).sum() < 2:
        raise InputError(
            f"a noise ceiling needs at least 2 repeated stimuli, found {(counts > 1).sum()} of {len(names)}"
        )
    _, codes, counts = np.unique(np.asarray(stimuli)[kept], return_inverse=True, return_counts=True)
    x = np.asarray(responses, dtype=np.float64)[kept]
    means = np.zeros((len(counts), x.shape[1]))
    np.add.at(means, codes, x)
    means /= counts[:, None]
    within = ((x - means[codes]) ** 2).sum(axis=0) / (len(x) - len(counts))
    harmonic = len(counts) / (1.0 / counts).sum()
    signal = np.maximum(means.var(axis=0, ddof=1) - within / harmonic, 0.0)
    total = signal + within / (averaged or harmonic)
    return np.divide(signal, total, out=np.zeros_like(total), where=total > 0)
