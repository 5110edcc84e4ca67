"""Captions in varied English that follow from a scene graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from phosphene.errors import InputError
from phosphene.stimuli.scenes.grammar import SceneGraphs, size_class
from phosphene.stimuli.scenes.randoms import uniforms
from phosphene.stimuli.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    LIGHT_COLOURS,
    LIGHTS,
    MATERIALS,
    RELATIONS,
    SHAPES,
    SIZES,
)

__all__ = ["MOST_CAPTIONS", "captions", "chosen_captions", "plain_captions"]

MOST_CAPTIONS = 20
_DRAWS = 32  # numbers a caption consumes at most
_INVERSE = (1, 0, 3, 2, 5, 4)
_OPENINGS = ("", "a picture of ", "an image of ", "this shows ", "there is ", "one sees ", "a view of ")
_JOINTS = (" against {}", " set against {}", ", with {} behind")
_TILTED = 25.0
_FREE = 90.0


class _Dice:
    """The uniform numbers of one caption, spent one after another."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = iter(numbers)

    def chance(self, share: float) -> bool:
        return next(self._numbers) < share

    def choice(self, options: Sequence[str]) -> str:
        return options[int(next(self._numbers) * len(options))]


_SHAPES = list(SHAPES.values())
_COLOURS = [entry.words for entry in COLOURS.values()]
_MATERIALS = [entry.words for entry in MATERIALS.values()]
_SIZES = [words for _, words in SIZES.values()]
_BACKGROUNDS = list(BACKGROUNDS.values())
_LIGHTS = [words for _, words in LIGHTS.values()]
_TONES = [words for _, words in LIGHT_COLOURS.values()]
_RELATIONS = [words for _, words in RELATIONS.values()]


@dataclass(frozen=True)
class _Scene:
    """One row of the graph columns as plain numbers, and the phrases made from it."""

    shape: list[int]
    colour: list[int]
    material: list[int]
    size: list[int]
    angle: list[float]
    n_objects: int
    relation: int
    relation_2: int
    background: int
    light: int
    light_colour: int

    def noun_phrase(self, slot: int, dice: _Dice, detail: float) -> str:
        """Article, some adjectives (the colour always) and the noun."""
        nouns, tilt = _SHAPES[self.shape[slot]][1:3]
        words = []
        if dice.chance(detail):
            words.append(dice.choice(_SIZES[self.size[slot]]))
        if dice.chance(detail) and tilt < _FREE and abs(self.angle[slot]) > _TILTED:
            words.append("tilted")
        if dice.chance(0.25 + 0.75 * detail):
            words.append(dice.choice(_MATERIALS[self.material[slot]]))
        words += [dice.choice(_COLOURS[self.colour[slot]]), dice.choice(nouns)]
        phrase = " ".join(words)
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

    def objects(self, dice: _Dice, detail: float) -> str:
        """All objects with the relations of the first to the others."""
        phrases = [self.noun_phrase(slot, dice, detail) for slot in range(self.n_objects)]
        if len(phrases) == 1:
            return phrases[0]
        backwards = dice.chance(0.35)
        words = dice.choice(_RELATIONS[_INVERSE[self.relation] if backwards else self.relation])
        if len(phrases) == 2:
            return f"{phrases[1]} {words} {phrases[0]}" if backwards else f"{phrases[0]} {words} {phrases[1]}"
        other = dice.choice(_RELATIONS[self.relation_2])
        if backwards:
            noun = phrases[0].removeprefix("a ").removeprefix("an ")
            return f"{phrases[1]} {words} {phrases[0]}, and the {noun} is {other} {phrases[2]}"
        return f"{phrases[0]} {words} {phrases[1]} and {other} {phrases[2]}"

    def surroundings(self, dice: _Dice) -> str:
        """What is behind the objects."""
        phrase = dice.choice(_BACKGROUNDS[self.background])
        return dice.choice(_JOINTS).format(phrase)

    def lighting(self, dice: _Dice) -> str:
        """Where the light comes from, sometimes its colour."""
        source, tone = dice.choice(_LIGHTS[self.light]), dice.choice(_TONES[self.light_colour])
        return f", lit from {source}" if dice.chance(0.5) else f", under {tone} light from {source}"

    def caption(self, number: int, first: float, numbers: Sequence[float]) -> str:
        """Caption `number`: openings, detail and parts go round, so that captions of a scene differ."""
        dice = _Dice(numbers)
        opening = _OPENINGS[(int(first * len(_OPENINGS)) + number) % len(_OPENINGS)]
        detail = (0.9, 0.3, 0.6, 0.0, 1.0)[number % 5]
        text = opening + self.objects(dice, detail)
        if number % 5 in (0, 2) or dice.chance(0.2):
            text += self.surroundings(dice)
        if number % 5 in (2, 4) or dice.chance(0.1):
            text += self.lighting(dice)
        return text[0].upper() + text[1:] + "."


def captions(graphs: SceneGraphs, count: int = 5) -> tuple[tuple[str, ...], ...]:
    """Write captions for scenes.

    Every caption names each object with its colour, and for two or three objects what the first is to the others
    (for the first pair sometimes the converse). Size, material, tilt, background and light come and go. Words are
    drawn from synonyms; caption `k` of a scene is the same whatever `count` is.

    Parameters
    ----------
    graphs : SceneGraphs
        The scenes.
    count : int
        Captions a scene, 0 to 20.

    Returns
    -------
    tuple of tuples of str
        `count` captions a scene.

    Raises
    ------
    InputError
        For a count out of range.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 0 <= count <= MOST_CAPTIONS:
        raise InputError(f"captions must be an integer from 0 to {MOST_CAPTIONS} a scene, found {count!r}")
    scenes, first = _scenes(graphs)
    numbers = [uniforms(graphs.seed, graphs.index, f"caption {k}", _DRAWS).tolist() for k in range(count)]
    return tuple(
        tuple(scene.caption(k, first[row], numbers[k][row]) for k in range(count)) for row, scene in enumerate(scenes)
    )


def chosen_captions(graphs: SceneGraphs, numbers: np.ndarray) -> tuple[str, ...]:
    """Write one caption a scene: that of the given number, as `captions` would.

    Parameters
    ----------
    graphs : SceneGraphs
        The scenes.
    numbers : (n,) array of int
        Which of its captions, 0 to 19, for every scene.

    Examples
    --------
    >>> from phosphene.stimuli.scenes import sample_graphs
    >>> graphs = sample_graphs(2)
    >>> chosen_captions(graphs, np.array([1, 0])) == (captions(graphs)[0][1], captions(graphs)[1][0])
    True
    """
    scenes, first = _scenes(graphs)
    dice: list[Sequence[float]] = [()] * len(graphs)
    for number in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == number)
        drawn = uniforms(graphs.seed, graphs.index[rows], f"caption {number}", _DRAWS).tolist()
        for row, values in zip(rows.tolist(), drawn, strict=True):
            dice[row] = values
    return tuple(
        scene.caption(number, first[row], dice[row])
        for row, (scene, number) in enumerate(zip(scenes, numbers.tolist(), strict=True))
    )


def plain_captions(graphs: SceneGraphs) -> tuple[str, ...]:
    """One caption a scene that says material, colour and shape of every object and their relations, always alike.

    The first word of each list of synonyms, nothing about size, background or light: short, and as exact as an answer
    key.

    Examples
    --------
    >>> from phosphene.stimuli.scenes import sample_graphs
    >>> plain_captions(sample_graphs(1, seed=1, objects=1))
    ('A rough brown bottle.',)
    """
    materials, colours = ([words[0] for words in table] for table in (_MATERIALS, _COLOURS))
    nouns, relations = [entry.nouns[0] for entry in _SHAPES], [words[0] for words in _RELATIONS]

    def phrase(scene: _Scene, slot: int) -> str:
        words = f"{materials[scene.material[slot]]} {colours[scene.colour[slot]]} {nouns[scene.shape[slot]]}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    written = []
    for scene in _scenes(graphs)[0]:
        text = phrase(scene, 0)
        if scene.n_objects > 1:
            text += f" {relations[scene.relation]} {phrase(scene, 1)}"
        if scene.n_objects > 2:
            text += f" and {relations[scene.relation_2]} {phrase(scene, 2)}"
        written.append(f"{text[0].upper()}{text[1:]}.")
    return tuple(written)


def _scenes(graphs: SceneGraphs) -> tuple[list[_Scene], list[float]]:
    """The rows as plain numbers, and the number that decides the opening of each scene's captions."""
    columns = {
        f.name: (size_class(graphs.scale) if f.name == "size" else getattr(graphs, f.name)).tolist()
        for f in fields(_Scene)
    }
    rows = zip(*columns.values(), strict=True)
    first = uniforms(graphs.seed, graphs.index, "caption", 1)[:, 0].tolist()
    return [_Scene(**dict(zip(columns, row, strict=True))) for row in rows], first
