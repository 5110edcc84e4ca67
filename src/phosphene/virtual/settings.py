"""Settings of a virtual study: the plan of what is shown, and the knobs of every person."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field as Option
from pydantic import model_validator

from phosphene.errors import InputError, unknown
from phosphene.settings import Settings, merge
from phosphene.virtual.sheet import AREAS, EARLY, HIGHER

__all__ = ["PersonSettings", "StimulusSettings", "VirtualSettings"]

_SHARES = {
    "V1": 0.17,
    "V2": 0.14,
    "V3": 0.11,
    "V4": 0.08,
    "LOC": 0.13,
    "FFA": 0.08,
    "EBA": 0.08,
    "PPA": 0.09,
    "NONVIS": 0.12,
}


class PersonSettings(Settings):
    """The knobs of one person. A knob turned for one person changes nobody else."""

    voxels: int = Option(default=1000, ge=50)
    sessions: int | None = Option(default=None, ge=1, description="sessions recorded; default: all of the study's")
    warp: float = Option(default=3.0, ge=0, le=10, description="RMS displacement of the functional map, mm")
    rotation: float = Option(default=0.5, ge=0, le=1.6, description="angle of the semantic tuning rotation, radians")
    rotation_rank: int = Option(
        default=24, ge=0, description="dimensions of the semantic space that the rotation moves"
    )
    nonlinearity: float = Option(default=0.15, ge=0, le=1, description="log-deviation of exponents and pools by area")
    exponent: dict[str, float] = Option(default={}, description="by area: factor on the exponent")
    pool: dict[str, float] = Option(default={}, description="by area: factor on the normalisation pool")
    gain: float = Option(default=1.0, gt=0, description="scale of all responses")
    noise: float = Option(default=1.0, ge=0, description="factor on the noise deviation; ncsnr falls accordingly")
    ncsnr: dict[str, float] = Option(default={}, description="by area: median ncsnr wanted at noise = 1")
    ncsnr_spread: float = Option(default=0.45, ge=0, le=1.5, description="log-deviation of ncsnr over voxels")
    drift: float = Option(default=0.25, ge=0, description="step of the baseline between sessions, noise deviations")
    noise_length: float = Option(default=7.0, gt=0, description="correlation length of smooth noise, mm")
    noise_rank: int = Option(default=5, ge=1, description="number of shared noise patterns")
    noise_shares: tuple[float, float, float] = Option(
        default=(0.25, 0.15, 0.6), description="smooth, shared, independent"
    )

    @model_validator(mode="after")
    def _known_areas(self) -> Self:
        for knob, allowed in (("exponent", (*EARLY, *HIGHER)), ("pool", (*EARLY, *HIGHER)), ("ncsnr", AREAS)):
            for area, value in getattr(self, knob).items():
                if area not in allowed:
                    raise unknown(f"area in {knob}:", area, allowed)
                if value < 0 or (value == 0 and knob != "ncsnr"):
                    raise InputError(f"{knob}.{area} must be positive, found {value}")
        if min(self.noise_shares) < 0 or sum(self.noise_shares) <= 0:
            raise InputError(f"noise_shares must be three non-negative numbers, found {self.noise_shares}")
        return self


class StimulusSettings(Settings):
    """How many stimuli are shown to whom. Test stimuli are seen by all people, never used in training."""

    test: int = Option(default=200, ge=1, description="shared by all people; role test")
    common: int = Option(default=0, ge=0, description="shared by all people; role train")
    own: int = Option(default=600, ge=0, description="a person's own; role train")
    unseen: int = Option(default=0, ge=0, description="scenes of held-out combinations, shared by all; role unseen")
    holdout: str | None = Option(
        default=None, description="combination of attributes held out of all other scenes, e.g. shape-colour"
    )
    size: int = Option(default=64, ge=16, le=512, description="edge of the pictures, pixels")
    captions: int = Option(default=5, ge=0, le=20, description="captions a scene")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.common + self.own < 1:
            raise InputError("stimuli.common + stimuli.own must be at least 1: there is nothing to train on")
        if (self.unseen > 0) != (self.holdout is not None):
            raise InputError("stimuli.unseen (a number) and stimuli.holdout (a name) are given together or not at all")
        return self


class VirtualSettings(Settings):
    """A whole virtual study."""

    name: str = "virtual"
    subjects: int = Option(default=2, ge=1, le=99)
    sessions: int = Option(default=4, ge=1)
    trials: int | None = Option(default=None, ge=1, description="trials a session; default: enough for all repeats")
    runs: int = Option(default=4, ge=1, description="runs a session")
    repeats: int = Option(default=3, ge=1, description="how often each stimulus is shown")
    interval: float = Option(default=4.0, gt=0, description="seconds between trial onsets")
    duration: float = Option(default=3.0, gt=0, description="seconds a stimulus is shown")
    tr: float = Option(default=1.6, gt=0, description="seconds between volumes")
    delay: float = Option(
        default=0.0, ge=0, description="haemodynamic delay already taken out of the responses, seconds"
    )
    extent: float = Option(default=4.2, gt=0, description="half the width of a picture, degrees of visual angle")
    shares: dict[str, float] = Option(default=_SHARES, description="share of voxels by area")
    stimuli: StimulusSettings = StimulusSettings()
    person: PersonSettings = PersonSettings()
    people: dict[str, dict[str, Any]] = Option(default={}, description="by person: settings that differ from `person`")

    @model_validator(mode="after")
    def _valid_people(self) -> Self:
        for area, share in self.shares.items():
            if area not in AREAS:
                raise unknown("area in shares:", area, AREAS)
            if share < 0:
                raise InputError(f"shares.{area} must not be negative, found {share}")
        if sum(self.shares.values()) <= 0:
            raise InputError("shares must add up to more than zero")
        for name in self.people:
            if name not in self.names:
                raise unknown("person in people:", name, self.names)
            self.of(name)
        return self

    @property
    def names(self) -> list[str]:
        """Names of the people: sub-01, sub-02, ..."""
        return [f"sub-{number:02d}" for number in range(1, self.subjects + 1)]

    def of(self, name: str) -> PersonSettings:
        """The settings of one person."""
        if name not in self.names:
            raise unknown("subject", name, self.names)
        return PersonSettings.build(merge(self.person.model_dump(), self.people.get(name, {})))
