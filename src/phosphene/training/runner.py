"""What every training loop has in common: how far a run is, where that is kept, and what ends it early."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from phosphene.errors import InputError, PhospheneError
from phosphene.training import schedules
from phosphene.training.checkpoint import (
    load_checkpoint,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from phosphene.training.interrupt import Interruptible
from phosphene.training.log import RunLog
from phosphene.training.optimise import MovingAverage, adamw
from phosphene.training.run_folder import note_stop
from phosphene.training.sampling import step_seed
from phosphene.training.settings import StepSettings

__all__ = ["Progress", "Runner", "TrainingError", "TrainingInterrupted", "cuda_devices"]

log = logging.getLogger(__name__)


class TrainingError(PhospheneError):
    """Training cannot go on: the loss or a gradient is not finite."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, and can be resumed where there is a run folder."""


@dataclass
class Progress:
    """Everything about the progress of a run that is not a tensor.

    Attributes
    ----------
    step : int
        Steps done.
    loss_sum : float
        Of the losses since they were last reported.
    averaged : int
        Updates of the averaged weights.
    """

    step: int = 0
    loss_sum: float = 0.0
    averaged: int = 0


P = TypeVar("P", bound=Progress)


class Runner(Generic[P]):
    """One process's part of a run: the module, its optimiser and averages, the progress, and where they are kept.

    Parameters
    ----------
    fabric : Fabric
    plain : nn.Module
        What is trained; its output is the loss.
    averaged : nn.Module
        The part of it whose weights are averaged, where they are (`config.ema`).
    config : StepSettings
    progress : Progress
        Of a run that begins; one that is taken up gets what was kept.
    steps : int
        Of the whole run.
    seed : int
    folder : Path, optional
        Where ``last.safetensors`` is kept; the log lies beside it.

    Raises
    ------
    InputError
        When the processes do not see the same checkpoint.
    """

    prefix: ClassVar[str]
    """Of the names of weights in the checkpoint."""
    what: ClassVar[str]
    """The kind of run, in a word."""
    advice: ClassVar[str] = ""
    """What else may be done against numbers that are not finite."""

    def __init__(
        self,
        fabric: Fabric,
        plain: nn.Module,
        averaged: nn.Module,
        config: StepSettings,
        progress: P,
        *,
        steps: int,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.fabric, self.plain, self.config = fabric, plain, config
        self.steps, self.seed, self.folder = steps, seed, folder
        last = None if folder is None else folder / "last.safetensors"
        kept = load_checkpoint(last) if last is not None and last.exists() else None
        if kept is not None:
            self.make_room(kept[0])
        self.optimizer = adamw(plain, config)
        # wrapped for the processes and the precision; `plain` holds the same weights
        self.module, self.wrapped = fabric.setup(plain, self.optimizer)
        self.average = MovingAverage(averaged, config.ema) if config.ema else None
        self.progress = progress
        self.saved_step: int | None = None
        if kept is not None:
            self._resume(*kept)
        if fabric.broadcast(self.progress.step) != self.progress.step:
            raise InputError(f"process {fabric.global_rank} does not see the checkpoint in {folder}: share that folder")
        path = folder.parent / "log.jsonl" if folder is not None and fabric.global_rank == 0 else None
        self.log = RunLog(path, self.progress.step)
        self.saved_at = time.monotonic()

    # -- state ----------------------------------------------------------------------------------------------------

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Give buffers whose shape only a closed form decides the shape they have in a checkpoint."""

    def _resume(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        load_module(self.prefix, self.plain, tensors)
        load_optimizer(self.optimizer, tensors)
        self.progress = type(self.progress)(**state)
        self.saved_step = self.progress.step
        if self.average is not None:
            names = [(name, tensors[f"average/{name}"]) for name in self.average.averages]
            self.average.load(names, self.progress.averaged)
        log.info("resumed at step %d of %d", self.progress.step, self.steps)

    def save(self) -> None:
        """Write the last checkpoint; where a weight is not finite, the one before stays."""
        self.saved_at = time.monotonic()
        if self.folder is None or not all(bool(weight.isfinite().all()) for weight in self.plain.parameters()):
            return
        self.saved_step = self.progress.step
        if self.fabric.global_rank != 0:
            return
        tensors = {**module_tensors(self.prefix, self.plain), **optimizer_tensors(self.optimizer)}
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.averages.items()}
            self.progress.averaged = self.average.updates
        save_checkpoint(self.folder / "last.safetensors", tensors, asdict(self.progress))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the live ones; nothing changes where none are kept."""
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    # -- one step -------------------------------------------------------------------------------------------------

    def _begin(self) -> float:
        """Seed the random numbers of the step and set its learning rate, which is returned."""
        _reseed(step_seed(self.seed, self.progress.step, self.fabric.global_rank), self.fabric.device)
        rate = schedules.learning_rate(self.progress.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        return rate

    def _clip(self) -> float:
        """Scale the gradient down to the largest norm allowed; returns its norm before."""
        limit = self.config.gradient_clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.plain.parameters(), limit))
        if not math.isfinite(norm):
            raise self._not_finite("the norm of the gradient", norm)
        return norm

    def _not_finite(self, what: str, value: float) -> TrainingError:
        """The error of a step whose loss or gradient is not finite."""
        return self._stopped(f"{what} became {value} in step {self.progress.step + 1} of {self.steps}")

    def _stopped(self, found: str) -> TrainingError:
        """Note in the run folder why the run stopped, so that settings may change there, and say which."""
        config = self.config
        words = (
            f"{found} (learning rate {self.optimizer.param_groups[0]['lr']:.3g}, gradient_clip "
            f"{config.gradient_clip:g}, precision {config.precision})"
        )
        change = "a lower training.learning_rate or training.gradient_clip, or training.precision = '32-true'"
        if self.folder is None:
            return TrainingError(f"{words}: try {change}{self.advice}")
        if self.fabric.global_rank == 0:
            note_stop(self.folder.parent, self.progress.step, found)
        self.fabric.barrier()  # no process leaves before that is written
        kept = f"the weights after step {self.saved_step} are in {self.folder / 'last.safetensors'}"
        on = "starts over" if self.saved_step is None else f"goes on from there ({kept})"
        return TrainingError(
            f"{words}: give {change} with the same run folder, and the run {on}; nothing else may change{self.advice}"
        )

    def after_step(self, interrupt: Interruptible, due: bool) -> None:
        """Save where it is time to; stop where any process was asked to, all of them after the same step.

        Raises
        ------
        TrainingInterrupted
        """
        stop, every = interrupt.anywhere(self.fabric), self.config.checkpoint_steps
        due = due or time.monotonic() - self.saved_at > self.config.checkpoint_seconds
        if stop or due or (every > 0 and self.progress.step % every == 0):
            self.save()
        if stop:
            self.fabric.barrier()  # the end of one process ends the others: not before the checkpoint is whole
            raise TrainingInterrupted(
                f"{self.what} stopped after step {self.progress.step} of {self.steps}; "
                + (
                    "nothing was kept, because no run folder (out) was given"
                    if self.folder is None
                    else f"the same call with the run folder {self.folder.parent} goes on from there"
                )
            )


def _reseed(seed: int, device: torch.device) -> None:
    """Seed the generators a step may use; ``torch.manual_seed`` would queue a call for every absent kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def cuda_devices(fabric: Fabric) -> list[int]:
    """The GPU whose random state a run borrows; none on a CPU."""
    return [fabric.device.index or 0] if fabric.device.type == "cuda" else []
