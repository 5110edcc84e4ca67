"""Faults on request: what goes wrong at a site in given rounds, so that a run can be seen to bear it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import torch

from phosphene.errors import FederationError, InputError, MissingDependencyError, unknown
from phosphene.federation.library import PrototypeLibrary
from phosphene.federation.state import Contribution, GlobalState

__all__ = ["NOT_FINITE", "REASONS", "SPENT", "Fault", "check_faults", "reason_of", "spoiled"]

Kind = Literal["drop", "delay", "nan", "poison", "rubbish"]

_POISON = 100.0
_MOST_ROUNDS = 10**5
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (FederationError, "its training failed: the loss was not finite, or it could not go on"),
    (MissingDependencyError, "a package is missing there"),
    (InputError, "its data or settings were refused there"),
    (MemoryError, "it ran out of memory"),
    (TimeoutError, "it timed out"),
    (ConnectionError, "the connection broke"),
    (OSError, "the system refused it a file or a resource"),
    (ArithmeticError, "a calculation failed there"),
)
_OTHER = "its training stopped with an error"
NOT_FINITE = "its adapters are not finite after training"
SPENT = "its privacy budget is spent: it releases nothing more"
REASONS = frozenset({*(words for _, words in _REASONS), _OTHER, NOT_FINITE, SPENT})  # a site sends no other words


@dataclass(frozen=True)
class Fault:
    """What goes wrong at a site.

    Attributes
    ----------
    kind : {"drop", "delay", "nan", "poison", "rubbish"}
        It does not take part; it answers late; it sends NaN; it sends its update and its sums many times too large;
        it answers with an error whose text holds a path and numbers.
    site : str
    rounds : tuple of int
        Counted from 1.
    size : float, optional
        "delay": simulated seconds, needed. "poison": the factor, 100 by default. The others have none.
    """

    kind: Kind
    site: str
    rounds: tuple[int, ...]
    size: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown("fault", self.kind, get_args(Kind))
        if not self.rounds or min(self.rounds) < 1:
            raise InputError(f"fault {self.kind} of {self.site}: rounds are counted from 1, found {self.rounds}")
        if self.kind == "poison" and self.size is None:
            object.__setattr__(self, "size", _POISON)
        if (self.size is None) == (self.kind in ("delay", "poison")):
            words = "needs seconds" if self.size is None else "has no size"
            raise InputError(f"fault {self.kind} of {self.site} {words}")
        if self.size is not None and not (math.isfinite(self.size) and self.size > 0):
            raise InputError(f"fault {self.kind} of {self.site}: its size is a number above 0, found {self.size}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """``KIND:SITE:ROUNDS[:SIZE]``, rounds as ``3``, ``3-5`` or ``1,4-6``.

        Raises
        ------
        InputError

        Examples
        --------
        >>> Fault.parse("delay:site-2:1,3-4:90")
        Fault(kind='delay', site='site-2', rounds=(1, 3, 4), size=90.0)
        """
        parts = text.split(":")
        if len(parts) not in (3, 4):
            raise InputError(
                f"a fault is KIND:SITE:ROUNDS[:SIZE], such as drop:site-2:3 or delay:a:1-2:90, not {text!r}"
            )
        try:
            rounds = sorted({number for piece in parts[2].split(",") for number in _span(piece)})
            size = float(parts[3]) if len(parts) == 4 else None
        except ValueError as error:
            raise InputError(f"fault {text!r}: rounds are 3, 3-5 or 1,4-6, and the size is a number") from error
        return cls(parts[0], parts[1], tuple(rounds), size)  # type: ignore[arg-type]

    @property
    def words(self) -> str:
        """As `parse` reads it."""
        rounds = ",".join(map(str, self.rounds))
        return f"{self.kind}:{self.site}:{rounds}" + ("" if self.size is None else f":{self.size:g}")


def check_faults(faults: Sequence[Fault], sites: Iterable[str], rounds: int, deadline: float | None) -> None:
    """Refuse faults that cannot happen, and a deadline that nothing can miss.

    Raises
    ------
    InputError
        For unknown sites, rounds behind the last, two faults of a site in one round, delays without a deadline and a
        deadline without delays: time is simulated here, training itself takes none of it.
    """
    known, taken = set(sites), set()
    for fault in faults:
        if fault.site not in known:
            raise unknown("site", fault.site, known)
        if max(fault.rounds) > rounds:
            raise InputError(f"fault {fault.words}: the run has {rounds} rounds")
        for number in fault.rounds:
            if (fault.site, number) in taken:
                raise InputError(f"fault {fault.words}: {fault.site} has another fault in round {number}")
            taken.add((fault.site, number))
    delays = any(fault.kind == "delay" for fault in faults)
    if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
        raise InputError(f"a deadline is a number of seconds above 0, found {deadline}")
    if delays != (deadline is not None):
        raise InputError(
            "a delay has no use without a deadline"
            if delays
            else "a deadline has no use without delays: time is simulated in process, and training takes none of it"
        )


def spoiled(sent: Contribution, shared: GlobalState, fault: Fault) -> Contribution:
    """What a site with the fault ``nan`` or ``poison`` sends instead.

    Parameters
    ----------
    sent : Contribution
    shared : GlobalState
        The one that was trained from.
    fault : Fault
    """
    if fault.kind == "nan":
        name = min(sent.weights)
        return replace(sent, weights={**sent.weights, name: torch.full_like(sent.weights[name], math.nan)})
    factor = float(fault.size or _POISON)
    weights = {
        name: shared.weights[name] + factor * (each - shared.weights[name]) for name, each in sent.weights.items()
    }
    library = PrototypeLibrary(sent.library.sums * factor, sent.library.counts, sent.library.age)
    return replace(sent, weights=weights, library=library)


def reason_of(error: Exception) -> str:
    """What the others are told of an error at a site: fixed words by its kind, nothing of its text or its own name.

    Examples
    --------
    >>> reason_of(PermissionError("patients/7.h5"))
    'the system refused it a file or a resource'
    """
    return next((words for kind, words in _REASONS if isinstance(error, kind)), _OTHER)


def _span(piece: str) -> range:
    first, _, last = piece.partition("-")
    found = range(int(first), int(last or first) + 1)
    if len(found) > _MOST_ROUNDS:
        raise ValueError(piece)
    return found
