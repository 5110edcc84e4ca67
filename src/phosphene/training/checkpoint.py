"""Checkpoints: one safetensors file each, counters as JSON in its header, so that it appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from phosphene.errors import InputError
from phosphene.files import atomic_path

__all__ = [
    "load_checkpoint",
    "load_module",
    "load_optimizer",
    "module_tensors",
    "optimizer_tensors",
    "save_checkpoint",
]

_FORMAT = "phosphene-checkpoint-1"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and plain values into one file, atomically."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = _real(tensor.detach()).cpu().contiguous()
        # safetensors holds no aliases: tied weights are written once for each name
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={"format": _FORMAT, "state": json.dumps(dict(state))})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises
    ------
    InputError
        For a file that is missing, damaged, or of another kind; nothing but safetensors is ever read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("format") != _FORMAT:
                raise InputError(f"{path} is not a checkpoint of a training run (no mark {_FORMAT!r})")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(facts["state"])  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable safetensors checkpoint: {error}") from error


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, by name."""
    return {f"{prefix}/{name}": tensor for name, tensor in module.state_dict().items()}


def _copy(name: str, into: Tensor, tensors: Mapping[str, Tensor]) -> None:
    if name not in tensors:
        raise InputError(f"the checkpoint lacks {name}: it belongs to another decoder or version")
    found, wanted = tensors[name], _real(into)
    if found.shape != wanted.shape:
        raise InputError(f"{name} has shape {tuple(found.shape)} in the checkpoint and {tuple(wanted.shape)} here")
    wanted.copy_(found)


@torch.no_grad()
def load_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved values into the parameters and buffers of a module."""
    for name, into in module.state_dict().items():
        _copy(f"{prefix}/{name}", into, tensors)


def _parameters(optimizer: Optimizer) -> Iterator[tuple[int, nn.Parameter]]:
    yield from enumerate(parameter for group in optimizer.param_groups for parameter in group["params"])


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """State of an optimiser whose state entries are all tensors, such as AdamW."""
    return {
        f"optimizer/{number}/{key}": value
        for number, parameter in _parameters(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser its saved state."""
    for number, parameter in _parameters(optimizer):
        prefix = f"optimizer/{number}/"
        for name, saved in tensors.items():
            if not name.startswith(prefix):
                continue
            key = name[len(prefix) :]
            if key == "step":  # where this lives depends on the implementation, the moments follow the parameter
                value = saved.to(parameter.device if optimizer.param_groups[0].get("fused") else "cpu", copy=True)
            else:
                value = torch.empty_like(parameter, memory_format=torch.preserve_format)
                _real(value).copy_(saved)
            optimizer.state[parameter][key] = value
