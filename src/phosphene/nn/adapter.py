"""What low-rank adapters are made of: a low-rank change, a bank of changes by person, a linear layer that carries them.

An adapted layer holds the very parameters of the layer it stands for, under the same names: state dictionaries of the
base keep their keys whether or not adapters are attached, and an adapter's own tensors lie beneath ``parts``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AdaptedLinear",
    "Adapter",
    "AdapterBank",
    "Held",
    "LowRank",
    "Person",
    "adapter_scale",
    "as_dtype_of",
]

T = TypeVar("T")


class Held(Generic[T]):
    """A value that the owner of a network sets for one forward pass and that layers deep inside it read.

    Examples
    --------
    >>> person = Person()
    >>> with person.using("sub-01"):
    ...     person.value
    'sub-01'
    >>> person.value is None
    True
    """

    def __init__(self) -> None:
        self.value: T | None = None

    def using(self, value: T | None) -> AbstractContextManager[None]:
        """Hold `value` inside the ``with`` block, and what was held before after it."""
        return _Using(self, value)


class Person(Held[str]):
    """Whose responses are being decoded; None is nobody in particular, and then no bank adds anything."""


class _Using(AbstractContextManager[None]):
    """Not a generator: it compiles without a break."""

    def __init__(self, held: Held[Any], value: Any) -> None:
        self.held, self.value, self.before = held, value, held.value

    def __enter__(self) -> None:
        self.before, self.held.value = self.held.value, self.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.value = self.before


class Adapter(nn.Module):
    """Base of everything that is added to a base network; by it the adapter's parameters are told from the base's."""


def adapter_scale(rank: int, alpha: float | None) -> float:
    """What multiplies a low-rank product: ``alpha / rank``, or 1 where `alpha` is None."""
    if rank < 1:
        raise ValueError(f"the rank of an adapter counts from 1, found {rank}")
    return 1.0 if alpha is None else alpha / rank


def as_dtype_of(x: Tensor, parameter: Tensor) -> Tensor:
    """Input in the precision of the adapter; autocast sees to that itself, and keeps one copy less."""
    if x.dtype == parameter.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(parameter.dtype)


class LowRank(Adapter):
    r"""A linear change of low rank, zero to begin with: :math:`\frac{\alpha}{r} B A x`.

    `A` is random (uniform within :math:`\pm 1/\sqrt{n_{in}}`), `B` zero: the first gradient step moves `B`, the
    second both.

    Parameters
    ----------
    n_in, n_out, rank : int
    alpha : float, optional
        Default: the rank, so that nothing is scaled.
    dropout : float
        Of the input of `A`, in training.
    """

    def __init__(self, n_in: int, n_out: int, rank: int, alpha: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = adapter_scale(rank, alpha)
        self.a = nn.Parameter(torch.empty(rank, n_in).uniform_(-1, 1) / math.sqrt(n_in))
        self.b = nn.Parameter(torch.zeros(n_out, rank))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., n_in)`` to ``(..., n_out)``."""
        return self.scale * F.linear(F.linear(self.dropout(as_dtype_of(x, self.a)), self.a), self.b)

    def delta(self) -> Tensor:
        """The change as one matrix, ``(n_out, n_in)``."""
        return self.scale * (self.b @ self.a)


class AdapterBank(nn.Module):
    """At one place of a network, each person's own adapter; nothing for those who have none.

    Parameters
    ----------
    person : Person
        Says whose adapter computes.
    make : callable
        Builds the adapter of a new person.

    Examples
    --------
    >>> person = Person()
    >>> bank = AdapterBank(person, lambda: LowRank(3, 2, rank=1))
    >>> bank.add("sub-01")
    >>> bank(torch.ones(1, 3)) is None
    True
    >>> with person.using("sub-01"):
    ...     bank(torch.ones(1, 3)).shape
    torch.Size([1, 2])
    """

    def __init__(self, person: Person, make: Callable[[], Adapter]) -> None:
        super().__init__()
        self.person, self.make = person, make
        self.keys: dict[str, str] = {}

    def add(self, person: str) -> None:
        """Give a person an adapter; the others' are not touched."""
        if person in self.keys:
            raise ValueError(f"{person!r} has an adapter here already")
        self.add_module(key := _key(person), self.make())
        self.keys[person] = key

    def remove(self, person: str) -> None:
        """Forget a person's adapter."""
        delattr(self, self.keys.pop(person))

    def current(self) -> Adapter | None:
        """The adapter of the person of the moment."""
        key = self.keys.get(self.person.value) if self.person.value is not None else None
        found = None if key is None else self._modules[key]
        assert found is None or isinstance(found, Adapter)
        return found

    def forward(self, x: Tensor) -> Tensor | None:
        """What the adapter of the person of the moment makes of `x`; None where there is none."""
        adapter = self.current()
        return None if adapter is None else adapter(x)

    def delta(self) -> Tensor | None:
        """The change of the person of the moment as one matrix, None where there is none."""
        adapter: Any = self.current()
        return None if adapter is None else adapter.delta()


def _key(person: str) -> str:
    """A module name: a dot would part it, and a bare word could be the name of a method."""
    return "of_" + person.replace("%", "%25").replace(".", "%2E")


class AdaptedLinear(nn.Linear):
    """A linear layer, frozen, and parts that add to its output: ``base(x) + sum of part(x)``.

    It takes over the parameters of `base` themselves, so that nothing is copied and their names stay. A part that
    returns None is off: then nothing is computed but the base.

    Parameters
    ----------
    base : Linear
        Its parameters no longer ask for gradients.
    **parts : Adapter or AdapterBank
        Each with ``forward(x)`` and ``delta()``, either of which may give None.

    Attributes
    ----------
    merged : Tensor or None
        Weight with the unconditional parts (`LowRank`) added in, while `merge` is in force; saved with nothing.
    """

    merged: Tensor | None

    def __init__(self, base: nn.Linear, **parts: nn.Module) -> None:
        has_bias = base.bias is not None
        super().__init__(base.in_features, base.out_features, bias=has_bias, device="meta")
        self.asked = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
        self.weight, self.bias = base.weight, base.bias
        self.weight.requires_grad_(False)
        if has_bias:
            self.bias.requires_grad_(False)
        self.parts = nn.ModuleDict(parts).to(base.weight.device)
        self.register_buffer("merged", None, persistent=False)
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., n_in)`` to ``(..., n_out)``."""
        y = F.linear(x, self.weight if self.merged is None else self.merged, self.bias)
        for part in self.parts.values():
            if self.merged is not None and isinstance(part, LowRank):
                continue
            change = part(x)
            if change is not None:
                y = y + change.to(y.dtype)
        return y

    @torch.no_grad()
    def merge(self) -> None:
        """Add the parts that depend on no person and no gate into one weight, for prediction.

        The base's own weight is kept as it is and used again after `unmerge`, on entering training mode, and when
        weights are loaded.
        """
        parts = [part for part in self.parts.values() if isinstance(part, LowRank)]
        self.merged = _sum(self.weight, [part.delta() for part in parts]) if parts else None

    def unmerge(self) -> None:
        """Compute base and parts apart again, exactly as before `merge`."""
        self.merged = None

    @torch.no_grad()
    def plain(self, merge: bool) -> nn.Linear:
        """The layer without its parts: the base's own parameters, or new ones with all parts of the moment added in."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        if merge:
            deltas = [part.delta() for part in self.parts.values()]  # type: ignore[operator]
            linear.weight = nn.Parameter(_sum(self.weight, [delta for delta in deltas if delta is not None]))
        for name, parameter in linear.named_parameters():
            parameter.requires_grad_(name in self.asked)
        return linear.train(self.training)

    def train(self, mode: bool = True) -> AdaptedLinear:
        """Training mode computes base and parts apart."""
        if mode:
            self.unmerge()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unmerge()
        super()._load_from_state_dict(*args, **kwargs)


def _sum(weight: Tensor, deltas: list[Tensor]) -> Tensor:
    """A new tensor of weight and changes, summed in float32 or wider."""
    total = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for delta in deltas:
        total += delta
    return total.to(weight.dtype)
