"""Named protocols: what is compared with what, over which pool, summarised how.

============================  ==================================================================================
``retrieval``                 rank among all candidates of the split: top-1, top-5, median rank; both directions
``retrieval-300x30``          the same in pools of 300 drawn for every query, 30 draws: top-1, top-5
``two-way-cosine``            own against every other candidate, one at a time; both directions
``two-way-pearson``           the same with Pearson correlation
``classification:<column>``   nearest class embedding, the classes of a label column (default ``label``)
============================  ==================================================================================

``retrieval`` takes any pool and number of draws (``-100x10``), ``-pearson`` instead of the cosine, and ``-csls``
(hubness corrected, transductive); two-way takes ``-csls`` as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.evaluation.metrics import (
    DIRECTIONS,
    Counts,
    Metric,
    count_all,
    count_true,
    csls,
    draw_pool_hits,
    metric,
)

__all__ = ["Outcome", "Protocol", "Ranking", "default_protocols", "parse_protocol", "resolve"]

_RETRIEVAL = re.compile(
    r"retrieval(?:-(?P<pool>\d+)x(?P<draws>\d+))?(?:-(?P<similarity>cosine|pearson))?(?P<csls>-csls)?"
)
_TWO_WAY = re.compile(r"two-way-(?P<similarity>cosine|pearson)(?P<csls>-csls)?")
_CLASSIFICATION = re.compile(r"classification(?::(?P<label>.+))?")
_KNOWN = ("retrieval", "retrieval-300x30", "two-way-cosine", "two-way-pearson", "classification:<label column>")


@dataclass(frozen=True)
class Outcome:
    """What one protocol gives for one set of predictions.

    Attributes
    ----------
    values : mapping of metric name to (n,) array
        Per query.
    expected : mapping of metric name to (n,) array
        Of drawn pools: per query, the mean over all possible pools, free of the scatter of the draws.
    null : mapping of metric name to (n_perm, n) array
        Per query under each permutation; empty without permutations.
    size : int
        Candidates a query had.
    """

    values: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    null: dict[str, np.ndarray]
    size: int


class Ranking:
    """Counts of better and tied candidates, made once and shared by the protocols that use the same similarities.

    Parameters
    ----------
    similarities : (n, m) array
        Queries in rows.
    truth : (n,) int array
        True candidate of each query.
    """

    def __init__(self, similarities: np.ndarray, truth: np.ndarray) -> None:
        self._similarities = similarities
        self.truth = truth
        self.own = count_true(similarities, truth)

    @cached_property
    def everything(self) -> Counts:
        """Counts of every candidate, as if it were the true one; needed for the null only."""
        return count_all(self._similarities)


@dataclass(frozen=True)
class Protocol:
    """A way to score predictions, by name; build it with `parse_protocol`."""

    name: str
    metric_names: tuple[str, ...]
    directions: tuple[str, ...] = tuple(DIRECTIONS)
    similarity: str = "cosine"
    pool: int | None = None
    draws: int = 1
    transductive: bool = False
    label: str | None = None

    @property
    def metrics(self) -> list[Metric]:
        """The metrics it reports."""
        return [metric(name, self.pool) for name in self.metric_names]

    def corrected(self, similarities: np.ndarray) -> np.ndarray:
        """The similarities, hubness corrected where the protocol says so."""
        return csls(similarities) if self.transductive else similarities

    def score(self, ranking: Ranking, permutations: np.ndarray, *, seed: int = 0) -> Outcome:
        """Score every query.

        Parameters
        ----------
        ranking : Ranking
            Of the protocol's own similarities; for ``image_to_brain`` of their transpose.
        permutations : (n_perm, n) int array
            Which query's candidate is taken for the true one, under each permutation; may be empty.
        seed : int
            Of drawn pools.
        """
        values, expected, null = {}, {}, {}
        for chosen in self.metrics:
            values[chosen.name] = chosen.values(ranking.own)
            if self.pool is not None:
                expected[chosen.name] = values[chosen.name]
                k = int(chosen.name[len("top-") :])
                values[chosen.name] = draw_pool_hits(ranking.own, k, self.pool, self.draws, seed).mean(axis=0)
            if len(permutations):
                table = np.asarray(chosen.values(ranking.everything))
                null[chosen.name] = table[np.arange(len(table)), ranking.truth[permutations]]
        return Outcome(values, expected, null, ranking.own.size)

    def with_csls(self) -> Protocol:
        """The same protocol after hubness correction."""
        return replace(self, name=f"{self.name}-csls", transductive=True)

    def to_dict(self) -> dict[str, Any]:
        """Its facts as plain values."""
        return {
            "name": self.name,
            "metrics": list(self.metric_names),
            "directions": list(self.directions),
            "similarity": self.similarity,
            "pool": "full gallery"
            if self.pool is None
            else {"size": self.pool, "draws": self.draws, "drawn": "per query"},
            "transductive": self.transductive,
            "label": self.label,
        }


def parse_protocol(name: str) -> Protocol:
    """The protocol of that name; see the table at the top of this module.

    Examples
    --------
    >>> parse_protocol("retrieval-300x30").pool
    300
    """
    if found := _CLASSIFICATION.fullmatch(name):
        label = found["label"] or "label"
        return Protocol(f"classification:{label}", ("accuracy",), ("brain_to_label",), label=label)
    if found := _TWO_WAY.fullmatch(name):
        protocol = Protocol(f"two-way-{found['similarity']}", ("two-way",), similarity=found["similarity"])
    elif found := _RETRIEVAL.fullmatch(name):
        kind = found["similarity"] or "cosine"
        if found["pool"]:
            pool, draws = int(found["pool"]), int(found["draws"])
            if pool < 2 or draws < 1:
                raise InputError(f"protocol {name!r}: a pool needs at least 2 candidates and 1 draw")
            full = f"retrieval-{pool}x{draws}-{kind}"
            protocol = Protocol(full, ("top-1", "top-5"), similarity=kind, pool=pool, draws=draws)
        else:
            protocol = Protocol(f"retrieval-full-{kind}", ("top-1", "top-5", "median-rank"), similarity=kind)
    else:
        raise unknown("protocol", name, _KNOWN)
    return protocol.with_csls() if found["csls"] else protocol


def default_protocols(smallest_gallery: int, csls: bool = False, label: str | None = None) -> list[Protocol]:
    """Full gallery and two-way; pools of 300 x 30 draws where the smallest gallery has more than 300 stimuli.

    Classification comes first where the targets are labels.

    Parameters
    ----------
    smallest_gallery : int
        Candidates of the split (or person) that has the fewest.
    csls : bool
        Add the hubness-corrected retrieval.
    label : str, optional
        The label column that the targets stand for.
    """
    names = [
        *([f"classification:{label}"] if label else []),
        "retrieval",
        *(["retrieval-300x30"] if smallest_gallery > 300 else []),
        "two-way-cosine",
        "two-way-pearson",
    ]
    chosen = [parse_protocol(name) for name in names]
    return chosen + ([parse_protocol("retrieval").with_csls()] if csls else [])


def resolve(
    protocols: Sequence[str] | None, smallest_gallery: int, csls: bool, label: str | None = None
) -> list[Protocol]:
    """What `evaluate` was asked for: protocols by name, or the default ones."""
    if protocols is None:
        return default_protocols(smallest_gallery, csls, label)
    chosen = [parse_protocol(name) for name in dict.fromkeys(protocols)]
    if csls:
        chosen += [p.with_csls() for p in chosen if p.label is None and not p.transductive]
    for protocol in chosen:
        if protocol.pool is not None and protocol.pool > smallest_gallery:
            raise InputError(
                f"protocol {protocol.name!r} draws pools of {protocol.pool}, "
                f"the smallest gallery has {smallest_gallery}"
            )
    return chosen
