"""Silhouettes of the shape categories as signed-distance functions.

A distance function takes local coordinates (x to the right, y up, the shape inside the unit disc) and is negative
inside. Everything here uses only additions, products, quotients, square roots, comparisons and roundings, one tensor
operation each: IEEE 754 fixes their results, so a CPU and a GPU give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from phosphene.stimuli.scenes.vocabulary import SHAPES

__all__ = ["DISTANCES"]

Distance = Callable[[Tensor, Tensor], Tensor]


def _length(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y)


def _circle(x: Tensor, y: Tensor, cx: float, cy: float, radius: float) -> Tensor:
    return _length(x - cx, y - cy) - radius


def _box(x: Tensor, y: Tensor, cx: float, cy: float, width: float, height: float, corner: float = 0.0) -> Tensor:
    """Box of half-width and half-height around (cx, cy) with rounded corners."""
    dx, dy = (x - cx).abs() - (width - corner), (y - cy).abs() - (height - corner)
    outside = _length(dx.clamp(min=0.0), dy.clamp(min=0.0))
    return outside + torch.maximum(dx, dy).clamp(max=0.0) - corner


def _edge(x: Tensor, y: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    """Signed distance to the line from start to end; negative on its left."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    norm = math.hypot(dx, dy)
    nx, ny = dy / norm, -dx / norm
    return (x * nx + y * ny) - (nx * start[0] + ny * start[1])


def _convex(x: Tensor, y: Tensor, *corners: tuple[float, float]) -> Tensor:
    """Convex polygon, corners counter-clockwise."""
    distance = _edge(x, y, corners[0], corners[1])
    for start, end in zip(corners[1:], [*corners[2:], corners[0]], strict=True):
        distance = torch.maximum(distance, _edge(x, y, start, end))
    return distance


def _ellipse(x: Tensor, y: Tensor, cx: float, cy: float, width: float, height: float) -> Tensor:
    """Ellipse, exact at its outline only."""
    return (_length((x - cx) * (1 / width), (y - cy) * (1 / height)) - 1.0) * min(width, height)


def _union(*distances: Tensor) -> Tensor:
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result


def _cosine(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Radius, and cosine of twice the polar angle."""
    radius = _length(x, y).clamp(min=1e-4)
    cosine = x / radius
    return radius, 2.0 * (cosine * cosine) - 1.0


def _ball(x: Tensor, y: Tensor) -> Tensor:
    return _circle(x, y, 0.0, 0.0, 0.92)


def _cube(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.0, 0.0, 0.76, 0.76, 0.08)


def _pyramid(x: Tensor, y: Tensor) -> Tensor:
    return _convex(x, y, (-0.88, -0.66), (0.88, -0.66), (0.0, 0.92))


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return _edge(x.abs(), y.abs(), (0.60, 0.0), (0.0, 0.97))


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (_length(x, y) - 0.68).abs() - 0.25


def _pill(x: Tensor, y: Tensor) -> Tensor:
    return _length((x.abs() - 0.56).clamp(min=0.0), y) - 0.36


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return _union(_box(x, y, 0.0, 0.0, 0.90, 0.30, 0.05), _box(x, y, 0.0, 0.0, 0.30, 0.90, 0.05))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    # A square on its corner with a half-disc on each upper side.
    side, root = 0.54, math.sqrt(0.5)
    folded, low = x.abs(), y + 0.1
    square = torch.maximum((folded + low).abs(), (folded - low).abs()) * root - side
    return _union(square, _circle(folded, low, side * root, side * root, side))


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    head = _convex(x, y, (0.08, -0.66), (0.97, 0.0), (0.08, 0.66))
    return _union(_box(x, y, -0.38, 0.0, 0.56, 0.24), head)


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Five mirror lines fold the plane into one half of one ray.
    cos, sin = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x = x.abs()
    for normal in ((cos, -sin), (-cos, -sin)):
        reach = (x * normal[0] + y * normal[1]).clamp(min=0.0) * 2.0
        x, y = x - reach * normal[0], y - reach * normal[1]
    return _edge(x.abs(), y, (0.42 * sin, 0.42 * cos), (0.0, 0.98))


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_circle(x, y, -0.08, 0.0, 0.90), -_circle(x, y, 0.42, 0.0, 0.76))


def _drop(x: Tensor, y: Tensor) -> Tensor:
    radius, centre, tip = 0.60, -0.34, 0.97
    sine = radius / (tip - centre)
    cosine = math.sqrt(1 - sine * sine)
    cone = torch.maximum(x.abs() * cosine + (y - tip) * sine, (centre + radius * sine) - y)
    return _union(_circle(x, y, 0.0, centre, radius), cone)


def _bolt(x: Tensor, y: Tensor) -> Tensor:
    upper = _convex(x, y, (-0.50, -0.12), (0.22, -0.12), (0.42, 0.95), (-0.20, 0.95))
    lower = _convex(x, y, (-0.18, -0.97), (0.60, 0.20), (-0.16, 0.20))
    return _union(upper, lower)


def _cloud(x: Tensor, y: Tensor) -> Tensor:
    puffs = (_circle(x, y, -0.52, -0.12, 0.40), _circle(x, y, -0.05, 0.18, 0.50), _circle(x, y, 0.52, -0.10, 0.42))
    return torch.maximum(_union(*puffs, _box(x, y, 0.0, -0.34, 0.55, 0.2)), -0.48 - y)


def _flower(x: Tensor, y: Tensor) -> Tensor:
    radius, cosine = _cosine(x, y)
    petals = 4.0 * (cosine * cosine * cosine) - 3.0 * cosine
    return torch.maximum((radius - 0.67 - 0.27 * petals) * 0.7, 0.15 - radius)


def _tree(x: Tensor, y: Tensor) -> Tensor:
    folded = x.abs()
    tiers = [
        torch.maximum(_edge(folded, y, (half, base), (0.0, top)), base - y)
        for half, base, top in ((0.72, -0.62, 0.22), (0.58, -0.16, 0.60), (0.42, 0.30, 0.98))
    ]
    return _union(*tiers, _box(x, y, 0.0, -0.76, 0.15, 0.20))


def _mushroom(x: Tensor, y: Tensor) -> Tensor:
    cap = torch.maximum(_ellipse(x, y, 0.0, 0.02, 0.94, 0.84), 0.02 - y)
    return _union(cap, _box(x, y, 0.0, -0.40, 0.24, 0.50, 0.1))


def _leaf(x: Tensor, y: Tensor) -> Tensor:
    blade = _circle(x - 0.12, y.abs(), 0.0, -0.78, 1.12)
    return _union(blade, _box(x, y, -0.78, 0.0, 0.20, 0.06))


def _fish(x: Tensor, y: Tensor) -> Tensor:
    tail = _convex(x, y, (-0.40, 0.0), (-0.95, 0.52), (-0.95, -0.52))
    fin = _convex(x, y, (-0.18, 0.30), (0.20, 0.30), (-0.16, 0.66))
    body = _union(_ellipse(x, y, 0.20, 0.0, 0.76, 0.46), tail, fin)
    return torch.maximum(body, -_circle(x, y, 0.60, 0.12, 0.095))


def _house(x: Tensor, y: Tensor) -> Tensor:
    walls = _box(x, y, 0.0, -0.36, 0.60, 0.48)
    roof = _convex(x, y, (-0.88, 0.10), (0.88, 0.10), (0.0, 0.92))
    return torch.maximum(_union(walls, roof), -_box(x, y, 0.0, -0.60, 0.17, 0.30))


def _bottle(x: Tensor, y: Tensor) -> Tensor:
    body = _box(x, y, 0.0, -0.36, 0.40, 0.60, 0.14)
    shoulder = _convex(x, y, (-0.34, 0.16), (0.34, 0.16), (0.14, 0.46), (-0.14, 0.46))
    return _union(body, shoulder, _box(x, y, 0.0, 0.55, 0.14, 0.34), _box(x, y, 0.0, 0.88, 0.20, 0.08))


def _key(x: Tensor, y: Tensor) -> Tensor:
    bow = torch.maximum(_circle(x, y, -0.56, 0.0, 0.41), -_circle(x, y, -0.56, 0.0, 0.17))
    shaft = _box(x, y, 0.36, 0.0, 0.60, 0.12)
    return _union(bow, shaft, _box(x, y, 0.84, -0.20, 0.12, 0.24), _box(x, y, 0.46, -0.18, 0.11, 0.20))


def _cup(x: Tensor, y: Tensor) -> Tensor:
    body = _convex(x, y, (-0.62, -0.72), (0.20, -0.72), (0.36, 0.70), (-0.78, 0.70))
    handle = torch.maximum((_circle(x, y, 0.36, 0.02, 0.38)).abs() - 0.11, 0.28 - x)
    return _union(body, handle)


def _gear(x: Tensor, y: Tensor) -> Tensor:
    radius, cosine = _cosine(x, y)
    for _ in range(2):
        cosine = 2.0 * (cosine * cosine) - 1.0
    rim = (radius - 0.80) - (cosine * 2.5).clamp(-1.0, 1.0) * 0.12
    return torch.maximum(rim * 0.8, 0.28 - radius)


DISTANCES: dict[str, Distance] = {
    "ball": _ball,
    "box": _cube,
    "pyramid": _pyramid,
    "diamond": _diamond,
    "ring": _ring,
    "pill": _pill,
    "cross": _cross,
    "heart": _heart,
    "arrow": _arrow,
    "star": _star,
    "crescent": _crescent,
    "drop": _drop,
    "bolt": _bolt,
    "cloud": _cloud,
    "flower": _flower,
    "tree": _tree,
    "mushroom": _mushroom,
    "leaf": _leaf,
    "fish": _fish,
    "house": _house,
    "bottle": _bottle,
    "key": _key,
    "cup": _cup,
    "gear": _gear,
}
if list(DISTANCES) != list(SHAPES):
    raise AssertionError("every shape of the vocabulary needs its distance function, in the same order")
