"""What sites and server hold and send: plain tensors and plain values, saved as safetensors and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from phosphene.errors import InputError
from phosphene.federation.library import PARTS, PrototypeLibrary
from phosphene.federation.settings import FederationSettings
from phosphene.federation.trials import Trials
from phosphene.files import FolderFormat, read_json, write_json

__all__ = ["Agreement", "Contribution", "GlobalState", "RoundReport", "SiteState", "check_agreement"]

_STATE, _TENSORS = "state.json", "tensors.safetensors"
_OF_SERVER = FolderFormat("a server's state", None, (_STATE, _TENSORS), keys=("round", "agreement", "settings"))
_OF_SITE = FolderFormat("a site's state", None, (_STATE, _TENSORS), keys=("round", "site", "people"))
_TERMS = ("total", "task", "retrieval", "proximal", "model contrast", *(f"contrast {part}" for part in PARTS))
_METRICS = ("complete", *sorted(f"loss {term}" for term in _TERMS))
_LONGEST = 60  # characters of a text of another party's that is passed on
_LARGEST = 2**53
_MOST = 2**26  # numbers of a library that is told by its shape: half a gigabyte


@dataclass(frozen=True)
class Agreement:
    """What all sites must have alike before there is anything to average.

    Attributes
    ----------
    classes : tuple of str
        Their names in order.
    image_width, text_width : int
        Of the frozen encoders' embeddings.
    image_encoder, text_encoder : str
        Which encoders these are: their identity.
    width : int
        Of the network's features.
    """

    classes: tuple[str, ...]
    image_width: int
    text_width: int
    width: int
    image_encoder: str = ""
    text_encoder: str = ""

    def __post_init__(self) -> None:
        texts, numbers = (*self.classes, self.image_encoder, self.text_encoder), ("image_width", "text_width", "width")
        if not all(isinstance(each, str) for each in texts):
            raise InputError("names of classes and encoders are text")
        if not all(type(getattr(self, name)) is int for name in numbers):
            raise InputError(f"{', '.join(numbers)} are whole numbers")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise InputError(f"at least two classes of different names are needed, found {', '.join(self.classes)}")
        for name in numbers:
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, found {getattr(self, name)}")

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Self:
        """What `facts` gave."""
        return cls(**{**facts, "classes": tuple(facts["classes"])})

    def differences(self, other: Agreement) -> list[str]:
        """What differs, in words; this one's first."""
        found = []
        for each in fields(self):
            here, there = getattr(self, each.name), getattr(other, each.name)
            if here == there:
                continue
            if each.name == "classes":
                found.append(_class_words(here, there))
            else:
                found.append(f"{each.name.replace('_', ' ')} {_short(repr(here))} instead of {_short(repr(there))}")
        return found


def check_agreement(sites: Mapping[str, Agreement]) -> Agreement:
    """What all sites have alike.

    Raises
    ------
    InputError
        Naming the sites that disagree with most of the others, and in what.
    """
    if not sites:
        raise InputError("a federation needs at least one site")
    known = list(sites.values())
    common = max(known, key=known.count)
    faults = [f"{name}: {'; '.join(each.differences(common))}" for name, each in sites.items() if each != common]
    if faults:
        raise InputError(f"sites disagree with the others ({known.count(common)} of {len(known)}). {'. '.join(faults)}")
    return common


@dataclass(frozen=True, eq=False)
class Contribution:
    """What leaves a site after a round: nothing else does.

    Attributes
    ----------
    site : str
    round : int
        The round it was trained in, counted from 1.
    weights : dict of str to Tensor
        The shared part of the network after local training, float32.
    library : PrototypeLibrary
    n_trials : int
        Trained on.
    n_present : tuple of int
        Trials that have fMRI, image, text.
    agreement : Agreement
    metrics : dict of str to float
    """

    site: str
    round: int
    weights: dict[str, Tensor]
    library: PrototypeLibrary
    n_trials: int
    n_present: tuple[int, int, int]
    agreement: Agreement
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensors that are sent."""
        return _bytes(self.weights, self.library)

    @property
    def told(self) -> dict[str, float]:
        """Its metrics that are finite and of a name that training has; a site may send any other."""
        return {name: self.metrics[name] for name in _METRICS if math.isfinite(self.metrics.get(name, math.nan))}

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and plain values, as engines carry them."""
        facts = {name: getattr(self, name) for name in ("site", "round", "n_trials", "metrics")}
        facts |= {"n_present": list(self.n_present), "agreement": self.agreement.facts}
        facts["library"] = list(self.library.sums.shape)
        return {**_led("weights", self.weights), **_led("library", _sent(self.library))}, facts

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Contribution:
        """What `to_tensors` gave."""
        return cls(
            site=str(facts["site"]),
            round=_whole(facts["round"]),
            weights=_part(tensors, "weights"),
            library=_received(_part(tensors, "library"), facts["library"]),
            n_trials=_whole(facts["n_trials"]),
            n_present=tuple(_whole(n) for n in facts["n_present"]),  # type: ignore[arg-type]
            agreement=Agreement.of_facts(facts["agreement"]),
            metrics={str(name): float(value) for name, value in facts["metrics"].items()},
        )


@dataclass(frozen=True)
class RoundReport:
    """What the server made of a round.

    Attributes
    ----------
    round : int
    used : dict of str to float or None
        Sites whose contribution counted, and the norm of their update; None where the server saw the sum alone.
    refused : dict of str to str
        Sites whose contribution did not, and why.
    without_prototype : list of str
        Classes of which no modality has a prototype yet; none where nothing reads prototypes.
    suppressed : int
        Cells (modality, class, centre) that were sent and had too few trials to be released.
    unmoved : list of str
        Modalities whose encoder stayed as it was: too few of the sites have them.
    """

    round: int
    used: dict[str, float | None]
    refused: dict[str, str]
    without_prototype: list[str]
    suppressed: int
    unmoved: list[str] = field(default_factory=list, kw_only=True)


@dataclass(frozen=True, eq=False)
class GlobalState:
    """What the server holds between rounds, and sends to the sites.

    Attributes
    ----------
    weights : dict of str to Tensor
        The shared part of the network.
    library : PrototypeLibrary
        Cells of enough trials alone.
    agreement : Agreement
    round : int
        Rounds that are done.
    moments : dict of str to Tensor
        Of the server's optimiser; empty where it has none.
    report : RoundReport, optional
        Of the last round.
    """

    weights: dict[str, Tensor]
    library: PrototypeLibrary
    agreement: Agreement
    round: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    report: RoundReport | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of what every site is sent: weights and library."""
        return _bytes(self.weights, self.library)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and plain values: everything the next round depends on."""
        tensors = {**_led("weights", self.weights), **_led("library", _sent(self.library))}
        report = None if self.report is None else asdict(self.report)
        facts = {"round": self.round, "agreement": self.agreement.facts, "report": report}
        facts["library"] = list(self.library.sums.shape)
        return {**tensors, **_led("moments", self.moments)}, facts

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> GlobalState:
        """What `to_tensors` gave."""
        report = facts.get("report")
        return cls(
            _part(tensors, "weights"),
            _received(_part(tensors, "library"), facts["library"]),
            Agreement.of_facts(facts["agreement"]),
            int(facts["round"]),
            _part(tensors, "moments"),
            None if report is None else RoundReport(**report),
        )

    def in_order(self) -> Self:
        """The same with names in the order of a state that was read: norms over all tensors depend on it."""
        return self.from_tensors(*self.to_tensors())  # type: ignore[return-value]

    def save(self, folder: str | Path, settings: FederationSettings) -> None:
        """Write a folder, atomically; the settings go along, so that a run cannot be resumed under others."""
        tensors, facts = self.to_tensors()
        _save(_OF_SERVER, folder, tensors, {**facts, "settings": settings.model_dump(mode="json")})

    @classmethod
    def load(cls, folder: str | Path, settings: FederationSettings) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            For a folder that is damaged, or was written under other settings: they are named.
        """
        tensors, facts = _load(folder)
        _check_settings(Path(folder), facts, settings)
        return cls.from_tensors(tensors, facts)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class SiteState:
    """What stays at a site. Nothing of it is random: draws come from the seed, the site's name and the round.

    Attributes
    ----------
    site : str
    trials : Trials
    agreement : Agreement
    private : dict of str to Tensor
        People's adapters, by ``person/name``; empty before the first round.
    optimiser : dict of str to Tensor
        Moments, where settings keep them over rounds.
    round : int
        The last round it trained in; 0 before the first.
    foretold : dict of str to Tensor (n_s, D_i + D_t + C)
        What closed-form adapters say of each person's trials out of fold; empty before the first round, and where
        adapters are learned.
    last : dict of str to Tensor
        The shared weights it was left with after its last round, where settings need them (MOON).
    """

    site: str
    trials: Trials
    agreement: Agreement
    private: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    round: int = 0
    foretold: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.site:
            raise InputError("a site needs a name")
        if not len(self.trials):
            raise InputError(f"{self.site} has no trials: it can train nothing")
        inputs, labels = self.trials.inputs, self.trials.labels
        found = {"image": inputs.image.shape[1], "text": inputs.text.shape[1]}
        wanted = {"image": self.agreement.image_width, "text": self.agreement.text_width}
        if labels is not None:
            found["classes"], wanted["classes"] = labels.shape[1], len(self.agreement.classes)
        for name, number in found.items():
            if number != wanted[name]:
                what = "classes in its labels" if name == "classes" else f"as width of {name} embeddings"
                raise InputError(f"{self.site} has {number} {what}, the sites agreed on {wanted[name]}")

    @property
    def is_finite(self) -> bool:
        """Whether all that it keeps is; nothing else can be saved and gone on from."""
        kept = (*self.private.values(), *self.optimiser.values(), *self.last.values())
        return all(bool(torch.isfinite(each).all()) for each in kept)

    def save(self, folder: str | Path) -> None:
        """Write what the site has made to a folder there, atomically; trials are not copied."""
        held = {"private": self.private, "optimiser": self.optimiser, "foretold": self.foretold, "last": self.last}
        tensors = {name: each for lead, part in held.items() for name, each in _led(lead, part).items()}
        facts = {"site": self.site, "people": self.trials.inputs.people, "round": self.round}
        _save(_OF_SITE, folder, tensors, facts)

    @classmethod
    def load(cls, folder: str | Path, trials: Trials, agreement: Agreement) -> Self:
        """Read what `save` wrote, for the same trials.

        Raises
        ------
        InputError
            For a folder that is damaged, or of other people.
        """
        tensors, facts = _load(folder)
        if facts.get("people") != trials.inputs.people:
            raise InputError(f"{folder} belongs to {facts.get('people')}, the trials are of {trials.inputs.people}")
        parts = {lead: _part(tensors, lead) for lead in ("private", "optimiser", "foretold", "last")}
        return cls(str(facts["site"]), trials, agreement, round=int(facts["round"]), **parts)


def _class_words(here: tuple[str, ...], there: tuple[str, ...]) -> str:
    extra, lacking = sorted(set(here) - set(there)), sorted(set(there) - set(here))
    if not extra and not lacking:
        return "the same classes in another order"
    words = [f"{len(here)} classes instead of {len(there)}"] if len(here) != len(there) else ["other classes"]
    words += [f"only here {', '.join(map(_short, extra[:5]))}"] if extra else []
    words += [f"lacking {', '.join(map(_short, lacking[:5]))}"] if lacking else []
    return ", ".join(words)


def _short(text: str) -> str:
    """One line of bounded length."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _check_settings(folder: Path, facts: Mapping[str, Any], settings: FederationSettings) -> None:
    was = FederationSettings.build(facts.get("settings"))
    if differ := settings.differences(was):
        raise InputError(
            f"{folder} belongs to a run with other settings: {'; '.join(differ)}; resume with those, or start anew"
        )


def _led(lead: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{lead}/{name}": tensor for name, tensor in tensors.items()}


def _part(tensors: Mapping[str, Tensor], lead: str) -> dict[str, Tensor]:
    """Sorted by name: a dictionary's order must not depend on the way it came here."""
    cut = len(lead) + 1
    return {name[cut:]: tensors[name] for name in sorted(tensors) if name.startswith(f"{lead}/")}


def _bytes(weights: Mapping[str, Tensor], library: PrototypeLibrary) -> int:
    return sum(each.numel() * each.element_size() for each in (*weights.values(), *_sent(library).values()))


def _whole(number: Any) -> int:
    """Another party's number, of a length that can be told."""
    found = int(number)
    if abs(found) > _LARGEST:
        raise InputError(f"a number beyond {_LARGEST} counts nothing here")
    return found


def _sent(library: PrototypeLibrary) -> dict[str, Tensor]:
    """A library as engines carry it: of an empty one its shape says all."""
    return {} if library.is_empty else library.to_tensors()


def _received(tensors: Mapping[str, Tensor], shape: Sequence[int]) -> PrototypeLibrary:
    """What `_sent` gave; a shape alone is another party's words, and costs memory here."""
    if tensors:
        return PrototypeLibrary.from_tensors(tensors)
    sizes = [int(size) for size in shape]
    if len(sizes) != 4 or min(sizes) < 0 or math.prod(sizes) > _MOST:
        raise InputError(f"a library of shape {sizes[:4]} is none of (4, classes, centres, width)")
    return PrototypeLibrary.empty(sizes[1], sizes[3], sizes[2])


def _save(kind: FolderFormat, folder: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    if not all(math.isfinite(float(tensor.sum())) for tensor in tensors.values()):
        raise InputError(f"{folder}: the state holds numbers that are not finite; it is not saved")
    with kind.written(folder) as temporary:
        # clones: safetensors refuses tensors that share memory
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, temporary / _TENSORS)
        write_json(temporary / _STATE, facts)


def _load(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = Path(folder)
    facts = read_json(folder / _STATE)
    try:
        return load_file(folder / _TENSORS), facts
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / _TENSORS} is not a readable safetensors file: {error}") from error
