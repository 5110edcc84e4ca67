"""Early voxels: population receptive fields over channel maps, divisive normalisation, compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phosphene.virtual.fields import Field, stream
from phosphene.virtual.filters import CHANNELS, GRID, one_thread
from phosphene.virtual.sheet import EARLY, Sheet, retinotopy

if TYPE_CHECKING:
    import torch

__all__ = ["EarlyVoxels", "draw_early", "early_responses", "gaussian_windows"]

# size = intercept + slope * eccentricity, degrees; exponent of the compressive non-linearity; share of colour
_SIZE = {"V1": (0.35, 0.10), "V2": (0.45, 0.15), "V3": (0.60, 0.21), "V4": (0.85, 0.30)}
_EXPONENT = {"V1": 0.75, "V2": 0.65, "V3": 0.55, "V4": 0.45}
_COLOUR = {"V1": 0.35, "V2": 0.35, "V3": 0.20, "V4": 0.70}
_FREQUENCY = {"V1": 0.19, "V2": 0.15, "V3": 0.12, "V4": 0.11}


@dataclass(frozen=True)
class EarlyVoxels:
    """Parameters of the early voxels of one person.

    Attributes
    ----------
    rows : (E,) int array
        Which voxels of the person these are.
    centres : (E, 2) array
        x (rightwards), y (upwards), degrees from the middle of the picture.
    sizes : (E,) array
        Standard deviation of the receptive field, degrees.
    weights : (E, C) array
        Non-negative channel weights, each row adding up to 1.
    exponents, pools : (E,) arrays
        Compression; size of the normalisation pool in receptive-field sizes.
    extent : float
        Half the width of the picture, degrees.
    """

    rows: np.ndarray
    centres: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray
    exponents: np.ndarray
    pools: np.ndarray
    extent: float


def gaussian_windows(centres: np.ndarray, sizes: np.ndarray, extent: float) -> np.ndarray:
    """Gaussian receptive fields on the channel grid, each adding up to 1: (n, GRID * GRID) float32.

    Parameters
    ----------
    centres : (n, 2) array
        x, y in degrees.
    sizes : (n,) array
        Standard deviations in degrees.
    extent : float
        Half the width of the picture, degrees.
    """
    axis = (np.arange(GRID) + 0.5) / GRID * 2 * extent - extent
    across = np.exp(-0.5 * ((axis - centres[:, :1]) / sizes[:, None]) ** 2)
    down = np.exp(-0.5 * ((-axis - centres[:, 1:]) / sizes[:, None]) ** 2)
    across /= across.sum(1, keepdims=True)
    down /= down.sum(1, keepdims=True)
    return (down[:, :, None] * across[:, None, :]).reshape(len(centres), -1).astype(np.float32)


def draw_early(
    seed: int, name: str, sheet: Sheet, exponents: dict[str, float], pools: dict[str, float], extent: float
) -> EarlyVoxels:
    """Draw the early voxels of a person; maps over the sheet are common, the scatter around them is the person's.

    Parameters
    ----------
    seed, name
        Of the study and the person.
    sheet : Sheet
    exponents : dict of area to float
        Factor on the area's usual exponent.
    pools : dict of area to float
        Size of the area's normalisation pool, in receptive-field sizes.
    extent : float
        Half the width of the picture, degrees.
    """
    rng = stream(seed, name, "prf")
    rows = np.flatnonzero(np.isin(sheet.area, EARLY))
    places, areas = sheet.functional[rows], sheet.area[rows]

    def by_area(values: dict[str, float]) -> np.ndarray:
        return np.array([values[area] for area in areas], dtype=float)

    centres = retinotopy(places, extent)
    eccentricity = np.hypot(*centres.T)
    usual = np.array([_SIZE[area] for area in areas]).reshape(-1, 2) @ np.array([1.0, 0.0])
    usual = usual + np.array([_SIZE[area][1] for area in areas]) * eccentricity
    sizes = usual * np.exp(0.12 * rng.standard_normal(len(rows)))
    centres = centres + 0.15 * sizes[:, None] * rng.standard_normal(centres.shape)
    return EarlyVoxels(
        rows=rows,
        centres=centres,
        sizes=sizes,
        weights=_channel_weights(seed, rng, places, by_area(_FREQUENCY), by_area(_COLOUR), eccentricity / extent),
        exponents=by_area(_EXPONENT) * by_area(exponents),
        pools=by_area(pools),
        extent=extent,
    )


def _channel_weights(
    seed: int,
    rng: np.random.Generator,
    places: np.ndarray,
    frequency: np.ndarray,
    colour: np.ndarray,
    eccentricity: np.ndarray,
) -> np.ndarray:
    """Preferences that change smoothly over the sheet: orientation, frequency (falling outwards) and colour."""
    maps = Field.draw(stream(seed, "early-maps"), length=5, fields=4 + int(CHANNELS.is_colour.sum()))(places)
    maps = maps + 0.3 * rng.standard_normal(maps.shape)
    orientation = np.arctan2(maps[:, 1], maps[:, 0]) / 2
    preferred = np.log(frequency * np.exp(0.35 * maps[:, 2]) / (1 + 0.8 * eccentricity))
    gabor = ~CHANNELS.is_colour
    fit = -0.5 * ((np.log(CHANNELS.frequency[gabor]) - preferred[:, None]) / 0.5) ** 2
    fit = fit + 1.2 * np.cos(2 * (CHANNELS.orientation[gabor] - orientation[:, None]))
    weights = np.empty((len(places), len(CHANNELS)))
    share = np.clip(colour * np.exp(0.5 * maps[:, 3]), 0, 0.9)[:, None]
    hue = np.exp(0.9 * maps[:, 4:])
    weights[:, gabor] = (1 - share) * np.exp(fit) / np.exp(fit).sum(1, keepdims=True)
    weights[:, ~gabor] = share * hue / hue.sum(1, keepdims=True)
    return weights


def early_responses(maps: torch.Tensor, voxels: EarlyVoxels, chunk: int = 256) -> np.ndarray:
    r"""Noise-free responses of early voxels.

    .. math:: r_v = \Big(\frac{\sum_c w_{vc} \sum_x g_v(x) E_c(x)}{0.5 + \sum_x q_v(x) \bar E(x)}\Big)^{n_v}

    with the receptive field :math:`g_v`, the wider normalisation pool :math:`q_v` and the mean
    :math:`\bar E` over channels (divisive normalisation, Carandini and Heeger 2012; compressive spatial
    summation, Kay et al. 2013).

    Parameters
    ----------
    maps : (n, C, GRID, GRID) tensor
        Of `channel_maps`.
    voxels : EarlyVoxels
    chunk : int
        Voxels at a time: bounds the memory.

    Returns
    -------
    (n, E) float32 array
    """
    import torch

    flat = maps.flatten(1)
    mean = maps.mean(1).flatten(1)
    responses = torch.empty(len(flat), len(voxels.rows))
    with one_thread():
        for start in range(0, len(voxels.rows), chunk):
            part = slice(start, start + chunk)
            windows = gaussian_windows(voxels.centres[part], voxels.sizes[part], voxels.extent)
            pools = gaussian_windows(voxels.centres[part], voxels.sizes[part] * voxels.pools[part], voxels.extent)
            weights = torch.from_numpy(voxels.weights[part].astype(np.float32))
            kernels = (weights[:, :, None] * torch.from_numpy(windows)[:, None, :]).flatten(1)
            drive = flat @ kernels.T / (0.5 + mean @ torch.from_numpy(pools).T)
            exponents = torch.from_numpy(voxels.exponents[part].astype(np.float32))
            responses[:, part] = drive.clamp(min=0) ** exponents
    return responses.numpy()
