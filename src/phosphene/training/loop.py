"""The training loop: every step a function of (weights, optimiser state, step), so that a run can be taken up again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from phosphene.decoders import Decoder
from phosphene.training import schedules
from phosphene.training.checkpoint import load_checkpoint, load_module, module_tensors, save_checkpoint
from phosphene.training.data import PersonSamples, StepBatch, StepLoader, TargetRows
from phosphene.training.interrupt import Interruptible
from phosphene.training.objective import Objective, TrainingStep
from phosphene.training.runner import Progress, Runner, TrainingError, TrainingInterrupted, cuda_devices
from phosphene.training.settings import TrainingConfig
from phosphene.training.validation import validate

__all__ = ["Counters", "TrainingError", "TrainingInterrupted", "train"]

log = logging.getLogger(__name__)

Report = Callable[[int, str], None]


@dataclass
class Counters(Progress):
    """Progress of a run in epochs: what validation said, and whether training has stopped early."""

    best: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    stopped: bool = False
    curves: list[dict[str, Any]] = field(default_factory=list)


class _Run(Runner[Counters]):
    """One process's part of the training of a decoder."""

    plain: TrainingStep
    config: TrainingConfig
    prefix, what = "model", "training"
    advice = "; or look for extreme responses with: phosphene check"

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
        plain: TrainingStep | None,
    ) -> None:
        self.loader, self.validation = loader, validation
        self.best: dict[str, Tensor] = {}
        steps = config.epochs * loader.sampler.steps_per_epoch
        # buffers (voxel means and the like) are set before training and equal everywhere
        plain = TrainingStep(decoder, objective, config.compile) if plain is None else plain
        super().__init__(fabric, plain, decoder, config, Counters(), steps=steps, seed=seed, folder=folder)

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """The decoder's buffers as a closed form had left them: a run that is taken up does not solve it again."""
        lead = f"{self.prefix}/decoder."
        self.plain.decoder._make_room({n.removeprefix(lead): each for n, each in tensors.items() if n.startswith(lead)})

    def _keep_best(self) -> None:
        tensors = module_tensors("model", self.plain.decoder)
        if self.folder is None:
            self.best = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        elif self.fabric.global_rank == 0:
            facts = {"epoch": self.progress.best_epoch, self.config.monitor: self.progress.best}
            save_checkpoint(self.folder / "best.safetensors", tensors, facts)

    def step(self, batch: StepBatch) -> float:
        """One optimiser step; returns the loss."""
        progress, config = self.progress, self.config
        rate = self._begin()
        scheduled = schedules.temperature(progress.step, self.steps, config)
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
        progress.step += 1
        progress.loss_sum += value
        if progress.step % config.log_steps == 0:
            figures = {"loss": value, "learning_rate": rate, "gradient_norm": norm}
            if config.contrasts:
                figures["temperature"] = float(torch.as_tensor(self.plain.objective.temperature(scheduled)).detach())
            figures |= {name: float(part) for name, part in parts.items()}
            self.log.write({"event": "step", "step": progress.step, **figures})
        return value

    def end_epoch(self, epoch: int) -> str:
        """Validate where it is time to; returns a line for the progress bar."""
        config, progress = self.config, self.progress
        record: dict[str, Any] = {"epoch": epoch, "loss": progress.loss_sum / self.loader.sampler.steps_per_epoch}
        progress.loss_sum = 0.0
        due = epoch % config.validate_every == 0 or epoch == config.epochs
        return f"loss {record['loss']:.3f}{self.check(record) if due else self._note(record)}"

    def check(self, record: dict[str, Any]) -> str:
        """Validate, keep the best weights, decide whether to stop."""
        if self.validation is None:
            return self._note(record)
        config, progress = self.config, self.progress
        record["validation"] = figures = self._validate()
        value = figures[config.monitor]
        sign = -1 if config.monitor == "loss" else 1
        gain = math.inf if progress.best is None else sign * (value - progress.best)
        progress.stale = 0 if gain > 0 else progress.stale + 1
        if gain >= 0:  # on few stimuli equal scores are common: of those the longest trained weights are kept
            progress.best, progress.best_epoch = value, record["epoch"]
            with self.averaged():
                self._keep_best()
        progress.stopped = 0 < config.patience <= progress.stale
        return f"{self._note(record)}, validation {config.monitor} {value:.3f}"

    def _note(self, record: dict[str, Any]) -> str:
        self.progress.curves.append(record)
        self.log.write({"event": "epoch", "step": self.progress.step, **record})
        return ""

    def _validate(self) -> dict[str, float]:
        """Figures of the first process, for all: a decision to stop must be the same everywhere."""
        assert self.validation is not None
        figures: dict[str, float] = {}
        if self.fabric.global_rank == 0:
            people, targets = self.validation
            # at the temperature in which training ends, so that epochs can be compared
            temperature = schedules.temperature(self.steps, self.steps, self.config)
            with self.averaged():
                figures = validate(
                    self.plain.decoder, self.plain.objective, people, targets, temperature, self.fabric.device
                )
        figures = self.fabric.broadcast(figures)
        if not all(map(math.isfinite, figures.values())):
            raise self._stopped(f"validation after step {self.progress.step} gave {figures}")
        return figures

    def finish(self) -> None:
        """Leave the decoder with its best weights (with averaged or last ones where there was no validation)."""
        if self.average is not None:
            self.average.swap()
        if self.progress.best is not None:
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
    plain: TrainingStep | None = None,
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
    plain : TrainingStep, optional
        What computes the loss of a batch, where it is not the usual one.
    report : callable
        Told the finished step and a line of text; for a progress bar.

    Raises
    ------
    TrainingError
        When the loss or a gradient is not finite; the last good checkpoint stays.
    TrainingInterrupted
        After Ctrl-C or SIGTERM; the state of the last full step has been saved.
    """
    run = _Run(fabric, decoder, objective, loader, validation, config, seed, folder, plain)
    progress, per_epoch, text = run.progress, loader.sampler.steps_per_epoch, ""
    run.module.train()
    with Interruptible() as interrupt, torch.random.fork_rng(cuda_devices(fabric)):
        if warm and progress.step == 0:
            run.check({"epoch": 0})
        if not progress.stopped:
            for batch in loader.walk(progress.step, run.steps):
                loss = run.step(batch)
                ended = progress.step % per_epoch == 0
                if ended:
                    text = run.end_epoch(progress.step // per_epoch)
                report(progress.step, text or f"loss {loss:.3f}")
                run.after_step(interrupt, due=ended)
                if progress.stopped:
                    log.info("stopped early after step %d", progress.step)
                    break
    run.finish()
    return progress
