"""Hard groups: runs of scenes that share few colours and materials, so that shape must tell them apart.

With random scenes, colour and material alone separate a batch of a hundred captions, and a contrastive encoder never
learns shape. In a hard group two colours and two materials are left, and most pairs differ in shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.stimuli.scenes.grammar import HOLDOUTS, ROLES, SceneGraphs, sample_graphs
from phosphene.stimuli.scenes.layout import SLOTS
from phosphene.stimuli.scenes.randoms import uniforms
from phosphene.stimuli.scenes.restrictions import RESTRICTABLE, Allowed, allowed_masks

__all__ = ["hard_groups"]

_LOOKS = ("shape", "colour", "material")


def hard_groups(
    n: int,
    seed: int = 0,
    *,
    start: int = 0,
    group: int = 64,
    colours: int = 2,
    materials: int = 2,
    share: float = 0.75,
    holdout: str | None = None,
    rule: str = "shape-colour",
    objects: int | None = None,
    only: Mapping[str, Allowed] | None = None,
    scale: tuple[float, float] | None = None,
) -> SceneGraphs:
    """Draw scenes number `start` to `start + n - 1`, of which most groups share few colours and materials.

    Scene `i` belongs to group ``i // group``. Whether a group is hard, and what it shares, follows from the seed and
    the number of the group alone. With ``objects=1`` the shape, colour and material triples of a hard group are dealt
    out without repetition as far as they go (24 x 2 x 2 = 96 without a hold-out), so that hardly any caption fits two
    of its pictures; with more objects they are drawn. A group whose colours and materials leave too few shapes under
    the hold-out is drawn freely.

    Parameters
    ----------
    n, seed, start, holdout, rule, objects, scale
        As in :func:`sample_graphs`.
    group : int
        Scenes a group.
    colours, materials : int
        How many of them a hard group has.
    share : float
        Share of hard groups, 0 to 1.
    only : mapping, optional
        As in :func:`sample_graphs`, the same for all scenes; the shared values are taken from what it allows.

    Raises
    ------
    InputError
        As in :func:`sample_graphs`; for a group below 2, a share out of range, more colours or materials than allowed.

    Examples
    --------
    >>> scenes = hard_groups(64, seed=1, share=1.0, objects=1)
    >>> len(set(scenes.colour[:, 0].tolist())), len(set(scenes.material[:, 0].tolist()))
    (2, 2)
    """
    restricted = dict(only or {})
    general = {name: mask[0] for name, mask in allowed_masks(restricted, 1).items()}
    allowed = {name: general.get(name, np.ones(len(RESTRICTABLE[name]), dtype=bool)) for name in _LOOKS}
    _check(n, start, group, share, holdout, rule, {"colour": colours, "material": materials}, allowed)
    index = np.arange(start, start + n)
    numbers, member = np.unique(index // group, return_inverse=True)
    chosen = {
        "shape": np.broadcast_to(np.flatnonzero(allowed["shape"]), (len(numbers), int(allowed["shape"].sum()))),
        "colour": _subset(seed, numbers, "group colours", allowed["colour"], colours),
        "material": _subset(seed, numbers, "group materials", allowed["material"], materials),
    }
    triples = _triples(chosen, holdout, rule)
    # every slot needs a shape of its own
    enough = triples.any((2, 3)).sum(1) >= (SLOTS if objects is None else objects)
    hard = enough & (uniforms(seed, numbers, "group", 1)[:, 0] < share)
    drawn = chosen if objects != 1 else _dealt(seed, index, group, triples, chosen)
    of_scene = member if objects != 1 else np.arange(n)
    scenes = {}
    for name in _LOOKS:
        mask = np.zeros((len(drawn[name]), len(allowed[name])), dtype=bool)
        np.put_along_axis(mask, drawn[name], True, axis=1)
        scenes[name] = np.where(hard[member][:, None], mask[of_scene], allowed[name])
    restricted |= scenes
    return sample_graphs(
        n, seed, start=start, holdout=holdout, rule=rule, objects=objects, only=restricted, scale=scale
    )


def _check(
    n: int,
    start: int,
    group: int,
    share: float,
    holdout: str | None,
    rule: str,
    counts: Mapping[str, int],
    allowed: Mapping[str, np.ndarray],
) -> None:
    for name, value, low in (("n", n, 1), ("start", start, 0), ("group", group, 2)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise InputError(f"{name} must be an integer of at least {low}, found {value!r}")
    if not 0 <= share <= 1:
        raise InputError(f"share must be from 0 to 1, found {share!r}")
    if holdout is not None and holdout not in ROLES:
        raise unknown("role of a compositional hold-out", holdout, ROLES)
    if rule not in HOLDOUTS:
        raise unknown("compositional hold-out", rule, HOLDOUTS)
    for name, count in counts.items():
        most = int(allowed[name].sum())
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= most:
            raise InputError(
                f"{name}s a group must be an integer from 1 to {most} (as many are allowed), found {count!r}"
            )


def _subset(seed: int, numbers: np.ndarray, stream: str, allowed: np.ndarray, count: int) -> np.ndarray:
    """For every group `count` of the allowed values, as positions (groups, count)."""
    u = uniforms(seed, numbers, stream, len(allowed))
    return np.where(allowed, u, np.inf).argsort(axis=1, kind="stable")[:, :count]


def _triples(chosen: Mapping[str, np.ndarray], holdout: str | None, rule: str) -> np.ndarray:
    """(groups, shapes, colours, materials) which triples of the chosen values may be drawn under the hold-out."""
    places = [
        np.expand_dims(chosen[name], [other for other in (1, 2, 3) if other != axis])
        for axis, name in enumerate(_LOOKS, start=1)
    ]
    shape = np.broadcast_shapes(*(place.shape for place in places))
    if holdout is None:
        return np.ones(shape, dtype=bool)
    names, combinations = HOLDOUTS[rule]
    held = combinations[tuple(places[_LOOKS.index(name)] for name in names)]
    return np.broadcast_to(held == (holdout == "unseen"), shape)


def _dealt(
    seed: int, index: np.ndarray, group: int, triples: np.ndarray, chosen: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """For every scene its one shape, colour and material, (n, 1) each: a shuffled deal in each group, then again."""
    numbers, member = np.unique(index // group, return_inverse=True)
    u = uniforms(seed, numbers, "group deal", triples[0].size)
    order = np.where(triples.reshape(len(u), -1), u, np.inf).argsort(axis=1, kind="stable")
    turn = (index % group) % np.maximum(triples.sum((1, 2, 3)), 1)[member]
    places = np.unravel_index(order[member, turn], triples.shape[1:])
    return {name: chosen[name][member, place][:, None] for name, place in zip(_LOOKS, places, strict=True)}
