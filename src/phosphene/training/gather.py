"""Gathering over processes that lets gradients through, so that a loss sees the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["gather"]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.rank, ctx.sizes = distributed.get_rank(), sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(received, padded)
        return torch.cat([block[:size] for block, size in zip(received, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous()
        distributed.all_reduce(total)
        start = sum(ctx.sizes[: ctx.rank])
        return total[start : start + ctx.sizes[ctx.rank]], None


def gather(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all processes, in the order of their ranks; the tensor itself where there is one process.

    The gradient that reaches a process is the sum over processes of the gradients of its rows. Where each process
    computes the same loss of all rows and gradients of parameters are then averaged (as DDP does), the result is
    the gradient that a single process with all rows would have.

    Parameters
    ----------
    rows : Tensor (n, ...)
        Rows of this process.
    sizes : sequence of int
        Number of rows of every process.

    Returns
    -------
    Tensor (sum(sizes), ...)
    """
    if len(sizes) == 1:
        return rows
    if len(rows) != sizes[distributed.get_rank()]:
        raise ValueError(f"process {distributed.get_rank()} gave {len(rows)} rows, announced were {list(sizes)}")
    gathered: Tensor = _Gather.apply(rows, tuple(sizes))
    return gathered
