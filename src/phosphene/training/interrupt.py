"""Ctrl-C and SIGTERM between two steps instead of within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import distributed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Interruptible"]


class Interruptible:
    """Notes a first SIGINT or SIGTERM in `requested`; a second one acts at once.

    Outside of the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def anywhere(self, fabric: Fabric) -> bool:
        """Whether this process or any other was asked to stop; the same answer in all, which must all ask.

        Signals reach processes at different moments: one that stops alone leaves the others waiting.
        """
        if fabric.world_size == 1:
            return self.requested
        asked = torch.tensor(float(self.requested), device=fabric.device)
        distributed.all_reduce(asked, distributed.ReduceOp.MAX)
        return bool(asked)

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
