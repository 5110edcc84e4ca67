"""The cortical sheet: areas on a flat map, its folding into a volume, and the voxels that sample it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from phosphene.errors import InputError
from phosphene.virtual.fields import Field, stream

__all__ = ["AREAS", "EARLY", "HIGHER", "NONVISUAL", "Sheet", "area_of", "draw_sheet", "retinotopy"]

# One hemisphere, flattened, in millimetres: from the occipital pole forwards, from ventral to dorsal-lateral.
LENGTH, HEIGHT, THICKNESS = 120.0, 110.0, 2.5

# Rectangles (from, to forwards; from, to upwards). V2 and V3 lie as ventral and dorsal halves around V1, so that
# neighbouring areas meet at the vertical or the horizontal meridian, as in the real visual cortex.
_PATCHES: dict[str, tuple[str, float, float, float, float]] = {
    "V4": ("V4", 2, 52, 9, 22),
    "V3v": ("V3", 2, 52, 22, 31),
    "V2v": ("V2", 2, 52, 31, 41),
    "V1": ("V1", 2, 52, 41, 69),
    "V2d": ("V2", 2, 52, 69, 79),
    "V3d": ("V3", 2, 52, 79, 88),
    "PPA": ("PPA", 58, 86, 6, 24),
    "FFA": ("FFA", 58, 86, 26, 44),
    "LOC": ("LOC", 56, 86, 48, 74),
    "EBA": ("EBA", 58, 86, 78, 98),
    "NONVIS": ("NONVIS", 92, 116, 10, 100),
}
EARLY = ("V1", "V2", "V3", "V4")
HIGHER = ("LOC", "FFA", "EBA", "PPA")
NONVISUAL = "NONVIS"
AREAS = (*EARLY, *HIGHER, NONVISUAL)


@dataclass(frozen=True)
class Sheet:
    """The voxels of one person, in scanner order (k, then j, then i).

    Attributes
    ----------
    template : (V, 2) array
        Anatomical position in the common space, mm: (u, v); u is negative in the left hemisphere.
    functional : (V, 2) array
        Place of the common functional map that lies at this voxel: template + the person's warp.
    hemisphere : (V,) array of "L" or "R"
    area : (V,) array of str
        One of `AREAS`, of the functional position: areas move with the map.
    grid : (V, 3) int array
        i, j, k of the volume.
    xyz : (V, 3) array
        Scanner coordinates in mm (right, anterior, superior).
    affine : (4, 4) array
    volume_shape : tuple of 3 int
    curvature, sulc : (V,) arrays
        As on a reconstructed surface: positive in sulci.
    """

    template: np.ndarray
    functional: np.ndarray
    hemisphere: np.ndarray
    area: np.ndarray
    grid: np.ndarray
    xyz: np.ndarray
    affine: np.ndarray
    volume_shape: tuple[int, int, int]
    curvature: np.ndarray
    sulc: np.ndarray

    def __len__(self) -> int:
        return len(self.area)


def _inside(points: np.ndarray, patch: str) -> np.ndarray:
    _, back, front, low, high = _PATCHES[patch]
    forwards = np.abs(points[:, 0])
    return (forwards >= back) & (forwards < front) & (points[:, 1] >= low) & (points[:, 1] < high)


def area_of(points: np.ndarray) -> np.ndarray:
    """Area of each functional position (n, 2) in mm: (n,) of str, "" between areas."""
    area = np.full(len(points), "", dtype="U8")
    for patch, (name, *_) in _PATCHES.items():
        area[_inside(points, patch)] = name
    return area


def retinotopy(points: np.ndarray, extent: float) -> np.ndarray:
    """Preferred place in the visual field of early functional positions.

    Eccentricity grows exponentially forwards (the fovea is magnified); the polar angle runs upwards and turns
    back at every border, as the published maps do. A hemisphere sees the opposite half of the field.

    Parameters
    ----------
    points : (n, 2) array
        Functional positions in mm.
    extent : float
        Half the width of the picture in degrees: the largest eccentricity represented.

    Returns
    -------
    (n, 2) array
        x (rightwards), y (upwards) in degrees; NaN outside V1 to V4.
    """
    # polar angle at the lower and the upper border of each patch, from the horizontal: +90 is up
    angles = {"V4": (-90, 90), "V3v": (90, 0), "V2v": (0, 90), "V1": (90, -90), "V2d": (-90, 0), "V3d": (0, -90)}
    centres = np.full(points.shape, np.nan)
    for patch, (low_angle, high_angle) in angles.items():
        rows = np.flatnonzero(_inside(points, patch))
        _, back, front, low, high = _PATCHES[patch]
        forwards = (np.abs(points[rows, 0]) - back) / (front - back)
        eccentricity = 0.05 * extent + 0.9 * extent * np.expm1(1.6 * forwards) / np.expm1(1.6)
        angle = np.deg2rad(low_angle + (high_angle - low_angle) * (points[rows, 1] - low) / (high - low))
        side = -np.sign(points[rows, 0])
        centres[rows] = np.stack([side * eccentricity * np.cos(angle), eccentricity * np.sin(angle)], axis=1)
    return centres


def _fold(points: np.ndarray, depth: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Wrap flat positions (n, 2) around half a cylinder and lift them by the folding: (n, 3) mm."""
    radius = HEIGHT / (0.9 * np.pi)
    turn = 0.05 * np.pi + 0.9 * np.pi * points[:, 1] / HEIGHT
    distance = radius + height + depth
    side = np.where(points[:, 0] < 0, -1.0, 1.0)
    return np.stack(
        [side * (8 + distance * np.sin(turn)), np.abs(points[:, 0]) - 100, 10 - distance * np.cos(turn)], axis=1
    )


def _quotas(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in the given proportions that add up to `total` (largest remainders)."""
    names = [name for name in AREAS if shares.get(name, 0) > 0]
    exact = np.array([shares[name] for name in names]) / sum(shares[name] for name in names) * total
    counts = np.floor(exact).astype(int)
    for position in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[position] += 1
    return dict(zip(names, counts.tolist(), strict=True))


def draw_sheet(
    seed: int,
    name: str,
    n_voxels: int,
    shares: Mapping[str, float],
    warp: Callable[[np.ndarray], np.ndarray],
) -> Sheet:
    """Fold the sheet of one person and sample it with voxels.

    The voxel size follows from the number of voxels: the sheet is the same, a finer grid cuts it into more.

    Parameters
    ----------
    seed : int
        Seed of the study: the folding common to all people comes from it.
    name : str
        The person: own folding and own sampling.
    n_voxels : int
    shares : mapping
        Share of voxels by area.
    warp : callable
        Positions (n, 2) -> displacement (n, 2) of the functional map, mm.

    Raises
    ------
    InputError
        When the areas cannot be filled (a warp that empties one).
    """
    rng = stream(seed, name, "voxels")
    quotas = _quotas(shares, n_voxels)
    common = Field.draw(stream(seed, "folding"), length=11, waves=64)
    own = Field.draw(stream(seed, name, "folding"), length=11, waves=64)
    n = 12 * n_voxels + 4000
    candidates = np.stack([rng.uniform(0, LENGTH, n) * rng.choice([-1, 1], n), rng.uniform(0, HEIGHT, n)], axis=1)
    functional = candidates + warp(candidates)
    # a map pushed across the midline would change hemisphere
    functional[:, 0] = np.where(functional[:, 0] * candidates[:, 0] > 0, functional[:, 0], 0.0)
    area = area_of(functional)
    kept = area != ""
    candidates, functional, area = candidates[kept], functional[kept], area[kept]
    mirrored = np.abs(candidates[:, :1]), candidates[:, 1:]
    flat = np.concatenate(mirrored, axis=1)
    height = 4.0 * common(flat)[:, 0] + 1.5 * own(candidates)[:, 0]
    xyz = _fold(candidates, rng.uniform(0, THICKNESS, len(candidates)), height)
    rows, grid, size = _sample(rng, xyz, area, quotas)
    origin = xyz.min(0) - size
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = origin
    order = np.lexsort(grid.T)
    rows, grid = rows[order], grid[order]
    bending = 4.0 * common.laplacian(flat[rows])[:, 0] + 1.5 * own.laplacian(candidates[rows])[:, 0]
    return Sheet(
        template=candidates[rows],
        functional=functional[rows],
        hemisphere=np.where(candidates[rows, 0] < 0, "L", "R"),
        area=area[rows],
        grid=grid,
        xyz=grid * size + origin,
        affine=affine,
        volume_shape=tuple(int(edge) for edge in np.ceil((xyz.max(0) - origin) / size).astype(int) + 2),  # type: ignore[arg-type]
        curvature=bending / 2,
        sulc=-height[rows],
    )


def _sample(
    rng: np.random.Generator, xyz: np.ndarray, area: np.ndarray, quotas: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rows of one candidate a voxel, their grid positions and the voxel size: the coarsest grid that fills all."""
    size = 1.5 * (2 * LENGTH * HEIGHT * THICKNESS / sum(quotas.values())) ** (1 / 3)
    draw = rng.random(len(xyz))
    for _ in range(60):
        origin = xyz.min(0) - size
        cells = np.rint((xyz - origin) / size).astype(np.int64)
        _, first = np.unique(cells @ np.array([1, 10_000, 100_000_000]), return_index=True)
        chosen = []
        for name, count in quotas.items():
            members = first[area[first] == name]
            if len(members) < count:
                break
            chosen.append(members[np.argsort(draw[members], kind="stable")[:count]])
        else:
            rows = np.concatenate(chosen)
            return rows, cells[rows], size
        size *= 0.94
    raise InputError(f"could not place {sum(quotas.values())} voxels; wanted by area: {dict(quotas)}")
