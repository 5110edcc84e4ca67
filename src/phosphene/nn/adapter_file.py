"""A person's adapters as one small file, which fits the base they were trained on and no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from phosphene.errors import InputError
from phosphene.files import atomic_path, digest
from phosphene.nn.adapter import AdaptedLinear
from phosphene.nn.attach import matches
from phosphene.nn.freezing import adapter_names, tensor_digest

__all__ = ["AdapterFile", "adapter_state", "base_digest", "load_adapter", "read_adapter", "save_adapter"]

FORMAT = "phosphene-adapter"


def base_digest(
    module: nn.Module, person: str | None = None, apart: Sequence[str] = (), beside: Sequence[str] = ()
) -> str:
    """Digest of what adapters rest on: names, types, shapes and bits of the base's parameters and buffers.

    Attaching, training and detaching adapters does not change it.

    Parameters
    ----------
    module : Module
    person : str, optional
        Adapters of a person also rest on those that belong to nobody in particular (experts, a router), adapters that
        belong to nobody on the base alone. Which person it is makes no difference.
    apart : sequence of str
        Patterns of what belongs to single people, e.g. ``["inputs.*"]``.
    beside : sequence of str
        Digests of what the network rests on itself, such as an aligner in front of it.
    """
    return _digest(module, person, lambda name: matches(name, apart), beside)


def _digest(module: nn.Module, person: str | None, left_out: Callable[[str], bool], beside: Sequence[str]) -> str:
    of_adapters = adapter_names(module)
    parts: list[str] = []
    for name, tensor in sorted(module.state_dict().items()):
        above = name in of_adapters and (person is None or of_adapters[name][0] is not None)
        if not above and not left_out(name):
            parts += [name, tensor_digest(tensor)]
    return digest(*parts, *beside)


def adapter_state(module: nn.Module, person: str | None = None, own: Sequence[str] = ()) -> dict[str, Tensor]:
    """Copies, on the CPU, of a person's adapters under names without the person, and of what else is their own.

    Parameters
    ----------
    module : Module
    person : str, optional
        By default the adapters that belong to nobody in particular.
    own : sequence of str
        Patterns of other entries that go along, e.g. ``["inputs.8.*", "standardisers.8.*"]``.

    Raises
    ------
    InputError
        Where there are none.
    """
    state, found = module.state_dict(), {}
    of_adapters = adapter_names(module)
    for entry, tensor in state.items():
        if entry in of_adapters and of_adapters[entry][0] == person:
            found[of_adapters[entry][1]] = tensor
        elif matches(entry, own):
            found[entry] = tensor
    if not found:
        people = sorted({str(whose) for whose, _ in of_adapters.values() if whose is not None})
        raise InputError(
            f"the network has no adapters of {person or 'its own'}; of people: {', '.join(people) or 'none'}"
        )
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}


@torch.no_grad()
def load_adapter(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    base: str,
    person: str | None = None,
    apart: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> None:
    """Copy what `adapter_state` gave into a network that has a place for it.

    Parameters
    ----------
    module : Module
        With adapters attached (`attach`, and `add_person` for a person).
    tensors : mapping of str to Tensor
    base : str
        The digest they came with.
    person : str, optional
        Whose they become here.
    apart, beside : sequence of str
        As given to `save_adapter` or `base_digest`.

    Raises
    ------
    InputError
        For another base, for tensors that have no place here, places that get none, and other shapes; nothing has
        been changed then.
    """
    state = module.state_dict()
    of_adapters = adapter_names(module)
    places = {short: entry for entry, (whose, short) in of_adapters.items() if whose == person}
    places |= {name: name for name in tensors.keys() - places.keys() if name in state}
    own = {entry for entry in places.values() if entry not in of_adapters or of_adapters[entry][0] != person}
    found = _digest(module, person, lambda name: name in own or matches(name, apart), beside)
    if found != base:
        raise InputError(f"the adapter belongs to another base model: to {base}, this one is {found}")
    for name in sorted(places.keys() ^ tensors.keys()):
        fault = "lacks" if name in places else "has a tensor too many for this network,"
        raise InputError(f"the adapter {fault} {name!r}")
    for name, tensor in tensors.items():
        if tensor.shape != state[places[name]].shape:
            raise InputError(
                f"{name!r} has shape {tuple(tensor.shape)} in the adapter, {tuple(state[places[name]].shape)} here"
            )
    for each in module.modules():
        if isinstance(each, AdaptedLinear):
            each.unmerge()
    for name, tensor in tensors.items():
        state[places[name]].copy_(tensor)


@dataclass(frozen=True)
class AdapterFile:
    """Contents of an adapter's file.

    Attributes
    ----------
    tensors : dict of str to Tensor
    base : str
        Digest of the base they belong to.
    about : dict
        What the writer said of them: ranks, person, study.
    """

    tensors: dict[str, Tensor]
    base: str
    about: dict[str, Any] = field(default_factory=dict)


def save_adapter(
    path: str | Path,
    module: nn.Module,
    person: str | None = None,
    own: Sequence[str] = (),
    apart: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
) -> Path:
    """Write adapters as one safetensors file, atomically; see `adapter_state` and `base_digest`.

    Parameters
    ----------
    path : path
    module : Module
    person : str, optional
    own, apart : sequence of str
        What goes along, and what belongs to people and not to the base (`own` is apart anyway).
    about : mapping, optional
        Kept beside the tensors, as JSON.
    beside : sequence of str
        As of `base_digest`.
    """
    path = Path(path)
    tensors = adapter_state(module, person, own)
    base = base_digest(module, person, [*apart, *own], beside)
    facts = json.dumps(dict(about or {}), ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "base": base, "about": facts})
    return path


def read_adapter(path: str | Path) -> AdapterFile:
    """Read an adapter's file; nothing in it is executed.

    Raises
    ------
    InputError
        For a file that is missing, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as content:
            facts = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
        about = json.loads(facts.get("about", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    if facts.get("format") != FORMAT or "base" not in facts:
        raise InputError(f"{path} is a safetensors file, but holds no phosphene adapter")
    return AdapterFile(tensors, facts["base"], about)
