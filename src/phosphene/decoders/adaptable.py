"""Decoders to which people are added later, each with adapters and layers of their own, in a folder of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from phosphene.decoders.base import Decoder
from phosphene.decoders.borrowed import Borrowed
from phosphene.decoders.folder import PERSON
from phosphene.decoders.seen import seen_together
from phosphene.errors import InputError, unknown
from phosphene.files import check_keys, read_json, write_json
from phosphene.nn.adapter import AdaptedLinear, AdapterBank, LowRank, Person
from phosphene.nn.adapter_file import base_digest, load_adapter, read_adapter, save_adapter
from phosphene.nn.attach import attach, matches
from phosphene.nn.freezing import adapter_names
from phosphene.nn.lora import Activation
from phosphene.settings import Settings
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["ADAPTER_ARMS", "AdaptableDecoder", "AdapterConfig", "check_adaptable", "check_of_arm", "settings_of_arm"]

ADAPTER_ARMS: dict[str, tuple[bool, bool]] = {
    "ridge-only": (False, False),
    "lora": (True, False),
    "skip-lora": (False, True),
    "both": (True, True),
}
"""What a person may get beside an input layer: (LoRA, Skip-LoRA)."""

_OF_LORA = ("lora", "rank", "alpha", "dropout")
_OF_SKIPS = ("skip_rank", "skip_alpha", "skip_tokens", "activation", "decorrelation")


def settings_of_arm(arm: str) -> tuple[str, ...]:
    """Names of the settings of `AdapterConfig` for which an arm has a use."""
    lora, skip = ADAPTER_ARMS.get(arm, (False, False))
    return ("voxel_dropout", *(_OF_LORA if lora else ()), *(_OF_SKIPS if skip else ()))


def check_of_arm(arm: str, given: Mapping[str, Any]) -> None:
    """Refuse settings of adapters that an arm does not have.

    Raises
    ------
    InputError
        Naming them, the arms that have them, and what this one has.
    """
    known = settings_of_arm(arm)
    for name, value in given.items():
        if name not in known:
            arms = [each for each in ADAPTER_ARMS if name in settings_of_arm(each)]
            raise InputError(
                f"{name} = {value!r} is a setting of the arms {' and '.join(arms)}, found arm {arm!r}, which has "
                f"{', '.join(known)}"
            )


class AdapterConfig(Settings):
    """Settings of one person's adapters: the keys of the ``[adapter]`` table of a preset.

    Attributes
    ----------
    lora : tuple of str
        Which shared linear layers get a LoRA, as patterns of their names.
    rank, skip_rank : int
        Rank of each LoRA and of each Skip-LoRA.
    alpha, skip_alpha : float, optional
        A low-rank product is multiplied by alpha / rank; by 1 where it is not given.
    dropout : float
        Of the input of each LoRA.
    skip_tokens : bool
        One more skip, from the voxels to the predicted target itself.
    activation : {"gelu", "silu", "tanh", "linear"}
        Around each skip; "linear" is for ablation.
    decorrelation : float
        Weight of the loss that keeps skips from repeating the linear path; 0 leaves it out.
    voxel_dropout : float
        Of voxels at the input, while the person is adapted to, whatever is trained: the closed form knows the trials
        it came from better than any others, and what is trained on top of it would trust it too much.
    """

    lora: tuple[str, ...] = ("*",)
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    skip_rank: int = Field(8, ge=1)
    skip_alpha: float | None = Field(None, gt=0)
    skip_tokens: bool = False
    activation: Activation = "gelu"
    decorrelation: float = Field(0.1, ge=0)
    voxel_dropout: float = Field(0.0, ge=0, lt=1)


class AdaptableDecoder(Decoder):
    """Base of decoders whose shared weights stay when people are added.

    A subclass keeps everything that belongs to one person in the module lists `personal`, by the person's index, and
    decodes inside ``self.person.using(subject)``.
    """

    personal: ClassVar[tuple[str, ...]] = ("inputs", "standardisers")

    def __init__(self, config: Any, subjects: Mapping[str, int], target_shape: Sequence[int]) -> None:
        super().__init__(config, subjects, target_shape)
        self.person = Person()
        self.voxel_dropout = nn.Dropout(0.0)

    # -- what is whose ------------------------------------------------------------------------------------------

    def own(self, subject: str) -> list[str]:
        """Patterns of the parameters and buffers that are a person's own, adapters apart."""
        return [f"{name}.{self.index(subject)}.*" for name in self.personal]

    @contextmanager
    def alone(self, subject: str) -> Iterator[None]:
        """Leave other people's layers out of the network inside the ``with`` block: not moved, saved or looked at."""
        lists, at = [getattr(self, name) for name in self.personal], self.index(subject)
        parked = [(layers, n, each) for layers in lists for n, each in enumerate(layers) if n != at]
        for layers, number, _ in parked:
            layers[number] = nn.Identity()
        try:
            yield
        finally:
            for layers, number, each in parked:
                layers[number] = each

    @property
    def of_people(self) -> list[str]:
        """Patterns of what belongs to people, whoever they are, and not to the shared base."""
        return [f"{name}.*" for name in self.personal]

    @property
    def base(self) -> str:
        """Digest of the shared base, whatever stands in front of it."""
        return base_digest(self, "anybody", self.of_people)

    def base_for(self, subject: str) -> str:
        """Digest of what a person's adapters rest on: the shared base, and the aligner in front of it if there is one.

        Of the aligner count the template and the maps of the people the base was trained on, and of the person; whoever
        else was added changes nothing.
        """
        return base_digest(self, "anybody", self.of_people, self._beside(subject))

    def _beside(self, subject: str) -> list[str]:
        if self.aligner is None:
            return []
        people = [each for each in self.subjects if each not in self.apart and each != subject]
        return [self.aligner.identity_of([*people, subject])]

    # -- adding somebody ----------------------------------------------------------------------------------------

    def adopt(self, subject: str, n_voxels: int, arm: str = "both", adapter: AdapterConfig | None = None) -> None:
        """Add a person with an input layer and with adapters that start at nothing; what others have is not touched.

        Parameters
        ----------
        subject : str
        n_voxels : int
        arm : {"ridge-only", "lora", "skip-lora", "both"}
        adapter : AdapterConfig, optional

        Raises
        ------
        InputError
            For a person it knows, another arm, names of layers it has not, or a decoder with one input for all.
        """
        if arm not in ADAPTER_ARMS:
            raise unknown("arm with adapters", arm, ADAPTER_ARMS)
        if self.subject_free:
            raise InputError(
                f"this {self.name} decoder has one input for all (pool_subjects) and takes new people as they are: "
                "there is no input of their own to adapt"
            )
        adapter = adapter or AdapterConfig.build()
        self.add_subject(subject, n_voxels)
        lora, skip = ADAPTER_ARMS[arm]
        if lora:
            self._add_lora(subject, adapter)
        if skip:
            self._add_skips(subject, self.subjects[subject], adapter)
        self.apart[subject] = {"arm": arm, "adapter": adapter.model_dump(mode="json")}

    def take_shared(self, other: AdaptableDecoder) -> None:
        """Copy another decoder's shared weights, and nothing that belongs to people.

        Raises
        ------
        InputError
            Where the other is built differently.
        """
        state, left_out = other.state_dict(), adapter_names(other)
        shared = {n: each for n, each in state.items() if n not in left_out and not matches(n, self.of_people)}
        self._make_room(shared)
        here = {name: each.shape for name, each in self.state_dict().items() if not matches(name, self.of_people)}
        if here != {name: each.shape for name, each in shared.items()}:
            raise InputError(f"the shared weights of this {other.name} decoder do not fit: it is built differently")
        self.load_state_dict(shared, strict=False)

    def _add_lora(self, subject: str, adapter: AdapterConfig) -> None:
        linears = {
            name: each
            for name, each in self.named_modules()
            if type(each) in (nn.Linear, AdaptedLinear) and not matches(name, self.of_people)
        }
        for pattern in adapter.lora:
            if not any(matches(name, [pattern]) for name in linears):
                raise InputError(f"no shared linear layer is named like {pattern!r}; there are: {', '.join(linears)}")
        for name in linears:
            if not matches(name, adapter.lora):
                continue
            if type(linears[name]) is nn.Linear:
                attach(self, [name], self._with_bank)
            layer: Any = self.get_submodule(name)
            bank = layer.parts["own"]
            sizes = (layer.in_features, layer.out_features, adapter.rank, adapter.alpha, adapter.dropout)
            self._give(bank, subject, partial(LowRank, *sizes), layer.weight)

    def _with_bank(self, name: str, linear: nn.Linear) -> AdaptedLinear:
        return AdaptedLinear(linear, own=AdapterBank(self.person, partial(LowRank, 1, 1, 1)))

    def _give(self, bank: AdapterBank, subject: str, make: partial[Any], like: Tensor) -> None:
        """Add a person to a bank whose adapters differ in size from person to person."""
        bank.make = make
        bank.add(subject)
        bank.to(like.device)

    def _add_skips(self, subject: str, n_voxels: int, adapter: AdapterConfig) -> None:
        """Give a person paths that skip from the voxels to later layers; decoders without any refuse."""
        raise InputError(f"{self.name} has no place for a Skip-LoRA; arms without: ridge-only, lora")

    @abstractmethod
    def start_person(
        self, subject: str, view: StudyView, targets: Targets, kind: str, borrowed: Borrowed | None = None
    ) -> None:
        """Set the input layer of a person added to a trained decoder, in closed form, from the training view.

        The person's voxels must have been standardised (`set_standardiser`).

        Parameters
        ----------
        subject, view, targets, kind
            As in `warm_start`.
        borrowed : Borrowed, optional
            What other people say of this person's responses (`borrow`).
        """

    @abstractmethod
    def borrow(
        self, aligner: Aligner, others: StudyView, view: StudyView, subject: str, targets: Targets, kind: str
    ) -> Borrowed:
        """What other people's training trials say of this person's, through an aligner that knows everybody."""

    # -- on disk ------------------------------------------------------------------------------------------------

    def _base_state(self) -> dict[str, Tensor]:
        of_adapters, left_out = adapter_names(self), [each for subject in self.apart for each in self.own(subject)]
        state = self.state_dict()
        return {name: each for name, each in state.items() if name not in of_adapters and not matches(name, left_out)}

    def _save_people(self, path: Path) -> None:
        for subject in self.apart:
            self.save_person(path / "people" / subject / "adapter", subject)

    def save_person(self, path: str | Path, subject: str) -> Path:
        """Write what a person has apart from the shared base, atomically.

        ``adapter.safetensors`` (with the digest of base and aligner, `base_for`), ``config.json``, ``voxels.tsv``.
        """
        path, facts = Path(path), self.apart[subject]
        config = {
            "format": PERSON.format,
            "version": 1,
            "subject": subject,
            "index": self.index(subject),
            "n_voxels": self.subjects[subject],
            "space": self.spaces.get(subject, {}),
            **facts,
        }
        with PERSON.written(path) as temporary:
            about = {"subject": subject, "arm": facts["arm"], "decoder": self.name}
            names = (self.own(subject), self.of_people)
            save_adapter(temporary / "adapter.safetensors", self, subject, *names, about, self._beside(subject))
            if subject in self.voxel_tables:
                self.voxel_tables[subject].write_tsv(temporary / "voxels.tsv")
            write_json(temporary / "config.json", config)
        return path

    def _load_people(self, path: Path, without: Collection[str]) -> None:
        for file in sorted(path.glob("people/*/adapter/config.json")):
            if file.parent.parent.name not in without:
                self.load_person(file.parent)

    def load_person(self, path: str | Path) -> str:
        """Add a person from what `save_person` wrote; returns the person's name.

        Raises
        ------
        InputError
            For the adapter of another base model, or of this one behind another aligner, a person it knows, or files
            that are missing or damaged.
        """
        path = Path(path)
        config = read_json(path / "config.json")
        if not isinstance(config, dict) or config.get("format") != PERSON.format:
            raise InputError(f"{path / 'config.json'} is not the config of an adapted person")
        needed = ("subject", "n_voxels", "space", "arm", "adapter")
        check_keys(f"{path / 'config.json'} of an adapted person", config, needed, only=False)
        file, subject = read_adapter(path / "adapter.safetensors"), config["subject"]
        if file.base != (here := self.base_for(subject)):
            front = "without an aligner" if self.aligner is None else f"behind its {self.aligner.name} aligner"
            raise InputError(
                f"{path} belongs to another base model, or another aligner in front of it: to {file.base[:12]}, this "
                f"{self.name} decoder {front} is {here[:12]}; adapt this one to {subject} anew"
            )
        self.adopt(subject, config["n_voxels"], config["arm"], AdapterConfig.build(config["adapter"]))
        tensors = {_moved(name, self.personal, self.index(subject)): each for name, each in file.tensors.items()}
        load_adapter(self, tensors, file.base, subject, self.of_people, self._beside(subject))
        if (path / "voxels.tsv").exists():
            self.arrange_voxels(subject, Table.read_tsv(path / "voxels.tsv"), config["space"])
        known = ("format", "version", "subject", "index", "n_voxels", "space")
        self.know_person(subject, {key: value for key, value in config.items() if key not in known})
        return str(subject)

    def know_person(self, subject: str, facts: Mapping[str, Any]) -> None:
        """Keep what is known of a person's adaptation; what it was trained on counts as seen by the decoder."""
        self.apart[subject] = dict(facts)
        seen = self.provenance.get("training_content")
        if seen is None:
            return
        now = facts.get("training_content", {})
        self.provenance["training_content"] = seen_together(seen, now, facts.get("study"))


def check_adaptable(kind: type[Decoder]) -> None:
    """Refuse decoders to which nobody can be adapted.

    Raises
    ------
    InputError
    """
    if not issubclass(kind, AdaptableDecoder):
        raise InputError(
            f"{kind.name} has no shared weights to which a person could be adapted; mindtuner and wills-aligner have"
        )


def _moved(name: str, personal: Sequence[str], index: int) -> str:
    """The name of a person's own tensor where the person has another index."""
    first, _, rest = name.partition(".")
    return f"{first}.{index}.{rest.partition('.')[2]}" if first in personal else name
