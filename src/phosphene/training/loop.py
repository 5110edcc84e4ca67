"""The training loop: every step a function of (weights, optimiser state, step), so that a run can be taken up again."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from phosphene.decoders import Decoder
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
from phosphene.training.data import PersonSamples, StepBatch, StepLoader, TargetRows
from phosphene.training.interrupt import Interruptible
from phosphene.training.log import RunLog
from phosphene.training.objective import Objective, TrainingStep
from phosphene.training.optimise import MovingAverage, adamw
from phosphene.training.sampling import step_seed
from phosphene.training.settings import StepSettings, TrainingConfig
from phosphene.training.validation import validate

__all__ = ["Counters", "TrainingError", "TrainingInterrupted", "train"]

log = logging.getLogger(__name__)

Report = Callable[[int, str], None]


class TrainingError(PhospheneError):
    """Training cannot go on: the loss or a gradient is not finite."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, and can be resumed where there is a run folder."""


@dataclass
class Counters:
    """Everything about the progress of a run that is not a tensor."""

    step: int = 0
    loss_sum: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    stopped: bool = False
    averaged: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)


class _Run:
    """One process's part of a run: modules, optimiser, counters, and where they are kept."""

    def __init__(
        self,
        fabric: Fabric,
        decoder: Decoder,
        objective: Objective,
        loader: StepLoader,
        validation: tuple[Sequence[PersonSamples], TargetRows] | None,
        config: TrainingConfig,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.fabric, self.config, self.seed, self.loader, self.validation = fabric, config, seed, loader, validation
        self.plain = TrainingStep(decoder, objective, config.compile)
        self.optimizer = adamw(self.plain, config)
        # buffers (voxel means and the like) are set before training and equal everywhere
        self.module, self.wrapped = fabric.setup(self.plain, self.optimizer)
        self.average = MovingAverage(decoder, config.ema) if config.ema else None
        self.counters = Counters()
        self.folder = folder
        self.best: dict[str, Tensor] = {}
        self.total_steps = config.epochs * loader.sampler.steps_per_epoch
        if folder is not None and (folder / "last.safetensors").exists():
            self._resume(folder / "last.safetensors")
        if fabric.broadcast(self.counters.step) != self.counters.step:
            raise InputError(f"process {fabric.global_rank} does not see the checkpoint in {folder}: share that folder")
        path = folder.parent / "log.jsonl" if folder is not None and fabric.global_rank == 0 else None
        self.log = RunLog(path, self.counters.step)
        self.saved_at = time.monotonic()

    # -- state ----------------------------------------------------------------------------------------------------

    def _resume(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)
        load_module("model", self.plain, tensors)
        load_optimizer(self.optimizer, tensors)
        self.counters = Counters(**state)
        if self.average is not None:
            names = [(name, tensors[f"average/{name}"]) for name in self.average.averages]
            self.average.load(names, self.counters.averaged)
        log.info("resumed at step %d of %d", self.counters.step, self.total_steps)

    def save(self) -> None:
        """Write the last checkpoint."""
        self.saved_at = time.monotonic()
        if self.folder is None or self.fabric.global_rank != 0:
            return
        tensors = {**module_tensors("model", self.plain), **optimizer_tensors(self.optimizer)}
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.averages.items()}
            self.counters.averaged = self.average.updates
        save_checkpoint(self.folder / "last.safetensors", tensors, asdict(self.counters))

    def _keep_best(self) -> None:
        tensors = module_tensors("model", self.plain.decoder)
        if self.folder is None:
            self.best = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        elif self.fabric.global_rank == 0:
            facts = {"epoch": self.counters.best_epoch, self.config.monitor: self.counters.best}
            save_checkpoint(self.folder / "best.safetensors", tensors, facts)

    # -- one step, one epoch --------------------------------------------------------------------------------------

    def step(self, batch: StepBatch) -> float:
        """One optimiser step; returns the loss."""
        step, config = self.counters.step, self.config
        reseed(step_seed(self.seed, step, self.fabric.global_rank), self.fabric.device)
        rate = schedules.learning_rate(step, self.total_steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scheduled = schedules.temperature(step, self.total_steps, config)
        loss, parts = self.module(batch.to(self.fabric.device), scheduled)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._not_finite("the loss", value)
        self.wrapped.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = self._clip()
        self.wrapped.step()
        if self.average is not None:
            self.average.update()
        self.counters.step += 1
        self.counters.loss_sum += value
        if self.counters.step % config.log_steps == 0:
            figures = {"loss": value, "learning_rate": rate, "gradient_norm": norm}
            if config.contrasts:
                figures["temperature"] = float(torch.as_tensor(self.plain.objective.temperature(scheduled)).detach())
            figures |= {name: float(part) for name, part in parts.items()}
            self.log.write({"event": "step", "step": self.counters.step, **figures})
        return value

    def _clip(self) -> float:
        """Scale the gradient down to the largest norm allowed; returns its norm before."""
        limit = self.config.gradient_clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.plain.parameters(), limit))
        if not math.isfinite(norm):
            raise self._not_finite("the norm of the gradient", norm)
        return norm

    def _not_finite(self, what: str, value: float) -> TrainingError:
        kept = "" if self.folder is None else f"; the last good weights are in {self.folder / 'last.safetensors'}"
        return TrainingError(
            f"{what} became {value} in step {self.counters.step + 1} of {self.total_steps} (learning rate "
            f"{self.optimizer.param_groups[0]['lr']:.3g}, gradient_clip {self.config.gradient_clip:g}): lower "
            f"learning_rate, raise temperature, or look for extreme responses with: phosphene check{kept}"
        )

    def end_epoch(self, epoch: int) -> str:
        """Validate where it is time to; returns a line for the progress bar."""
        config, counters = self.config, self.counters
        record: dict[str, Any] = {"epoch": epoch, "loss": counters.loss_sum / self.loader.sampler.steps_per_epoch}
        counters.loss_sum = 0.0
        due = epoch % config.validate_every == 0 or epoch == config.epochs
        return f"loss {record['loss']:.3f}{self.check(record) if due else self._note(record)}"

    def check(self, record: dict[str, Any]) -> str:
        """Validate, keep the best weights, decide whether to stop."""
        if self.validation is None:
            return self._note(record)
        config, counters = self.config, self.counters
        record["validation"] = figures = self._validate()
        value = figures[config.monitor]
        sign = -1 if config.monitor == "loss" else 1
        gain = math.inf if counters.best is None else sign * (value - counters.best)
        counters.stale = 0 if gain > 0 else counters.stale + 1
        if gain >= 0:  # on few stimuli equal scores are common: of those the longest trained weights are kept
            counters.best, counters.best_epoch = value, record["epoch"]
            self._with_average(self._keep_best)
        counters.stopped = 0 < config.patience <= counters.stale
        return f"{self._note(record)}, validation {config.monitor} {value:.3f}"

    def _note(self, record: dict[str, Any]) -> str:
        self.counters.curves.append(record)
        self.log.write({"event": "epoch", "step": self.counters.step, **record})
        return ""

    def _with_average(self, action: Callable[[], Any]) -> Any:
        """Do something with the averaged weights in place of the live ones."""
        if self.average is None:
            return action()
        self.average.swap()
        try:
            return action()
        finally:
            self.average.swap()

    def _validate(self) -> dict[str, float]:
        """Figures of the first process, for all: a decision to stop must be the same everywhere."""
        assert self.validation is not None
        figures: dict[str, float] = {}
        if self.fabric.global_rank == 0:
            people, targets = self.validation
            # at the temperature in which training ends, so that epochs can be compared
            temperature = schedules.temperature(self.total_steps, self.total_steps, self.config)
            figures = self._with_average(
                lambda: validate(
                    self.plain.decoder, self.plain.objective, people, targets, temperature, self.fabric.device
                )
            )
        figures = self.fabric.broadcast(figures)
        if not all(map(math.isfinite, figures.values())):
            raise TrainingError(
                f"validation after step {self.counters.step} gave {figures}: predictions are not finite"
            )
        return figures

    def finish(self) -> None:
        """Leave the decoder with its best weights (with averaged or last ones where there was no validation)."""
        if self.average is not None:
            self.average.swap()
        if self.counters.best is not None:
            self.fabric.barrier()
            if self.folder is not None:
                self.best = load_checkpoint(self.folder / "best.safetensors")[0]
            load_module("model", self.plain.decoder, self.best)
        self.plain.decoder.to("cpu").eval()


def train(
    fabric: Fabric,
    decoder: Decoder,
    objective: Objective,
    loader: StepLoader,
    validation: tuple[Sequence[PersonSamples], TargetRows] | None,
    config: TrainingConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
    warm: bool = False,
    report: Report = lambda step, text: None,
) -> Counters:
    """Train a decoder in place, resuming from `folder` where it holds a checkpoint.

    Parameters
    ----------
    fabric : Fabric
        Launched; says where and with how many processes to train.
    decoder : Decoder
        Left in eval mode, on the CPU, with the best weights.
    objective : Objective
    loader : StepLoader
    validation : tuple of people (averaged samples) and their targets, or None
    config : TrainingConfig
    seed : int
        With the step it decides everything random.
    folder : Path, optional
        Where ``last.safetensors`` and ``best.safetensors`` are kept; the log lies beside it.
    warm : bool
        The decoder does not start at random: its first weights are validated as well, and kept if none are better.
    report : callable
        Told the finished step and a line of text; for a progress bar.

    Raises
    ------
    TrainingError
        When the loss or a gradient is not finite; the last good checkpoint stays.
    TrainingInterrupted
        After Ctrl-C or SIGTERM; the state of the last full step has been saved.
    """
    run = _Run(fabric, decoder, objective, loader, validation, config, seed, folder)
    counters, per_epoch, text = run.counters, loader.sampler.steps_per_epoch, ""
    run.module.train()
    with Interruptible() as interrupt, torch.random.fork_rng(cuda_devices(fabric)):
        if warm and counters.step == 0:
            run.check({"epoch": 0})
        if not counters.stopped:
            for batch in loader.walk(counters.step, run.total_steps):
                loss = run.step(batch)
                ended = counters.step % per_epoch == 0
                if ended:
                    text = run.end_epoch(counters.step // per_epoch)
                report(counters.step, text or f"loss {loss:.3f}")
                if ended or interrupt.requested or save_is_due(config, counters.step, run.saved_at):
                    run.save()
                if interrupt.requested:
                    raise TrainingInterrupted(stopped_words("training", counters.step, run.total_steps, folder))
                if counters.stopped:
                    log.info("stopped early after step %d", counters.step)
                    break
    run.finish()
    return counters


def reseed(seed: int, device: torch.device) -> None:
    """Seed the generators a step may use; ``torch.manual_seed`` would queue a call for every absent kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def save_is_due(config: StepSettings, step: int, saved_at: float) -> bool:
    """Whether a checkpoint is due by steps, or by the time since the last one."""
    every, age = config.checkpoint_steps, time.monotonic() - saved_at
    return (every > 0 and step % every == 0) or age > config.checkpoint_seconds


def stopped_words(what: str, step: int, steps: int, folder: Path | None) -> str:
    """What is said of a run that was interrupted: where, and how to go on."""
    at = f"{what} stopped after step {step} of {steps}"
    if folder is None:
        return f"{at}; nothing was kept, because no run folder (out) was given"
    return f"{at}; the same call with the run folder {folder.parent} goes on from there"


def cuda_devices(fabric: Fabric) -> list[int]:
    """The GPU whose random state a run borrows; none on a CPU."""
    return [fabric.device.index or 0] if fabric.device.type == "cuda" else []
