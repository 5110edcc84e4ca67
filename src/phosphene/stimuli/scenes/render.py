"""From scene graphs to pixels: objects with relief, material, highlight and cast shadow over a background.

Vectorised over the batch; objects are grouped by shape and by material, so that each pays for its own formulas only.
Every tensor operation has one result under IEEE 754 and no sum depends on its order (see ``shapes``, ``patterns``),
all random numbers and trigonometry happen in numpy on the CPU: a picture is the same on every device, in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phosphene.errors import InputError
from phosphene.stimuli.scenes.backgrounds import paint_background
from phosphene.stimuli.scenes.grammar import SceneGraphs
from phosphene.stimuli.scenes.layout import SLOTS
from phosphene.stimuli.scenes.patterns import to_device, wave
from phosphene.stimuli.scenes.shapes import DISTANCES
from phosphene.stimuli.scenes.vocabulary import COLOURS, LIGHT_COLOURS, MATERIALS

__all__ = ["SIZES_ALLOWED", "check_render", "render", "render_tensor", "silhouettes"]

SIZES_ALLOWED = (16, 512)
_BEVEL = {"ball": 0.92}  # depth from the edge at which the relief is flat; a ball rises to its centre
_BEVEL_OTHERS = 0.42
_LIGHT_TILT = 0.66  # horizontal part of the light direction
_SHADOW = 0.42
_SHADOW_REACH = 0.085  # of the picture's side


@dataclass(frozen=True)
class _Objects:
    """All objects of a batch, sorted from back to front within their scenes; columns are per object."""

    scene: np.ndarray
    step: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    material: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray

    @classmethod
    def of(cls, graphs: SceneGraphs) -> _Objects:
        """Flatten the slots; `step` says in which pass an object is painted."""
        depth = np.where(graphs.shape >= 0, graphs.depth, SLOTS)
        order = np.argsort(depth, axis=1)
        step, scene = np.nonzero(np.take_along_axis(depth, order, axis=1).T < SLOTS)
        slot = order[scene, step]
        names = ("shape", "colour", "material", "x", "y", "scale", "angle")
        return cls(scene, step, *(getattr(graphs, name)[scene, slot] for name in names))

    def coordinates(self, rows: np.ndarray, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pixel centres in the local frame of each object: two (m, size, size) tensors."""
        centres = (np.arange(size) + 0.5) / size * 2.0 - 1.0
        turn = np.deg2rad(self.angle[rows])[:, None]
        across = (centres[None, :] - self.x[rows, None]) / self.scale[rows, None]
        up = (-centres[None, :] - self.y[rows, None]) / self.scale[rows, None]
        cos, sin = np.cos(turn), np.sin(turn)
        local_x = to_device(cos * across, device)[:, None, :] + to_device(sin * up, device)[:, :, None]
        local_y = to_device(cos * up, device)[:, :, None] - to_device(sin * across, device)[:, None, :]
        return local_x, local_y


def _striped(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    return (wave(x * 1.7 + y * 0.35) * 2.0 + 0.5).clamp(0.0, 1.0)


def _dotted(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    across, up = x * 1.75, y * 1.75
    row = torch.floor(up)
    across = across + row * 0.5
    dx, dy = across - torch.floor(across) - 0.5, up - row - 0.5
    return ((0.30 - torch.sqrt(dx * dx + dy * dy)) * 8.0 + 0.5).clamp(0.0, 1.0)


def _checkered(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    return (wave(x * 1.15 + 0.125) * wave(y * 1.15 + 0.125) * 5.0 + 0.5).clamp(0.0, 1.0)


def _rough(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    return (noise * 0.45 + 0.3).clamp(-0.2, 1.0)


def _faded(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    return (y * 0.62 + 0.45).clamp(0.0, 1.0)


_PATTERNS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "rough": _rough,
    "faded": _faded,
}


def _distances(objects: _Objects, size: int, device: torch.device) -> Tensor:
    """(m, size, size) signed distances in local units."""
    field = torch.empty(len(objects.scene), size, size, device=device)
    for kind, distance in enumerate(DISTANCES.values()):
        rows = np.flatnonzero(objects.shape == kind)
        if len(rows):
            field[torch.from_numpy(rows).to(device)] = distance(*objects.coordinates(rows, size, device))
    return field


def _pattern(objects: _Objects, noise: Tensor) -> Tensor:
    """(m, size, size) share of the second colour."""
    size, device = noise.shape[-1], noise.device
    field = torch.zeros(len(objects.scene), size, size, device=device)
    for kind, name in enumerate(MATERIALS):
        rows = np.flatnonzero(objects.material == kind)
        if name in _PATTERNS and len(rows):
            local = objects.coordinates(rows, size, device)
            texture = noise[torch.from_numpy(objects.scene[rows]).to(device)]
            field[torch.from_numpy(rows).to(device)] = _PATTERNS[name](*local, texture)
    return field


def _relief(objects: _Objects, distance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Surface normals (to the right, up, towards the viewer) of a rounded rim around a flat top."""
    names = list(DISTANCES)
    bevel = np.array([_BEVEL.get(name, _BEVEL_OTHERS) for name in names])[objects.shape]
    size = distance.shape[-1]
    inward = (distance * to_device(-1.0 / bevel, distance.device)[:, None, None]).clamp_(0.0, 1.0)
    # Height in pixels, halved: its difference over two pixels is the slope.
    rise = to_device(bevel * objects.scale * size / 4, distance.device)[:, None, None]
    height = torch.sqrt(inward * (2.0 - inward)) * rise
    right, up = torch.zeros_like(height), torch.zeros_like(height)
    torch.sub(height[:, :, :-2], height[:, :, 2:], out=right[:, :, 1:-1])
    torch.sub(height[:, 2:], height[:, :-2], out=up[:, 1:-1])
    towards = torch.ones_like(right) / torch.sqrt((right * right + up * up) + 1.0)
    return right.mul_(towards), up.mul_(towards), towards


def _shading(objects: _Objects, graphs: SceneGraphs, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Diffuse factor and highlight of every object: two (m, size, size) tensors."""
    device = distance.device
    material = np.array([entry[:5] for entry in MATERIALS.values()])[objects.material]
    bearing = np.deg2rad(graphs.light_angle[objects.scene])
    light = np.stack([np.cos(bearing) * _LIGHT_TILT, np.sin(bearing) * _LIGHT_TILT], axis=1)
    front = np.sqrt(1 - _LIGHT_TILT**2)
    middle = light / np.sqrt(2 + 2 * front)  # half-way between the light and the viewer

    def column(values: np.ndarray) -> Tensor:
        return to_device(values, device)[:, None, None]

    right, up, towards = _relief(objects, distance)
    # in place: fresh buffers of a whole batch cost as much as the sums
    diffuse = (right * column(light[:, 0])).add_(up * column(light[:, 1])).add_(towards * float(front)).clamp_(min=0.0)
    lobe = (right.mul_(column(middle[:, 0]))).add_(up * column(middle[:, 1]))
    lobe = lobe.add_(towards.mul_(float(np.sqrt((1 + front) / 2)))).clamp_(min=0.0)
    for _ in range(3):
        lobe.mul_(lobe)
    sharp = lobe * lobe
    for _ in range(2):
        sharp.mul_(sharp)
    band = up.mul_(2.4).sub_(0.5).abs_().mul_(-1.6).add_(1.0).clamp_(0.0, 1.0)
    factor = diffuse.mul_(column(material[:, 1])).add_(column(material[:, 0]))
    highlight = sharp.mul_(column(material[:, 2])).add_(lobe.mul_(column(material[:, 3])))
    return factor, highlight.add_(band.mul_(column(material[:, 4])))


def _shadow(graphs: SceneGraphs, objects: _Objects, distance: Tensor) -> Tensor:
    """Darkening by the cast shadow: the distance field moved away from the light, with a soft edge."""
    size, device = distance.shape[-1], distance.device
    bearing = np.deg2rad(graphs.light_angle[objects.scene])
    pixels = np.arange(size)
    reach = _SHADOW_REACH * size
    across = np.clip(pixels[None] + np.rint(np.cos(bearing) * reach).astype(int)[:, None], 0, size - 1)
    down = np.clip(pixels[None] - np.rint(np.sin(bearing) * reach).astype(int)[:, None], 0, size - 1)
    flat = (down[:, :, None] * size + across[:, None, :]).reshape(len(distance), -1)
    moved = distance.reshape(len(distance), -1).gather(1, to_device(flat, device)).reshape(distance.shape)
    soft = to_device(-objects.scale * 12.0, device)[:, None, None]  # full over a twelfth of the half-side
    return (moved * soft).add_(0.35).clamp_(0.0, 1.0).mul_(_SHADOW)


def _compose(picture: Tensor, graphs: SceneGraphs, objects: _Objects, noise: Tensor) -> Tensor:
    """Paint the objects over the backgrounds, from back to front."""
    size, device = picture.shape[-1], picture.device
    paints = np.array([(entry.rgb, entry.second) for entry in COLOURS.values()])[objects.colour]
    tints = np.array([rgb for rgb, _ in LIGHT_COLOURS.values()])[graphs.light_colour]
    tint = tints[objects.scene]
    metal = (objects.material == list(MATERIALS).index("metallic"))[:, None]
    shine = np.where(metal, 0.45 + 0.75 * paints[:, 0], 1.0) * tint
    base, change = paints[:, 0] * tint, (paints[:, 1] - paints[:, 0]) * tint
    picture = picture.mul_(to_device(tints, device)[:, :, None, None])
    for step in range(SLOTS):
        rows = np.flatnonzero(objects.step == step)
        if not len(rows):
            continue
        now = _Objects(*(getattr(objects, name)[rows] for name in _Objects.__dataclass_fields__))
        distance = _distances(now, size, device)
        factor, highlight = _shading(now, graphs, distance)
        pattern = _pattern(now, noise)
        sharpness = to_device(-now.scale * size / 2, device)[:, None, None]
        cover = (distance * sharpness + 0.5).clamp_(0.0, 1.0)[:, None]
        where = torch.from_numpy(now.scene).to(device)
        under = picture[where].mul_((1.0 - _shadow(graphs, now, distance))[:, None])
        one, two, three = (to_device(c[rows], device)[:, :, None, None] for c in (base, change, shine))
        colour = (pattern[:, None] * two).add_(one).mul_(factor[:, None]).add_(highlight[:, None] * three)
        picture[where] = under.add_(colour.sub_(under).mul_(cover))
    return picture


def check_render(graphs: SceneGraphs, size: int, batch: int = 1) -> None:
    """Refuse what cannot be rendered."""
    low, high = SIZES_ALLOWED
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not low <= size <= high:
        raise InputError(f"size must be an integer from {low} to {high} pixels, found {size!r}")
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        raise InputError(f"batch must be an integer of at least 1, found {batch!r}")
    if not isinstance(graphs, SceneGraphs):
        raise InputError(f"graphs must be SceneGraphs (see sample_graphs), found {type(graphs).__name__}")


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.zeros(1, device=torch.device(device)).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error


@torch.inference_mode()
def render_tensor(graphs: SceneGraphs, size: int = 64, device: str | torch.device = "cpu") -> Tensor:
    """Render scenes in one batch and leave the pictures on the device.

    Parameters
    ----------
    graphs : SceneGraphs
        The scenes.
    size : int
        Pixels a side, 16 to 512.
    device : str or torch.device
        Where to render.

    Returns
    -------
    (n, size, size, 3) uint8 tensor
        sRGB; row 0 is the top.
    """
    check_render(graphs, size)
    place = _device(device)
    picture, noise = paint_background(graphs, int(size), place)
    picture = _compose(picture, graphs, _Objects.of(graphs), noise)
    # Truncation after adding a half rounds to nearest on every device.
    return picture.clamp_(0.0, 1.0).mul_(255.0).add_(0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def render(
    graphs: SceneGraphs, size: int = 64, device: str | torch.device = "cpu", batch: int | None = None
) -> np.ndarray:
    """Render scenes; the pictures depend neither on the device nor on the batch.

    Parameters
    ----------
    graphs : SceneGraphs
        The scenes.
    size : int
        Pixels a side, 16 to 512.
    device : str or torch.device
        Where to render.
    batch : int, optional
        Scenes at a time: memory and speed only.

    Returns
    -------
    (n, size, size, 3) uint8 array

    Raises
    ------
    InputError
        For a size out of range or a device that is not there.

    Examples
    --------
    >>> from phosphene.stimuli.scenes import sample_graphs
    >>> render(sample_graphs(2), size=32).shape
    (2, 32, 32, 3)
    """
    check_render(graphs, size, 1 if batch is None else batch)
    step = batch or max(1, 128 * 64 * 64 // int(size) ** 2)
    pictures = np.empty((len(graphs), size, size, 3), dtype=np.uint8)
    for first in range(0, len(graphs), step):
        part = render_tensor(graphs.take(slice(first, first + step)), size, device)
        pictures[first : first + step] = part.cpu().numpy()
    return pictures


@torch.inference_mode()
def silhouettes(graphs: SceneGraphs, size: int = 64) -> np.ndarray:
    """Coverage of the picture by each object alone, in [0, 1].

    Returns
    -------
    (n, 3, size, size) float32 array
        Zero for an empty slot. Occlusion is not applied.
    """
    check_render(graphs, size)
    cover = np.zeros((len(graphs), SLOTS, size, size), dtype=np.float32)
    scene, slot = np.nonzero(graphs.shape >= 0)
    names = ("shape", "colour", "material", "x", "y", "scale", "angle")
    objects = _Objects(scene, slot, *(getattr(graphs, name)[scene, slot] for name in names))
    distance = _distances(objects, size, torch.device("cpu"))
    sharpness = to_device(-objects.scale * size / 2, distance.device)[:, None, None]
    cover[scene, slot] = (distance * sharpness + 0.5).clamp_(0.0, 1.0).numpy()
    return cover
