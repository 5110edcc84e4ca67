"""Optimiser and moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from phosphene.nn.freezing import adapter_names
from phosphene.training.settings import StepSettings

__all__ = ["MovingAverage", "adamw", "decay_groups"]

_INPUT = ".inputs."  # where every decoder keeps the input layers of people
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters to decay and not to decay: biases, norms, vectors and scalars are spared."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    seen: set[int] = set()
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            keep = isinstance(owner, _NORMS) or name.endswith("bias") or parameter.ndim < 2
            (spared if keep else decayed).append(parameter)
    return decayed, spared


def adamw(module: nn.Module, config: StepSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of a module; fused where all parameters are real.

    Input layers of people have groups of their own where they learn at another rate (`input_rate`); the key
    ``"share"`` of a group is its learning rate relative to the others'.
    """
    decayed, spared = decay_groups(module)
    given = getattr(config, "input_rate", None)
    rate = 1.0 if given is None else float(given)
    inputs = _inputs(module) if rate != 1.0 else set()
    groups = [
        {"params": chosen, "weight_decay": decay, "share": share}
        for parameters, decay in ((decayed, config.weight_decay), (spared, 0.0))
        for share, chosen in (
            (1.0, [each for each in parameters if id(each) not in inputs]),
            (rate, [each for each in parameters if id(each) in inputs]),
        )
        if chosen
    ]
    plain = all(p.dtype == torch.float32 and p.device.type in ("cpu", "cuda") for p in decayed + spared)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=plain or None)


def _inputs(module: nn.Module) -> set[int]:
    """Parameters of input layers, but of no adapter that stands on one: that starts at nothing, and is narrow."""
    of_adapters = adapter_names(module)
    named = module.named_parameters()
    return {id(each) for name, each in named if _INPUT in f".{name}" and name not in of_adapters}


class MovingAverage:
    """Exponential moving average of a module's parameters.

    After `t` updates the decay is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.

    Parameters
    ----------
    module : nn.Module
    decay : float
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._live = dict(module.named_parameters())
        self.averages = {name: parameter.detach().clone() for name, parameter in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.averages.values()), list(self._live.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and live weights: call before and after using the averages."""
        for name, average in self.averages.items():
            live = self._live[name].clone()
            self._live[name].copy_(average)
            average.copy_(live)

    def load(self, tensors: Iterable[tuple[str, Tensor]], updates: int) -> None:
        """Restore saved averages."""
        for name, tensor in tensors:
            self.averages[name] = tensor.to(self.averages[name])
        self.updates = updates
