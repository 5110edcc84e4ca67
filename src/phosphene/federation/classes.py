"""Classes that all sites agree on: from label columns, or clusters of image embeddings of public stimuli."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from phosphene.errors import InputError, LeakageError
from phosphene.files import atomic_path, digest
from phosphene.stimuli.multilabel import find_classes, label_matrix
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.encoders import Targets

__all__ = ["ClusterClasses", "LabelClasses", "clusters_digest"]


@dataclass(frozen=True)
class LabelClasses:
    """Classes that stand in label columns.

    Attributes
    ----------
    names : tuple of str
    columns : tuple of str
        Names or patterns: see `phosphene.stimuli.multilabel`.

    Examples
    --------
    >>> table = Table({"shape": ["ball", "box"]})
    >>> LabelClasses.found(table, ["shape"]).labels(table).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def found(cls, labels: Table, columns: Sequence[str]) -> Self:
        """Those that occur in the labels of some stimuli: public ones, or the union of what sites report."""
        return cls(find_classes(labels, columns), tuple(columns))

    def labels(self, labels: Table) -> np.ndarray:
        """Which stimulus has which class, float32 ``(stimuli, C)``; a class nobody has is a column of zeros."""
        return label_matrix(labels, self.columns, self.names).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ClusterClasses:
    """Classes that are clusters of image embeddings, for stimuli without labels.

    Attributes
    ----------
    centres : (C, D) float32 ndarray
    fitted_on : frozenset of str
        The public stimuli they were fitted on.
    encoder : str
        Identity of the encoder whose embeddings these are.
    """

    centres: np.ndarray
    fitted_on: frozenset[str]
    encoder: str

    @classmethod
    def fit(cls, targets: Targets, ids: Sequence[str] | np.ndarray, n_classes: int, seed: int = 0) -> Self:
        """K-means of normalised embeddings of public stimuli; clusters are listed by size, then by their first number.

        Parameters
        ----------
        targets : Targets
        ids : sequence of str
            Public stimuli; never those of a test part: see `check_apart`.
        n_classes : int
        seed : int

        Raises
        ------
        InputError
            For fewer than two classes, or fewer different stimuli than classes.
        """
        from sklearn.cluster import KMeans

        rows = _normalised(targets.of(ids, "pooled"))
        if not 2 <= n_classes <= len(np.unique(rows, axis=0)):
            raise InputError(
                f"clusters must be at least 2 and no more than the {len(np.unique(rows, axis=0))} different stimuli "
                f"they are fitted on, found {n_classes}"
            )
        fitted = KMeans(n_classes, n_init=10, random_state=seed).fit(rows.astype(np.float64))
        sizes = np.bincount(fitted.labels_, minlength=n_classes)
        order = np.lexsort((fitted.cluster_centers_[:, 0], -sizes))
        centres = fitted.cluster_centers_[order].astype(np.float32)
        return cls(centres, frozenset(np.asarray(ids, dtype=str).tolist()), targets.identity)

    @property
    def names(self) -> tuple[str, ...]:
        """``cluster-000-<digest>`` and so on: sites with other centres have other names."""
        return tuple(f"cluster-{c:03d}-{digest(row)[:8]}" for c, row in enumerate(self.centres))

    @property
    def digest(self) -> str:
        """Of names and encoder: by it a run says which clusters are meant."""
        return clusters_digest(self.names, self.encoder)

    def labels(self, targets: Targets, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """The nearest cluster of each stimulus, one-hot float32 ``(stimuli, C)``.

        Raises
        ------
        InputError
            For embeddings of another encoder.
        """
        if targets.identity != self.encoder:
            raise InputError(f"clusters of {self.encoder} cannot be looked up with embeddings of {targets.identity}")
        rows = _normalised(targets.of(ids, "pooled"))
        distance = ((rows[:, None].astype(np.float64) - self.centres[None]) ** 2).sum(axis=2)
        return np.eye(len(self.centres), dtype=np.float32)[distance.argmin(axis=1)]

    def check_apart(self, ids: Iterable[str]) -> None:
        """Refuse to be evaluated on stimuli the clusters were fitted on.

        Raises
        ------
        LeakageError
        """
        if shared := sorted(self.fitted_on & set(ids)):
            raise LeakageError(
                f"{len(shared)} test stimuli were used to fit the clusters, such as {', '.join(shared[:5])}"
            )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and plain values, to be sent to all sites."""
        return {"centres": torch.from_numpy(self.centres.copy())}, {
            "fitted_on": sorted(self.fitted_on),
            "encoder": self.encoder,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        """What `to_tensors` gave."""
        return cls(tensors["centres"].numpy(), frozenset(facts["fitted_on"]), str(facts["encoder"]))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically: what every site has on its own disk."""
        tensors, facts = self.to_tensors()
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"clusters": json.dumps(facts)})

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            For a file that is not there, damaged, or of something else.
        """
        try:
            with safe_open(path, "pt") as held:
                found = cls.from_tensors(
                    {"centres": held.get_tensor("centres")}, json.loads(held.metadata()["clusters"])
                )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no readable file of clusters: {error}") from error
        if found.centres.ndim != 2 or len(found.centres) < 2 or not np.isfinite(found.centres).all():
            raise InputError(
                f"{path} holds centres {found.centres.shape}: at least two rows of finite numbers are needed"
            )
        return found


def clusters_digest(names: Sequence[str], encoder: str) -> str:
    """Hash of clusters by their names, which hold their centres' digests, and by the encoder they are of."""
    return digest("\n".join(names), encoder)


def _normalised(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
