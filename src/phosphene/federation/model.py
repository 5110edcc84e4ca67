"""`PmcmModel`: an encoder a modality, fusion, and heads; what belongs to one person is private and is never shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from phosphene.decoders.lite_mind import LiteMindConfig
from phosphene.decoders.mindeye_mlp import input_layer
from phosphene.decoders.trunks import TRUNKS, Trunk
from phosphene.errors import InputError, unknown
from phosphene.federation.randomness import seeded
from phosphene.federation.settings import FederationModelConfig
from phosphene.federation.state import Agreement
from phosphene.federation.trials import FMRI, IMAGE, MODALITIES, TEXT, Inputs

__all__ = ["Fused", "PmcmModel"]

ADAPTERS = "fmri.adapters."  # what lies beneath belongs to people
_SCORES = 3.0  # factor of foretold classes: few, and below 1, they would drown in the embeddings beside them


@dataclass(frozen=True, eq=False)
class Fused:
    """What the fusion makes of a batch.

    Attributes
    ----------
    z : Tensor (n, d)
    logits : Tensor (n, C), optional
    embedding : Tensor (n, D_i), optional
        In the space of the image embeddings; only its direction counts.
    """

    z: Tensor
    logits: Tensor | None
    embedding: Tensor | None


class LinearTrunk(nn.Module):
    """No blocks: the input layer alone, under the names of `phosphene.decoders.trunks`."""

    def __init__(self, width: int, input_dropout: float) -> None:
        super().__init__()
        self.width, self.input_dropout = width, input_dropout
        self.inputs = nn.ModuleList()

    def add(self, n_in: int) -> None:
        """Make one more input."""
        self.inputs.append(input_layer(n_in, self.width, self.input_dropout))

    def forward(self, responses: Tensor, at: int) -> Tensor:
        """``(n, n_in)`` through input `at` to ``(n, width)``."""
        hidden: Tensor = self.inputs[at](responses)
        return hidden

    def summary(self, hidden: Tensor) -> Tensor:
        """What `forward` gave."""
        return hidden


class BrainEncoder(nn.Module):
    """A private adapter a person, then the shared trunk of a decoder: responses ``(n, V_s)`` to features ``(n, d)``.

    A learned adapter is the trunk's own input layer, one a person. In closed form it is a fixed linear map to what the
    sites have in common (image embedding, text embedding, classes), and the trunk has one input layer for all.
    """

    def __init__(self, config: FederationModelConfig, agreement: Agreement) -> None:
        super().__init__()
        self.config = config
        self.widths = [agreement.image_width, agreement.text_width, len(agreement.classes)]
        trunk = _trunk(config)
        closed = config.adapter == "ridge"
        self.adapters = nn.ModuleList() if closed else trunk.inputs  # first: its parameters are listed under this name
        self.trunk = trunk
        self.mixed = nn.Linear(config.width, config.width)
        if closed:
            trunk.add(sum(self.widths))

    def add(self, n_voxels: int) -> None:
        """Give one more person an adapter."""
        if self.config.adapter == "learned":
            self.trunk.add(n_voxels)
        else:
            silent = nn.Linear(n_voxels, sum(self.widths)).requires_grad_(False)
            nn.init.zeros_(silent.weight), nn.init.zeros_(silent.bias)  # until it is fitted, or loaded
            self.adapters.append(silent)

    def forward(self, responses: Tensor, at: int, adapted: bool = False) -> Tensor:
        """Responses of the person `at` to features; `adapted` ones have been through the adapter."""
        if self.config.adapter == "learned":
            hidden = self.trunk(responses, at)
        else:
            image, text, classes = (responses if adapted else self.adapters[at](responses)).split(self.widths, dim=1)
            scores = classes * _SCORES * sum(self.widths) ** 0.5
            hidden = self.trunk(torch.cat([directions(image), directions(text), scores], dim=1), 0)
        features: Tensor = self.mixed(self.trunk.summary(hidden))
        return features


def directions(embeddings: Tensor) -> Tensor:
    """Embeddings ``(n, D)`` of any scale at the norm sqrt(D), where layers learn alike from all of them."""
    return functional.normalize(embeddings, dim=1) * embeddings.shape[1] ** 0.5


def _trunk(config: FederationModelConfig) -> Trunk | LinearTrunk:
    if config.trunk == "linear":
        return LinearTrunk(config.width, config.input_dropout)
    sizes = {key: LiteMindConfig.model_fields[key].default for key in ("hidden", "heads", "queries")}
    return TRUNKS[config.trunk](SimpleNamespace(**{**sizes, **config.model_dump(exclude={"heads"})}))


class Fusion(nn.Module):
    r"""The paper's fusion, :math:`z = \tanh((W [LN h_f; LN h_i; LN h_t] + b) / 2)`, a LayerNorm a modality."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in MODALITIES])
        self.mix = nn.Linear(len(MODALITIES) * width, width)

    def forward(self, features: Tensor) -> Tensor:
        """``(n, 3, d)`` to ``(n, d)``."""
        normed = [norm(features[:, m]) for m, norm in enumerate(self.norms)]
        return torch.tanh(self.mix(torch.cat(normed, dim=1)) / 2)


class PmcmModel(nn.Module):
    """The network that every site has.

    Nothing in it depends on batch statistics, and what is shared is float32 parameters alone: averaging them is all
    that a server needs.

    Parameters
    ----------
    config : FederationModelConfig
    agreement : Agreement
        Classes and widths of embeddings, alike at all sites.
    seed : int
        Of the weights it starts with.

    Attributes
    ----------
    people : list of str
        Whose brains it knows.
    """

    def __init__(self, config: FederationModelConfig, agreement: Agreement, seed: int = 0) -> None:
        super().__init__()
        self.config, self.agreement, self.seed = config, agreement, seed
        self.people: list[str] = []
        width = config.width
        with seeded(seed, "shared weights"):
            self.fmri = BrainEncoder(config, agreement)
            self.image = _projector(config, agreement.image_width)
            self.text = _projector(config, agreement.text_width)
            self.tokens = nn.Parameter(torch.randn(len(MODALITIES), width) * 0.02)
            self.fusion = Fusion(width)
            self.classify = _classifier(config, len(agreement.classes)) if "classification" in config.heads else None
            self.retrieve = nn.Linear(width, agreement.image_width) if "retrieval" in config.heads else None

    def add_people(self, people: Mapping[str, int]) -> None:
        """Give people adapters; each starts from the seed and the name alone, the others' are untouched."""
        for person, n_voxels in people.items():
            if person in self.people:
                raise InputError(f"{person} has an adapter already")
            with seeded(self.seed, "adapter", person):
                self.fmri.add(n_voxels)
            self.people.append(person)

    # -- computing ----------------------------------------------------------------------------------------------

    def encode(self, inputs: Inputs) -> Tensor:
        """Features of each modality, ``(n, 3, d)``; zeros where one is not present.

        Raises
        ------
        InputError
            For a person without an adapter here, another number of voxels, or another width of embeddings.
        """
        columns = [self._brains(inputs)]
        for m, encoder, rows in ((IMAGE, self.image, inputs.image), (TEXT, self.text, inputs.text)):
            wanted = (self.agreement.image_width, self.agreement.text_width)[m - 1]
            if rows.shape[1] != wanted:
                raise InputError(f"{MODALITIES[m]} embeddings have width {rows.shape[1]}, the sites agreed on {wanted}")
            columns.append(self._placed(len(inputs), inputs.present[:, m], encoder, rows))
        return torch.stack(columns, dim=1)

    def _brains(self, inputs: Inputs) -> Tensor:
        column = self.tokens.new_zeros(len(inputs), self.config.width)
        for person, responses in inputs.responses.items():
            own = torch.from_numpy(inputs.subjects == person)
            held = inputs.present[own, FMRI]
            if not bool(held.any()):
                continue
            if person not in self.people:
                raise unknown("person of this site:", person, self.people)
            features = self.fmri(responses[held], self.people.index(person), inputs.adapted)
            column = column.index_copy(0, own.nonzero().flatten()[held], features)
        return column

    def _placed(self, n: int, held: Tensor, encoder: nn.Module, rows: Tensor) -> Tensor:
        column = self.tokens.new_zeros(n, self.config.width)
        if not bool(held.any()):
            return column
        return column.index_copy(0, held.nonzero().flatten(), encoder(directions(rows[held])))

    def fuse(self, features: Tensor, present: Tensor, substitutes: Tensor) -> Fused:
        """Fusion and heads, where substitutes stand in for what is not present.

        Parameters
        ----------
        features : Tensor (n, 3, d)
            Of `encode`.
        present : Tensor (n, 3) of bool
        substitutes : Tensor (n, 3, d)
            Read at modalities that are not present alone.
        """
        z = self.fusion(torch.where(present[..., None], features, substitutes))
        logits = None if self.classify is None else self.classify(z)
        return Fused(z, logits, None if self.retrieve is None else self.retrieve(z))

    def forward(self, inputs: Inputs, substitutes: Tensor) -> Fused:
        """`encode`, then `fuse`."""
        return self.fuse(self.encode(inputs), inputs.present, substitutes)

    # -- what is shared, and what is not ------------------------------------------------------------------------

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """What all sites have in common, by name."""
        return {name: each for name, each in self.named_parameters() if not _is_private(name)}

    def private_parameters(self) -> dict[str, nn.Parameter]:
        """What belongs to people, by ``person/name``: independent of who else is at the site."""
        found = {}
        for name, each in self.named_parameters():
            if _is_private(name):
                at, rest = name.removeprefix(ADAPTERS).split(".", 1)
                found[f"{self.people[int(at)]}/{rest}"] = each
        return found

    def shared_state(self) -> dict[str, Tensor]:
        """Copies of the shared parameters: all that ever leaves a site of the network."""
        return _copies(self.shared_parameters())

    def private_state(self) -> dict[str, Tensor]:
        """Copies of the people's adapters; they stay at the site."""
        return _copies(self.private_parameters())

    def load_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy shared parameters in.

        Raises
        ------
        InputError
            For names or shapes that do not fit; nothing has been changed then.
        """
        _load(self.shared_parameters(), tensors, "shared weights")

    def load_private(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy people's adapters in; errors as of `load_shared`."""
        _load(self.private_parameters(), tensors, "private adapters")


def _is_private(name: str) -> bool:
    return name.startswith(ADAPTERS)


def _projector(config: FederationModelConfig, n_in: int) -> nn.Module:
    if config.projector == "linear":
        return nn.Linear(n_in, config.width)
    return nn.Sequential(nn.Linear(n_in, config.width), nn.GELU(), nn.Linear(config.width, config.width))


def _classifier(config: FederationModelConfig, n_classes: int) -> nn.Sequential:
    """The paper's head: linear to twice the width, LayerNorm, GELU, linear; the dropout is ours."""
    twice = 2 * config.width
    return nn.Sequential(
        nn.Linear(config.width, twice),
        nn.LayerNorm(twice),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(twice, n_classes),
    )


def _copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: each.detach().cpu().clone().contiguous() for name, each in parameters.items()}


@torch.no_grad()
def _load(places: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], what: str) -> None:
    for name in sorted(places.keys() ^ tensors.keys()):
        raise InputError(f"{what} {'lack' if name in places else 'have one too many,'} {name!r}")
    for name, tensor in tensors.items():
        if tensor.shape != places[name].shape:
            raise InputError(f"{what}: {name!r} is {tuple(tensor.shape)}, {tuple(places[name].shape)} here")
    for name, tensor in tensors.items():
        places[name].copy_(tensor)
