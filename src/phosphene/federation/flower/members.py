"""Who takes part: nodes that are connected are asked who they are, at the start and whenever new ones come."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from flwr.serverapp import Grid

from phosphene.errors import FederationError, InputError
from phosphene.federation.flower.exchange import Exchange, Reply
from phosphene.federation.flower.messages import packed
from phosphene.federation.state import Agreement, check_agreement

__all__ = ["Members"]

log = logging.getLogger(__name__)

_LONGEST = 100  # characters of a site's name
_AGAIN = 30.0  # seconds, before the first round, until a site that could not say who it is is asked again


@dataclass(frozen=True)
class _Member:
    node: int
    agreement: Agreement


class Members:
    """Sites by name, and the nodes at which they are.

    Parameters
    ----------
    grid : Grid
    seconds : float
        For which a question waits for its answer.
    """

    def __init__(self, grid: Grid, seconds: float) -> None:
        self._grid, self._questions = grid, Exchange(grid, "query", seconds)
        self._members: dict[str, _Member] = {}
        self._asked: set[int] = set()
        self._agreement: Agreement | None = None
        self._reasons: dict[int, str] = {}
        self._failed: set[int] = set()

    @property
    def names(self) -> list[str]:
        """Sites that said who they are, and agree with the others."""
        return sorted(self._members)

    def gather(self, sites: int, quorum: int, wait: float, pause: float = 1.0) -> Agreement:
        """Wait until so many sites are there; a quorum is enough when the time is over.

        Raises
        ------
        InputError
            For sites that do not agree, and two of one name.
        FederationError
            For fewer than the quorum.
        """
        end, again = time.monotonic() + wait, time.monotonic() + _AGAIN
        self._look()
        while len(self._members) < sites and time.monotonic() < end:
            time.sleep(pause)
            if time.monotonic() < again:
                self._look()
            else:
                self.look()
                again = time.monotonic() + _AGAIN
        if len(self._members) < quorum:
            others = [f"node {node}: {self._reasons.get(node, 'no answer')}" for node in sorted(self._strangers)]
            raise FederationError(
                f"within {wait:g} s {len(self._members)} of {sites} sites said who they are, and {quorum} are needed. "
                f"Connected beside them: {'; '.join(others) or 'none'}"
            )
        if len(self._members) < sites:
            log.warning("%d of %d sites came in time: %s", len(self._members), sites, ", ".join(self.names))
        self._agreement = check_agreement({name: each.agreement for name, each in self._members.items()})
        return self._agreement

    def look(self) -> dict[str, int]:
        """Once a round: ask who is new or could not answer before, and say who is connected: name and node."""
        self._look()
        self._asked -= self._failed  # what failed there may have passed
        self._failed.clear()
        return self._look()

    def _look(self) -> dict[str, int]:
        """Ask nodes that are new who they are, take in whoever answered, and say who is connected: name and node."""
        online = set(self._grid.get_node_ids())
        self._asked &= online  # whoever comes back is asked again
        self._questions.send({node: packed({}) for node in online - self._asked})
        self._asked |= online
        for node, reply in self._questions.look().items():
            self._admit(node, reply, online)
        return {name: each.node for name, each in self._members.items() if each.node in online}

    @property
    def _strangers(self) -> set[int]:
        return self._asked - {each.node for each in self._members.values()}

    def _admit(self, node: int, reply: Reply, online: set[int]) -> None:
        try:
            name, own = str(reply.facts["site"]), Agreement.of_facts(reply.facts["agreement"])
            if not (0 < len(name) <= _LONGEST and name.isprintable()):
                raise InputError("a site's name is one line")
        except Exception:  # rubbish may fail in any way
            self._failed.add(node)
            self._reasons[node] = reply.reason or "its answer cannot be read"
            log.warning("node %d does not take part: %s", node, self._reasons[node])
            return
        held = self._members.get(name)
        if held is not None and held.node != node and held.node in online:
            if self._agreement is None:
                raise InputError(f"two nodes call themselves {name}: every site needs a name of its own")
            log.warning("node %d calls itself %s, who is there already: it is left out", node, name)
        elif self._agreement is not None and (differ := own.differences(self._agreement)):
            log.warning("%s came and does not agree with the others: %s", name, "; ".join(differ))
        else:
            self._members[name] = _Member(node, own)
