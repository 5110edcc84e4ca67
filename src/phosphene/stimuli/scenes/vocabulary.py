"""The words of the scene grammar: shapes, colours, materials, backgrounds, lights and what English calls them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "LIGHTS",
    "LIGHT_COLOURS",
    "MATERIALS",
    "NONE",
    "PALETTES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Colour",
    "Material",
    "Palette",
    "Shape",
]

NONE = "none"
RGB = tuple[float, float, float]


class Shape(NamedTuple):
    """A shape category.

    `group` is its wider class, `nouns` its names, `tilt` how far it may be turned from upright (degrees), `girth` the
    radius of the disc of equal area, in units of its half-extent.
    """

    group: str
    nouns: tuple[str, ...]
    tilt: float
    girth: float


class Colour(NamedTuple):
    """An object colour (sRGB in [0, 1]), the second colour of its patterns, and its adjectives."""

    rgb: RGB
    second: RGB
    words: tuple[str, ...]


class Material(NamedTuple):
    """How an object reflects: ambient and diffuse share, sharp and broad highlight, environment band, pattern."""

    ambient: float
    diffuse: float
    sharp: float
    broad: float
    band: float
    words: tuple[str, ...]


class Palette(NamedTuple):
    """Background colours: a base and the two directions along which texture moves it (sRGB)."""

    base: RGB
    light: RGB
    tint: RGB
    words: tuple[str, ...]


SHAPES: dict[str, Shape] = {
    "ball": Shape("solid", ("ball", "sphere", "globe"), 180.0, 0.92),
    "box": Shape("solid", ("box", "cube", "block"), 20.0, 0.86),
    "pyramid": Shape("solid", ("pyramid", "triangle"), 25.0, 0.67),
    "diamond": Shape("solid", ("diamond", "rhombus"), 20.0, 0.61),
    "ring": Shape("solid", ("ring", "hoop", "torus"), 180.0, 0.82),
    "pill": Shape("solid", ("pill", "capsule"), 180.0, 0.62),
    "cross": Shape("symbol", ("cross", "plus sign"), 20.0, 0.76),
    "heart": Shape("symbol", ("heart",), 30.0, 0.81),
    "arrow": Shape("symbol", ("arrow", "pointer"), 180.0, 0.59),
    "star": Shape("sky", ("star",), 180.0, 0.62),
    "crescent": Shape("sky", ("crescent", "moon"), 180.0, 0.62),
    "drop": Shape("sky", ("drop", "droplet", "teardrop"), 30.0, 0.68),
    "bolt": Shape("sky", ("lightning bolt", "bolt"), 25.0, 0.57),
    "cloud": Shape("sky", ("cloud",), 15.0, 0.71),
    "flower": Shape("living", ("flower", "blossom"), 180.0, 0.68),
    "tree": Shape("living", ("tree", "fir tree"), 20.0, 0.63),
    "mushroom": Shape("living", ("mushroom", "toadstool"), 30.0, 0.73),
    "leaf": Shape("living", ("leaf",), 180.0, 0.5),
    "fish": Shape("living", ("fish",), 180.0, 0.66),
    "house": Shape("artefact", ("house", "hut", "cottage"), 15.0, 0.73),
    "bottle": Shape("artefact", ("bottle", "flask"), 40.0, 0.62),
    "key": Shape("artefact", ("key",), 180.0, 0.52),
    "cup": Shape("artefact", ("cup", "mug"), 25.0, 0.73),
    "gear": Shape("artefact", ("gear", "cogwheel"), 180.0, 0.76),
}

COLOURS: dict[str, Colour] = {
    "red": Colour((0.86, 0.12, 0.12), (0.99, 0.85, 0.80), ("red", "scarlet")),
    "orange": Colour((0.98, 0.52, 0.06), (0.45, 0.16, 0.02), ("orange",)),
    "yellow": Colour((0.97, 0.87, 0.12), (0.55, 0.38, 0.02), ("yellow", "golden yellow")),
    "green": Colour((0.13, 0.62, 0.20), (0.80, 0.96, 0.62), ("green", "emerald")),
    "teal": Colour((0.05, 0.68, 0.68), (0.80, 0.98, 0.95), ("teal", "turquoise")),
    "blue": Colour((0.13, 0.30, 0.88), (0.75, 0.87, 1.00), ("blue", "royal blue")),
    "purple": Colour((0.50, 0.18, 0.72), (0.88, 0.76, 0.98), ("purple", "violet")),
    "pink": Colour((0.98, 0.48, 0.70), (0.58, 0.08, 0.30), ("pink", "rosy pink")),
    "brown": Colour((0.47, 0.27, 0.11), (0.90, 0.76, 0.55), ("brown", "chestnut")),
    "white": Colour((0.97, 0.97, 0.96), (0.45, 0.46, 0.52), ("white", "snow white")),
    "grey": Colour((0.56, 0.57, 0.60), (0.93, 0.93, 0.95), ("grey", "gray")),
    "black": Colour((0.09, 0.09, 0.10), (0.62, 0.62, 0.64), ("black", "jet black")),
}

MATERIALS: dict[str, Material] = {
    "matte": Material(0.32, 0.78, 0.00, 0.00, 0.00, ("matte", "dull", "chalky")),
    "glossy": Material(0.30, 0.74, 0.95, 0.12, 0.00, ("glossy", "shiny", "polished")),
    "metallic": Material(0.20, 0.62, 0.75, 0.42, 0.50, ("metallic", "metal")),
    "striped": Material(0.34, 0.76, 0.10, 0.05, 0.00, ("striped", "stripy")),
    "dotted": Material(0.34, 0.76, 0.10, 0.05, 0.00, ("dotted", "spotted", "polka-dot")),
    "checkered": Material(0.34, 0.76, 0.10, 0.05, 0.00, ("checkered", "chequered")),
    "rough": Material(0.32, 0.80, 0.00, 0.00, 0.00, ("rough", "grainy", "rugged")),
    "faded": Material(0.34, 0.76, 0.05, 0.05, 0.00, ("faded", "two-tone")),
}

SIZES: dict[str, tuple[float, tuple[str, ...]]] = {
    "small": (0.27, ("small", "little")),
    "medium": (0.40, ("medium-sized", "mid-sized")),
    "large": (float("inf"), ("large", "big")),
}

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "mist": ("a misty background", "drifting mist", "a hazy backdrop"),
    "dead-leaves": (
        "a background of overlapping discs",
        "a jumble of round patches",
        "a mosaic of overlapping patches",
    ),
    "gradient": ("a smooth gradient", "a softly graded backdrop", "a background that fades from light to dark"),
    "grating": ("a barred background", "a wavy grating", "parallel bands"),
    "tiles": ("a tiled floor", "a background of square tiles", "a board of squares"),
    "plasma": ("a swirling background", "swirls of paint", "a marbled backdrop"),
    "wood": ("a wooden board", "wood grain", "a plank of wood"),
    "horizon": ("open ground under a bright sky", "a landscape with a horizon", "a plain below the sky"),
    "bricks": ("a brick wall", "a wall of bricks"),
    "ripples": ("rippling water", "concentric ripples", "circular waves"),
}

PALETTES: dict[str, Palette] = {
    "sand": Palette((0.74, 0.66, 0.50), (1.0, 0.95, 0.85), (0.5, -0.1, -0.6), ("sandy",)),
    "moss": Palette((0.38, 0.46, 0.30), (0.9, 1.0, 0.75), (0.6, 0.1, -0.3), ("mossy",)),
    "slate": Palette((0.38, 0.43, 0.50), (0.9, 0.95, 1.0), (-0.3, 0.0, 0.5), ("slate-toned",)),
    "haze": Palette((0.62, 0.73, 0.84), (1.0, 0.95, 0.85), (-0.4, 0.0, 0.4), ("pale",)),
    "clay": Palette((0.60, 0.44, 0.36), (1.0, 0.9, 0.8), (0.4, 0.0, -0.4), ("earthen",)),
    "ash": Palette((0.72, 0.72, 0.70), (1.0, 1.0, 1.0), (0.3, 0.0, -0.3), ("ashen",)),
    "dusk": Palette((0.30, 0.26, 0.40), (0.95, 0.85, 1.0), (0.5, 0.0, -0.2), ("dusky",)),
    "lagoon": Palette((0.32, 0.52, 0.54), (0.85, 1.0, 1.0), (-0.2, 0.3, 0.3), ("sea-toned",)),
    "mauve": Palette((0.62, 0.52, 0.62), (1.0, 0.95, 1.0), (0.4, -0.2, 0.3), ("mauve",)),
    "coal": Palette((0.24, 0.24, 0.25), (1.0, 1.0, 0.95), (0.4, 0.1, -0.4), ("dark",)),
}

LIGHTS: dict[str, tuple[float, tuple[str, ...]]] = {
    "right": (0.0, ("the right",)),
    "upper right": (45.0, ("the upper right", "the top right")),
    "above": (90.0, ("above", "overhead")),
    "upper left": (135.0, ("the upper left", "the top left")),
    "left": (180.0, ("the left",)),
    "lower left": (225.0, ("the lower left", "the bottom left")),
    "below": (270.0, ("below", "underneath")),
    "lower right": (315.0, ("the lower right", "the bottom right")),
}

LIGHT_COLOURS: dict[str, tuple[RGB, tuple[str, ...]]] = {
    "neutral": ((1.0, 1.0, 1.0), ("plain", "neutral")),
    "warm": ((1.08, 0.98, 0.82), ("warm", "amber")),
    "cool": ((0.86, 0.98, 1.10), ("cool", "icy")),
}

# What the first object is to the second, and where the second then lies (x to the right, y up).
RELATIONS: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    "left of": ((1, 0), ("left of", "to the left of")),
    "right of": ((-1, 0), ("right of", "to the right of")),
    "above": ((0, -1), ("above", "over")),
    "below": ((0, 1), ("below", "beneath", "under")),
    "in front of": ((0, 0), ("in front of", "partly covering")),
    "behind": ((0, 0), ("behind", "partly hidden by")),
}
