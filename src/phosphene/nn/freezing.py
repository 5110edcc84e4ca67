"""Training adapters alone: which tensors are theirs, what asks for gradients, and proof that nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from phosphene.errors import InputError
from phosphene.files import digest
from phosphene.nn.adapter import Adapter, AdapterBank
from phosphene.nn.attach import matches

__all__ = [
    "Trainable",
    "adapter_names",
    "frozen",
    "state_digest",
    "tensor_digest",
    "train_only",
    "trainable",
    "twin",
]

M = TypeVar("M", bound=nn.Module)


def adapter_names(module: nn.Module) -> dict[str, tuple[str | None, str]]:
    """Which entries of the state dictionary belong to adapters.

    Returns
    -------
    dict
        From the entry's name to the person it belongs to (None: to nobody in particular) and its name without
        that person's.
    """
    places: list[tuple[str, str | None, str]] = []
    for name, each in module.named_modules():
        lead = f"{name}." if name else ""
        if isinstance(each, AdapterBank):
            places += [(f"{lead}{key}.", person, lead) for person, key in each.keys.items()]
        elif isinstance(each, Adapter) and not any(lead.startswith(place) for place, _, _ in places):
            places.append((lead, None, lead))
    found = {}
    for entry in module.state_dict():
        place = next((place for place in places if entry.startswith(place[0])), None)
        if place is not None:
            found[entry] = (place[1], place[2] + entry[len(place[0]) :])
    return found


def train_only(module: nn.Module, person: str | None = None, own: Sequence[str] = ()) -> list[str]:
    """Let adapters ask for gradients, and nothing else.

    Parameters
    ----------
    module : Module
    person : str, optional
        Whose adapters; by default those that belong to nobody in particular.
    own : sequence of str
        Patterns of other parameters that are trained too, e.g. a person's input layer: ``["inputs.8.*"]``.

    Returns
    -------
    list of str
        Names of the parameters that now ask for gradients.

    Raises
    ------
    InputError
        Where there are none.
    """
    of_adapters = adapter_names(module)
    chosen = []
    for name, parameter in module.named_parameters():
        wanted = (name in of_adapters and of_adapters[name][0] == person) or matches(name, own)
        parameter.requires_grad_(wanted)
        chosen += [name] * wanted
    if not chosen:
        raise InputError(f"nothing to train: no adapters of {person or 'the network'}, and nothing is named like {own}")
    return chosen


@dataclass(frozen=True)
class Trainable:
    """What of a network is trained, and how much that is.

    Attributes
    ----------
    adapters, own, base : dict of str to int
        Values of each parameter that asks for gradients: of adapters, of what was set apart, of all the rest.
    shared : int
        Values of the base, trained or not, without what was set apart.
    """

    adapters: dict[str, int] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    base: dict[str, int] = field(default_factory=dict)
    shared: int = 0

    @property
    def share(self) -> float:
        """Size of the trained adapters, in shared parameters."""
        return sum(self.adapters.values()) / max(1, self.shared)

    def __str__(self) -> str:
        adapters, own, base = (sum(each.values()) for each in (self.adapters, self.own, self.base))
        return (
            f"trained: {adapters:,} values of adapters ({self.share:.2%} of {self.shared:,} shared), "
            f"{own:,} of the person's own layers, {base:,} of the shared base"
        )


def trainable(module: nn.Module, apart: Sequence[str] = ()) -> Trainable:
    """Report which parameters ask for gradients (a complex number counts as two).

    Parameters
    ----------
    module : Module
    apart : sequence of str
        Patterns of what belongs to people and not to the shared base, e.g. ``["inputs.*"]``.
    """
    of_adapters = adapter_names(module)
    report, shared = Trainable(), 0
    for name, parameter in module.named_parameters():
        size = parameter.numel() * (2 if parameter.is_complex() else 1)
        if matches(name, apart):
            kind = report.own
        elif name in of_adapters:
            kind = report.adapters
        else:
            kind, shared = report.base, shared + size
        if parameter.requires_grad:
            kind[name] = size
    return Trainable(report.adapters, report.own, report.base, shared)


def tensor_digest(tensor: Tensor) -> str:
    """Digest of a tensor's bits, type and shape, wherever it lies."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    raw = plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return digest(f"{tensor.dtype}{tuple(tensor.shape)}", raw)


def state_digest(module: nn.Module) -> str:
    """Digest of all parameters and buffers, with their names."""
    return digest(*(part for name, each in sorted(module.state_dict().items()) for part in (name, tensor_digest(each))))


def twin(module: M, *shared: object) -> M:
    """A copy of a network whose parameters and buffers share their memory with the original's.

    Flags, layers and what is put in a tensor's place are its own; what is written **into** a tensor is written into
    both: for networks of which only what is added is trained.

    Parameters
    ----------
    module : Module
    *shared
        Other objects in it that are not to be copied, such as an encoder.

    Examples
    --------
    >>> base = nn.Linear(3, 2)
    >>> copied = twin(base).requires_grad_(False)
    >>> copied.weight.data_ptr() == base.weight.data_ptr(), base.weight.requires_grad
    (True, True)
    """
    memo: dict[int, object] = {id(each): each for each in shared if each is not None}
    memo |= {id(each): nn.Parameter(each.detach(), each.requires_grad) for each in module.parameters()}
    memo |= {id(each): each.detach() for each in module.buffers()}
    return copy.deepcopy(module, memo)


@contextmanager
def frozen(module: nn.Module, own: Sequence[str] = ()) -> Iterator[list[str]]:
    """Audit of a ``with`` block that trains: only what asks for gradients changes, and the base does not ask.

    Parameters
    ----------
    module : Module
    own : sequence of str
        Patterns of parameters and buffers outside adapters that may change.

    Yields
    ------
    list of str
        Names of the parameters that may change.

    Raises
    ------
    InputError
        Before the block, where parameters of the base ask for gradients.
    RuntimeError
        After the block, where anything else is not bit for bit what it was; each is named.
    """
    report = trainable(module, own)
    if report.base:
        raise InputError(f"the base is to be frozen, but asks for gradients in: {', '.join(report.base)}")
    loose = [*report.adapters, *report.own]
    before = {
        n: tensor_digest(each) for n, each in module.state_dict().items() if n not in loose and not matches(n, own)
    }
    yield loose
    now = module.state_dict()
    changed = [name for name, was in before.items() if name not in now or tensor_digest(now[name]) != was]
    if changed:
        raise RuntimeError(f"training changed what was frozen: {', '.join(changed)}")
