"""What a network costs: parameters, those that a gradient reaches, and multiply-adds by a stated formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["MultiplyAdds", "Parameters", "count_parameters", "fft_multiply_adds", "multiply_adds", "with_gradient"]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters (single values, a complex number counts as two)."""

    total: int
    trainable: int


def count_parameters(module: nn.Module) -> Parameters:
    """Count the parameters of a module.

    Examples
    --------
    >>> count_parameters(nn.Linear(3, 2))
    Parameters(total=8, trainable=8)
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return Parameters(sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))


def with_gradient(module: nn.Module, losses: Iterable[Callable[[], Tensor]]) -> int:
    """How many single parameter values receive a non-zero gradient from at least one of some losses.

    Parameters
    ----------
    module : Module
        Its gradients are cleared.
    losses : iterable of callables
        Each computes a scalar loss anew; module and losses may change in between (an optimiser step, say).
    """
    reached = {name: torch.zeros(parameter.shape, dtype=torch.bool) for name, parameter in module.named_parameters()}
    for loss in losses:
        module.zero_grad(set_to_none=True)
        loss().backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                reached[name] |= (parameter.grad != 0).cpu()
    module.zero_grad(set_to_none=True)
    return sum(int(mask.sum()) for mask in reached.values())


def fft_multiply_adds(length: int, transforms: int = 1, real: bool = True) -> float:
    """Real multiply-adds of FFTs: 2.5 N log2 N for a complex one of length N, half of it for a real one.

    The usual operation count of an FFT is 5 N log2 N real operations, here taken two by two.
    """
    return (1.25 if real else 2.5) * length * math.log2(max(length, 2)) * transforms


class MultiplyAdds(TorchDispatchMode):
    r"""Count the real multiply-adds of everything computed inside a ``with`` block.

    ============================  ======================================================
    operation                     multiply-adds
    ============================  ======================================================
    (batched) matrix product      b m k n for (b, m, k) x (b, k, n); complex: 4 times
    convolution                   outputs x kernel x input channels / groups
    FFT of length N               2.5 N log2 N a complex transform, 1.25 N log2 N a real
    elementwise product           1 an output value, 4 where both factors are complex
                                  (2 where one is); real parts written out count as they are
    ============================  ======================================================

    Additions, norms, activations, divisions, copies and products with a constant count nothing, as is usual.

    Examples
    --------
    >>> with MultiplyAdds() as count:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> count.total
    24.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        self.by_operation: dict[str, float] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        amount = _amount(name, args, result)
        if amount:
            self.total += amount
            self.by_operation[name] = self.by_operation.get(name, 0.0) + amount
        return result


def multiply_adds(function: Callable[[], Any]) -> float:
    """Multiply-adds of one call, counted as in `MultiplyAdds`.

    A network on the ``meta`` device is counted without computing anything.
    """
    with torch.no_grad(), MultiplyAdds() as count:
        function()
    return count.total


def _amount(name: str, args: tuple[Any, ...], result: Any) -> float:
    """Multiply-adds of one dispatched operation."""
    if name in ("mm", "bmm"):
        return args[0].numel() * args[1].shape[-1] * _complex_factor(args[0], args[1])
    if name in ("addmm", "baddbmm"):
        return args[1].numel() * args[2].shape[-1] * _complex_factor(args[1], args[2])
    if name in ("mv", "dot"):
        return args[0].numel() * _complex_factor(args[0], args[1])
    if name == "convolution":
        return result.numel() * args[1][0].numel()
    if name == "_fft_r2c":
        return _fft(args[0], args[1], real=True)
    if name == "_fft_c2r":
        return _fft(result, args[1], real=True)
    if name == "_fft_c2c":
        return _fft(args[0], args[1], real=False)
    if name in ("mul", "mul_"):
        factors = [arg for arg in args[:2] if isinstance(arg, Tensor) and arg.numel() > 1]
        return result.numel() * _complex_factor(*factors) if len(factors) == 2 else 0.0
    if name == "pow" and args[1] == 2:
        return float(result.numel())
    if name in ("addcmul", "addcmul_"):
        return float(result.numel())
    return 0.0


def _fft(x: Tensor, dims: list[int], real: bool) -> float:
    length = math.prod(x.shape[dim] for dim in dims)
    return fft_multiply_adds(length, x.numel() // length, real)


def _complex_factor(*factors: Tensor) -> int:
    return int(math.prod(2 for factor in factors if factor.is_complex()))
