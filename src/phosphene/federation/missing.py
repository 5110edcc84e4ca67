"""Which trials miss which modality: drawn from a seed and the names of sites, never from the method under test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.federation.randomness import seed_of
from phosphene.federation.trials import MODALITIES

__all__ = ["Missing", "fractions", "missing_pattern", "site_patterns"]

Kind = Literal["instance", "site"]


@dataclass(frozen=True)
class Missing:
    """What is hidden on purpose at all sites: see `missing_pattern`.

    Attributes
    ----------
    rate : float
        In [0, 1).
    kind : {"instance", "site"}
    seed : int

    Raises
    ------
    InputError
        For a rate that is none, and an unknown kind.
    """

    rate: float
    kind: Kind = "instance"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.rate)
        if self.kind not in get_args(Kind):
            raise unknown("kind of missing pattern", self.kind, get_args(Kind))


def missing_pattern(
    ids: Sequence[str] | np.ndarray,
    rate: float,
    kind: Kind = "instance",
    seed: int = 0,
    site: str = "",
    sites: Sequence[str] | Mapping[str, Sequence[bool]] = (),
    available: np.ndarray | None = None,
) -> np.ndarray:
    """Which modalities each trial of a site has, under a rate of missing ones.

    Parameters
    ----------
    ids : (n,) sequence of str
        Trials; only their number and order matter.
    rate : float
        In [0, 1).
    kind : {"instance", "site"}
        "instance": every modality of every trial is missing with this probability, independently; a trial that would
        have none is drawn again (so that the realised rate is lower: see `fractions`). "site": all trials of a site
        miss the same, as `site_patterns` has it.
    seed : int
    site : str
        Name of the site: others draw otherwise.
    sites : sequence of str, or mapping of str to (3,) sequence of bool
        For "site": all sites of the federation, and what each holds where that is not everything.
    available : (n, 3) ndarray of bool, optional
        What trials have to begin with; public pictures, say, have no fMRI. By default everything.

    Raises
    ------
    InputError
        Also where a site's pattern takes all that some of its trials have.

    Returns
    -------
    (n, 3) ndarray of bool
        In the order of `MODALITIES`.

    Examples
    --------
    >>> missing_pattern(["a", "b"], 0.0).all()
    np.True_
    """
    _check(rate)
    held = np.ones((len(ids), len(MODALITIES)), dtype=bool) if available is None else np.asarray(available, dtype=bool)
    if held.shape != (len(ids), len(MODALITIES)) or not held.any(axis=1).all():
        raise InputError(f"available must be ({len(ids)}, {len(MODALITIES)}) with something in each row")
    if kind == "site":
        patterns = site_patterns(sites, rate, seed)
        if site not in patterns:
            raise unknown("site", site, patterns)
        found: np.ndarray = held & patterns[site]
        if not found.any(axis=1).all():
            raise InputError(f"{(~found.any(axis=1)).sum()} trials of {site} have nothing that its pattern leaves")
        return found
    if kind != "instance":
        raise unknown("kind of missing pattern", kind, ("instance", "site"))
    rng = np.random.default_rng(seed_of(seed, "missing", site))
    present = held & (rng.random(held.shape) >= rate)
    while (empty := np.flatnonzero(~present.any(axis=1))).size:
        present[empty] = held[empty] & (rng.random((len(empty), len(MODALITIES))) >= rate)
    return present


def site_patterns(
    sites: Sequence[str] | Mapping[str, Sequence[bool]], rate: float, seed: int = 0
) -> dict[str, np.ndarray]:
    """Modalities of each site: as near to the rate as can be while every site has one, and every one a site.

    Parameters
    ----------
    sites : sequence of str, or mapping of str to (3,) sequence of bool
        Their names, and what each holds where that is not everything: the rate is of that.
    rate : float
    seed : int

    Examples
    --------
    >>> sum(int(held.sum()) for held in site_patterns(["a", "b"], 0.5).values())
    3
    """
    _check(rate)
    names = sorted(set(sites))
    if len(names) < len(sites) or not names:
        raise InputError(f"patterns need sites of different names, found {', '.join(sites) or 'none'}")
    held = np.ones((len(names), len(MODALITIES)), dtype=bool)
    if isinstance(sites, Mapping):
        held = np.array([sites[name] for name in names], dtype=bool)
    left = held.sum() - round(rate * held.sum())
    for cell in np.random.default_rng(seed_of(seed, "patterns", *names)).permutation(held.size):
        row, column = divmod(int(cell), len(MODALITIES))
        if held[row, column] and held.sum() > left and held[row].sum() > 1 and held[:, column].sum() > 1:
            held[row, column] = False
    return dict(zip(names, held, strict=True))


def fractions(present: np.ndarray) -> dict[str, float]:
    """What a pattern came out as: share of trials that miss each modality, are complete, and have each combination.

    Parameters
    ----------
    present : (n, 3) ndarray of bool

    Examples
    --------
    >>> fractions(np.array([[True, True, True], [True, False, False]]))["complete"]
    0.5
    """
    n = max(1, len(present))
    found = {f"missing {name}": float((~present[:, m]).sum() / n) for m, name in enumerate(MODALITIES)}
    found["complete"] = float(present.all(axis=1).sum() / n)
    counts = Counter("+".join(np.array(MODALITIES)[row].tolist()) for row in present)
    return found | {f"only {name}": count / n for name, count in sorted(counts.items())}


def _check(rate: float) -> None:
    if not 0 <= rate < 1:
        raise InputError(f"the rate of missing modalities lies in [0, 1), found {rate}")
