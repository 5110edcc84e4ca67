"""What releases cost: epsilon over all rounds of weights, prototypes and gradients together, reckoned by dp-accounting.

No formula of epsilon stands here. Every release is put into words as an event of `dp_accounting`, whose accountant (in
Rényi differential privacy; Mironov, 2017) composes them and turns the whole into epsilon at a given delta.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from phosphene.errors import FederationError, InputError, require, unknown

__all__ = ["Accountant", "Guarantee", "Release", "Unit"]

What = Literal["weights", "library", "gradients"]
Unit = Literal["trial", "site"]

UNITS = {
    "trial": "one trial of a site, with its responses, picture, words and labels, is there or not",
    "site": "everything of one site is there or not",
}
_NAMES = {"weights": "weights", "library": "prototypes (sums and counts)", "gradients": "gradients of training"}
_COVERED = {"trial": ("weights", "library", "gradients"), "site": ("weights",)}
_NEVER_PROTECTED = (
    "numbers of trials and metrics of training, where a contribution carries them",
    "which sites took part, and when",
    "settings chosen by looking at results",
)
_OF_TRIALS = ("a person, whose trials are many: only one trial is hidden",)
_OF_ADAPTERS = (
    "what other trials of the site tell of a trial through a private adapter that was trained on them without noise: "
    "prototypes of fMRI and of the fusion are covered with that adapter taken as given",
)


@dataclass(frozen=True)
class Release:
    """What leaves a site at once.

    Attributes
    ----------
    what : {"weights", "library", "gradients"}
        An update clipped as a whole; sums and counts of clipped features; steps of DP-SGD.
    noise : float or None
        Standard deviation of the Gaussian noise over what one unit can change: the limit of an update, the
        sensitivity of a library, the limit of a trial's gradient. None: sent as it is.
    steps : int
        How often.
    rate : float
        Probability of each trial to be in a batch (Poisson sampling), for gradients; otherwise 1.
    shares : int
        Sites among whom the noise is split: it is that of their secure sum.
    """

    what: What
    noise: float | None
    steps: int = 1
    rate: float = 1.0
    shares: int = 1

    def __post_init__(self) -> None:
        if self.what not in get_args(What):
            raise unknown("kind of release", self.what, get_args(What))
        if self.noise is not None and not (math.isfinite(self.noise) and self.noise > 0):
            raise InputError(f"noise of a release is a number above 0, or None, found {self.noise}")
        if self.shares < 1 or (self.shares > 1 and self.what == "gradients"):
            raise InputError(f"noise on what is added up is split among sites, at least 1; found {self}")
        if self.steps < 1 or not 0 < self.rate <= 1 or (self.rate < 1 and self.what != "gradients"):
            raise InputError(
                f"a release has steps of at least 1 and, for gradients alone, a rate below 1, found {self}"
            )


@dataclass(frozen=True)
class Guarantee:
    """A promise, and where it ends.

    Attributes
    ----------
    unit : {"trial", "site"}
    meaning : str
        The unit in words.
    epsilon : float
        Of the site that released most; infinite where something that is covered was sent without noise.
    delta : float
    rounds : int
        Of that site.
    site : str
        Which.
    covered : tuple of str
        What the numbers hold for.
    noise : dict of str to float
        Noise by kind of release, in what one unit can change; the weakest where it changed.
    not_protected : tuple of str
    """

    unit: Unit
    meaning: str
    epsilon: float
    delta: float
    rounds: int
    site: str
    covered: tuple[str, ...]
    noise: dict[str, float]
    not_protected: tuple[str, ...]

    def told(self) -> str:
        """In words, several lines."""
        if math.isfinite(self.epsilon):
            promise = f"epsilon {self.epsilon:.3g} at delta {self.delta:g}, rounds {self.rounds} ({self.site})"
        else:
            promise = f"no promise: epsilon is infinite, rounds {self.rounds} ({self.site})"
        noise = ", ".join(f"{_NAMES[what]} {value:g}" for what, value in self.noise.items()) or "none"
        return "\n".join(
            [
                f"Per {self.unit} ({self.meaning}): {promise}.",
                f"It covers: {', '.join(self.covered) or 'nothing'}.",
                f"Noise, in what one {self.unit} can change: {noise}.",
                "Not protected:",
                *(f"* {entry}" for entry in self.not_protected),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows no infinity: an infinite epsilon is None."""
        return asdict(self) | {"epsilon": self.epsilon if math.isfinite(self.epsilon) else None}


class Accountant:
    """Keeps what every site released and reckons what it is worth.

    Sites hold different trials, so that what one releases costs the others nothing: a promise is that of the site
    that released most. No gain is claimed from sites or trials that sat out, but for batches of DP-SGD.

    Parameters
    ----------
    delta : float
        In (0, 1), well below one over the number of trials.
    limit : float, optional
        Epsilon per trial that no site may pass.

    Examples
    --------
    >>> accountant = Accountant(1e-5)
    >>> for _ in range(10):
    ...     accountant.spend("site-1", [Release("weights", 8.0), Release("library", 4.0)])
    >>> round(accountant.epsilon("trial"), 2)
    5.38
    """

    def __init__(self, delta: float, limit: float | None = None) -> None:
        if not 0 < delta < 1:
            raise InputError(f"delta lies in (0, 1), found {delta}")
        if limit is not None and not limit > 0:
            raise InputError(f"a limit of epsilon is above 0, found {limit}")
        self.delta, self.limit = delta, limit
        self.spent: dict[str, dict[Release, int]] = {}  # of each site, releases with steps = 1, and how often
        self.rounds: dict[str, int] = {}

    def spend(self, site: str, releases: Sequence[Release]) -> None:
        """Count what a site is about to release in one round. To be called, and its state kept, before it is sent.

        Raises
        ------
        FederationError
            Where the site would pass the limit; nothing is counted then, and nothing may be sent.
        """
        before = dict(self.spent.get(site, {}))
        after = dict(before)
        for release in releases:
            kind = replace(release, steps=1)
            after[kind] = after.get(kind, 0) + release.steps
        if self.limit is not None and (epsilon := self._epsilon("trial", after)) > self.limit:
            raise FederationError(
                f"{site} releases nothing more: epsilon per trial would be {epsilon:.3g}, the limit is {self.limit:g}"
            )
        self.spent[site] = after
        self.rounds[site] = self.rounds.get(site, 0) + 1

    def epsilon(self, unit: Unit, site: str | None = None) -> float:
        """Epsilon so far of a site, by default of the one that released most; 0 where nothing was released.

        Raises
        ------
        InputError
            For an unknown unit or site.
        """
        if site is not None:
            if site not in self.spent:
                raise unknown("site", site, self.spent)
            return self._epsilon(unit, self.spent[site])
        return max((self._epsilon(unit, spent) for spent in self.spent.values()), default=0.0)

    def guarantee(self, unit: Unit) -> Guarantee:
        """The promise so far.

        Raises
        ------
        InputError
            For an unknown unit, and before anything was released.
        """
        if not self.spent:
            raise InputError("nothing was released yet: there is nothing to promise")
        site = max(sorted(self.spent), key=lambda name: self._epsilon(unit, self.spent[name]))
        spent = self.spent[site]
        whats = [what for what in get_args(What) if any(release.what == what for release in spent)]
        noise = {
            what: min(r.noise / _reach(r, unit) for r in spent if r.what == what and r.noise is not None)
            for what in whats
            if what in _COVERED[unit] and any(r.what == what and r.noise is not None for r in spent)
        }
        bare = {release.what for release in spent if release.noise is None}
        covered = tuple(_NAMES[what] for what in noise if what not in bare)
        missing = [f"{_NAMES[what]}: sent without noise" for what in whats if what in bare]
        missing += [
            f"{_NAMES[what]}: one {unit} can change them without bound"
            for what in whats
            if what not in _COVERED[unit] and what not in bare
        ]
        if unit == "trial":
            missing += [*_OF_TRIALS, *(_OF_ADAPTERS if "library" in noise and "gradients" not in noise else ())]
        if (shares := max(release.shares for release in spent)) > 1:
            missing.append(
                f"what one site sends by itself: the noise is split among {shares} sites, and only secure sums of as "
                f"many have all of it, while none of them tells its part"
            )
        about = (*missing, *_NEVER_PROTECTED)
        epsilon = self._epsilon(unit, spent)
        return Guarantee(unit, UNITS[unit], epsilon, self.delta, self.rounds[site], site, covered, noise, about)

    def state(self) -> dict[str, Any]:
        """What JSON can hold and `of_state` goes on from."""
        spent = {
            site: [asdict(release) | {"steps": steps} for release, steps in kinds.items()]
            for site, kinds in self.spent.items()
        }
        return json.loads(json.dumps({"delta": self.delta, "limit": self.limit, "rounds": self.rounds, "spent": spent}))

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Accountant:
        """Go on from `state`.

        Raises
        ------
        InputError
            For something that is no such state.
        """
        try:
            made = cls(state["delta"], state["limit"])
            made.rounds = {site: int(count) for site, count in state["rounds"].items()}
            for site, kinds in state["spent"].items():
                releases = [Release(**kind) for kind in kinds]
                made.spent[site] = {replace(each, steps=1): each.steps for each in releases}
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"this is not the state of an accountant: {error!r}") from error
        return made

    def _epsilon(self, unit: Unit, spent: Mapping[Release, int]) -> float:
        if unit not in UNITS:
            raise unknown("unit of protection", unit, UNITS)
        if not spent:
            return 0.0
        dp = require("dp_accounting", "privacy", "an accountant of privacy")
        rdp = require("dp_accounting.rdp", "privacy", "an accountant of privacy")
        accountant = rdp.RdpAccountant()
        events = [(_event(dp, release, unit), steps) for release, steps in spent.items()]
        covered = [(event, steps) for event, steps in events if event is not None]
        if not covered:
            return math.inf  # something was sent, and none of it is covered
        with _quiet():
            for event, steps in covered:
                accountant.compose(event, steps)
            return float(accountant.get_epsilon(self.delta))


def _reach(release: Release, unit: Unit) -> float:
    """What one unit can change, in what the noise is counted in: a trial turns one clipped update into another."""
    return 2.0 if release.what == "weights" and unit == "trial" else 1.0


def _event(dp: Any, release: Release, unit: Unit) -> Any:
    """The release as an event of `dp_accounting`; None for what the unit's promise does not speak of."""
    if release.what not in _COVERED[unit]:
        return None
    if release.noise is None:
        return dp.NonPrivateDpEvent()
    gaussian = dp.GaussianDpEvent(release.noise / _reach(release, unit))
    return dp.PoissonSampledDpEvent(release.rate, gaussian) if release.rate < 1 else gaussian


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that single orders were left out, which makes epsilon larger at most."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
