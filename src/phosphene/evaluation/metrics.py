"""Retrieval, identification and classification scores as pure functions on arrays.

Every score starts from two counts per query and candidate: how many other candidates are strictly more similar
(`greater`) and how many are equally similar (`ties`). A score is a function of these counts and the number of
candidates, so that the same function gives the observed value (counts of the true candidate) and the permutation
null (counts of any other one). Ties count one half: a rank is the average over all orders of the tied candidates,
a top-k hit its probability over them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from phosphene.errors import InputError, unknown

__all__ = [
    "DIRECTIONS",
    "METRICS",
    "SIMILARITIES",
    "Counts",
    "Metric",
    "class_centroids",
    "count_all",
    "count_true",
    "csls",
    "draw_pool_hits",
    "median_rank_chance",
    "metric",
    "pool_top_k",
    "rank",
    "similarity",
    "top_k",
    "two_way",
    "two_way_brain_to_image",
    "two_way_image_to_brain",
]

#: direction -> what the tables of MindEye and its successors call it (they name the two the other way round)
DIRECTIONS = {
    "brain_to_image": "brain retrieval, as in the MindEye tables",
    "image_to_brain": "image retrieval, as in the MindEye tables",
}
SIMILARITIES = ("cosine", "pearson")

# Mathematically equal similarities differ by rounding (1e-16 in float64); nothing real is as fine as this.
_TIE_DECIMALS = 9
_BLOCK = 4096


class Counts(NamedTuple):
    """Other candidates that are strictly more similar, and equally similar, than the one looked at."""

    greater: np.ndarray
    ties: np.ndarray
    size: int


def similarity(queries: np.ndarray, candidates: np.ndarray, kind: str = "cosine") -> np.ndarray:
    """Similarity of every query with every candidate.

    Parameters
    ----------
    queries : (n, D) array
    candidates : (m, D) array
    kind : {"cosine", "pearson"}
        Pearson is the cosine after each vector's own mean is removed.

    Returns
    -------
    (n, m) float64, within [-1, 1]
        A vector without length (or, for Pearson, without variance) is similar to nothing: 0.

    Raises
    ------
    InputError
        For another kind, unequal widths, or values that are not finite.

    Examples
    --------
    >>> similarity(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 3.0]]))
    array([[1., 0.]])
    """
    if kind not in SIMILARITIES:
        raise unknown("similarity", kind, SIMILARITIES)
    queries, candidates = np.asarray(queries), np.asarray(candidates)
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise InputError(
            f"similarity needs (n, D) and (m, D) of one width, found {queries.shape} and {candidates.shape}"
        )
    width = queries.shape[1]
    if kind == "pearson":
        centres = [array.mean(axis=1, keepdims=True, dtype=np.float64) for array in (queries, candidates)]
    else:
        centres = [np.zeros((len(array), 1)) for array in (queries, candidates)]
    dots = np.zeros((len(queries), len(candidates)))
    squares = [np.zeros(len(queries)), np.zeros(len(candidates))]
    sizes = [np.zeros(len(queries)), np.zeros(len(candidates))]
    # block by block: flattened tokens (257 x 768) in float64 would not fit beside themselves
    for start in range(0, width, _BLOCK):
        columns = slice(start, min(start + _BLOCK, width))
        blocks = [array[:, columns] - centre for array, centre in zip((queries, candidates), centres, strict=True)]
        dots += blocks[0] @ blocks[1].T
        for side, block in enumerate(blocks):
            squares[side] += np.einsum("nd,nd->n", block, block)
            sizes[side] += np.abs(block + centres[side]).sum(axis=1)
    if not np.isfinite(dots).all():
        raise InputError("similarity: the vectors hold NaN or infinite values")
    # a constant vector's Pearson norm is rounding, not variance
    lengths = [
        np.where(square > (1e-12 * size) ** 2, np.sqrt(square), 0.0)
        for square, size in zip(squares, sizes, strict=True)
    ]
    scale = lengths[0][:, None] * lengths[1][None, :]
    return np.clip(np.divide(dots, scale, out=np.zeros_like(dots), where=scale > 0), -1.0, 1.0)


def count_true(similarities: np.ndarray, truth: np.ndarray | None = None) -> Counts:
    """Counts of each query's true candidate.

    Parameters
    ----------
    similarities : (n, m) array
    truth : (n,) int array, optional
        Column of the true candidate; by default query i belongs to candidate i.

    Returns
    -------
    Counts
        `greater` and `ties` of shape (n,).
    """
    rounded = np.round(similarities, _TIE_DECIMALS)
    truth = np.arange(len(rounded)) if truth is None else np.asarray(truth)
    own = rounded[np.arange(len(rounded)), truth][:, None]
    return Counts((rounded > own).sum(axis=1), (rounded == own).sum(axis=1) - 1, rounded.shape[1])


def count_all(similarities: np.ndarray) -> Counts:
    """Counts of every query and candidate, as if that candidate were the true one.

    Permuting which stimulus a prediction belongs to only looks up other entries of this table: a null of a
    thousand permutations costs one sort.

    Returns
    -------
    Counts
        `greater` and `ties` of shape (n, m).
    """
    negated = -np.round(similarities, _TIE_DECIMALS)
    size = negated.shape[1]
    order = np.argsort(negated, axis=1)
    ordered = np.take_along_axis(negated, order, axis=1)
    places = np.arange(size, dtype=np.int32)
    greater, ties = np.empty(order.shape, np.int32), np.zeros(order.shape, np.int32)
    first = np.ones(order.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    if first.all():
        np.put_along_axis(greater, order, places[None], axis=1)
        return Counts(greater, ties, size)
    last = np.ones(order.shape, dtype=bool)
    last[:, :-1] = first[:, 1:]
    begins = np.maximum.accumulate(np.where(first, places, 0), axis=1)
    ends = np.minimum.accumulate(np.where(last, places, size)[:, ::-1], axis=1)[:, ::-1]
    np.put_along_axis(greater, order, begins, axis=1)
    np.put_along_axis(ties, order, ends - begins, axis=1)
    return Counts(greater, ties, size)


def rank(counts: Counts) -> np.ndarray:
    """Rank of the candidate, 1 is best; ties share their average rank."""
    return 1.0 + counts.greater + counts.ties / 2.0


def top_k(counts: Counts, k: int) -> np.ndarray:
    """Probability that the candidate is among the k best when ties are broken by chance.

    Without ties this is 0 or 1; two candidates tied for the first place get one half each at k = 1.
    """
    return np.clip((k - counts.greater) / (counts.ties + 1.0), 0.0, 1.0)


def two_way(counts: Counts) -> np.ndarray:
    """Share of the other candidates that are less similar than this one, ties one half: ``(m - rank) / (m - 1)``."""
    if counts.size < 2:
        raise InputError(f"two-way identification needs at least 2 candidates, found {counts.size}")
    return (counts.size - rank(counts)) / (counts.size - 1.0)


def two_way_brain_to_image(predictions: np.ndarray, targets: np.ndarray, kind: str = "cosine") -> np.ndarray:
    """Two-way identification with the prediction fixed: its own target against every other candidate target.

    Parameters
    ----------
    predictions, targets : (n, D) arrays
        Row i of both belongs to stimulus i.
    kind : {"cosine", "pearson"}

    Returns
    -------
    (n,) float64
        Per stimulus, within [0, 1]; chance 0.5.
    """
    return two_way(count_true(similarity(predictions, targets, kind)))


def two_way_image_to_brain(predictions: np.ndarray, targets: np.ndarray, kind: str = "cosine") -> np.ndarray:
    """Two-way identification with the target fixed: its own prediction against every other prediction."""
    return two_way(count_true(similarity(predictions, targets, kind).T))


def pool_top_k(counts: Counts, k: int, pool: int) -> np.ndarray:
    """Expected top-k hit when the pool holds the candidate and ``pool - 1`` others drawn without replacement.

    The number of drawn others that are better follows a hypergeometric law, so no drawing is needed:
    ``P(hit) = P(Hypergeometric(size - 1, greater, pool - 1) < k)``, and with ties the average over their number.

    Returns
    -------
    float64, of the shape of ``counts.greater``
    """
    _check_pool(counts.size, pool)
    untied = np.zeros(counts.size)
    for better in range(min(k, pool)):
        untied += _hypergeometric(better, np.arange(counts.size), counts.size - 1, pool - 1)
    values = np.minimum(untied, 1.0)[counts.greater]
    tied = np.flatnonzero(counts.ties)
    if len(tied):
        codes = counts.greater.ravel()[tied] * np.int64(counts.size) + counts.ties.ravel()[tied]
        pairs, back = np.unique(codes, return_inverse=True)
        hits = [_tied_pool_hit(*divmod(int(pair), counts.size), counts.size, k, pool) for pair in pairs]
        values.flat[tied] = np.array(hits)[back]
    return values


def _tied_pool_hit(greater: int, ties: int, size: int, k: int, pool: int) -> float:
    total = 0.0
    for better in range(min(k, pool)):
        weight = float(_hypergeometric(better, greater, size - 1, pool - 1))
        equal = np.arange(min(ties, pool - 1 - better) + 1)
        chances = _hypergeometric(equal, ties, size - 1 - greater, pool - 1 - better)
        total += weight * float(chances @ np.clip((k - better) / (equal + 1.0), 0.0, 1.0))
    return total


def _hypergeometric(drawn_good: ArrayLike, good: ArrayLike, total: int, drawn: int) -> np.ndarray:
    """P(drawn_good of the `good` ones among `drawn` of `total`), 0 outside of the support."""
    drawn_good, good = np.broadcast_arrays(np.asarray(drawn_good), np.asarray(good))
    drawn_bad, bad = drawn - drawn_good, total - good
    possible = (drawn_good <= good) & (drawn_bad >= 0) & (drawn_bad <= bad)

    def log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
        return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)

    inside = np.where(possible, drawn_good, 0), np.where(possible, drawn_bad, 0)
    logarithm = log_choose(good, inside[0]) + log_choose(bad, inside[1]) - log_choose(np.array(total), np.array(drawn))
    return np.where(possible, np.exp(logarithm), 0.0)


def draw_pool_hits(counts: Counts, k: int, pool: int, draws: int, seed: int = 0) -> np.ndarray:
    """Top-k hits in pools drawn afresh for every query, as in the literature (300 candidates, 30 draws).

    A drawn pool matters only through how many better and tied candidates fall into it; these numbers are drawn,
    each draw with a seed of its own, ``(seed, draw)``.

    Returns
    -------
    (draws, n) float64
    """
    _check_pool(counts.size, pool)
    hits = np.empty((draws, len(counts.greater)))
    for draw in range(draws):
        generator = np.random.default_rng((seed, draw))
        better = generator.hypergeometric(counts.greater, counts.size - 1 - counts.greater, pool - 1)
        equal = generator.hypergeometric(counts.ties, counts.size - 1 - counts.greater - counts.ties, pool - 1 - better)
        hits[draw] = top_k(Counts(better, equal, pool), k)
    return hits


def _check_pool(size: int, pool: int) -> None:
    if not 2 <= pool <= size:
        raise InputError(f"a pool of {pool} cannot be drawn from {size} candidates; allowed: 2 to {size}")


def csls(similarities: np.ndarray, neighbours: int = 10) -> np.ndarray:
    """Correct for hubs: ``2 s_ij - r_i - r_j`` with r the mean similarity to the nearest on the other side.

    Transductive: every score depends on all other test predictions, so a corrected figure is never to be put
    beside an ordinary one without saying so. Conneau et al., Word translation without parallel data, 2018.

    Parameters
    ----------
    similarities : (n, m) array
    neighbours : int
        How many nearest neighbours count; at most the number there is.
    """
    rows, columns = similarities.shape
    right, down = min(neighbours, columns), min(neighbours, rows)
    row_mean = np.partition(similarities, columns - right, axis=1)[:, columns - right :].mean(axis=1)
    column_mean = np.partition(similarities, rows - down, axis=0)[rows - down :].mean(axis=0)
    return 2.0 * similarities - row_mean[:, None] - column_mean[None, :]


def class_centroids(targets: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean target of every class.

    Parameters
    ----------
    targets : (n, D) array
        Training targets only: a centroid of test targets would know the answer.
    labels : (n,) array

    Returns
    -------
    classes : (k,) array, sorted
    centroids : (k, D) float64
    """
    classes, codes = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), targets.shape[1]))
    np.add.at(sums, codes, targets)
    return classes, sums / np.bincount(codes)[:, None]


@dataclass(frozen=True)
class Metric:
    """One score: its value per query, how values are summarised, what is better, and what chance gives."""

    name: str
    values: Callable[[Counts], np.ndarray]
    chance: Callable[[np.ndarray], float]
    summary: Literal["mean", "median"] = "mean"
    higher_is_better: bool = True


def metric(name: str, pool: int | None = None) -> Metric:
    """The metric of that name: ``top-<k>``, ``median-rank``, ``two-way`` or ``accuracy``.

    Parameters
    ----------
    name : str
    pool : int, optional
        Candidates in a drawn pool (top-k only); by default the full gallery.

    Examples
    --------
    >>> metric("top-5").chance(np.array([50, 50]))
    0.1
    """
    if name.startswith("top-") and name[4:].isdigit() and int(name[4:]) > 0:
        k = int(name[4:])
        if pool is None:
            return Metric(name, lambda counts: top_k(counts, k), lambda sizes: float(np.minimum(k / sizes, 1.0).mean()))
        return Metric(name, lambda counts: pool_top_k(counts, k, pool), lambda sizes: min(k / pool, 1.0))
    if name not in METRICS:
        raise unknown("metric", name, ["top-<k>", *METRICS])
    return METRICS[name]


def median_rank_chance(sizes: np.ndarray) -> float:
    """Median of ranks that are uniform over each query's own number of candidates.

    Parameters
    ----------
    sizes : (n,) int array
        Candidates of every query; with one size m for all this is ``(m + 1) / 2``.
    """
    sizes, counts = np.unique(sizes, return_counts=True)
    steps = np.arange(1, sizes.max() + 1)
    cumulative = (np.minimum(steps[:, None] / sizes[None, :], 1.0) * (counts / counts.sum())).sum(axis=1)
    low = int(np.searchsorted(cumulative, 0.5 - 1e-12))
    high = int(np.searchsorted(cumulative, 0.5 + 1e-12, side="right"))
    return float(steps[low] + steps[min(high, len(steps) - 1)]) / 2.0


METRICS: dict[str, Metric] = {
    "median-rank": Metric("median-rank", rank, median_rank_chance, summary="median", higher_is_better=False),
    "two-way": Metric("two-way", two_way, lambda sizes: 0.5),
    "accuracy": Metric("accuracy", lambda counts: top_k(counts, 1), lambda sizes: float((1.0 / sizes).mean())),
}
