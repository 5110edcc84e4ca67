"""The loop of pretraining: every step a function of (weights, optimiser state, step), so that it can be taken up."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from phosphene.encoders.mlip import MLIP, ImageFeatures, TextFeatures
from phosphene.training.grad_cache import cached_step
from phosphene.training.interrupt import Interruptible
from phosphene.training.pretraining.batches import PairBatch, PairLoader
from phosphene.training.pretraining.objective import MLIPObjective
from phosphene.training.pretraining.settings import PairSteps
from phosphene.training.runner import Progress, Runner, TrainingError, cuda_devices

__all__ = ["PairProgress", "PairStep", "train_pairs"]

log = logging.getLogger(__name__)

Report = Callable[[int, str], None]
Probe = Callable[[], dict[str, Any]]


@dataclass
class PairProgress(Progress):
    """Progress of a run with the time it took, over all sittings."""

    seconds: float = 0.0


class PairStep(nn.Module):
    """Both towers and the objective, as one module that gives the loss of a batch."""

    def __init__(self, model: MLIP, objective: MLIPObjective, compiled: bool = False) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        wrap: Callable[..., Any] = torch.compile if compiled else lambda function: function
        self._image, self._text = wrap(model.encode_image), wrap(model.encode_text)

    def forward(self, batch: PairBatch, loss: bool = True) -> Any:
        """Loss of a batch and its parts by name; without `loss` the features of both sides alone."""
        tokens = self.objective.needs_tokens
        image = self._image(self.model.prepare(batch.pixels), tokens=tokens)
        text = self._text(batch.ids, batch.valid, tokens=tokens)
        if loss:
            return self.loss((image, text), batch)
        # DDP looks for weights without a part in what comes out here: those of the objective get theirs later
        later = sum((weight.sum() * 0.0 for weight in self.objective.parameters()), torch.zeros(()))
        return image._replace(spatial=image.spatial + later.to(image.spatial)), text

    def loss(self, features: tuple[ImageFeatures, TextFeatures], batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of features of a whole batch, and its parts by name."""
        found: tuple[Tensor, dict[str, Tensor]] = self.objective(
            *features, batch.positive, images=batch.images, captions=batch.captions
        )
        return found


class _Pretraining(Runner[PairProgress]):
    """One process's part of a pretraining run."""

    plain: PairStep
    config: PairSteps
    prefix, what = "step", "pretraining"
    advice = "; in a new run a higher objective.temperature helps as well"

    def __init__(
        self,
        fabric: Fabric,
        model: MLIP,
        objective: MLIPObjective,
        config: PairSteps,
        seed: int,
        folder: Path | None,
        probe: Probe | None,
    ) -> None:
        self.probe = probe
        plain = PairStep(model, objective, config.compile)
        super().__init__(fabric, plain, model, config, PairProgress(), steps=config.steps, seed=seed, folder=folder)
        self.begun_at, self.before = self.saved_at, self.progress.seconds

    def save(self) -> None:
        """Write the last checkpoint."""
        self.progress.seconds = self.before + time.monotonic() - self.begun_at
        super().save()

    def step(self, batches: Iterator[PairBatch]) -> float:
        """One optimiser step; returns the loss."""
        config, rate = self.config, self._begin()
        self.wrapped.zero_grad(set_to_none=True)
        value = 0.0
        parts: dict[str, Tensor] = {}
        for number in range(config.accumulate):
            loss, found = self._backward(next(batches).to(self.fabric.device), number + 1 < config.accumulate)
            value += float(loss) / config.accumulate
            parts = {name: parts.get(name, 0.0) + part.detach() / config.accumulate for name, part in found.items()}
            if not math.isfinite(value):
                raise self._not_finite("the loss", value)
        norm = self._clip()
        self.wrapped.step()
        if self.average is not None:
            self.average.update()
        self._count(value, rate, norm, parts)
        return value

    def _backward(self, batch: PairBatch, more: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradient of a batch; processes exchange gradients at the very end of a step."""

        def context(last: bool) -> AbstractContextManager[Any]:
            return nullcontext() if last and not more else self.fabric.no_backward_sync(self.module)

        def backward(value: Tensor) -> None:
            self.fabric.backward(value / self.config.accumulate)

        # by the largest share: processes must all go the same way
        if not 0 < self.config.chunk < max(batch.images):
            with context(True):
                loss, parts = self.module(batch)
                backward(loss)
            return loss.detach(), parts

        def embed(chunk: PairBatch) -> tuple[ImageFeatures, TextFeatures]:
            features: tuple[ImageFeatures, TextFeatures] = self.module(chunk, loss=False)
            return features

        def whole(features: tuple[ImageFeatures, TextFeatures]) -> tuple[Tensor, dict[str, Tensor]]:
            with self.fabric.autocast():
                return self.plain.loss(features, batch)

        own = self.plain.objective.parameters()
        chunks = batch.chunks(self.config.chunk)
        return cached_step(embed, chunks, whole, own, backward=backward, context=context)

    def _count(self, value: float, rate: float, norm: float, parts: dict[str, Tensor]) -> None:
        progress, every = self.progress, self.config.log_steps
        progress.step += 1
        progress.loss_sum += value
        if progress.step % every == 0 or progress.step == self.config.steps:
            seconds = self.before + time.monotonic() - self.begun_at
            loss = progress.loss_sum / (progress.step % every or every)
            figures = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
            figures |= {name: float(part) for name, part in parts.items()}
            figures |= self.plain.objective.temperatures()
            progress.loss_sum = 0.0
            self.log.write({"event": "step", "step": progress.step, **figures, "seconds": round(seconds, 1)})

    def _not_finite(self, what: str, value: float) -> TrainingError:
        # nothing of this step has touched the weights: what is saved now are the last good ones
        self.save()
        return super()._not_finite(what, value)

    def look(self) -> None:
        """Probe the averaged weights where it is time to."""
        every, step = self.config.probe_steps, self.progress.step
        if self.probe is None or not every or step % every or step == self.config.steps or self.fabric.global_rank:
            return
        self.plain.eval()
        with self.averaged():
            scores = self.probe()
        self.plain.train()
        self.log.write({"event": "probe", "step": step, "scores": scores})
        words = "; ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items())
        log.info("step %d of %d: %s", step, self.config.steps, words)


def train_pairs(
    fabric: Fabric,
    model: MLIP,
    objective: MLIPObjective,
    loader: PairLoader,
    config: PairSteps,
    *,
    seed: int = 0,
    folder: Path | None = None,
    probe: Probe | None = None,
    report: Report = lambda step, text: None,
) -> PairProgress:
    """Train a model in place, resuming from `folder` where it holds a checkpoint.

    Parameters
    ----------
    fabric : Fabric
        Launched; says where and with how many processes to train.
    model : MLIP
        Left in eval mode, on the CPU, with the averaged weights (the last ones where none are averaged).
    objective : MLIPObjective
    loader : PairLoader
    config : PairSteps
    seed : int
        With the step it decides everything random.
    folder : Path, optional
        Where ``last.safetensors`` is kept; the log lies beside it.
    probe : callable, optional
        Gives scores of the model as it stands, by name; called on the first process every ``probe_steps``.
    report : callable
        Told the finished step and a line of text; for a progress bar.

    Raises
    ------
    TrainingError
        When the loss or a gradient is not finite; the last good weights have been saved.
    TrainingInterrupted
        After Ctrl-C or SIGTERM; the state of the last full step has been saved.
    """
    run = _Pretraining(fabric, model, objective, config, seed, folder, probe)
    progress = run.progress
    run.module.train()
    walk = loader.walk(progress.step * config.accumulate, config.steps * config.accumulate)
    with Interruptible() as interrupt, torch.random.fork_rng(cuda_devices(fabric)), closing(walk) as batches:
        while progress.step < config.steps:
            loss = run.step(batches)
            run.look()
            report(progress.step, f"loss {loss:.3f}")
            run.after_step(interrupt, due=progress.step == config.steps)
    if run.average is not None:
        run.average.swap()
    model.to("cpu").eval()
    return progress
