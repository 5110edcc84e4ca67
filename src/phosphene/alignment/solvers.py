"""The mathematics of functional alignment as pure functions on centred float64 arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from phosphene.errors import InputError

__all__ = [
    "choose",
    "choose_features",
    "inner_folds",
    "orthonormal_map",
    "procrustes_map",
    "procrustes_path",
    "ridge_map",
    "ridge_path",
    "shared_response",
    "thin_svd",
]

_TINY = 1e-10  # of the largest singular value: what is smaller is rounding
Folds = Sequence[tuple[np.ndarray, np.ndarray]]
Path = Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[Any]], Iterator[np.ndarray]]


def thin_svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors and values without those that are rounding: ``x = left @ diag(values) @ right.T``.

    By the eigenvectors of the smaller Gram matrix: x has as many rows as stimuli and many more columns.
    """
    n, p = x.shape
    squares, vectors = np.linalg.eigh(x @ x.T if n <= p else x.T @ x)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    kept = squares > _TINY * max(float(squares[0]), 1e-300)
    values, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    other = (x.T if n <= p else x) @ vectors / values
    return (vectors, values, other) if n <= p else (other, values, vectors)


def ridge_map(x: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    r"""Weights W ``(V_s, V)`` of ridge: :math:`\min_W |XW - T|^2 + \lambda |W|^2`.

    Parameters
    ----------
    x : (n, V_s) array
        Centred responses of a person.
    target : (n, V) array
        Centred responses of the template.
    penalty : float
        In units of the mean squared norm of a response: lambda is ``penalty * mean |x_i|^2``.
    """
    left, values, right = thin_svd(x)
    return (right * _shrunk(values, len(x), penalty)) @ (left.T @ target)


def ridge_path(x: np.ndarray, target: np.ndarray, new: np.ndarray, penalties: Sequence[float]) -> Iterator[np.ndarray]:
    """Predictions ``(m, V)`` for new rows under each penalty, without the weights."""
    left, values, right = thin_svd(x)
    within, known = new @ right, left.T @ target
    for penalty in penalties:
        yield (within * _shrunk(values, len(x), penalty)) @ known


def _shrunk(values: np.ndarray, n: int, penalty: float) -> np.ndarray:
    squares = np.square(values)
    return values / (squares + penalty * squares.sum() / n)


def procrustes_map(x: np.ndarray, target: np.ndarray, components: int) -> np.ndarray:
    r"""Orthogonal map with one scale, ``(V_s, V)``: :math:`\min_{R, c} |c X_k R - T|^2`, R a partial isometry.

    X_k are the leading `components` principal components of X. Within them distances and angles between responses are
    kept (Schoenemann 1966); what lies outside of them is dropped.
    """
    left, values, right = thin_svd(x)
    return right[:, :components] @ _rotation(left, values, target, components)


def procrustes_path(
    x: np.ndarray, target: np.ndarray, new: np.ndarray, components: Sequence[int]
) -> Iterator[np.ndarray]:
    """Predictions ``(m, V)`` for new rows with each number of components."""
    left, values, right = thin_svd(x)
    within = new @ right
    for number in components:
        yield within[:, :number] @ _rotation(left, values, target, number)


def _rotation(left: np.ndarray, values: np.ndarray, target: np.ndarray, components: int) -> np.ndarray:
    """Scaled rotation ``(k, V)`` of the leading components into the template."""
    values = values[:components]
    first, strength, second = np.linalg.svd(values[:, None] * (left[:, :components].T @ target), full_matrices=False)
    return strength.sum() / np.square(values).sum() * (first @ second)


def shared_response(responses: Sequence[np.ndarray], features: int, rounds: int) -> tuple[list[np.ndarray], np.ndarray]:
    r"""Deterministic shared response model (Chen et al. 2015): :math:`\min \sum_s |X_s - S W_s^T|^2, W_s^T W_s = I`.

    Starts from the leading eigenvectors of the mean similarity of stimuli, then takes turns: W_s by Procrustes, S as
    the mean over people of X_s W_s. No random numbers.

    Parameters
    ----------
    responses : sequence of (n, V_s) arrays
        Centred.
    features : int
        Width of S, at most the number of stimuli and of anybody's voxels.
    rounds : int

    Returns
    -------
    list of (V_s, features) arrays, (n, features) array
    """
    similarity = sum(x @ x.T / max(float(np.square(x).sum()), 1e-300) for x in responses)
    vectors = np.linalg.eigh(np.asarray(similarity))[1][:, ::-1][:, :features]
    shared = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(features)])
    for _ in range(rounds):
        maps = [orthonormal_map(x, shared) for x in responses]
        shared = np.mean([x @ w for x, w in zip(responses, maps, strict=True)], axis=0)
    return maps, shared


def orthonormal_map(x: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """W ``(V_s, features)`` with orthonormal columns that brings x nearest to the shared response."""
    first, _, second = np.linalg.svd(x.T @ shared, full_matrices=False)
    return first @ second


def inner_folds(units: np.ndarray, folds: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of (train, validation) rows; rows of one unit stay together.

    Raises
    ------
    InputError
        With fewer than two units.
    """
    names, codes = np.unique(units, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"inner folds need at least two units of shared stimuli, found {len(names)}")
    parts = np.array_split(np.random.default_rng(seed).permutation(len(names)), min(folds, len(names)))
    held = [np.isin(codes, part) for part in parts]
    return [(np.flatnonzero(~out), np.flatnonzero(out)) for out in held]


def choose(path: Path, x: np.ndarray, target: np.ndarray, folds: Folds, candidates: Sequence[Any]) -> Any:
    """The candidate that predicts the target best (squared error) on stimuli that it was not fitted to.

    Parameters
    ----------
    path : callable
        `ridge_path` or `procrustes_path`.
    """
    if len(candidates) == 1:
        return candidates[0]
    errors = np.zeros(len(candidates))
    for train, validation in folds:
        mean, offset = x[train].mean(axis=0), target[train].mean(axis=0)
        predictions = path(x[train] - mean, target[train] - offset, x[validation] - mean, candidates)
        held = target[validation] - offset
        errors += [np.square(predicted - held).sum() for predicted in predictions]
    return candidates[int(errors.argmin())]


def choose_features(responses: Sequence[np.ndarray], folds: Folds, candidates: Sequence[int], rounds: int) -> int:
    """The width of the shared response from which each person's held-out responses follow best.

    On validation stimuli the shared response of the others, brought back by the person's own map, is held against what
    the person responded; errors are in units of the person's total. (Likeness between people would be no measure: it is
    greatest where almost everything is dropped.)
    """
    if len(candidates) == 1:
        return candidates[0]
    errors = np.zeros(len(candidates))
    for train, validation in folds:
        means = [x[train].mean(axis=0) for x in responses]
        centred = [x[train] - mean for x, mean in zip(responses, means, strict=True)]
        held = [x[validation] - mean for x, mean in zip(responses, means, strict=True)]
        for number, features in enumerate(candidates):
            maps, _ = shared_response(centred, features, rounds)
            brought = [x @ w for x, w in zip(held, maps, strict=True)]
            total = np.sum(brought, axis=0)
            for x, w, own in zip(held, maps, brought, strict=True):
                guess = (total - own) / (len(held) - 1) @ w.T
                errors[number] += np.square(x - guess).sum() / max(float(np.square(x).sum()), 1e-300)
    return candidates[int(errors.argmin())]
