"""Asking sites over Flower's grid: with a deadline, and every failure told by who was asked and did not answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from phosphene.federation.faults import REASONS
from phosphene.federation.flower.messages import unpacked

__all__ = ["OTHER_PRIVACY", "Exchange", "Reply", "ask"]

OTHER_PRIVACY = "it does not take part with this run's privacy"

_MOMENT = 60.0  # seconds a message outlives its deadline by, so that a late answer is late and not an error
_APP = "its app stopped with an error, or the connection to it was lost"
_STRANGE = "its answer cannot be read"


@dataclass(frozen=True)
class Reply:
    """What came from a node: facts and tensors, or the reason why there are none.

    Attributes
    ----------
    facts : dict
    tensors : dict of str to Tensor
    reason : str
        Empty where it answered; otherwise fixed words, whatever the node sent.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    reason: str = ""


class Exchange:
    """Messages of one kind that were sent to nodes, and the answers to them as they come.

    Parameters
    ----------
    grid : Grid
    kind : {"query", "train"}
    seconds : float
        For which a message lives.
    """

    def __init__(self, grid: Grid, kind: str, seconds: float) -> None:
        self._grid, self._kind, self._seconds = grid, kind, seconds
        self._open: dict[str, int] = {}
        self._failed: dict[int, Reply] = {}

    @property
    def waiting(self) -> set[int]:
        """Nodes that were asked and did not answer yet."""
        return set(self._open.values())

    def send(self, contents: Mapping[int, RecordDict]) -> None:
        """Send to nodes, each its own content."""
        nodes = sorted(contents)
        if not nodes:
            return
        sent = [Message(contents[node], node, self._kind, ttl=self._seconds) for node in nodes]
        numbers = list(self._grid.push_messages(sent))
        self._open |= {number: node for number, node in zip(numbers, nodes, strict=False) if number}
        self._failed |= {node: Reply(reason=_APP) for node in set(nodes) - self.waiting}

    def look(self) -> dict[int, Reply]:
        """Answers that came since the last look.

        Who answered is told by the message that was answered: errors of the network do not name the node.
        """
        found, self._failed = self._failed, {}
        for message in self._grid.pull_messages(list(self._open)) if self._open else ():
            node = self._open.pop(message.metadata.reply_to_message_id, None)
            if node is not None:
                found[node] = _read(message)
        return found


def ask(
    grid: Grid, contents: Mapping[int, RecordDict], kind: str, deadline: float, pause: float = 1.0
) -> dict[int, Reply]:
    """Send to nodes and collect what comes in time: a reply for every node that was asked.

    Parameters
    ----------
    grid : Grid
    contents : mapping of int to RecordDict
        By node.
    kind : {"query", "train"}
    deadline : float
        Seconds.
    pause : float
        Seconds between two looks.
    """
    end = time.monotonic() + deadline
    exchange = Exchange(grid, kind, deadline + _MOMENT)
    exchange.send(contents)
    replies = exchange.look()
    while exchange.waiting and time.monotonic() < end:
        time.sleep(pause)
        replies |= exchange.look()
    return replies | {node: Reply(reason=f"no answer within {deadline:g} s") for node in exchange.waiting}


def _read(message: Message) -> Reply:
    if message.has_error():
        return Reply(reason=_APP)
    try:
        facts, tensors = unpacked(message.content)
    except Exception:  # rubbish may fail in any way
        return Reply(reason=_STRANGE)
    if "failed" in facts:
        return Reply(reason=facts["failed"] if facts["failed"] in {*REASONS, OTHER_PRIVACY} else _STRANGE)
    return Reply(facts, tensors)
