"""A virtual person: what each voxel answers to a stimulus, noise-free, and how much of it reaches the scanner."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.virtual.fields import Field, random_rotation, stream
from phosphene.virtual.filters import channel_maps
from phosphene.virtual.noise import NoiseModel, draw_noise, noise_block, session_state
from phosphene.virtual.prf import EarlyVoxels, draw_early, early_responses
from phosphene.virtual.semantics import DIMENSIONS, GROUPS, direction, semantic_features, source_of
from phosphene.virtual.settings import PersonSettings, VirtualSettings
from phosphene.virtual.sheet import AREAS, EARLY, HIGHER, NONVISUAL, Sheet, draw_sheet

__all__ = ["Calibration", "Drive", "VirtualPerson", "calibrated", "draw_person", "drives"]

log = logging.getLogger(__name__)

_BLOCK = 200
_WARP_LENGTH = 30.0  # mm; several times the largest warp, so that the map does not fold over itself
_TUNING_LENGTH = 9.0
_MEDIAN_NCSNR = {"V1": 0.60, "V2": 0.55, "V3": 0.52, "V4": 0.48, "LOC": 0.45, "FFA": 0.45, "EBA": 0.45, "PPA": 0.42}
# how much each area cares for each group of facts; `meaning` stands for stimuli without a scene graph
_CARES = {
    "LOC": {"shape": 1.0, "surface": 0.5, "size": 0.7, "scene": 0.2, "layout": 0.4, "meaning": 1.0},
    "FFA": {"shape": 1.0, "surface": 0.9, "size": 0.3, "scene": 0.1, "layout": 0.1, "meaning": 1.0},
    "EBA": {"shape": 0.9, "surface": 0.2, "size": 0.5, "scene": 0.1, "layout": 0.9, "meaning": 1.0},
    "PPA": {"shape": 0.2, "surface": 0.3, "size": 0.2, "scene": 1.2, "layout": 0.7, "meaning": 1.0},
}
# facts that an area likes as a whole, on top of the tuning that varies within it
_PREFERS = {"FFA": "group=living", "EBA": "group=artefact", "LOC": "n_objects=1", "PPA": "n_objects=3"}
_EXPONENT, _POOL, _SHARPNESS = 0.9, 0.6, 2.5


@dataclass(frozen=True)
class Drive:
    """What a block of stimuli offers to any brain: channel maps (n, C, G, G) or None, and meaning (n, groups, D)."""

    maps: Any
    meaning: np.ndarray

    def take(self, rows: np.ndarray) -> Drive:
        """Some of the stimuli, by row of the block."""
        if len(rows) == len(self.meaning) and np.array_equal(rows, np.arange(len(rows))):
            return self
        return Drive(None if self.maps is None else self.maps[rows], self.meaning[rows])


@dataclass(frozen=True)
class Calibration:
    """Mean and deviation (V,) of the raw noise-free responses to a person's reference stimuli."""

    mean: np.ndarray
    deviation: np.ndarray


def drives(stimuli: StimulusSet, size: int = _BLOCK) -> Iterator[tuple[slice, Drive]]:
    """Walk through the stimuli: rows and what they offer. Of a clip the middle frame counts."""
    meaning = semantic_features(stimuli)
    for start in range(0, len(stimuli), size):
        rows = slice(start, min(start + size, len(stimuli)))
        maps = channel_maps(stimuli.frames(rows)) if stimuli.has_pixels else None
        yield rows, Drive(maps, meaning[rows])


@dataclass(frozen=True)
class VirtualPerson:
    """Ground truth of one person.

    Attributes
    ----------
    name : str
    settings : PersonSettings
    sheet : Sheet
        Voxels in scanner order; ``sheet.template`` is where anatomy puts them in the common space.
    warp : (V, 2) array
        True displacement of the functional map, mm: the map of the common space at ``template + warp`` lies here.
    early : EarlyVoxels
        Receptive fields.
    tuning : (V, D) array
        Tuning of higher voxels in the person's own semantic space; zero elsewhere.
    rotation : (D, D) array
        Takes the common semantic space into the person's own.
    exponents, pools : dict of area to float
        The person's factors on exponent and normalisation pool.
    wanted_ncsnr : (V,) array
        As drawn at ``noise = 1``; zero in the non-visual area.
    noise_model : NoiseModel
    scale : (V,) array
        Deviation of the noise of each voxel at ``noise = 1`` and ``gain = 1``, per cent signal change.
    calibration : Calibration
        Fixes the size of the signal: a visual voxel has deviation ``ncsnr * scale`` over the reference stimuli.
    """

    name: str
    seed: int
    settings: PersonSettings
    sheet: Sheet
    warp: np.ndarray
    warp_field: Field
    early: EarlyVoxels
    tuning: np.ndarray
    rotation: np.ndarray
    exponents: dict[str, float]
    pools: dict[str, float]
    wanted_ncsnr: np.ndarray
    noise_model: NoiseModel
    scale: np.ndarray
    calibration: Calibration | None = field(default=None)

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return len(self.sheet)

    @property
    def informative(self) -> np.ndarray:
        """Voxels that answer to stimuli at all: (V,) bool."""
        return self.ncsnr > 0

    @cached_property
    def ncsnr(self) -> np.ndarray:
        """True noise-ceiling SNR (V,): deviation of the signal over that of the noise, of one trial."""
        varies = np.ones(self.n_voxels) if self.calibration is None else self.calibration.deviation > 0
        return self.wanted_ncsnr * varies / max(self.settings.noise, 1e-6)

    def raw(self, drive: Drive) -> np.ndarray:
        """Noise-free responses before scaling, (n, V) float32; zero for voxels that nothing drives."""
        responses = np.zeros((len(drive.meaning), self.n_voxels), dtype=np.float32)
        if drive.maps is not None and len(self.early.rows):
            responses[:, self.early.rows] = early_responses(drive.maps, self.early)
        for area in HIGHER:
            rows = np.flatnonzero(self.sheet.area == area)
            cares = np.array([_CARES[area][group] for group in GROUPS], dtype=np.float32)
            meaning = np.einsum("ngd,g->nd", drive.meaning, cares) @ self.rotation
            if len(rows) and np.any(meaning):
                responses[:, rows] = _higher(
                    meaning, self.tuning[rows], _EXPONENT * self.exponents[area], _POOL * self.pools[area]
                )
        return responses

    def signal(self, drive: Drive) -> np.ndarray:
        """Noise-free responses in per cent signal change, (n, V) float32."""
        assert self.calibration is not None
        safe = np.where(self.calibration.deviation > 0, self.calibration.deviation, 1.0)
        strength = self.wanted_ncsnr * self.scale * self.settings.gain * (self.calibration.deviation > 0)
        return (self.raw(drive) - self.calibration.mean) * (strength / safe).astype(np.float32)

    def respond(self, stimuli: StimulusSet) -> np.ndarray:
        """Noise-free responses to any stimuli, (n, V) float32, per cent signal change."""
        return np.concatenate([self.signal(drive) for _, drive in drives(stimuli)])

    def measure(self, signal: np.ndarray, session: int) -> np.ndarray:
        """Add the noise and the drift of a session to the signal of its trials, (trials, V) float32.

        Parameters
        ----------
        signal : (trials, V) array
            Noise-free responses of the trials in order.
        session : int
            1-based.
        """
        baseline, slope, gain = session_state(self.noise_model, self.seed, self.name, session, self.settings.drift)
        deviation = (self.scale * self.settings.noise * self.settings.gain).astype(np.float32)
        time = np.linspace(-0.5, 0.5, len(signal), dtype=np.float32)[:, None]
        rng = stream(self.seed, self.name, "noise", session)
        noise = noise_block(self.noise_model, rng, len(signal))
        noise += baseline + time * slope
        return np.float32(gain) * (signal + noise * deviation)

    def warp_at(self, points: np.ndarray) -> np.ndarray:
        """True displacement (n, 2) of the functional map at template positions (n, 2), mm."""
        return _displace(self.warp_field, self.settings.warp, points)

    def voxel_table(self) -> Table:
        """The voxels as a recording lists them: indices, coordinates, template, anatomy, ncsnr and ROIs."""
        sheet = self.sheet
        return Table(
            {
                **{axis: sheet.grid[:, number] for number, axis in enumerate("ijk")},
                **{axis: sheet.xyz[:, number] for number, axis in enumerate("xyz")},
                "hemisphere": sheet.hemisphere,
                "template_u": sheet.template[:, 0],
                "template_v": sheet.template[:, 1],
                "curvature": sheet.curvature,
                "sulc": sheet.sulc,
                "ncsnr": self.ncsnr,
                **{f"roi_{area}": sheet.area == area for area in AREAS},
            }
        )


def _higher(meaning: np.ndarray, tuning: np.ndarray, exponent: float, pool: float) -> np.ndarray:
    """Semantic drive, divided by the activity of the area, softly rectified and compressed: (n, voxels)."""
    drive = meaning @ tuning.T.astype(np.float32)
    strength = np.linalg.norm(meaning, axis=1, keepdims=True)
    drive = _SHARPNESS * drive / (1 + pool * strength)
    return np.logaddexp(0, drive).astype(np.float32) ** np.float32(exponent)


def _displace(warp: Field, size: float, points: np.ndarray) -> np.ndarray:
    return size / np.sqrt(2) * warp(points)


def draw_person(settings: VirtualSettings, seed: int, name: str) -> VirtualPerson:
    """Draw a person from the settings of the study; not calibrated yet.

    Maps over the common space (retinotopy, tuning, folding) come from the seed of the study, everything else from
    the seed and the person's name.
    """
    own = settings.of(name)
    warp_field = Field.draw(stream(seed, name, "warp"), _WARP_LENGTH, fields=2)
    sheet = draw_sheet(seed, name, own.voxels, settings.shares, lambda points: _displace(warp_field, own.warp, points))
    varied = stream(seed, name, "nonlinearity").standard_normal((2, len(EARLY) + len(HIGHER)))
    factors = np.exp(own.nonlinearity * varied)
    exponents = dict(zip((*EARLY, *HIGHER), factors[0].tolist(), strict=True))
    pools = dict(zip((*EARLY, *HIGHER), factors[1].tolist(), strict=True))
    exponents, pools = {**exponents, **own.exponent}, {**pools, **own.pool}
    early_pools = {area: 2.0 * pools[area] for area in EARLY}
    higher = np.isin(sheet.area, HIGHER)
    tuning = Field.draw(stream(seed, "tuning"), _TUNING_LENGTH, fields=DIMENSIONS)(sheet.functional)
    tuning = (tuning + 0.25 * stream(seed, name, "scatter").standard_normal(tuning.shape)) * higher[:, None]
    for area, fact in _PREFERS.items():
        tuning[sheet.area == area] += 3.0 * direction(fact)
    rng = stream(seed, name, "signal")
    return VirtualPerson(
        name=name,
        seed=seed,
        settings=own,
        sheet=sheet,
        warp=_displace(warp_field, own.warp, sheet.template),
        warp_field=warp_field,
        early=draw_early(seed, name, sheet, exponents, early_pools, settings.extent),
        tuning=tuning.astype(np.float32),
        rotation=random_rotation(stream(seed, name, "rotation"), DIMENSIONS, own.rotation_rank, own.rotation).astype(
            np.float32
        ),
        exponents=exponents,
        pools=pools,
        wanted_ncsnr=_draw_ncsnr(rng, sheet, own),
        noise_model=draw_noise(seed, name, sheet.xyz, own.noise_length, own.noise_rank, own.noise_shares),
        scale=np.exp(0.3 * rng.standard_normal(len(sheet))),
    )


def _draw_ncsnr(rng: np.random.Generator, sheet: Sheet, own: PersonSettings) -> np.ndarray:
    """Wanted ncsnr: log-normal around the median of the area, partly smooth in space as coil and vein patterns are."""
    medians = {NONVISUAL: 0.0, **_MEDIAN_NCSNR, **own.ncsnr}
    smooth = Field.draw(rng, 12.0, dimensions=3)(sheet.xyz)[:, 0]
    spread = 0.6 * smooth + 0.8 * rng.standard_normal(len(sheet))
    median = np.array([medians[area] for area in sheet.area])
    return np.minimum(median * np.exp(own.ncsnr_spread * spread), 3.0)


def calibrated(people: list[VirtualPerson], reference: StimulusSet) -> list[VirtualPerson]:
    """The same people with the size of their signals fixed on reference stimuli (see `Calibration`)."""
    if not reference.has_pixels:
        log.warning("the stimuli have no pixels: early voxels will not respond")
    if source_of(reference) == "nothing":
        log.warning("the stimuli have no text labels and no captions: higher voxels will not respond")
    raw: dict[str, list[np.ndarray]] = {person.name: [] for person in people}
    for _, drive in drives(reference):
        for person in people:
            raw[person.name].append(person.raw(drive))
    return [_with_calibration(person, np.concatenate(raw[person.name])) for person in people]


def _with_calibration(person: VirtualPerson, raw: np.ndarray) -> VirtualPerson:
    mean, deviation = raw.mean(0, dtype=np.float64), raw.std(0, dtype=np.float64)
    constant = deviation < 1e-5 * np.maximum(1e-3, np.abs(mean))
    return replace(person, calibration=Calibration(mean.astype(np.float32), np.where(constant, 0.0, deviation)))
