r"""`PrototypeLibrary`: sums and counts of features by class and modality, which add up exactly whatever the order.

A prototype is :math:`P^m[c] = \sum_n s_n[c] h^m_n / \sum_n s_n[c]` over the trials that have modality `m`, with soft
labels `s`. What is kept and sent are numerator and denominator: sites' add up to the library of all trials, and a class
that a site does not have adds nothing. Features and labels are rounded to multiples of powers of two before they are
multiplied, so that every sum below the bounds here is exact in float64: the same bits in any order and any grouping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from phosphene.errors import InputError
from phosphene.federation.settings import LibrarySettings
from phosphene.federation.trials import MODALITIES

__all__ = ["FUSION", "GRID", "NEVER", "PARTS", "PrototypeLibrary", "Prototypes", "clip_rows"]

PARTS = (*MODALITIES, "fusion")
FUSION = len(MODALITIES)
NEVER = 2**31  # age of what nobody has ever sent

_FEATURE, _LABEL = 2.0**-18, 2.0**-12
GRID = _FEATURE * _LABEL  # every sum is a multiple of this
_LARGEST = 2.0**22  # beyond it multiples of the grid are not exact in float64


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Class means that may be read: those of enough trials.

    Attributes
    ----------
    vectors : Tensor (4, C, K, d)
        By part (fMRI, image, text, fusion), class and centre, float32; zeros where not available.
    available : Tensor (4, C, K) of bool
    counts : Tensor (4, C, K)
        Trials behind each, float32; 0 where not available.
    """

    vectors: Tensor
    available: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class PrototypeLibrary:
    """Sums, counts and ages by part, class and centre.

    Attributes
    ----------
    sums : Tensor (4, C, K, d)
        float64.
    counts : Tensor (4, C, K)
        Sums of soft labels, float64.
    age : Tensor (4, C)
        Rounds since somebody last sent something, int64; `NEVER` before.

    Examples
    --------
    >>> features = torch.ones(2, 4, 3)
    >>> one = PrototypeLibrary.of(features, torch.ones(2, 4).bool(), torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
    >>> one.counts[0, :, 0].tolist(), (one + one).counts[0, :, 0].tolist()
    ([1.5, 0.0], [3.0, 0.0])
    """

    sums: Tensor
    counts: Tensor
    age: Tensor

    def __post_init__(self) -> None:
        parts, classes, centres = self.counts.shape if self.counts.ndim == 3 else (0, 0, 0)
        shapes = (tuple(self.sums.shape[:3]), self.sums.ndim, tuple(self.age.shape))
        if parts != len(PARTS) or shapes != ((parts, classes, centres), 4, (parts, classes)):
            raise InputError(
                f"a library has sums (4, C, K, d), counts (4, C, K) and age (4, C), found {tuple(self.sums.shape)}, "
                f"{tuple(self.counts.shape)} and {tuple(self.age.shape)}"
            )
        dtypes = (self.sums.dtype, self.counts.dtype, self.age.dtype)
        if dtypes != (torch.float64, torch.float64, torch.int64):
            raise InputError(f"a library's sums and counts are float64, its age int64, found {dtypes}")

    @classmethod
    def empty(cls, classes: int, width: int, centres: int = 1) -> PrototypeLibrary:
        """A library of nothing: adding it changes no bit."""
        parts = len(PARTS)
        return cls(
            torch.zeros(parts, classes, centres, width, dtype=torch.float64),
            torch.zeros(parts, classes, centres, dtype=torch.float64),
            torch.full((parts, classes), NEVER, dtype=torch.int64),
        )

    @classmethod
    def of(
        cls, features: Tensor, held: Tensor, labels: Tensor, centre: Tensor | None = None, centres: int = 1
    ) -> PrototypeLibrary:
        """Sums and counts of some trials.

        Parameters
        ----------
        features : Tensor (n, 4, d)
            Of the modalities and the fusion; what is not held is not looked at, and may be anything.
        held : Tensor (n, 4) of bool
            What each trial contributes to.
        labels : Tensor (n, C)
            Soft labels in [0, 1]; a trial contributes to all its classes.
        centre : Tensor (n, C) of int, optional
            To which centre of each class: see `phosphene.federation.retrieval.assign_centres`.
        centres : int
            K.

        Raises
        ------
        InputError
            For features that are held and not finite, or so large that their sum would not be exact.
        """
        n, parts, _ = features.shape
        if parts != len(PARTS) or held.shape != (n, parts) or len(labels) != n:
            raise InputError(
                f"features (n, 4, d), held (n, 4) and labels (n, C) are needed, found {tuple(features.shape)}, "
                f"{tuple(held.shape)} and {tuple(labels.shape)}"
            )
        rows = torch.where(held[..., None], features.detach().double(), 0.0)
        weights = _on_grid(labels.detach().double(), _LABEL)
        if not bool(torch.isfinite(rows).all()):
            raise InputError("a feature that would enter the prototypes is not finite")
        if bool((rows.abs().sum(dim=0) > _LARGEST).any()):
            raise InputError(f"features add up to more than {_LARGEST:g}: their sum would not be exact")
        if centre is None:
            centre = torch.zeros(n, labels.shape[1], dtype=torch.int64)
        chosen = torch.nn.functional.one_hot(centre, centres).double() * weights[..., None]  # (n, C, K)
        sums = torch.einsum("nck,nmd->mckd", chosen, _on_grid(rows, _FEATURE))
        counts = torch.einsum("nck,nm->mck", chosen, held.double())
        age = torch.where(counts.sum(dim=2) > 0, 0, NEVER)
        return cls(sums + 0.0, counts, age)  # + 0.0: a zero has one sign

    @classmethod
    def total(cls, parts: Iterable[PrototypeLibrary]) -> PrototypeLibrary:
        """The sum of at least one library."""
        return reduce(lambda one, other: one + other, parts)

    @classmethod
    def of_sites(cls, parts: Sequence[PrototypeLibrary]) -> PrototypeLibrary:
        r"""As `total`, but for the weights: a class's mean is that of the sites' means.

        .. math:: P^m[c] = \sum_k w^m_k p^m_k[c] / \sum_{k: c \in k} w^m_k

        with `w` the trials of a site that have modality `m`, of whatever class: the published aggregation. A site of
        two trials of a class and many of others has as much of a say as one with many of the class.
        """
        total = cls.total(parts)
        weighted, weights = torch.zeros_like(total.sums), torch.zeros_like(total.counts)
        for each in parts:
            trials = each.counts.sum(dim=(1, 2))[:, None, None] * (each.counts > 0)
            means = each.sums / torch.where(each.counts > 0, each.counts, 1.0)[..., None]
            weighted, weights = weighted + trials[..., None] * means, weights + trials
        share = total.counts / torch.where(weights > 0, weights, 1.0)
        return cls(_on_grid(weighted * share[..., None], GRID), total.counts, total.age)

    def __add__(self, other: PrototypeLibrary) -> PrototypeLibrary:
        if self.sums.shape != other.sums.shape:
            raise InputError(f"libraries of {self.words} and of {other.words} do not add up")
        return PrototypeLibrary(self.sums + other.sums, self.counts + other.counts, torch.minimum(self.age, other.age))

    @property
    def is_empty(self) -> bool:
        """Whether it is what `empty` gives: nobody ever sent anything."""
        return not bool(self.sums.any() or self.counts.any() or (self.age != NEVER).any())

    @property
    def words(self) -> str:
        """Its size in words."""
        _, classes, centres, width = self.sums.shape
        return f"{classes} classes, {centres} centres, width {width}"

    # -- what may be read ---------------------------------------------------------------------------------------

    def suppressed(self, min_count: float) -> PrototypeLibrary:
        """The same without cells of fewer than `min_count` trials (sums of soft labels): nothing is left of them."""
        kept = (self.counts >= min_count) & (self.counts > 0)
        counts = torch.where(kept, self.counts, 0.0)
        age = torch.where(kept.any(dim=2), self.age, NEVER)
        return PrototypeLibrary(torch.where(kept[..., None], self.sums, 0.0), counts, age)

    def release(self, min_count: float = 0.0) -> Prototypes:
        """Means of the cells of at least `min_count` trials."""
        kept = self.suppressed(min_count)
        available = kept.counts > 0
        means = kept.sums / torch.where(available, kept.counts, 1.0)[..., None]
        return Prototypes(means.float(), available, kept.counts.float())

    def renewed(self, new: PrototypeLibrary, settings: LibrarySettings) -> PrototypeLibrary:
        """The server's library after a round in which `new` (the sum of what sites sent) came.

        Cells of too few trials count as not sent. What was sent replaces the old (a share `memory` of which stays);
        other cells keep what they had. A class of which nothing came is a round older, until `max_age`.
        """
        new = new.suppressed(settings.min_count)
        sent = new.counts > 0
        sums, counts = new.sums, new.counts
        if settings.memory:
            sums = sums + _on_grid(settings.memory * self.sums, GRID)
            counts = counts + _on_grid(settings.memory * self.counts, _LABEL)
        age = torch.where(sent.any(dim=2), 0, torch.where(self.age < NEVER, self.age + 1, NEVER))
        if settings.max_age is not None:
            age = torch.where(age > settings.max_age, NEVER, age)
        known = (age < NEVER)[..., None]
        counts = torch.where(known, torch.where(sent, counts, self.counts), 0.0)
        sums = torch.where(known[..., None], torch.where(sent[..., None], sums, self.sums), 0.0)
        return PrototypeLibrary(sums, counts, age)

    # -- as tensors ---------------------------------------------------------------------------------------------

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors: ``sums``, ``counts``, ``age``."""
        return {"sums": self.sums, "counts": self.counts, "age": self.age}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PrototypeLibrary:
        """What `to_tensors` gave."""
        if missing := {"sums", "counts", "age"} - tensors.keys():
            raise InputError(f"a library lacks {', '.join(sorted(missing))}")
        return cls(tensors["sums"], tensors["counts"], tensors["age"])


def clip_rows(features: Tensor, limit: float) -> Tensor:
    """Vectors along the last axis scaled down to a norm of at most `limit`."""
    norms = features.norm(dim=-1, keepdim=True)
    return features * torch.clamp(limit / norms.clamp_min(torch.finfo(features.dtype).tiny), max=1.0)


def _on_grid(values: Tensor, step: float) -> Tensor:
    return torch.round(values / step) * step
