"""The aligners by name."""

from __future__ import annotations

from typing import Any

from phosphene.alignment.anatomical import Anatomical
from phosphene.alignment.base import Aligner
from phosphene.alignment.hybrid import Hybrid
from phosphene.alignment.pooled import Pooled
from phosphene.alignment.procrustes import Procrustes
from phosphene.alignment.ridge import RidgeAligner
from phosphene.alignment.srm import Srm
from phosphene.errors import unknown

__all__ = ["ALIGNERS", "aligner_class", "make_aligner"]

ALIGNERS: dict[str, type[Aligner]] = {
    cls.name: cls for cls in (Anatomical, RidgeAligner, Procrustes, Srm, Hybrid, Pooled)
}


def aligner_class(name: str) -> type[Aligner]:
    """The class behind an aligner's name; an unknown name lists the known ones."""
    if name not in ALIGNERS:
        raise unknown("aligner", name, ALIGNERS)
    return ALIGNERS[name]


def make_aligner(name: str, **settings: Any) -> Aligner:
    """Build an aligner that is not fitted yet.

    Parameters
    ----------
    name : str
        A key of `ALIGNERS`: ``"anatomical"``, ``"ridge"``, ``"procrustes"``, ``"srm"``, ``"hybrid"``, ``"pooled"``.
    **settings
        Settings of that aligner; unknown ones are refused.

    Examples
    --------
    >>> make_aligner("pooled", width=8)
    Aligner(pooled, not fitted)
    """
    cls = aligner_class(name)
    return cls(cls.Config.build(settings))
