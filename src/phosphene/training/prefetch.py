"""Batches made in a thread, some steps ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

Batch = TypeVar("Batch")


def prefetched(make: Callable[[int], Batch], first: int, last: int, ahead: int) -> Iterator[Batch]:
    """Yield ``make(first)`` to ``make(last - 1)`` in order; up to `ahead` further ones are made meanwhile.

    Examples
    --------
    >>> list(prefetched(lambda step: 10 * step, 2, 5, ahead=1))
    [20, 30, 40]
    """
    if ahead == 0:
        yield from map(make, range(first, last))
        return
    with ThreadPoolExecutor(1, thread_name_prefix="phosphene-loader") as pool:
        waiting: list[Future[Batch]] = []
        try:
            for step in range(first, last):
                while len(waiting) <= ahead and step + len(waiting) < last:
                    waiting.append(pool.submit(make, step + len(waiting)))
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
