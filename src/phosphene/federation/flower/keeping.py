"""What a site keeps between rounds, on its own disk: its people's adapters, and what it has released so far."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from phosphene.errors import InputError
from phosphene.federation.accounting import Accountant
from phosphene.federation.run_state import digest_of
from phosphene.federation.state import SiteState
from phosphene.files import read_json, write_json

__all__ = ["SiteFolder"]

_SITE, _ACCOUNTANT = "site.json", "accountant.json"


class SiteFolder:
    """The folder of one site in one run.

    The states before and after the last round are kept: a server that was interrupted asks for its last round again,
    and the site then starts from the same adapters.

    Parameters
    ----------
    root : str or Path
        The site's; every run has a folder in it.
    run : str
        What the server calls the run.
    start : SiteState
        The site before its first round.

    Raises
    ------
    InputError
        Where the site took part in the run with other data.
    """

    def __init__(self, root: str | Path, run: str, start: SiteState) -> None:
        self.folder, self._root, self._start = Path(root) / run / start.site, Path(root), start
        facts = {"site": start.site, "data": digest_of(start)}
        if not (self.folder / _SITE).exists():
            write_json(self.folder / _SITE, facts)
        elif (was := read_json(self.folder / _SITE)) != facts:
            raise InputError(f"{self.folder} belongs to {was}, the site is now {facts}: a run goes on with its data")

    def before(self, done: int) -> SiteState:
        """The site's newest state of at most so many rounds; at the start where there is none."""
        rounds = [number for number in self._rounds() if number <= done]
        if not rounds:
            return self._start
        return SiteState.load(self._place(rounds[-1]), self._start.trials, self._start.agreement)

    def keep(self, before: SiteState, after: SiteState) -> None:
        """Keep the state after a round beside the one before it, and no other."""
        after.save(self._place(after.round))
        for number in self._rounds():
            if number not in (before.round, after.round):
                shutil.rmtree(self._place(number), ignore_errors=True)

    def accountant(self, new: Accountant) -> Accountant:
        """The one that counted so far in this run, or a new one."""
        place = self.folder / _ACCOUNTANT
        return Accountant.of_state(read_json(place)) if place.exists() else new

    def in_all(self, delta: float, limit: float) -> Accountant:
        """One that holds what was released in all runs: the server says which run it is, and could begin anew."""
        total = Accountant(delta)
        for place in sorted(self._root.glob(f"*/*/{_ACCOUNTANT}")):
            for spent in Accountant.of_state(read_json(place)).spent.values():
                total.spend(self._start.site, [replace(each, steps=steps) for each, steps in spent.items()])
        total.limit = limit
        return total

    def count(self, accountant: Accountant) -> None:
        """Keep what is about to be released, before it is."""
        write_json(self.folder / _ACCOUNTANT, accountant.state())

    def _place(self, number: int) -> Path:
        return self.folder / f"round-{number:05d}"

    def _rounds(self) -> list[int]:
        found = [each.name for each in self.folder.iterdir() if re.fullmatch(r"round-\d{5,}", each.name)]
        return sorted(int(name.removeprefix("round-")) for name in found)
