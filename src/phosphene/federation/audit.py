"""What leaks nevertheless: attacks on a site with what it released, beside the chance to succeed by guessing.

Two questions. *Membership*: can one tell from the network or from the prototypes whether a trial was trained on?
*Inversion*: does a released prototype point at the single trials it was made of? Everything here is a pure function of
arrays, so that it can be asked with and without protection. An attack that fails shows that this attack fails; what
an epsilon promises holds for all of them.

Members and others must come from one distribution, such as two halves of a site's trials drawn by chance, one of which
was trained on: otherwise an attack that succeeds has learned how they differ, and not who was there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import gammaln
from torch import Tensor
from torch.nn import functional

from phosphene.errors import InputError

__all__ = [
    "Attack",
    "confidence_scores",
    "distance_scores",
    "loss_scores",
    "membership",
    "prototype_inversion",
]

LEVEL = 0.95


@dataclass(frozen=True)
class Attack:
    """How well an attack does.

    Attributes
    ----------
    name : str
    measure : str
        ``"AUC"`` or ``"top-1"``.
    value : float
    low, high : float
        95 % percentile bootstrap interval.
    chance : float
    members, others : int
        How many trials of each were at hand.
    """

    name: str
    measure: str
    value: float
    low: float
    high: float
    chance: float
    members: int
    others: int

    @property
    def succeeds(self) -> bool:
        """Whether the interval lies above chance."""
        return self.low > self.chance

    def told(self) -> str:
        """In one line."""
        verdict = "leaks" if self.succeeds else "not told from chance"
        return (
            f"{self.name}: {self.measure} {self.value:.3f} [{self.low:.3f}, {self.high:.3f}], chance {self.chance:.3f} "
            f"({self.members} trials trained on, {self.others} not): {verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"succeeds": self.succeeds}


# -- scores: the higher, the more a trial looks as if it had been trained on -------------------------------------------


def loss_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the loss of each trial, for one who knows its labels (Yeom et al., 2018).

    Parameters
    ----------
    logits : Tensor (n, C)
    labels : Tensor (n,) of int, or (n, C)
        One class a trial (cross-entropy), or soft labels in [0, 1] (binary cross-entropy over all classes).

    Returns
    -------
    Tensor (n,)
    """
    if labels.ndim == 1:
        return -functional.cross_entropy(logits, labels, reduction="none")
    return -functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1)


def confidence_scores(logits: Tensor, several: bool = False) -> Tensor:
    """How sure the network is of each trial, for one who does not know its labels (Salem et al., 2019).

    Parameters
    ----------
    logits : Tensor (n, C)
    several : bool
        Whether a trial may have several classes: then minus the mean entropy of the classes, otherwise the
        logarithm of the largest probability.

    Returns
    -------
    Tensor (n,)
    """
    if not several:
        return logits.log_softmax(dim=1).amax(dim=1)
    chance = logits.sigmoid()
    return (chance * functional.logsigmoid(logits) + (1 - chance) * functional.logsigmoid(-logits)).mean(dim=1)


def distance_scores(features: Tensor, prototypes: Tensor, own: Tensor | None = None) -> Tensor:
    """Cosine of each trial's feature with a prototype: its own class's, or the nearest for one who does not know it.

    Parameters
    ----------
    features : Tensor (n, d)
        Of one modality, or of the fusion.
    prototypes : Tensor (P, d)
        Those that were released, of the same part.
    own : Tensor (n,) of int, optional
        Row of each trial's prototype.

    Returns
    -------
    Tensor (n,)

    Raises
    ------
    InputError
        Without prototypes, and for rows that there are not.
    """
    cosines = _cosines(features, prototypes)
    if own is None:
        return cosines.amax(dim=1)
    _check_rows(own, len(features), len(prototypes))
    return cosines.gather(1, own[:, None]).squeeze(1)


# -- attacks ----------------------------------------------------------------------------------------------------------


def membership(
    name: str, members: Tensor | np.ndarray, others: Tensor | np.ndarray, boots: int = 1000, seed: int = 0
) -> Attack:
    r"""Area under the curve of telling trials that were trained on from others.

    .. math:: \mathrm{AUC} = P(s_{member} > s_{other}) + \tfrac{1}{2} P(s_{member} = s_{other})

    with a bootstrap over members and over others.

    Parameters
    ----------
    name : str
        Of the attack, e.g. ``"membership by loss"``.
    members, others : array (n,) and (o,)
        Scores, of the functions above; at least two of each.
    boots : int
    seed : int
        Of the bootstrap.

    Raises
    ------
    InputError
        For fewer than two of either, and scores that are not finite.

    Examples
    --------
    >>> membership("toy", np.array([2.0, 3.0, 4.0]), np.array([0.0, 1.0, 3.0])).value  # doctest: +ELLIPSIS
    0.8333...
    """
    of_members, of_others = (_scores(which, each) for which, each in (("members", members), ("others", others)))
    ranked = np.sort(of_others)
    below = np.searchsorted(ranked, of_members, side="left")
    upto = np.searchsorted(ranked, of_members, side="right")
    rng = np.random.default_rng(seed)
    n, o = len(of_members), len(of_others)

    def auc(of_member: np.ndarray, of_other: np.ndarray) -> float:
        mass = np.concatenate([[0.0], np.cumsum(of_other)])
        return float(of_member @ (mass[below] + mass[upto]) / 2 / (of_member.sum() * of_other.sum()))

    drawn = [
        auc(rng.multinomial(n, np.full(n, 1 / n)).astype(float), rng.multinomial(o, np.full(o, 1 / o)).astype(float))
        for _ in range(boots)
    ]
    return Attack(name, "AUC", auc(np.ones(n), np.ones(o)), *_interval(drawn), 0.5, n, o)


def prototype_inversion(
    prototypes: Tensor,
    counts: Tensor,
    members: Tensor,
    member_of: Tensor,
    others: Tensor,
    other_of: Tensor,
    pool: int = 20,
    edges: Sequence[float] = (2, 5, 10, 20, 50),
    boots: int = 500,
    seed: int = 0,
) -> list[Attack]:
    r"""How well a released prototype finds a trial it was made of among trials of the same class that it was not.

    One trial that entered the prototype stands among ``pool - 1`` drawn by chance from the others of its class; it is
    found where its cosine with the prototype is the largest. The probability over draws is exact: with `L` of `N`
    others less alike, :math:`\binom{L}{k} / \binom{N}{k}`, :math:`k = pool - 1`; ties share the hit. Chance is
    :math:`1 / pool` whatever the count. As classes are compared with themselves, knowing the class helps nobody.

    Parameters
    ----------
    prototypes : Tensor (P, d)
        As they were released, noise and all.
    counts : Tensor (P,)
        Trials behind each, by which results are grouped; the true ones.
    members : Tensor (n, d)
        Features of the trials behind them; a trial of several classes stands here once for each.
    member_of : Tensor (n,) of int
        Row of the prototype.
    others : Tensor (o, d)
        Features of trials that no prototype was made of.
    other_of : Tensor (o,) of int
        The prototype of their class.
    pool : int
        Trials among which one is looked for, at least 2.
    edges : sequence of float
        Where groups by count begin, after the first.
    boots, seed : int
        Of the bootstrap over prototypes, and over trials of each.

    Returns
    -------
    list of Attack
        Of all counts, then of each group that has trials. Prototypes of classes with fewer than ``pool - 1`` others
        are left out.

    Raises
    ------
    InputError
        Where no prototype is left, and for arrays that do not belong together.
    """
    if pool < 2:
        raise InputError(f"a pool holds at least the trial and one other, found {pool}")
    _check_rows(member_of, len(members), len(prototypes))
    _check_rows(other_of, len(others), len(prototypes))
    if len(counts) != len(prototypes):
        raise InputError(f"{len(prototypes)} prototypes need as many counts, found {len(counts)}")
    near, far = (_cosines(rows, prototypes).numpy() for rows in (members, others))
    hits: dict[int, np.ndarray] = {}
    behind: dict[int, int] = {}
    for row in range(len(prototypes)):
        mine, theirs = near[member_of.numpy() == row, row], np.sort(far[other_of.numpy() == row, row])
        if len(mine) and len(theirs) >= pool - 1:
            hits[row], behind[row] = _found(mine, theirs, pool - 1), len(theirs)
    if not hits:
        raise InputError(f"no prototype has trials and {pool - 1} others of its class: take a smaller pool")
    bounds = [-math.inf, *sorted(edges), math.inf]
    groups = [("all counts", list(hits))]
    for low, high in pairwise(bounds):
        rows = [row for row in hits if low <= float(counts[row]) < high]
        groups.append((_words(low, high), rows))
    rng = np.random.default_rng(seed)
    return [
        _inversion(
            f"inversion, {words}", [hits[row] for row in rows], sum(behind[row] for row in rows), pool, boots, rng
        )
        for words, rows in groups
        if rows
    ]


def _inversion(
    name: str, hits: list[np.ndarray], others: int, pool: int, boots: int, rng: np.random.Generator
) -> Attack:
    """Mean over trials, with a bootstrap over prototypes and over the trials of each."""
    drawn = []
    for _ in range(boots):
        chosen = [hits[row] for row in rng.integers(len(hits), size=len(hits))]
        drawn.append(float(np.concatenate([each[rng.integers(len(each), size=len(each))] for each in chosen]).mean()))
    together = np.concatenate(hits)
    return Attack(
        name, "top-1", float(together.mean()), *_interval(drawn), 1 / pool, members=len(together), others=others
    )


def _found(mine: np.ndarray, theirs: np.ndarray, drawn: int) -> np.ndarray:
    """Probability of each of `mine` to lie above `drawn` of `theirs` (sorted), drawn without putting back."""
    below, upto = (np.searchsorted(theirs, mine, side=side).astype(float) for side in ("left", "right"))
    return (_all_of(below, len(theirs), drawn) + _all_of(upto, len(theirs), drawn)) / 2


def _all_of(good: np.ndarray, total: int, drawn: int) -> np.ndarray:
    """Probability that all of `drawn` are among the `good` of `total`: a hypergeometric one."""
    enough = good >= drawn
    safe = np.where(enough, good, drawn)
    logarithm = gammaln(safe + 1) - gammaln(safe - drawn + 1) - gammaln(total + 1) + gammaln(total - drawn + 1)
    return np.where(enough, np.exp(logarithm), 0.0)


def _words(low: float, high: float) -> str:
    if math.isinf(low):
        return f"counts below {high:g}"
    return f"counts from {low:g}" + ("" if math.isinf(high) else f" to below {high:g}")


def _interval(drawn: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _scores(which: str, given: Tensor | np.ndarray) -> np.ndarray:
    scores = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float64)
    if scores.ndim != 1 or len(scores) < 2 or not np.all(np.isfinite(scores)):
        raise InputError(f"scores of {which} are at least two finite numbers, found shape {scores.shape}")
    return scores


def _cosines(features: Tensor, prototypes: Tensor) -> Tensor:
    if features.ndim != 2 or prototypes.ndim != 2 or features.shape[1] != prototypes.shape[1] or not len(prototypes):
        raise InputError(
            f"features (n, d) and at least one prototype (P, d) are needed, found {tuple(features.shape)} and "
            f"{tuple(prototypes.shape)}"
        )
    one, other = features.detach().cpu().double(), prototypes.detach().cpu().double()
    return functional.normalize(one, dim=1) @ functional.normalize(other, dim=1).T


def _check_rows(rows: Tensor, n: int, known: int) -> None:
    if rows.shape != (n,) or (n and not 0 <= int(rows.min()) <= int(rows.max()) < known):
        raise InputError(f"each of {n} trials needs the row of one of {known} prototypes, found {tuple(rows.shape)}")
