"""PmcmFL, its rivals and its ablations: each arm is settings over one default and a way of training, nothing else.

All arms have the network, people's adapters, epochs, rounds, batches and classes in common, and rivals the server of
the default preset. What makes a method is named in its `Arm`. Each has as many candidate settings for tuning as
PmcmFL, three learning rates times two values of what is its own; `dropout-token`, the one to beat, has
twice as many, all that PmcmFL may choose among them, and so have its forms at one place and at each site alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phosphene.errors import InputError
from phosphene.evaluation.missing_modalities import PATTERNS, Network
from phosphene.federation.adapter import with_adapters
from phosphene.federation.client import client_update, site_model
from phosphene.federation.engine import federate
from phosphene.federation.library import PrototypeLibrary
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.run_state import Federated
from phosphene.federation.server import first_state
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import GlobalState, SiteState
from phosphene.federation.trials import Trials
from phosphene.settings import merge

__all__ = ["ABLATIONS", "ARMS", "LEARNING_RATES", "Arm", "Trained", "train"]

LEARNING_RATES = (1e-3, 3e-3, 6e-3)
_EVERYWHERE = "everywhere"
_COUNTED = 36.0  # three deviations of the noise on counts at level 1, of four sites of width 64: `least_count`
_TABLES = ("model", "client")
_CHOSEN = ("learning_rate", "head_rate", "optimiser")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A method under comparison.

    Attributes
    ----------
    name : str
    what : str
        It in one line.
    changes : dict
        What makes it, over its preset.
    own : tuple of dict
        Values of what is its own, among which it is tuned.
    engine : str
        Of `ENGINES`: who trains, and what is exchanged.
    preset : str
        Of ``presets/federation/pmcmfl``.
    privacy : dict
        Clipping and noise at the sites; none where empty.
    rates : tuple of float
        Learning rates among which it is tuned; none where the arm is reported as published.
    like : str
        The arm whose choice it takes, where it is not tuned itself.
    """

    name: str
    what: str
    changes: Settings = field(default_factory=dict)
    own: tuple[Settings, ...] = ({},)
    engine: str = "federated"
    preset: str = "default"
    privacy: Settings = field(default_factory=dict)
    rates: tuple[float, ...] = LEARNING_RATES
    like: str = ""

    @property
    def candidates(self) -> tuple[Settings, ...]:
        """Settings among which it is tuned; the first stands where nothing is."""
        if self.like:
            return ()
        rates: list[Settings] = [{"client": {"learning_rate": rate}} for rate in self.rates] or [{}]
        return tuple(merge(rate, own) for rate in rates for own in self.own)

    def settings(self, common: Settings, chosen: Settings, seed: int) -> FederationSettings:
        """Common settings, then what makes the method, then what tuning chose.

        Raises
        ------
        InputError
            For common settings that are an arm's own.
        """
        check_common(common)
        changes = merge(merge(common, self.changes), chosen)
        if self.like:  # an ablation stands over the choice of its model
            changes = merge(changes, self.changes)
        return FederationSettings.preset(self.preset, seed=seed, **changes)


def check_common(common: Settings) -> None:
    """Refuse settings for all arms that belong to the arms: masks, say, or the learning rate they are tuned over."""
    for table, inner in common.items():
        if table not in _TABLES or not isinstance(inner, dict):
            raise InputError(f"settings of all arms are in {' and '.join(_TABLES)}; {table} is what arms differ in")
        for name in sorted(set(inner) & set(_CHOSEN)):
            raise InputError(f"{table}.{name} is not common to all arms: each has its own")


# -- the arms ------------------------------------------------------------------------------------------------------

_NO_CONTRAST: Settings = {"objective": {f"contrast_{part}": 0.0 for part in ("fmri", "image", "text", "fusion")}}
_HIDDEN: tuple[Settings, ...] = ({"masks": {"dropout": 0.3}}, {"masks": {"dropout": 0.5}})
_FULL: Settings = {"objective": {"full_view": 0.5}}
_SHOWN: tuple[Settings, ...] = (*_HIDDEN, *(merge(each, _FULL) for each in reversed(_HIDDEN)))
_WEIGHTED: tuple[Settings, ...] = ({"server": {"weighting": "modality"}}, {"server": {"weighting": "trials"}})
_KEPT: Settings = {"client": {"optimiser": "kept"}}


def _filled(mask: str, rule: str, dropout: float = 0.0) -> Settings:
    """One kind of mask, no contrast, and one rule of inference."""
    return {**_NO_CONTRAST, "masks": {mask: 1.0, "dropout": dropout}, "inference": {"rule": rule}}


_TOKEN = _filled("token", "token")
_DROPPED = merge(_filled("token", "token", dropout=0.5), {"objective": {"full_view": 0.0}})

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("pmcmfl", "the default preset: retrieved masks, token, modality dropout, contrast", own=_HIDDEN),
        Arm("pmcmfl-paper", "the published recipe as it is, at this budget of epochs", preset="pmcmfl-paper", rates=()),
        Arm(
            "pmcmfl-paper-tuned",
            "the published recipe with its learning rates tuned",
            preset="pmcmfl-paper",
            own=({"client": {"head_rate": 1.0}}, {"client": {"head_rate": 20.0}}),
        ),
        Arm("dropout-token", "FedAvg, modality dropout and a learned token: the one to beat", _DROPPED, _SHOWN),
        Arm("token", "FedAvg, a learned token", _TOKEN, _WEIGHTED),
        Arm("fedavg-zero", "FedAvg, zeros for what is missing", _filled("zero", "zero"), _WEIGHTED),
        Arm(
            "fedavg-random", "FedAvg, N(0, 1) numbers in training, zeros in test", _filled("random", "zero"), _WEIGHTED
        ),
        Arm(
            "fedprox",
            "dropout-token in full view with FedProx's distance to the global weights",
            merge(_DROPPED, _FULL),
            ({"objective": {"proximal": 0.01}}, {"objective": {"proximal": 0.1}}),
        ),
        Arm(
            "moon",
            "dropout-token in full view with MOON's contrast of the server's network against the site's last one",
            merge(_DROPPED, _FULL),
            ({"objective": {"model_contrast": 0.1}}, {"objective": {"model_contrast": 1.0}}),
        ),
        Arm(
            "fedproto",
            "FedProto-style: prototypes alone are exchanged, features are drawn to them; dropout, full view and token",
            merge(merge(_DROPPED, _FULL), _KEPT),
            tuple(
                {"objective": {f"contrast_{part}": weight for part in ("fmri", "image", "text", "fusion")}}
                for weight in (0.1, 0.5)
            ),
            engine="prototypes",
        ),
        Arm("local", "dropout-token at each site alone: nothing is exchanged", merge(_DROPPED, _KEPT), _SHOWN, "local"),
        Arm("central", "dropout-token with all trials at one place", merge(_DROPPED, _KEPT), _SHOWN, "central"),
        Arm(
            "central-by-pattern",
            "all trials at one place, and a model for each pattern that learns from its modalities alone",
            merge(_TOKEN, _KEPT) | {"model": {"heads": ["classification"]}},  # the picture would be retrieval's target
            ({"masks": {"dropout": 0.0}}, merge({"masks": {"dropout": 0.3}}, _FULL)),
            "central by pattern",
        ),
    )
}


def _ablation(name: str, what: str, changes: Settings, privacy: Settings | None = None) -> Arm:
    return Arm(name, what, changes, privacy=privacy or {}, like="pmcmfl")


def _noisy(name: str, what: str, level: float) -> Arm:
    """Updates clipped to 1, features to 8, with noise of so many limits on both; no prototype that is noise alone."""
    privacy = {"update_limit": 1.0, "feature_limit": 8.0, "update_noise": level, "library_noise": level}
    return _ablation(name, what, {"library": {"min_count": max(2.0, _COUNTED * level)}}, privacy)


ABLATIONS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        _ablation("no-mask", "zeros in training and test", {"masks": {"zero": 1.0}, "inference": {"rule": "zero"}}),
        _ablation("no-contrast", "no contrast with prototypes", _NO_CONTRAST),
        _ablation("no-full-view", "the task on what dropout leaves alone", {"objective": {"full_view": 0.0}}),
        _ablation("no-dropout", "no modality dropout", {"masks": {"dropout": 0.0}}),
        _ablation("mask-label", "masks by the true class, as published", {"masks": {"label": 1.0}}),
        _ablation("mask-retrieved", "retrieved masks alone", {"masks": {"retrieval": 1.0}}),
        _ablation("weights-trials", "encoders weighted by all trials of a site", {"server": {"weighting": "trials"}}),
        _ablation("weights-equal", "sites weighted alike", {"server": {"weighting": "equal"}}),
        _ablation("library-complete", "prototypes of complete trials alone", {"library": {"complete_only": True}}),
        _ablation("library-sites", "sites' class means averaged by their trials", {"library": {"weighting": "sites"}}),
        _ablation("library-fusion-all", "fusion prototypes of all trials", {"library": {"fusion_from": "all"}}),
        *(
            _ablation(f"rule-{rule}", f"inference by {rule}", {"inference": {"rule": rule}})
            for rule in ("nearest", "soft", "match", "token", "zero", "mean")
        ),
        _noisy("clipped", "updates and features clipped, hardly any noise", 0.001),
        *(_noisy(f"noise-{level:g}", f"noise of {level:g} limits", level) for level in (0.01, 0.1, 1.0)),
    )
}

# -- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trained:
    """What an arm leaves after training.

    Attributes
    ----------
    held : dict
        By pattern ("" is any) and site: what its server and the site hold; one place that has all trials stands under
        every site's name.
    cost : dict
        Bytes up and down per site and round, seconds on the wall, processor seconds, rounds; epsilon with noise.
    """

    held: dict[str, dict[str, tuple[GlobalState, SiteState]]]
    cost: dict[str, Any]

    def network(self, site: str, people: Mapping[str, int], settings: FederationSettings, pattern: str) -> Network:
        """What a site predicts with under a pattern.

        Parameters
        ----------
        site : str
        people : mapping of str to int
            Voxels of who is to be predicted; somebody without any training trial has an adapter
            that is silent, or from the seed where adapters are learned.
        settings : FederationSettings
            Those of training, but for the rule of inference.
        pattern : str
        """
        shared, own = self.held.get(pattern, self.held.get("", {}))[site]
        model = site_model(own, shared, settings)
        model.add_people({person: n for person, n in people.items() if person not in model.people})
        return Network(model, shared.library, settings)


def train(arm: Arm, sites: Mapping[str, SiteState], settings: FederationSettings, rounds: int) -> Trained:
    """Train an arm.

    Parameters
    ----------
    arm : Arm
    sites : mapping of str to SiteState
        Before their first round; the same for every arm.
    settings : FederationSettings
        Of `Arm.settings`.
    rounds : int
        The same for every arm: a round is `client.epochs` passes over a site's trials, also where all are at one place.
    """
    if arm.privacy and arm.engine != "federated":
        raise InputError(f"{arm.name} trains {arm.engine}: noise has no use where nobody sends anything")
    before, clock = time.process_time(), time.perf_counter()
    held, bytes_, facts = ENGINES[arm.engine](arm, sites, settings, rounds)
    cost = {
        "bytes_up": bytes_[0],
        "bytes_down": bytes_[1],
        "rounds": rounds,
        "seconds": round(time.perf_counter() - clock, 2),
        "cpu_s": round(time.process_time() - before, 2),
        **facts,
    }
    return Trained(held, cost)


Held = dict[str, dict[str, tuple[GlobalState, SiteState]]]
Outcome = tuple[Held, tuple[float, float], dict[str, Any]]


def _federated(arm: Arm, sites: Mapping[str, SiteState], settings: FederationSettings, rounds: int) -> Outcome:
    """Rounds as `federate` has them."""
    privacy = PrivacySettings(**arm.privacy, seed=settings.seed) if arm.privacy else None
    done = federate(sites, settings, rounds, privacy=privacy, progress=False)
    up = float(np.mean([n for record in done.history for n in record.bytes_up.values()]))
    down = float(np.mean([record.bytes_down for record in done.history]))
    facts = {"epsilon": done.history[-1].epsilon} if privacy else {}
    return {"": _everybody(done)}, (up, down), facts


def _local(arm: Arm, sites: Mapping[str, SiteState], settings: FederationSettings, rounds: int) -> Outcome:
    """Each site a federation of itself, which is plain training to the bit."""
    done = [federate({name: site}, settings, rounds, progress=False) for name, site in sites.items()]
    return {"": {name: pair for each in done for name, pair in _everybody(each).items()}}, (0.0, 0.0), {}


def _central(arm: Arm, sites: Mapping[str, SiteState], settings: FederationSettings, rounds: int) -> Outcome:
    """All trials at one place, with an adapter a person."""
    done = federate({_EVERYWHERE: _at_one_place(sites)}, settings, rounds, progress=False)
    return {"": dict.fromkeys(sites, _everybody(done)[_EVERYWHERE])}, (0.0, 0.0), {}


def _by_pattern(arm: Arm, sites: Mapping[str, SiteState], settings: FederationSettings, rounds: int) -> Outcome:
    """All trials at one place, once for each pattern; a network is trained on its modalities alone.

    People's adapters are those of the other arms: in closed form they are made of all that their site has.
    """
    whole, found = with_adapters(_at_one_place(sites), settings), {}
    for pattern, held in PATTERNS.items():
        left = _showing(whole, torch.tensor(held))
        if left is None:
            pair = first_state(whole.agreement, settings), whole
        else:
            pair = _everybody(federate({_EVERYWHERE: left}, settings, rounds, progress=False))[_EVERYWHERE]
        found[pattern] = dict.fromkeys(sites, pair)
    return found, (0.0, 0.0), {}


def _at_one_place(sites: Mapping[str, SiteState]) -> SiteState:
    trials = Trials.joined([sites[name].trials for name in sorted(sites)])
    return SiteState(_EVERYWHERE, trials, next(iter(sites.values())).agreement)


def _showing(site: SiteState, held: Tensor) -> SiteState | None:
    """A site before its first round with nothing but some modalities; None where no trial has any of them."""
    present = site.trials.present & held
    some = present.any(dim=1)
    if not bool(some.any()):
        return None
    rows = some.nonzero().flatten()
    trials = site.trials.select(rows).hiding(present[rows])
    people, subjects = trials.inputs.people, site.trials.inputs.subjects
    private = {name: each for name, each in site.private.items() if name.split("/")[0] in people}
    foretold = {
        person: each[some[torch.from_numpy(subjects == person)]]
        for person, each in site.foretold.items()
        if person in people
    }
    return replace(site, trials=trials, private=private, foretold=foretold)


def _prototypes(arm: Arm, sites: Mapping[str, SiteState], settings: FederationSettings, rounds: int) -> Outcome:
    """FedProto (Tan et al., AAAI 2022) with this network: a site keeps its weights, prototypes are added up.

    The paper draws a site's class means to the global ones by their squared distance; here features are drawn to the
    global prototypes by the contrast of the objective. All sites start from the same weights.
    """
    states = {name: first_state(site.agreement, settings) for name, site in sites.items()}
    now, sent = dict(sites), []
    for _ in range(rounds):
        pairs = {name: client_update(now[name], states[name], settings) for name in sorted(now)}
        now = {name: site for name, (_, site) in pairs.items()}
        sent = [contribution for contribution, _ in pairs.values()]
        library = next(iter(states.values())).library.renewed(
            PrototypeLibrary.total(each.library for each in sent), settings.library
        )
        states = {
            each.site: replace(states[each.site], weights=each.weights, library=library, round=each.round)
            for each in sent
        }
    n_bytes = float(sum(each.numel() * each.element_size() for each in sent[0].library.to_tensors().values()))
    return {"": {name: (states[name], now[name]) for name in now}}, (n_bytes, n_bytes), {}


def _everybody(done: Federated) -> dict[str, tuple[GlobalState, SiteState]]:
    return {name: (done.shared, site) for name, site in done.sites.items()}


ENGINES: dict[str, Callable[[Arm, Mapping[str, SiteState], FederationSettings, int], Outcome]] = {
    "federated": _federated,
    "local": _local,
    "central": _central,
    "central by pattern": _by_pattern,
    "prototypes": _prototypes,
}
