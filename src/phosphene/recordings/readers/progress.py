"""A progress bar on the error stream, where somebody is looking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")


def track(items: Sequence[T], words: str, progress: bool) -> Iterator[T]:
    """Walk through `items`; silent where `progress` is off or the error stream is not a terminal."""
    from rich.console import Console
    from rich.progress import track as walk

    console = Console(stderr=True)
    yield from walk(items, words, console=console, transient=True, disable=not (progress and console.is_terminal))
