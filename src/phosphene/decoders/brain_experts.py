"""Around a mixture of brain experts: where they stand, what a person's cortex looks like, and how they are used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phosphene.errors import InputError
from phosphene.nn.adapter import AdaptedLinear, AdapterBank, LowRank, Person
from phosphene.nn.attach import attach, batch_axes, matches, matching
from phosphene.nn.experts import Experts, Gates
from phosphene.nn.router import collapsed, information
from phosphene.recordings.recording import named_regions
from phosphene.table import Table

__all__ = ["Anatomies", "anatomy_vector", "attach_experts", "expert_places", "use_of_experts"]

log = logging.getLogger(__name__)

_LINEAR_PATHS = ("linear.people.", "class_path.people.")
_SEES_RESPONSES = ("trunk.inputs.", *_LINEAR_PATHS)


def expert_places(module: nn.Module, words: Sequence[str], within: str = "*") -> list[str]:
    """Names of the linear layers that get experts.

    Parameters
    ----------
    module : Module
        With its trunk under ``trunk`` and a linear path, if there is one, under ``linear``.
    words : sequence of str
        ``"all"`` layers; the ``"first"``, which see responses; ``"last-N"``, the last N of the trunk; or patterns of
        names, as in `phosphene.nn.attach.matching`.
    within : str
        A pattern that all of them must fit.

    Raises
    ------
    InputError
        For a word that fits nothing, with the names there are.

    Examples
    --------
    >>> trunk = nn.ModuleDict({"inputs": nn.ModuleList([nn.Linear(3, 2)])})
    >>> net = nn.ModuleDict({"trunk": trunk, "out": nn.Linear(2, 1)})
    >>> expert_places(net, ["first"]), expert_places(net, ["all"])
    (['trunk.inputs.0'], ['trunk.inputs.0', 'out'])
    """
    known = matching(module, ["*"])
    chosen: set[str] = set()
    for word in words:
        if word == "all":
            chosen |= set(known)
        elif word == "first":
            chosen |= {name for name in known if name.startswith(_SEES_RESPONSES)}
        elif word.startswith("last-") and word[5:].isdecimal():
            chosen |= set([name for name in known if name.startswith("trunk.")][-int(word[5:]) :])
        else:
            chosen |= set(matching(module, [word]))
    places = [name for name in known if name in chosen and matches(name, [within])]
    if not places:
        raise InputError(
            f"insert = {', '.join(words)} leaves no linear layer for experts"
            + (f" among {within}" if within != "*" else "")
            + f"; there are: {', '.join(known)}"
        )
    return places


def attach_experts(
    module: nn.Module,
    names: Sequence[str],
    config: Any,
    gates: Gates,
    person: Person | None,
    reach: Callable[[int], object],
) -> None:
    """Put experts on linear layers; a bank of private ones beside them where a `person` says whose turn it is.

    Parameters
    ----------
    module : Module
    names : sequence of str
    config : Settings
        With ``experts``, ``rank``, ``alpha`` and ``private_rank``.
    gates : Gates
    person : Person, optional
    reach : callable
        Runs the network on so many samples, as for `phosphene.nn.attach.batch_axes`.
    """
    axes = batch_axes(module, names, reach)

    def adapted(name: str, linear: nn.Linear) -> AdaptedLinear:
        sizes = (linear.in_features, linear.out_features)
        parts: dict[str, nn.Module] = {
            "experts": Experts(*sizes, config.experts, config.rank, gates, config.alpha, axes[name])
        }
        if person is not None:
            rank = (name.startswith(_LINEAR_PATHS) and min(config.private_rank, *sizes)) or config.rank
            parts["own"] = AdapterBank(person, lambda: LowRank(*sizes, rank, config.alpha))
        return AdaptedLinear(linear, **parts)

    attach(module, names, adapted)


def anatomy_vector(voxels: Table, columns: Sequence[str]) -> np.ndarray:
    """Mean and deviation of anatomical columns over all voxels and over each named region.

    Parameters
    ----------
    voxels : Table
        A person's own voxels, as recorded.
    columns : sequence of str
        E.g. ``["curvature", "sulc"]``.

    Returns
    -------
    (2 * columns * (1 + regions),) float32 ndarray
        Regions by name; one without voxels has zeros.

    Raises
    ------
    InputError
        Where a column is missing or holds values that are not finite.
    """
    missing = [name for name in columns if name not in voxels]
    if missing:
        raise InputError(
            f"the voxel table lacks {', '.join(missing)}, which are to say what a cortex looks like; it has "
            f"{', '.join(voxels.columns)}"
        )
    regions = named_regions(voxels)
    masks = [np.ones(len(voxels), dtype=bool), *(regions[name] for name in sorted(regions))]
    values = np.stack([voxels[name].astype(np.float64) for name in columns])
    if not np.isfinite(values).all():
        raise InputError(f"{', '.join(columns)} of the voxel table must be finite")
    parts = [values[:, mask] if mask.any() else np.zeros((len(columns), 1)) for mask in masks]
    return np.concatenate([part for each in parts for part in (each.mean(1), each.std(1))]).astype(np.float32)


class Anatomies(nn.Module):
    """Anatomy vectors of all people, standardised over those who were there when it was made.

    Parameters
    ----------
    vectors : Tensor (people, width)

    Attributes
    ----------
    vectors, mean, deviation : Tensor
        Buffers ``(people, width)``, ``(width,)``, ``(width,)``.
    """

    vectors: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        spread = vectors.std(dim=0, correction=0)
        self.register_buffer("vectors", vectors.clone())
        self.register_buffer("mean", vectors.mean(dim=0))
        self.register_buffer("deviation", torch.where(spread > 0, spread, torch.ones_like(spread)))

    @classmethod
    def of(cls, vectors: Sequence[np.ndarray | None]) -> Anatomies:
        """From everybody's vector; none may be missing."""
        known = [vector for vector in vectors if vector is not None]
        if len(known) < len(vectors):
            raise InputError(f"the router needs the anatomy of all {len(vectors)} people, it has {len(known)}")
        return cls(torch.from_numpy(np.stack(known)))

    @property
    def width(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    def add(self) -> None:
        """Make room for one more person, of mean anatomy until it is set."""
        self.vectors = torch.cat([self.vectors, self.mean[None]])

    def set(self, at: int, vector: np.ndarray) -> None:
        """Set one person's vector."""
        self.vectors[at] = torch.from_numpy(vector).to(self.vectors.device)

    def forward(self, at: int | None) -> Tensor:
        """A person's standardised vector, ``(1, width)``; zero, the mean, for somebody unknown."""
        own = self.mean if at is None else self.vectors[at]
        return ((own - self.mean) / self.deviation)[None]


def use_of_experts(gates: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """How people use experts, as plain values; a collapse is warned of by name.

    Parameters
    ----------
    gates : mapping of str to Tensor (trials, K)
        Of each person.
    name : str
        Of the decoder.

    Returns
    -------
    dict
        ``usage`` of each expert, ``collapse`` (words, or None), ``information_expert_subject`` (nats), mean ``gates``
        of each person.
    """
    means = {subject: each.mean(dim=0) for subject, each in gates.items()}
    use = collapsed(torch.stack(list(means.values())))  # every person counts the same
    if use:
        log.warning("the experts of this %s collapsed: %s", name, use)
    people = [subject for subject, each in gates.items() for _ in range(len(each))]
    return {
        "usage": list(use.usage),
        "collapse": str(use) if use else None,
        "information_expert_subject": information(torch.cat(list(gates.values())), people),
        "gates": {subject: mean.tolist() for subject, mean in means.items()},
    }
