"""Scene graphs drawn from a grammar: what is in a picture, where, made of what, and under which light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.stimuli.scenes.layout import SLOTS, place
from phosphene.stimuli.scenes.randoms import uniforms
from phosphene.stimuli.scenes.restrictions import Allowed, allowed_masks, check_scale
from phosphene.stimuli.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    LIGHT_COLOURS,
    LIGHTS,
    MATERIALS,
    NONE,
    PALETTES,
    RELATIONS,
    SHAPES,
    SIZES,
)
from phosphene.table import Table

__all__ = ["HOLDOUTS", "ROLES", "SceneGraphs", "count_graphs", "held_out", "partnered", "sample_graphs"]

ROLES = ("train", "unseen")
_OBJECT_COUNTS = (0.35, 0.80)  # cumulative shares of one and of at most two objects
_DIRECTIONAL = 4  # the first four relations say left, right, above, below
_CONTRAST = 0.44  # least RGB distance of an object from the background's base colour


_COUNTS = {"shape": len(SHAPES), "colour": len(COLOURS), "material": len(MATERIALS)}


def _diagonal(step: int, *names: str) -> tuple[tuple[str, ...], np.ndarray]:
    return names, np.indices([_COUNTS[name] for name in names]).sum(0) % step == 0


#: attributes in the order in which they are drawn, and which combinations are held out: an axis an attribute
HOLDOUTS: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
    "shape-colour": _diagonal(6, "shape", "colour"),
    "shape-material": _diagonal(4, "shape", "material"),
    "colour-material": _diagonal(4, "colour", "material"),
    "shape-colour-material": _diagonal(6, "shape", "colour", "material"),
}


@dataclass(frozen=True)
class SceneGraphs:
    """Columns of `n` scene graphs; a row is one scene and everything its picture needs.

    Attributes
    ----------
    seed : int
        Seed the scenes were drawn with; with `index` it also fixes textures.
    index : (n,) int array
        Scene numbers.
    n_objects : (n,) int array
        1 to 3.
    shape, colour, material : (n, 3) int array
        Positions in ``SHAPES``, ``COLOURS``, ``MATERIALS``; -1 for an empty slot. Slot 0 is the main (largest) object.
    x, y, scale, angle : (n, 3) float array
        Centre in [-1, 1] (x to the right, y **up**), half-extent in the same unit, counter-clockwise turn in degrees;
        NaN for an empty slot.
    relation, relation_2 : (n,) int array
        What slot 0 is to slot 1 and to slot 2, position in ``RELATIONS``; -1 for none.
    background, palette, light, light_colour : (n,) int array
        Positions in ``BACKGROUNDS``, ``PALETTES``, ``LIGHTS``, ``LIGHT_COLOURS``.
    light_angle : (n,) float array
        Where the light comes from, degrees counter-clockwise from the right.
    """

    seed: int
    index: np.ndarray
    n_objects: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    material: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    relation: np.ndarray
    relation_2: np.ndarray
    background: np.ndarray
    palette: np.ndarray
    light: np.ndarray
    light_colour: np.ndarray
    light_angle: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ids(self) -> np.ndarray:
        """Names of the scenes, ``scene-<seed>-<index>``."""
        return np.array([f"scene-{self.seed}-{index:06d}" for index in self.index.tolist()], dtype=str)

    @property
    def depth(self) -> np.ndarray:
        """(n, 3) order from the back (0) to the front (2) in which the slots are painted."""
        depth = np.tile(np.array([2, 1, 0]), (len(self), 1))
        depth[self.relation == list(RELATIONS).index("behind")] = (1, 2, 0)
        return depth

    def take(self, rows: Any) -> SceneGraphs:
        """Scenes by index array, slice or boolean mask."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "seed"}
        return replace(self, **{name: column[rows] for name, column in columns.items()})

    def to_table(self) -> Table:
        """Labels of the scenes: words for what is discrete, numbers for what is continuous (see ``docs/scenes.md``)."""
        groups = [shape.group for shape in SHAPES.values()]
        columns: dict[str, Any] = {
            "category": _words(SHAPES, self.shape[:, 0]),
            "group": _words(groups, self.shape[:, 0]),
            "n_objects": self.n_objects,
            "relation": _words(RELATIONS, self.relation),
            "relation_2": _words(RELATIONS, self.relation_2),
            "background": _words(BACKGROUNDS, self.background),
            "palette": _words(PALETTES, self.palette),
            "light": _words(LIGHTS, self.light),
            "light_colour": _words(LIGHT_COLOURS, self.light_colour),
            "light_angle": self.light_angle,
        }
        sizes, depth = size_class(self.scale), self.depth
        for slot in range(SLOTS):
            absent = self.shape[:, slot] < 0
            columns |= {
                f"shape_{slot}": _words(SHAPES, self.shape[:, slot]),
                f"colour_{slot}": _words(COLOURS, self.colour[:, slot]),
                f"size_{slot}": _words(SIZES, sizes[:, slot]),
                f"material_{slot}": _words(MATERIALS, self.material[:, slot]),
                f"x_{slot}": self.x[:, slot],
                f"y_{slot}": self.y[:, slot],
                f"scale_{slot}": self.scale[:, slot],
                f"angle_{slot}": self.angle[:, slot],
                f"depth_{slot}": np.where(absent, np.nan, depth[:, slot]),
            }
        return Table(columns)


def _words(names: Sequence[str] | dict[str, Any], positions: np.ndarray) -> np.ndarray:
    return np.array([*names, NONE], dtype=str)[positions]


def size_class(scale: np.ndarray) -> np.ndarray:
    """Position in ``SIZES`` of a half-extent, -1 where NaN."""
    edges = [edge for edge, _ in SIZES.values()]
    return np.where(np.isnan(scale), -1, np.searchsorted(edges[:-1], scale, side="right"))


def held_out(rule: str) -> np.ndarray:
    """The combinations that a hold-out keeps out of the role "train".

    Parameters
    ----------
    rule : str
        Name in ``HOLDOUTS``: ``"shape-colour"`` holds out every pair whose positions in the vocabulary sum to a
        multiple of 6; ``"shape-material"`` and ``"colour-material"`` likewise with 4. ``"shape-colour-material"``
        holds out every triple whose positions sum to a multiple of 6.

    Returns
    -------
    bool array
        With an axis for each attribute, True where the combination is held out. Every shape, colour and material
        occurs on both sides; where triples are held out, so does every pair of their values.

    Examples
    --------
    >>> held_out("shape-colour").shape, float(held_out("shape-colour").mean().round(3))
    ((24, 12), 0.167)
    >>> held_out("shape-colour-material").shape
    (24, 12, 8)
    """
    if rule not in HOLDOUTS:
        raise unknown("compositional hold-out", rule, HOLDOUTS)
    return HOLDOUTS[rule][1].copy()


def _pick(u: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed position at quantile u of each row of a boolean (n, k) array."""
    rank = np.floor(u * allowed.sum(1)).astype(int)
    return np.argmax(allowed.cumsum(1) > rank[:, None], axis=1)


def _choose(u: np.ndarray, count: int, allowed: np.ndarray | None) -> np.ndarray:
    return np.floor(u * count).astype(int) if allowed is None else _pick(u, allowed)


def _attributes(
    u: np.ndarray, role: str | None, rule: str, masks: Mapping[str, np.ndarray], objects: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape (all different within a scene), colour and material of every slot; u is (n, 3, 3)."""
    wanted = {name: masks.get(name, np.ones((len(u), count), dtype=bool)) for name, count in _COUNTS.items()}
    (first, *later), combinations = HOLDOUTS[rule]
    if role is not None:
        drawn = combinations == (role == "unseen")
        wanted[first] = wanted[first] & partnered(drawn, *(wanted[name] for name in later))
    _check_choice(wanted, objects, role, rule)
    free, rows = wanted["shape"].copy(), np.arange(len(u))
    picked: dict[str, list[np.ndarray]] = {name: [] for name in _COUNTS}
    for slot in range(SLOTS):
        # slots beyond the most objects are drawn too, and thrown away: they need not differ
        here: dict[str, np.ndarray] = {}
        for position, name in enumerate(_COUNTS):
            choice = free if name == "shape" and slot < objects else wanted[name]
            if role is not None and name in later:
                at = later.index(name)
                left = drawn[tuple(here[earlier] for earlier in (first, *later[:at]))]
                for further in reversed(later[at + 1 :]):
                    left = np.einsum("n...k,nk->n...", left, wanted[further])
                choice = choice & left
            here[name] = _pick(u[:, slot, position], choice)
            picked[name].append(here[name])
        free[rows, here["shape"]] = False
    return tuple(np.stack(columns, axis=1) for columns in picked.values())  # type: ignore[return-value]


def partnered(drawn: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Values of a rule's first attribute that some allowed values of the others may go with, (n, first)."""
    together = others[0]
    for mask in others[1:]:
        together = (together[:, :, None] & mask[:, None, :]).reshape(len(mask), -1)
    return (together.astype(np.float32) @ drawn.reshape(len(drawn), -1).T.astype(np.float32)) > 0


def _check_choice(wanted: Mapping[str, np.ndarray], objects: int, role: str | None, rule: str) -> None:
    for name, mask in wanted.items():
        needed, left = (objects if name == "shape" else 1), mask.sum(1)
        if len(left) and left.min() < needed:
            row = int(left.argmin())
            under = "" if role is None else f" under the role {role!r} of the hold-out {rule!r}"
            raise InputError(
                f"`only` leaves {left[row]} of the {name}s to scene {row} of the batch{under}, and {needed} "
                f"{'are' if needed > 1 else 'is'} needed with up to {objects} objects a scene: allow more words, or "
                "give fewer `objects`"
            )


def _palettes(u: np.ndarray, colour: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """A palette from which every object stands out; where none does, the one farthest from all of them."""
    bases = np.array([palette.base for palette in PALETTES.values()])
    paints = np.array([paint.rgb for paint in COLOURS.values()])
    distances = np.linalg.norm(paints[:, None] - bases[None], axis=2)[colour]
    nearest = np.where(exists[..., None], distances, np.inf).min(1)
    allowed = nearest >= np.minimum(_CONTRAST, nearest.max(1, keepdims=True))
    return _pick(u, allowed)


def _angles(u: np.ndarray, shape: np.ndarray) -> np.ndarray:
    tilt = np.array([entry.tilt for entry in SHAPES.values()])[shape]
    return ((2 * u - 1) * tilt).round(2)


def _check(n: int, seed: int, start: int, holdout: str | None, rule: str) -> None:
    for name, value, low in (("n", n, 1), ("seed", seed, 0), ("start", start, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value < 2**62:
            raise InputError(f"{name} must be an integer of at least {low}, found {value!r}")
    if holdout is not None and holdout not in ROLES:
        raise unknown("role of a compositional hold-out", holdout, ROLES)
    if rule not in HOLDOUTS:
        raise unknown("compositional hold-out", rule, HOLDOUTS)


def sample_graphs(
    n: int,
    seed: int = 0,
    *,
    start: int = 0,
    holdout: str | None = None,
    rule: str = "shape-colour",
    objects: int | None = None,
    only: Mapping[str, Allowed] | None = None,
    scale: tuple[float, float] | None = None,
) -> SceneGraphs:
    """Draw scene graphs number `start` to `start + n - 1` of a seed.

    A scene depends on its seed, its number, the hold-out and its restrictions alone: it is the same whatever is drawn
    around it.

    Parameters
    ----------
    n : int
        How many scenes.
    seed : int
        Seed of the family of scenes.
    start : int
        Number of the first scene.
    holdout : {None, "train", "unseen"}
        None draws every combination; "train" none of the held-out ones (in any slot); "unseen" only held-out ones
        (in every slot).
    rule : str
        Which combinations are held out, see :func:`held_out`.
    objects : int, optional
        Most objects a scene, 1 to 3; where more were drawn, the later ones are left out.
    only : mapping, optional
        Values that may occur, by attribute (``"shape"``, ``"colour"``, ``"material"``, ``"background"``, ``"light"``):
        names, a boolean ``(k,)`` array over the vocabulary, or a boolean ``(n, k)`` array with a row a scene. The
        hold-out still holds: what an attribute of its rule may be is what leaves something of those drawn later.
    scale : (float, float), optional
        Least and greatest half-extent of the main object, in [-1, 1] units, within 0.05 to 0.72; others are 0.62 to
        0.85 of it. By default 0.42 to 0.72 for one object, less for several.

    Raises
    ------
    InputError
        For a number out of range, an unknown role, rule, attribute or word, and where nothing is left to draw.

    Examples
    --------
    >>> graphs = sample_graphs(3, seed=1)
    >>> len(graphs), graphs.ids[0]
    (3, np.str_('scene-1-000000'))
    >>> set(sample_graphs(9, objects=1, only={"material": ["striped"]}).to_table()["material_0"].tolist())
    {'striped'}
    """
    _check(n, seed, start, holdout, rule)
    most = SLOTS if objects is None else objects
    if isinstance(most, bool) or not isinstance(most, int | np.integer) or not 1 <= most <= SLOTS:
        raise InputError(f"objects must be an integer from 1 to {SLOTS}, found {objects!r}")
    masks = allowed_masks(only or {}, n)
    check_scale(scale)
    seed, index = int(seed), np.arange(start, start + n, dtype=np.int64)

    def draw(stream: str, count: int) -> np.ndarray:
        return uniforms(seed, index, stream, count)

    u = draw("structure", 8)
    n_objects = np.minimum(1 + np.searchsorted(_OBJECT_COUNTS, u[:, 0], side="right"), most)
    exists = np.arange(SLOTS) < n_objects[:, None]
    shape, colour, material = _attributes(draw("objects", 9).reshape(n, SLOTS, 3), holdout, rule, masks, most)
    relation = np.floor(u[:, 1] * len(RELATIONS)).astype(int)
    others = np.arange(_DIRECTIONAL)[None, :] != relation[:, None]
    relation_2 = np.where(n_objects > 2, _pick(u[:, 2], others), -1)
    relation = np.where(n_objects > 1, relation, -1)
    x, y, extent = place(n_objects, relation, relation_2, shape, draw("layout", 10), scale)
    light = _choose(u[:, 3], len(LIGHTS), masks.get("light"))
    bearing = np.array([angle for angle, _ in LIGHTS.values()])[light]
    return SceneGraphs(
        seed=seed,
        index=index,
        n_objects=n_objects,
        shape=np.where(exists, shape, -1),
        colour=np.where(exists, colour, -1),
        material=np.where(exists, material, -1),
        x=x,
        y=y,
        scale=extent,
        angle=np.where(exists, _angles(draw("pose", SLOTS), shape), np.nan),
        relation=relation,
        relation_2=relation_2,
        background=_choose(u[:, 5], len(BACKGROUNDS), masks.get("background")),
        palette=_palettes(u[:, 6], colour, exists),
        light=light,
        light_colour=np.floor(u[:, 7] * len(LIGHT_COLOURS)).astype(int),
        light_angle=((bearing + 36.0 * (u[:, 4] - 0.5)) % 360.0).round(2),
    )


def count_graphs() -> dict[int, int]:
    """Number of distinct discrete scene graphs the grammar can produce, by number of objects.

    Counted are shapes (different within a scene), colours, materials, relations, background kinds, light directions
    and light colours; positions, scales, angles, palettes and textures come on top.

    Examples
    --------
    >>> count_graphs()[1]
    552960
    """
    looks = len(COLOURS) * len(MATERIALS)
    surroundings = len(BACKGROUNDS) * len(LIGHTS) * len(LIGHT_COLOURS)
    shapes = len(SHAPES)
    overlapping = len(RELATIONS) - _DIRECTIONAL
    pairs = _DIRECTIONAL * (_DIRECTIONAL - 1) + overlapping * _DIRECTIONAL
    return {
        1: shapes * looks * surroundings,
        2: shapes * (shapes - 1) * looks**2 * len(RELATIONS) * surroundings,
        3: shapes * (shapes - 1) * (shapes - 2) * looks**3 * pairs * surroundings,
    }
