"""Who holds what, and which stimuli are public: said in words, and refused before anything is encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from phosphene.errors import InputError, LeakageError, unknown
from phosphene.federation.trials import MODALITIES

if TYPE_CHECKING:
    from phosphene.recordings import Study, StudyView

__all__ = ["PUBLIC", "check_classes", "check_places", "held_at", "held_by", "held_words", "public_view"]

PUBLIC = "public"
"""Name of the site that has public stimuli alone."""

_BRAIN, _PICTURE, _WORDS = MODALITIES


def held_words(words: str) -> tuple[str, ...]:
    """Modalities that a site holds, from words with commas; all of them from empty text.

    Raises
    ------
    InputError
        For unknown modalities, one named twice, and commas without any.

    Examples
    --------
    >>> held_words("text,fmri")
    ('fmri', 'text')
    """
    if not words:
        return MODALITIES
    found = [word.strip() for word in words.split(",") if word.strip()]
    for word in found:
        if word not in MODALITIES:
            raise unknown("modality", word, MODALITIES)
    if not found or len(set(found)) < len(found):
        raise InputError(f"what a site holds is some of {', '.join(MODALITIES)}, each named once; found {words!r}")
    return tuple(name for name in MODALITIES if name in found)


def held_at(given: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What sites hold, from words such as ``site-1=fmri,image``.

    Raises
    ------
    InputError
        For words of another form, a site named twice, and as of `held_words`.

    Examples
    --------
    >>> held_at(["site-2=fmri,image", "site-3=image,text"])
    {'site-2': ('fmri', 'image'), 'site-3': ('image', 'text')}
    """
    found: dict[str, tuple[str, ...]] = {}
    for words in given:
        name, _, held = words.partition("=")
        if not name or not held:
            raise InputError(
                f"what a site holds is SITE=MODALITIES, such as site-1={_BRAIN},{_PICTURE}; found {words!r}"
            )
        if name in found:
            raise InputError(f"what {name} holds is said twice")
        found[name] = held_words(held)
    return found


def held_by(
    places: Iterable[str], holds: Mapping[str, tuple[str, ...]], public: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Modalities of every site, also of those of which nothing is said.

    Parameters
    ----------
    places : iterable of str
        Sites with people.
    holds : mapping of str to tuple of str
        See `held_at`.
    public : str, optional
        Stimuli of one site more, `PUBLIC`.

    Raises
    ------
    InputError
        For unknown sites, and public stimuli that hold a brain.

    Examples
    --------
    >>> held_by(["site-1"], {"site-1": ("fmri",)}, "train")
    {'site-1': ('fmri',), 'public': ('image', 'text')}
    """
    names = [*places, *([] if public is None else [PUBLIC])]
    for name in holds:
        if name not in names:
            raise unknown("site", name, names)
    if _BRAIN in holds.get(PUBLIC, ()):
        raise InputError(f"{PUBLIC} has stimuli without a brain: it holds {_PICTURE}, {_WORDS} or one of them")
    return {name: holds.get(name, (_PICTURE, _WORDS) if name == PUBLIC else MODALITIES) for name in names}


def public_view(study: Study, words: str) -> StudyView:
    """Public stimuli: a role of the study's split, such as ``train``, or ``SPLIT/ROLE`` of another one.

    Raises
    ------
    InputError
        For an unknown split or role.
    """
    split, _, role = words.rpartition("/")
    return (study.using(split) if split else study).split(role)


def check_places(
    study: Study,
    places: Iterable[str],
    holds: Mapping[str, tuple[str, ...]],
    public: str | None = None,
    clusters: bool = False,
) -> None:
    """Refuse sites that cannot be, before anything is encoded for them.

    Parameters
    ----------
    study : Study
    places, holds, public
        See `held_by`.
    clusters : bool
        Whether classes are clusters.

    Raises
    ------
    LeakageError
        For public stimuli that are of the test part, or of one unit with its stimuli.
    InputError
        As of `held_by` and `public_view`, and for clusters where a site has no pictures.
    """
    held = held_by(places, holds, public)
    if public is not None:
        _check_apart(study, public)
    if clusters and (blind := [name for name, own in held.items() if _PICTURE not in own]):
        raise InputError(f"{', '.join(blind)} holds no image, and clusters are of image embeddings: take label columns")


def check_classes(
    study: Study, columns: Sequence[str] = (), clusters: int | None = None, public: str | None = None
) -> None:
    """Refuse classes that cannot be, before anything is encoded for them.

    Parameters
    ----------
    study, columns, clusters, public
        See `phosphene.federation.sites.classes_asked`.

    Raises
    ------
    LeakageError
        Where a public stimulus is of the test part, or of one unit with its stimuli.
    InputError
        For both or none of the two ways, and as of `public_view`.
    """
    if bool(columns) == (clusters is not None):
        raise InputError("classes come from label columns (--classes) or from clusters (--clusters): give one of them")
    if clusters is None and public is not None:
        raise InputError("--public has no use without --clusters")
    if clusters is not None and public is None:
        raise InputError(
            "--clusters needs --public: the stimuli to fit them on, such as train; never those of the test"
        )
    if public is not None:
        _check_apart(study, public)


def _check_apart(study: Study, words: str) -> None:
    """Refuse public stimuli that are of one unit with a stimulus of the test part."""
    view = public_view(study, words)
    if "test" not in study.roles():
        return
    tested = np.isin(view.units, study.split("test").units)
    if tested.any():
        raise LeakageError(
            f"{tested.sum()} public stimuli ({words}) are of the test part, or of one unit with its stimuli, such as "
            f"{view.stimulus_ids[tested][0]}"
        )
