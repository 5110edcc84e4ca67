"""Settings of pretraining: the tables of a preset in ``presets/encoders/mlip``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from phosphene.encoders.mlip import MLIPConfig
from phosphene.encoders.mlip.encoder import find_named_mlip
from phosphene.encoders.mlip.store import read_config
from phosphene.errors import InputError, unknown
from phosphene.settings import Settings, flattened, load_preset, merge
from phosphene.stimuli.scenes.captions import MOST_CAPTIONS
from phosphene.training.pretraining.objective import ObjectiveSettings
from phosphene.training.settings import StepSettings

__all__ = ["FINE_TUNING", "DataSettings", "PairSteps", "PretrainSettings", "pretrain_settings", "run_settings"]

log = logging.getLogger(__name__)

FINE_TUNING = "fine-tune"
"""Preset of runs that start from a model."""


class DataSettings(Settings):
    """The ``[data]`` table: which pairs of picture and caption there are, and which of them meet in a step.

    Attributes
    ----------
    sampled : int
        Captions of each picture in a step, drawn anew each time; other captions of a picture are never its negatives.
        A picture with fewer gives some of them again.
    captions : int
        Captions a scene has (scenes only; other pictures have those they come with).
    plain : float
        Share of the captions of scenes that are plain: material, colour, shape and relations, always alike.
    rule : {"none", "shape-colour", "shape-material", "colour-material", "shape-colour-material"}
        Compositions that training scenes never show, kept for the probes; see ``stimuli.scenes.held_out``.
    hard_share : float
        Share of the groups of scenes that have few colours and materials, so that shape must be learned.
    group, group_colours, group_materials : int
        Scenes a group, and what a hard group is left with.
    objects : int, optional
        Most objects a scene (default: 3).
    only : mapping of str to list of str
        Words that may occur in scenes, by attribute.
    scale : (float, float), optional
        Least and greatest half-extent of the main object of a scene, as in ``stimuli.scenes.sample_graphs``.
    simple_batches : int
        First batches, whose scenes have one object and plain captions: the shapes of things are learned sooner there
        than from two things and all that can be said about them.
    pool : int
        Scenes that are rendered before the first step and then shown again and again; 0 renders new ones each step.
        Every process keeps all of them where it trains, in ``pool * image_size**2 * 3`` bytes: 500,000 of 64 pixels a
        side are 6.1 GB.
    held_out : float
        Share of the pictures (not scenes) kept for probes where no held-out set is given; equal pictures stay together.
    long_captions : {"refuse", "cut"}
        What to do with captions longer than the context of the text tower.
    """

    sampled: int = Field(1, ge=1)
    captions: int = Field(5, ge=1, le=MOST_CAPTIONS)
    plain: float = Field(0.0, ge=0, le=1)
    rule: Literal["none", "shape-colour", "shape-material", "colour-material", "shape-colour-material"] = "shape-colour"
    hard_share: float = Field(0.75, ge=0, le=1)
    group: int = Field(64, ge=2)
    group_colours: int = Field(2, ge=1)
    group_materials: int = Field(2, ge=1)
    objects: int | None = Field(None, ge=1, le=3)
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    scale: tuple[float, float] | None = None
    simple_batches: int = Field(0, ge=0)
    pool: int = Field(0, ge=0)
    held_out: float = Field(0.1, ge=0, le=0.5)
    long_captions: Literal["refuse", "cut"] = "refuse"

    def without_use(self) -> dict[str, str]:
        """Settings of hard groups where there are none."""
        return {} if self.hard_share else dict.fromkeys(("group_colours", "group_materials"), "hard_share = 0")


class PairSteps(StepSettings):
    """The ``[training]`` table; the keys it shares with decoders are described in ``training.settings``.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    batch_size : int
        Pictures that are contrasted with one another, over all processes.
    accumulate : int
        Batches whose gradients are averaged in one step; pictures of different batches are not contrasted.
    chunk : int
        Pictures embedded at a time, by gradient caching: the same gradients in less memory, for one more forward
        pass. 0 embeds a whole batch at once.
    probe_steps : int
        Steps between probes of the averaged weights; 0 probes at the end only.
    probe_pictures : int
        Pictures of each probe.
    memory_gb : float
        Largest memory, in GB, for keeping decoded pictures; beyond it they are read from disk step by step.
    save_precision : {"float32", "float16"}, optional
        Numbers in which the model is written at the end (default: float32); ``"float16"`` takes half the space. Scores
        are those of what is written. Checkpoints are float32 always.
    """

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    ema: float = Field(0.999, ge=0, lt=1)
    steps: int = Field(10_000, ge=1)
    batch_size: int = Field(256, ge=2)
    accumulate: int = Field(1, ge=1)
    chunk: int = Field(0, ge=0)
    probe_steps: int = Field(0, ge=0)
    probe_pictures: int = Field(512, ge=2)
    memory_gb: float = Field(1.0, ge=0)
    save_precision: Literal["float32", "float16"] | None = None


_OF_PICTURES = ("data.held_out", "training.memory_gb")
_OF_SCENES = tuple(
    f"data.{name}" for name in DataSettings.model_fields if name not in ("sampled", "held_out", "long_captions")
)


class PretrainSettings(Settings):
    """Everything a preset of pretraining says: tables ``[model]``, ``[objective]``, ``[training]``, ``[data]``."""

    model: MLIPConfig = MLIPConfig.build()
    objective: ObjectiveSettings = ObjectiveSettings.build()
    training: PairSteps = PairSteps.build()
    data: DataSettings = DataSettings.build()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        weights = self.objective.weights
        for head, there, parts in (
            ("frequency_head", self.model.frequency_head, ("frequency", "frequency_token")),
            ("token_heads", self.model.token_heads, ("spatial_token", "frequency_token")),
        ):
            wanted = [f"objective.{part}_weight" for part in parts if weights[part] > 0]
            if wanted and not there:
                raise ValueError(f"{' and '.join(wanted)} above 0 need model.{head} = true")
        if self.model.merge is not None and self.model.merge.guide == "text":
            raise ValueError(
                "model.merge.guide = 'text' spares what given texts name, and training has none; "
                "allowed here: none, spatial, frequency, both"
            )
        return self

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why: names with their table, as ``objective.bias``."""
        parts = {"model": self.model, "objective": self.objective, "data": self.data}
        return {f"{part}.{name}": why for part, inner in parts.items() for name, why in inner.without_use().items()}

    def unused(self, given: Mapping[str, Any], scenes: bool) -> dict[str, str]:
        """Those of the given tables' settings without a use, and why; by what there is to train on, too."""
        others = _OF_PICTURES if scenes else _OF_SCENES
        why = "scenes have none" if scenes else "pictures are not scenes"
        idle = {**self.without_use(), **dict.fromkeys(others, why)}
        names = flattened({table: dict(values) for table, values in given.items()})
        return {name: why for name, why in idle.items() if any(f"{key}.".startswith(f"{name}.") for key in names)}

    @property
    def untrained(self) -> tuple[str, ...]:
        """Embeddings that the model has and no part of the objective trains, by the names of the weights."""
        return self.model.untrained(self.objective.weights)


def pretrain_settings(preset: str | None, *layers: Mapping[str, Any] | None) -> PretrainSettings:
    """Settings of a preset with layers over it; later ones win.

    Raises
    ------
    InputError
        For an unknown preset, table or key, or a value out of range, such as a patch that does not divide the picture.
    """
    merged: dict[str, Any] = load_preset("encoders", "mlip", preset) if preset else {}
    for layer in layers:
        merged = merge(merged, layer or {})
    for table in merged:
        if table not in PretrainSettings.model_fields:
            raise unknown("table of settings", table, PretrainSettings.model_fields)
    return PretrainSettings.build(merged)


def run_settings(
    preset: str | None, settings: Mapping[str, Any] | None, start: str | Path | None
) -> tuple[PretrainSettings, str | None]:
    """Settings of a run, and the identity of the weights it starts from.

    Parameters
    ----------
    preset : str, optional
        Default where there is a model to start from: ``"fine-tune"``.
    settings : mapping, optional
        Tables over those of the preset.
    start : str or path, optional
        Model to start from, by name or folder, refused where a name may mean both. It brings its own ``[model]`` table,
        where ``merge`` alone may be another, and its ``[objective]`` where the preset has none, with the temperatures
        and biases it ended with where the form of the loss is the same.

    Raises
    ------
    InputError
        As `pretrain_settings`, for a model that is not there, and for sizes that are not those of the model.
    """
    if start is None:
        if preset == FINE_TUNING:
            raise InputError(f"preset {FINE_TUNING!r} needs a model to start from: --from pocket, or a model folder")
        return pretrain_settings(preset, settings), None
    content = read_config(find_named_mlip(str(start)))
    model = _with_asked(content["model"], (settings or {}).get("model", {}))
    chosen = load_preset("encoders", "mlip", preset or FINE_TUNING)
    if any(content["model"].get(key) != value for key, value in chosen.get("model", {}).items()):
        log.info("sizes are those of the model to start from, not of preset %r", preset)
    facts, layers = content["facts"], [chosen, settings]
    known = {key: value for key, value in facts.get("settings", {}).get("objective", {}).items() if value is not None}
    if pretrain_settings(None, {"objective": known}, *layers).objective.form == known.get("form"):
        known |= {**facts.get("temperatures", {}), **facts.get("biases", {})}  # learned with that form of the loss
    return pretrain_settings(None, {"objective": known}, *layers, {"model": model}), str(content["weights"])


def _with_asked(model: Mapping[str, Any], asked: Any) -> dict[str, Any]:
    """The ``[model]`` table of a model to start from, with other token merging where that is asked for."""
    if not isinstance(asked, Mapping):
        raise InputError(f"model = {asked!r}: [model] is a table of settings, such as model.merge.tokens = 0.5")
    other = [key for key, value in asked.items() if key != "merge" and model.get(key) != value]
    if other:
        raise InputError(
            f"the model to start from has its own sizes: remove model.{', model.'.join(other)}; merge alone, which has "
            "no weights, may be another one"
        )
    return {**model, **({"merge": asked["merge"]} if "merge" in asked else {})}
