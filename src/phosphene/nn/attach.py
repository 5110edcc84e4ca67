"""Adapters on any network: attached to its linear layers by name, and taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from phosphene.errors import InputError
from phosphene.nn.adapter import AdaptedLinear, AdapterBank

__all__ = ["add_person", "attach", "batch_axes", "detach", "matches", "matching"]

Factory = Callable[[str, nn.Linear], AdaptedLinear]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted name fits any of some patterns (``*``, ``?``, ``[...]``; a star crosses dots)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def matching(module: nn.Module, patterns: Sequence[str], but: Sequence[str] = ()) -> list[str]:
    """Names of the plain linear layers that fit a pattern.

    Only ``nn.Linear`` itself counts: layers adapted already do not, nor those derived from it whose owner computes
    with their weight directly (in ``nn.MultiheadAttention``), nor parameters that are no layer (spectral filters,
    token mixers).

    Parameters
    ----------
    module : Module
    patterns : sequence of str
        As in `fnmatch`, e.g. ``["blocks.*", "out"]``; each must fit something.
    but : sequence of str
        Patterns of what is left out all the same.

    Raises
    ------
    InputError
        For a pattern that fits nothing, with the names there are.
    """
    # a layer that stands in two places has two names, and is one layer
    linears = [name for name, each in module.named_modules(remove_duplicate=False) if type(each) is nn.Linear and name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise InputError(f"no linear layer is named like {pattern!r}; there are: {', '.join(linears) or 'none'}")
    found = [name for name in linears if matches(name, patterns) and not matches(name, but)]
    if not found:
        raise InputError(f"but={list(but)} leaves no linear layer of {list(patterns)}")
    return found


def attach(module: nn.Module, patterns: Sequence[str], factory: Factory, but: Sequence[str] = ()) -> list[str]:
    """Put adapted layers in the place of linear ones, chosen by name.

    Parameters
    ----------
    module : Module
        Changed in place; names of its own parameters stay.
    patterns, but : sequence of str
        See `matching`.
    factory : callable
        From name and layer to the adapted layer.

    Returns
    -------
    list of str
        Names of the layers that were adapted.

    Examples
    --------
    >>> from phosphene.nn.lora import LoRALinear
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    >>> attach(net, ["*"], lambda name, linear: LoRALinear(linear, rank=1), but=["0"])
    ['2']
    >>> list(net.state_dict())[-4:]
    ['2.weight', '2.bias', '2.parts.lora.a', '2.parts.lora.b']
    """
    names = matching(module, patterns, but)
    made: dict[nn.Module, AdaptedLinear] = {}
    for name in names:
        linear: Any = module.get_submodule(name)
        if linear not in made:
            made[linear] = factory(name, linear)
        _put(module, name, made[linear])
    return names


def detach(module: nn.Module, merge: bool = False) -> list[str]:
    """Put plain linear layers back in the place of all adapted ones.

    Parameters
    ----------
    module : Module
        Changed in place. Adapters that are no part of a linear layer (a router, skips) stay where they are.
    merge : bool
        Give each layer what its parts add at this moment (for the held person, under the held gate); otherwise it is
        the layer from before, with its very parameters.

    Returns
    -------
    list of str
        Names of the layers.
    """
    adapted = {n: each for n, each in module.named_modules(remove_duplicate=False) if isinstance(each, AdaptedLinear)}
    plain = {each: each.plain(merge) for each in set(adapted.values())}
    for name, each in adapted.items():
        _put(module, name, plain[each])
    return list(adapted)


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)


def batch_axes(module: nn.Module, names: Sequence[str], call: Callable[[int], object]) -> dict[str, int]:
    """Find on which axis the samples lie where each linear layer is reached, by calling the network twice.

    Parameters
    ----------
    module : Module
        Called in evaluation mode, without gradients.
    names : sequence of str
        The layers in question.
    call : callable
        Runs the network on as many samples as it is told, e.g. ``lambda n: decoder(torch.zeros(n, 100), "sub-01")``.

    Raises
    ------
    InputError
        For a layer that is not reached (its adapter would never train), or reached with no axis of samples.
    """
    counts = (2, 3)
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def look_at(name: str) -> Callable[..., None]:
        return lambda _, inputs: shapes[name].append(tuple(inputs[0].shape))

    hooks = [module.get_submodule(name).register_forward_pre_hook(look_at(name)) for name in names]
    training = module.training
    try:
        module.eval()
        with torch.no_grad():
            for count in counts:
                call(count)
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    axes = {}
    for name, found in shapes.items():
        if not found:
            raise InputError(f"the linear layer {name} is not reached by the network: an adapter of it would not train")
        varying = [at for at, sizes in enumerate(zip(found[0], found[-1], strict=True)) if sizes == counts]
        if not varying:
            raise InputError(f"the linear layer {name} has no axis of samples: reached with {found[0]}, {found[-1]}")
        axes[name] = varying[0]
    return axes


def add_person(module: nn.Module, person: str) -> None:
    """Give a person an adapter in every bank of a network."""
    device = next((parameter.device for parameter in module.parameters()), None)
    banks = [each for each in module.modules() if isinstance(each, AdapterBank)]
    if not banks:
        raise InputError("the network has no banks of adapters: attach some first")
    if any(person in bank.keys for bank in banks):
        raise InputError(f"{person!r} has adapters in this network already")
    for bank in banks:
        bank.add(person)
        bank.to(device)
