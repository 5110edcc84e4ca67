"""Voxel values on the brain: maximum-intensity projections of a volume, or the flattened sheet."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt
from scipy.spatial import cKDTree

from phosphene.reporting.page import Label, RegionBar, View
from phosphene.reporting.pictures import embed_lossless
from phosphene.table import Table

__all__ = ["RAMP", "brain_views", "region_bars", "region_means", "sheet_views", "volume_views"]

_COLOURS = matplotlib.colormaps["inferno"].resampled(256)(np.linspace(0.08, 0.97, 256))[:, :3]
_EDGE = np.array([128, 132, 146, 190], np.uint8)  # seen on light and on dark paper

RAMP = ",".join(
    "#" + "".join(f"{round(255 * channel):02x}" for channel in _COLOURS[k]) for k in np.linspace(0, 255, 9).astype(int)
)
"""Colours of the maps from little to most, as CSS colours."""


def brain_views(
    values: np.ndarray, voxels: Table, affine: np.ndarray | None = None, name: str = "importance"
) -> tuple[View, ...]:
    """Views of a voxel vector by whatever coordinates the voxels have; none where they have none.

    A flattened sheet (``template_u``, ``template_v``) is preferred to a volume (``i``, ``j``, ``k``).

    Parameters
    ----------
    values : np.ndarray
        ``(V,)``; what lies below zero is drawn as nothing.
    voxels : Table
        The voxels table of the recording, V rows.
    affine : np.ndarray, optional
        ``(4, 4)`` voxel to world in mm (RAS+), to name left and right.
    """
    strength = _strength(values)
    if "template_u" in voxels and "template_v" in voxels:
        return sheet_views(strength, voxels, name)
    if all(axis in voxels for axis in "ijk"):
        return volume_views(strength, np.stack([voxels[axis] for axis in "ijk"], axis=1), affine, name)
    return ()


def volume_views(
    strength: np.ndarray, index: np.ndarray, affine: np.ndarray | None, name: str = "importance"
) -> tuple[View, ...]:
    """Maximum-intensity projections along the three axes of the volume.

    Parameters
    ----------
    strength : np.ndarray
        ``(V,)`` in 0 to 1.
    index : np.ndarray
        ``(V, 3)`` integer voxel indices.
    affine : np.ndarray, optional
        Orders and names the axes (right, front, up); without it they are called i, j, k.
    """
    index = np.asarray(index, dtype=int)
    order, flips = _orientation(affine)
    index = index[:, order]
    index = np.where(flips, index.max(axis=0) - index, index - index.min(axis=0)) + 1
    shape = index.max(axis=0) + 2
    volume = np.full(tuple(shape), np.nan)
    volume[tuple(index.T)] = strength
    known = affine is not None
    # drawn axes (across, up), the words, and the letters at left and right
    plans = (
        ((1, 2), 0, "from the right", ("back", "front")),
        ((0, 2), 1, "from behind", ("left", "right")),
        ((0, 1), 2, "from above", ("left", "right")),
    )
    views = []
    for _, away, words, sides in plans:
        flat = np.fmax.reduce(volume, axis=away)
        title = words if known else f"along axis {'ijk'[away]} of the volume"
        picture = embed_lossless(
            _grown(_paint(flat.T[::-1])), f"{name.capitalize()} seen {title}, strongest voxel in depth"
        )
        labels = (Label(sides[0], 6, 95), Label(sides[1], 94, 95)) if known else ()
        views.append(View(f"seen {title}" if known else title, picture, labels))
    return tuple(views)


def sheet_views(strength: np.ndarray, voxels: Table, name: str = "importance", width: int = 420) -> tuple[View, ...]:
    """The flattened cortical sheet, one view a hemisphere, with the outlines and names of the regions."""
    place = np.stack([voxels["template_u"], voxels["template_v"]], axis=1).astype(float)
    sides = voxels["hemisphere"] if "hemisphere" in voxels else np.full(len(voxels), "")
    regions = {c[4:]: np.asarray(voxels[c], bool) for c in voxels.columns if c.startswith("roi_")}
    views = []
    for side in sorted(set(sides.tolist())):
        here = (sides == side) & np.isfinite(place).all(axis=1)
        if here.sum() < 4:
            continue
        inside = {region: mask[here] for region, mask in regions.items()}
        words = {"L": "left hemisphere", "R": "right hemisphere"}.get(side, "cortical sheet")
        image, labels = _sheet(place[here], strength[here], inside, width)
        picture = embed_lossless(image, f"{name.capitalize()} on the flattened {words}")
        views.append(View(f"{words}, flattened", picture, labels))
    return tuple(views)


def region_bars(
    lost: Mapping[str, float], whole: float, regions: Mapping[str, np.ndarray], most: int = 16
) -> tuple[RegionBar, ...]:
    """What each region contributes, as a share of the whole, most first.

    Parameters
    ----------
    lost : mapping of str to float
        What is lost without each region; below zero (nothing lost) makes a bar of no length.
    whole : float
        What there is to lose.
    regions : mapping of str to np.ndarray
        Boolean masks ``(V,)``.
    most : int
        Regions kept.
    """
    named = sorted((name for name in lost if name in regions and regions[name].any()), key=lambda name: -lost[name])
    bars = []
    for name in named[:most]:
        share = lost[name] / whole if whole > 0 else 0.0
        bars.append(RegionBar(name, float(np.clip(share, 0, 1)), f"{_share(share)}\u00a0%", int(regions[name].sum())))
    return tuple(bars)


def _share(fraction: float) -> str:
    """Whole percent with a true minus sign, and no minus before nothing."""
    return f"{100 * fraction:.0f}".replace("-0", "0").replace("-", "−")


def region_means(values: np.ndarray, regions: Mapping[str, np.ndarray], most: int = 16) -> tuple[RegionBar, ...]:
    """Mean of each region's voxels beside the strongest region, strongest first; parameters as in `region_bars`."""
    size = np.maximum(np.nan_to_num(np.asarray(values, float)), 0)
    means = {name: float(size[mask].mean()) for name, mask in regions.items() if mask.any()}
    top = max(means.values(), default=0.0) or 1.0
    bars = [RegionBar(name, mean / top, f"{mean / top:.2f}", int(regions[name].sum())) for name, mean in means.items()]
    return tuple(sorted(bars, key=lambda bar: -bar.value)[:most])


def _strength(values: np.ndarray) -> np.ndarray:
    """Values scaled to 0..1 by the 99.5th percentile, so that one voxel does not darken all others."""
    size = np.maximum(np.nan_to_num(np.asarray(values, float)), 0)
    top = np.percentile(size, 99.5) if len(size) else 0.0
    top = top if top > 0 else size.max(initial=0.0)
    return np.clip(size / top, 0, 1) if top > 0 else np.zeros_like(size)


def _orientation(affine: np.ndarray | None) -> tuple[list[int], np.ndarray]:
    """Which volume axis runs right, front and up, and which of them run the other way."""
    if affine is None:
        return [0, 1, 2], np.zeros(3, bool)
    from nibabel.orientations import io_orientation

    found = io_orientation(np.asarray(affine, float))
    order = [int(np.flatnonzero(found[:, 0] == world)[0]) for world in range(3)]
    return order, np.array([found[axis, 1] < 0 for axis in order])


def _paint(flat: np.ndarray) -> np.ndarray:
    """``(H, W)`` strengths with NaN for nothing -> RGBA with the outline of what was measured."""
    measured = np.isfinite(flat)
    level = np.clip(np.nan_to_num(flat), 0, 1)
    image = np.zeros((*flat.shape, 4), np.uint8)
    image[..., :3] = np.round(255 * _COLOURS[np.round(255 * level).astype(int)])
    image[..., 3] = np.where(measured, 255, 0)
    image[binary_dilation(measured) & ~measured] = _EDGE
    return image


def _grown(image: np.ndarray, target: int = 220) -> np.ndarray:
    """Whole-number enlargement, so that voxels stay square and crisp."""
    factor = max(1, target // max(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _sheet(
    place: np.ndarray, strength: np.ndarray, regions: Mapping[str, np.ndarray], width: int
) -> tuple[np.ndarray, tuple[Label, ...]]:
    low, high = place.min(axis=0), place.max(axis=0)
    span = np.maximum(high - low, 1e-9)
    height = int(np.clip(round(width * span[1] / span[0]), width // 4, 2 * width))
    margin = 0.03
    across = np.linspace(-margin, 1 + margin, width)
    up = np.linspace(1 + margin, -margin, height)
    grid = np.stack(np.meshgrid(across, up), axis=-1) * span + low
    tree = cKDTree(place)
    # a pixel belongs to the nearest voxel; the sheet ends three typical spacings from the outermost voxels
    spacing = float(np.median(tree.query(place, k=2)[0][:, 1]))
    near = max(3.0 * spacing, 1.5 * span[0] / width)
    gap, nearest = tree.query(grid.reshape(-1, 2), k=min(4, len(place)))
    weight = 1 / np.maximum(gap, 1e-6 * span.max()) ** 2
    flat = (weight * strength[nearest]).sum(axis=1) / weight.sum(axis=1)
    flat[gap[:, 0] > near] = np.nan
    flat, owner = flat.reshape(height, width), nearest[:, 0].reshape(height, width)
    image = _paint(flat)
    labels = []
    for name, mask in regions.items():
        area = mask[owner] & np.isfinite(flat)
        if area.sum() < 0.004 * area.size:
            continue
        edge = binary_dilation(area, iterations=1) & ~area & np.isfinite(flat)
        image[edge] = (255, 255, 255, 210)
        row, column = _spot(area)
        labels.append(Label(name, round(100 * column / width, 1), round(100 * row / height, 1)))
    return image, tuple(labels)


def _spot(area: np.ndarray) -> tuple[float, float]:
    """Row and column for a name: where the region is widest, as the middle of a split one may lie in another."""
    # the border of the picture is an edge as well
    inside = distance_transform_edt(np.pad(area, 1))[1:-1, 1:-1]
    wide = np.argwhere(inside >= 0.9 * inside.max())
    nearest = wide[np.argmin(((wide - np.argwhere(area).mean(axis=0)) ** 2).sum(axis=1))]
    return float(nearest[0]), float(nearest[1])
