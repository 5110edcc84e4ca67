"""Flower's grid without Flower's processes: messages go to the client app in this one, through their wire form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from phosphene.encoders import targets_named
from phosphene.federation import (
    Federated,
    FederationSettings,
    LabelClasses,
    Missing,
    SiteState,
    StudySites,
    dealt,
    federate,
)
from phosphene.federation.flower import client_app
from phosphene.recordings import Study

RUN = {
    "rounds": 3,
    "sites": 2,
    "set": "model.width=16 client.epochs=1",
    "classes": "group",
    "targets": "z:pixels",
    "text": "tfidf",
    "missing": 0.3,
}
SETTINGS = FederationSettings.preset(model={"width": 16}, client={"epochs": 1})

Behaviour = Callable[[Message, Callable[[Message], Message]], Message | None]


class LoopbackGrid(Grid):
    """Nodes 1, 2 ... with a configuration each; `behaviour` says what a node does other than answer."""

    def __init__(self, nodes: dict[int, dict], run: dict, behaviour: dict[int, Behaviour] | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 99
        self.nodes, self._run_config, self.behaviour = nodes, run, behaviour or {}
        self.gone: set[int] = set()
        self._app, self._replies, self._sent = client_app(), {}, 0

    def set_run(self, run) -> None:
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return sorted(self.nodes.keys() - self.gone)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            self._sent += 1
            number = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = number
            numbers.append(number)
            node = message.metadata.dst_node_id
            act = self.behaviour.get(node, lambda message, answer: answer(message))
            reply = act(message, lambda message, node=node: self._answer(message, node))
            if reply is not None:
                self._replies[number] = reply
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def _answer(self, message: Message, node: int) -> Message:
        context = Context(1, node, dict(self.nodes[node]), RecordDict(), dict(self._run_config))
        return self._app(message, context)


def partitions(n: int) -> dict[int, dict]:
    """Configurations of nodes among whom one study is dealt."""
    return {number + 1: {"partition-id": number, "num-partitions": n} for number in range(n)}


def run_config(study: Path, folder: Path, **changes) -> dict:
    """A run on one machine."""
    return {**RUN, "study": str(study), "out": str(folder / "run"), "keep": str(folder / "keep"), **changes}


def made_sites(study: Path, n: int, missing: float = 0.3, kind: str = "instance", **others) -> dict[str, SiteState]:
    """The same sites as `phosphene federate --sites` makes."""
    with Study.open(study) as opened:
        view = opened.split("train")
        targets = targets_named("z:pixels", opened, False), targets_named("tfidf", opened, False)
        classes = LabelClasses.found(view.stimuli.labels, ["group"])
        made = StudySites(opened, dealt(view.subjects, n), classes, *targets, **others)
        return made.sites(SETTINGS.model.width, Missing(missing, kind))


def in_process(study: Path, n: int, rounds: int, missing: float = 0.3, **options) -> Federated:
    return federate(made_sites(study, n, missing), SETTINGS, rounds, progress=False, **options)


def same(one, other) -> bool:
    """Whether two states hold the same names and bits: weights and library."""
    here, there = one.to_tensors()[0], other.to_tensors()[0]
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
