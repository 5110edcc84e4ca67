"""A run of rounds as it is kept: what all sites, the server and the accountant hold, of one moment, in one folder.

``run.json`` says what was asked for. ``round-00007`` is everything after round 7; it is written under another name and
renamed, and the one before goes only then, so that a kill at any point leaves a whole one. ``accountant.json`` is there
with noise that cannot be had again: what was counted before a round that was then interrupted stays counted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from phosphene.errors import InputError
from phosphene.federation.accounting import Accountant
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import GlobalState, RoundReport, SiteState
from phosphene.files import atomic_path, digest, read_json, write_json
from phosphene.settings import flattened

__all__ = ["ALL_SITES", "Federated", "RoundRecord", "RunFolder", "digest_of"]

ALL_SITES = "all sites"  # whose metrics these are where no single site's are seen
_RUN, _HISTORY, _ACCOUNTANT = "run.json", "history.json", "accountant.json"


@dataclass(frozen=True)
class RoundRecord(RoundReport):
    """What happened in a round: what the server made of it, and what came before.

    Attributes
    ----------
    missing : dict of str to str
        Sites that were asked and sent nothing in time, and why: fixed words.
    idle : list of str
        Sites that were not drawn.
    metrics : dict of str to dict of str to float
        Of the sites that counted, where they send any; of a secure sum the mean loss alone, under `ALL_SITES`.
    bytes_up : dict of str to int
        Bytes of tensors that each site sent.
    bytes_down : int
        Bytes of tensors that each site was sent.
    seconds : float
        Of the clock on the wall; nothing depends on it.
    fractions : dict of str to float
        Share of the used sites' trials that miss each modality, and that are complete.
    epsilon : dict of str to float or None
        By unit of protection, so far; None is no promise. Empty without privacy.
    seen : {"contributions", "sum"}
        What the server could see: each site's contribution by itself, or their sum alone.
    """

    missing: dict[str, str]
    idle: list[str]
    metrics: dict[str, dict[str, float]]
    bytes_up: dict[str, int]
    bytes_down: int
    seconds: float
    fractions: dict[str, float]
    epsilon: dict[str, float | None]
    seen: Literal["contributions", "sum"]


@dataclass(frozen=True, eq=False)
class Federated:
    """A federation after some rounds.

    Attributes
    ----------
    shared : GlobalState
    sites : dict of str to SiteState
    history : tuple of RoundRecord
    accountant : Accountant, optional
        Where there is protection.
    """

    shared: GlobalState
    sites: dict[str, SiteState]
    history: tuple[RoundRecord, ...] = ()
    accountant: Accountant | None = None


def digest_of(site: SiteState) -> str:
    """Hash of everything a site starts with: trials, their units, labels, adapters."""
    inputs, labels = site.trials.inputs, site.trials.labels
    arrays = [inputs.image, inputs.text, inputs.present, *((labels,) if labels is not None else ())]
    named = {**inputs.responses, **site.private, **site.optimiser}
    parts = [each.numpy() for each in (*arrays, *(named[name] for name in sorted(named)))]
    trials = site.trials
    words = [*inputs.subjects.tolist(), "", *trials.ids.tolist(), "", *trials.units.tolist(), "", *sorted(named)]
    return digest(site.site, "\n".join(words), *parts)


class RunFolder:
    """The folder of a run.

    Parameters
    ----------
    folder : str or Path
        New, or of the same run.
    asked : mapping
        All that the run depends on, as JSON holds it.
    settings : FederationSettings
    system_noise : bool
        Whether there is noise that cannot be had again.

    Raises
    ------
    InputError
        For a folder of something else, and for one of a run that was asked for otherwise: what differs is named.
    """

    def __init__(
        self, folder: str | Path, asked: Mapping[str, Any], settings: FederationSettings, system_noise: bool
    ) -> None:
        self.folder, self._settings, self._system_noise = Path(folder), settings, system_noise
        if (self.folder / _RUN).exists():
            self._check(asked)
            return
        if self.folder.exists() and (
            not self.folder.is_dir() or any(not each.name.startswith(".") for each in self.folder.iterdir())
        ):
            raise InputError(f"{self.folder} holds something, and no federated run: name a new folder")
        write_json(self.folder / _RUN, dict(asked))

    def _check(self, asked: Mapping[str, Any]) -> None:
        here, there = flattened(asked), flattened(read_json(self.folder / _RUN))
        keys = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
        if differ := [_difference(key, here.get(key), there.get(key)) for key in keys]:
            raise InputError(
                f"{self.folder} belongs to another run: {'; '.join(differ)}. Resume with what was, or name a new folder"
            )

    def read(self, start: Federated) -> Federated:
        """What the last whole round left; `start` where there is none."""
        rounds = self._rounds()
        now = start
        if rounds:
            folder = rounds[-1]
            held = read_json(folder / _HISTORY)
            accountant = None if held["accountant"] is None else Accountant.of_state(held["accountant"])
            now = Federated(
                GlobalState.load(folder / "server", self._settings),
                {
                    name: SiteState.load(folder / "sites" / place, start.sites[name].trials, start.shared.agreement)
                    for name, place in _places(start.sites).items()
                },
                tuple(RoundRecord(**record) for record in held["history"]),
                accountant,
            )
        if self._system_noise and (self.folder / _ACCOUNTANT).exists():
            counted = Accountant.of_state(read_json(self.folder / _ACCOUNTANT))
            now = Federated(now.shared, now.sites, now.history, counted)
        return now

    def count(self, accountant: Accountant) -> None:
        """Keep what is about to be released, before it is, where it cannot be released again for the same price."""
        if self._system_noise:
            write_json(self.folder / _ACCOUNTANT, accountant.state())

    def write(self, now: Federated) -> None:
        """Keep everything after a round, whole or not at all."""
        before = self._rounds()
        with atomic_path(self.folder / f"round-{now.shared.round:05d}") as temporary:
            now.shared.save(temporary / "server", self._settings)
            for name, place in _places(now.sites).items():
                now.sites[name].save(temporary / "sites" / place)
            accountant = None if now.accountant is None else now.accountant.state()
            records = [asdict(record) for record in now.history]
            write_json(temporary / _HISTORY, {"accountant": accountant, "history": records})
        for folder in before:
            shutil.rmtree(folder, ignore_errors=True)

    def _rounds(self) -> list[Path]:
        """Folders of rounds; the last one is whole, earlier ones may be on their way out."""
        found = [each for each in self.folder.iterdir() if re.fullmatch(r"round-\d{5,}", each.name)]
        return sorted(found, key=lambda each: int(each.name.removeprefix("round-")))


def _difference(key: str, here: Any, there: Any) -> str:
    """In words; of a site's data there is but a digest, which tells nobody anything."""
    kind, _, name = key.partition(".")
    if kind != "sites":
        return f"{key} is {here!r}, was {there!r}"
    if here is None or there is None:
        return f"{name} is {'new' if there is None else 'not there any more'}"
    return f"{name} has other trials or labels, or others are hidden"


def _places(sites: Mapping[str, SiteState]) -> dict[str, str]:
    """Folder names that hold whatever the site is called."""
    return {name: f"{number:04d}" for number, name in enumerate(sorted(sites))}
