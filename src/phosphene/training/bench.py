"""What precedes and follows the steps of a training run: data on the bench, the validation part, the outcome."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from phosphene._version import __version__
from phosphene.decoders import ClassesConfig, Decoder
from phosphene.errors import InputError, LeakageError, unknown
from phosphene.stimuli.multilabel import label_matrix
from phosphene.training.data import PersonSamples, StepLoader, TargetRows, plan_memory
from phosphene.training.loop import Counters, train
from phosphene.training.objective import Objective, TrainingStep
from phosphene.training.progress import progress_bar
from phosphene.training.sampling import BatchSampler, split_validation
from phosphene.training.settings import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = [
    "Bench",
    "check_classes",
    "outcome",
    "prepare",
    "refuse_leakage",
    "set_aside",
    "shown_stimuli",
    "some_of",
    "train_on",
    "training_content",
]

_CURVE_POINTS = 200


def refuse_leakage(study: Study, view: StudyView, targets: Targets) -> None:
    """Refuse targets whose encoder was fitted on stimuli of the study outside of the view.

    Raises
    ------
    LeakageError
        Naming some of them.
    """
    # an encoder fitted on stimuli of another study knows nothing of this one
    within = (targets.fitted_on or frozenset()) & set(study.stimuli.ids.tolist())
    outside = sorted(within - set(view.stimulus_ids.tolist()))
    if outside:
        raise LeakageError(
            f"the encoder of these targets ({targets.encoder.label}) was fitted on {len(outside)} stimuli outside of "
            f"the training part of split {view.split_name!r}, such as {', '.join(outside[:5])}; fit it (or pretrain "
            "its model) on that part: fit_on=study.split('train').stimulus_ids"
        )


def some_of(view: StudyView, stimuli: Sequence[str] | np.ndarray) -> StudyView:
    """The view of some of its stimuli, in its own order.

    Raises
    ------
    InputError
        For ids outside of the view.
    """
    wanted = np.asarray(stimuli, dtype=str)
    view.restrict(np.unique(wanted))  # refuses those outside
    return view.restrict(view.stimulus_ids[np.isin(view.stimulus_ids, wanted)])


def check_classes(decoder: Decoder, weight: float) -> None:
    """Refuse a weight of classes where the decoder has no head for them.

    Raises
    ------
    InputError
    """
    if weight and not (isinstance(decoder.config, ClassesConfig) and decoder.config.classes):
        raise InputError(
            f"class_weight = {weight:g} needs a decoder with a head for classes and their columns (class_columns); "
            f"this {decoder.name} has none"
        )


def shown_stimuli(view: StudyView) -> np.ndarray:
    """Which stimuli of the view somebody saw, boolean ``(stimuli,)``."""
    return np.isin(view.stimulus_ids, np.concatenate([view.trials(s)["stimulus_id"] for s in view.subjects]))


def training_content(view: StudyView) -> dict[str, str]:
    """Content hash of every training stimulus by id: what evaluation on any study is held against."""
    return dict(zip(view.stimulus_ids.tolist(), view.stimuli.hashes.tolist(), strict=True))


@dataclass(frozen=True)
class Bench:
    """What a run works with.

    Attributes
    ----------
    view : StudyView
        What is trained on: the training part without validation stimuli.
    objective : Objective
    loader : StepLoader
    validation : tuple or None
        Averaged samples of validation stimuli by person, and their targets.
    total_steps : int
    """

    view: StudyView
    objective: Objective
    loader: StepLoader
    validation: tuple[list[PersonSamples], TargetRows] | None
    total_steps: int


def prepare(
    decoder: Decoder,
    view: StudyView,
    targets: Targets,
    kind: str,
    config: TrainingConfig,
    seed: int,
    fabric: Fabric,
    standardise: bool = True,
) -> Bench:
    """Split off validation stimuli, read what fits into memory, set the voxels' means and deviations.

    The latter not for a later stage (`standardise` false): what comes in is then what its first one was trained on.
    """
    ids, aside = set_aside(view, config, seed)
    people, rows = _samples(decoder, view, ids[~aside], targets, kind, config.repeats)
    counts = {samples.subject: len(samples) for samples in people}
    sampler = BatchSampler(counts, config.batch_size, seed, fabric.world_size)
    total_steps = config.epochs * sampler.steps_per_epoch
    validation = _validation(decoder, view, ids[aside], targets, kind) if aside.any() else None
    sources: list[PersonSamples | TargetRows] = [*people, rows]
    if validation is not None:
        sources.extend(validation[0])
        sources.append(validation[1])
    step = sum(share * (4 * view.n_voxels(name) + rows.row_bytes) for name, share in sampler.shares.items())
    budget, ahead = plan_memory(config.memory_gb, sum(source.nbytes for source in sources), step)
    for source in sources:
        source.hold(budget)
    if standardise:
        for samples in people:
            decoder.set_standardiser(samples.subject, *samples.moments())
    loader = StepLoader(
        people,
        rows,
        sampler,
        rank=fabric.global_rank,
        processes=fabric.world_size,
        mixing=(config.mixing_probability, config.mixing_beta),
        mixing_steps=int(np.ceil(config.mixing_fraction * total_steps)),
        ahead=ahead,
    )
    objective = Objective(config, rows.variance() if config.mse_weight else 1.0, targets.shape(kind))
    return Bench(view.restrict(ids[~aside]), objective, loader, validation, total_steps)


def set_aside(view: StudyView, config: TrainingConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all stimuli that somebody saw, and which of them are for validation."""
    shown = shown_stimuli(view)
    aside = split_validation(_units(view, config)[shown], config.validation_fraction, seed)
    return view.stimulus_ids[shown], aside


def _units(view: StudyView, config: TrainingConfig) -> np.ndarray:
    if config.validation_unit is None:
        return view.units
    labels = view.stimuli.labels
    if config.validation_unit not in labels:
        raise unknown("training.validation_unit: label column", config.validation_unit, labels.columns)
    return labels[config.validation_unit].astype(str)


def _validation(
    decoder: Decoder, view: StudyView, ids: np.ndarray, targets: Targets, kind: str
) -> tuple[list[PersonSamples], TargetRows]:
    people, rows = _samples(decoder, view, ids, targets, kind, "average")
    people = [samples for samples in people if len(samples) > 1]
    if not people:
        raise InputError(
            f"nobody saw two of the {len(ids)} validation stimuli; raise training.validation_fraction, or set it 0"
        )
    return people, rows


def _samples(
    decoder: Decoder,
    view: StudyView,
    ids: np.ndarray,
    targets: Targets,
    kind: str,
    repeats: Literal["single", "average"],
) -> tuple[list[PersonSamples], TargetRows]:
    part, index = view.restrict(ids), {name: row for row, name in enumerate(ids.tolist())}
    labels, config = None, decoder.config
    if isinstance(config, ClassesConfig) and config.classes:
        labels = label_matrix(part.stimuli.labels, config.class_columns, config.classes).astype(np.float32)
    people = [PersonSamples(part, subject, index, repeats) for subject in part.subjects]
    return people, TargetRows(targets, ids, kind, labels)


def train_on(
    bench: Bench,
    decoder: Decoder,
    config: TrainingConfig,
    seed: int,
    fabric: Fabric,
    folder: Path | None,
    start: Callable[[], bool],
    title: str,
    progress: bool,
    loader: StepLoader | None = None,
    plain: TrainingStep | None = None,
) -> dict[str, Any]:
    """Train under a progress bar, and tell how it went.

    Parameters
    ----------
    bench, decoder, config, seed, fabric
    folder : Path or None
        Of the checkpoints; a run that left one there goes on from it.
    start : callable
        Called where there is none: sets first weights, and says whether they are worth to be validated.
    title : str
        Of the bar.
    progress : bool
    loader, plain : optional
        What makes the batches and computes the loss, where it is not the usual.

    Returns
    -------
    dict
        The settings under ``"training"``, and `outcome`.
    """
    fresh = folder is None or not (folder / "last.safetensors").exists()
    warm = fresh and start()
    with progress_bar(title, bench.total_steps, progress) as report:
        counters = train(
            fabric,
            decoder,
            bench.objective,
            bench.loader if loader is None else loader,
            bench.validation,
            config,
            seed=seed,
            folder=folder,
            warm=warm,
            plain=plain,
            report=report,
        )
    return {"training": config.model_dump(mode="json"), **outcome(counters, config)}


def outcome(counters: Counters, config: TrainingConfig) -> dict[str, Any]:
    """Course and end of a training run, as plain values; long courses are thinned."""
    curves = counters.curves
    picked = np.unique(np.linspace(0, len(curves) - 1, min(len(curves), _CURVE_POINTS)).astype(int)).tolist()
    return {
        "steps": counters.step,
        "epochs": counters.curves[-1]["epoch"] if curves else 0,
        "best_epoch": counters.best_epoch,
        "validation_monitor": config.monitor if counters.best is not None else None,
        "validation_best": counters.best,
        "curves": [curves[point] for point in picked],
        "versions": {
            "phosphene": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
