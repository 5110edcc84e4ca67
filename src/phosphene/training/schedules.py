"""Learning rate, temperature and phase of the objective as pure functions of the step: nothing to save or restore."""

from __future__ import annotations

import math

from phosphene.training.settings import StepSettings, TrainingConfig

__all__ = ["half_cosine", "is_mixing", "learning_rate", "temperature"]


def half_cosine(start: float, end: float, progress: float) -> float:
    """Value between `start` (progress 0) and `end` (progress 1) along half a cosine; clamped outside.

    Examples
    --------
    >>> half_cosine(1.0, 0.0, 0.5)
    0.5
    """
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0


def learning_rate(step: int, total_steps: int, config: StepSettings) -> float:
    """Learning rate of optimiser step `step` (0-based) of `total_steps`.

    The warm-up rises linearly to the peak over the first ``warmup`` share of steps; ``"one-cycle"`` rises along half
    a cosine from 1/25 of the peak (as the one-cycle policy of Smith and Topin does). ``"cosine"`` and
    ``"one-cycle"`` then fall along half a cosine and reach ``final_learning_rate`` of the peak at the last step.
    """
    peak, warmup_steps = config.learning_rate, round(config.warmup * total_steps)
    if step < warmup_steps:
        if config.schedule == "one-cycle":
            return half_cosine(peak / 25, peak, step / warmup_steps)
        return peak * (step + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return peak
    falling = max(total_steps - 1 - warmup_steps, 1)
    return half_cosine(peak, peak * config.final_learning_rate, (step - warmup_steps) / falling)


def is_mixing(step: int, total_steps: int, config: TrainingConfig) -> bool:
    """Whether responses are mixed in this step: the first ``mixing_fraction`` of all steps."""
    return step < config.mixing_fraction * total_steps


def temperature(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Scheduled temperature of this step."""
    if is_mixing(step, total_steps, config):
        return config.mixing_temperature or config.temperature
    if config.temperature_end is None:
        return config.temperature
    first = math.ceil(config.mixing_fraction * total_steps)
    return half_cosine(config.temperature, config.temperature_end, (step - first) / max(total_steps - 1 - first, 1))
