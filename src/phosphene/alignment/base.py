"""The contract of all aligners: one linear map a person, from native voxels into a space that people share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy import sparse

from phosphene.alignment.factored import Factored, Matrix, onto, parts_of, reached
from phosphene.errors import InputError, LeakageError, unknown
from phosphene.files import digest
from phosphene.recordings.recording import named_regions
from phosphene.recordings.surfaces import MESHES
from phosphene.settings import Settings
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.recordings import StudyView

__all__ = ["TRAINING_ROLES", "Aligner", "AlignerSettings", "Matrix", "PersonMap", "Template", "several"]

TRAINING_ROLES = ("train", "validation", "align")  # what a functional aligner may look at
_RCOND = 0.01  # of a pseudo-inverse: what a map hardly passed is not brought back


class AlignerSettings(Settings):
    """Settings every aligner has: none."""


def several(value: Any) -> Any:
    """One number, where candidates are listed, as a list of one.

    Examples
    --------
    >>> several(5), several([5, 10])
    ((5,), [5, 10])
    """
    return (value,) if isinstance(value, int | float) else value


@dataclass(frozen=True)
class Template:
    """The common space: a name, and one row a place.

    Attributes
    ----------
    name : str
        E.g. ``"fsaverage5"``, ``"points-4mm"``, ``"srm-50"``.
    voxels : Table
        One row a place (vertex, grid point, voxel, feature), with whatever is known of it: ``hemisphere``, ``vertex``,
        coordinates, boolean ``roi_<NAME>``.
    n_vertices : (int, int) or None
        Vertices of the whole left and right mesh, where the places are vertices of one.

    Raises
    ------
    InputError
        When the mesh of that name has another number of vertices.
    """

    name: str
    voxels: Table
    n_vertices: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.voxels) == 0:
            raise InputError(f"the template {self.name} has no place that is covered by enough people")
        if self.n_vertices is None:
            return
        known = MESHES.get(self.name)
        if known is not None and tuple(self.n_vertices) != (known, known):
            raise InputError(f"{self.name} has {known} vertices a hemisphere, found {tuple(self.n_vertices)}")
        for side, count in zip("LR", self.n_vertices, strict=True):
            vertex = self.voxels["vertex"][self.voxels["hemisphere"] == side]
            if len(vertex) and vertex.max() >= count:
                raise InputError(f"{self.name}: vertex {vertex.max()} of hemisphere {side} is beyond {count} vertices")

    @property
    def size(self) -> int:
        """Number of places."""
        return len(self.voxels)

    @property
    def rois(self) -> dict[str, np.ndarray]:
        """Named regions: boolean masks over places."""
        return named_regions(self.voxels)

    @cached_property
    def digest(self) -> str:
        """Hash of name and places: equal for equal templates."""
        columns = [str(self.voxels[name].tolist()) for name in self.voxels.columns]
        return digest(self.name, str(self.n_vertices), *self.voxels.columns, *columns)

    def take(self, rows: np.ndarray) -> Template:
        """Some of the places."""
        return Template(self.name, self.voxels.take(rows), self.n_vertices)


@dataclass(frozen=True)
class PersonMap:
    """One person's way into the template: ``aligned = (responses - mean) @ matrix + offset``.

    Attributes
    ----------
    matrix : (V_s, V) csr_array, Factored or ndarray of float32
    mean : (V_s,) ndarray of float32
    offset : (V,) ndarray of float32
    covered : (V,) ndarray of bool
        Places that this person says anything about; columns of the others are zero.
    """

    matrix: Matrix
    mean: np.ndarray
    offset: np.ndarray
    covered: np.ndarray

    @classmethod
    def of(cls, matrix: Matrix, mean: Any = None, offset: Any = None, covered: Any = None) -> PersonMap:
        """Fill in what is not given: no mean, no offset, and covered is what some voxel reaches."""
        n_voxels, size = matrix.shape
        matrix = matrix.astype(np.float32)
        if sparse.issparse(matrix):
            matrix = sparse.csr_array(matrix)
            matrix.sum_duplicates()
        if covered is None:
            covered = reached(matrix, 0)
        zeros = np.zeros
        return cls(
            matrix,
            zeros(n_voxels, np.float32) if mean is None else np.asarray(mean, dtype=np.float32),
            zeros(size, np.float32) if offset is None else np.asarray(offset, dtype=np.float32),
            np.asarray(covered, dtype=bool),
        )

    @property
    def n_voxels(self) -> int:
        """Voxels of the person."""
        return int(self.matrix.shape[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> PersonMap:
        return self  # a map is never changed, and may be large: copies of an aligner share it

    def take(self, rows: np.ndarray) -> PersonMap:
        """The map onto some places of the template."""
        return PersonMap(onto(self.matrix, rows), self.mean, self.offset[rows], self.covered[rows])

    def apply(self, responses: np.ndarray) -> np.ndarray:
        """Responses ``(n, V_s)`` in the template, float32 ``(n, V)``; NaN where the person covers nothing."""
        aligned = np.asarray((responses - self.mean) @ self.matrix, dtype=np.float32) + self.offset
        aligned[:, ~self.covered] = np.nan
        return aligned


class Aligner(ABC):
    """Base of all aligners.

    A subclass declares `name`, `Config` and whether it is `functional` (learns from responses), and writes `_fit` and
    `_add`. What it needs beyond the maps to add a person later goes through `_state` and `_restore`.

    Parameters
    ----------
    config : AlignerSettings
    """

    name: ClassVar[str]
    Config: ClassVar[type[AlignerSettings]] = AlignerSettings
    functional: ClassVar[bool] = False

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config.build() if config is None else config
        self.people: dict[str, PersonMap] = {}
        self.content: dict[str, str] = {}
        self.has_pictures = False
        self.provenance: dict[str, Any] = {}
        self._template: Template | None = None
        self._backwards: dict[str, Matrix] = {}

    def __repr__(self) -> str:
        if self._template is None:
            return f"Aligner({self.name}, not fitted)"
        return f"Aligner({self.name}: {', '.join(self.people)} -> {self.template.name}, {self.template.size} places)"

    # -- fitting ------------------------------------------------------------------------------------------------

    def fit(self, view: StudyView) -> Self:
        """Build the template and the map of every person of the view.

        Functional aligners use the responses to the stimuli of the view that all of its people saw.

        Raises
        ------
        LeakageError
            When a functional aligner is given stimuli whose role is not one of training (`TRAINING_ROLES`).
        InputError
            When somebody lacks what the aligner needs; the message says what.
        """
        self._check_role(view)
        self.people, self.content, self._backwards = {}, {}, {}
        self._template = None
        self._fit(view)
        self.provenance = {"study": view.study_name, "split": view.split_name, "role": view.role}
        for subject in self.people:
            self._note(subject, view)
        return self

    def add(self, subject: str, view: StudyView) -> None:
        """Map one more person into the template; what the others have stays as it is, bit for bit.

        Raises
        ------
        InputError
            For a person who is in the aligner already, or is not in the view.
        """
        _ = self.template
        if subject in self.people:
            raise InputError(f"subject {subject!r} is in this aligner already; it knows {', '.join(self.people)}")
        if subject not in view.subjects:
            raise unknown("subject", subject, view.subjects)
        self._check_role(view)
        self.people[subject] = self._checked(subject, self._add(subject, view))
        self._note(subject, view)

    @abstractmethod
    def _fit(self, view: StudyView) -> None:
        """Set `_template` and the maps, through `_set`."""

    @abstractmethod
    def _add(self, subject: str, view: StudyView) -> PersonMap:
        """The map of one more person."""

    def _set(self, template: Template, people: Mapping[str, PersonMap]) -> None:
        self._template = template
        self.people = {subject: self._checked(subject, person) for subject, person in people.items()}

    def _checked(self, subject: str, person: PersonMap) -> PersonMap:
        if person.matrix.shape[1] != self.template.size:
            raise InputError(
                f"{subject}: a map onto {person.matrix.shape[1]} places does not fit the template {self.template.name} "
                f"of {self.template.size}"
            )
        if not person.covered.any():
            raise InputError(f"{subject} covers no place of the template {self.template.name}: nothing can be aligned")
        return person

    def _note(self, subject: str, view: StudyView) -> None:
        """Keep what a functional aligner has heard of somebody."""
        if not self.functional:
            return
        heard = {"sessions": list(view.sessions(subject)), "n_trials": view.n_trials(subject)}
        self.provenance = {**self.provenance, "people": {**self.provenance.get("people", {}), subject: heard}}

    def _check_role(self, view: StudyView) -> None:
        if self.functional and view.role not in TRAINING_ROLES:
            raise LeakageError(
                f"the functional aligner {self.name} may look at stimuli of the roles {', '.join(TRAINING_ROLES)}, "
                f"found {view.role!r} of split {view.split_name!r}: what is tested on must stay unseen"
            )

    # -- what it knows ------------------------------------------------------------------------------------------

    @property
    def subjects(self) -> list[str]:
        """Names of the people."""
        return list(self.people)

    @property
    def template(self) -> Template:
        """The common space."""
        if self._template is None:
            raise InputError(f"this {self.name} aligner was not fitted yet")
        return self._template

    @property
    def fitted_on(self) -> frozenset[str]:
        """Ids of the stimuli whose responses it learned from; empty for anatomical ones."""
        return frozenset(self.content)

    @property
    def identity(self) -> str:
        """Hash of the template and of everybody's map."""
        return self.identity_of(self.people)

    def identity_of(self, subjects: Iterable[str]) -> str:
        """Hash of the template and of the maps of some people: the same whoever else was added.

        Raises
        ------
        InputError
            For somebody unknown.
        """
        people = {subject: self.person(subject) for subject in subjects}
        arrays = [
            np.ascontiguousarray(part).tobytes()
            for person in people.values()
            for part in (*parts_of(person.matrix).values(), person.mean, person.offset, person.covered)
        ]
        content = hashlib.sha256(b"".join(hashlib.sha256(array).digest() for array in arrays)).hexdigest()
        return digest(self.name, self.template.digest, *people, content)

    def person(self, subject: str) -> PersonMap:
        """Everything about one person's map; an unknown person lists the known ones."""
        _ = self.template  # one that was not fitted says so
        if subject not in self.people:
            raise unknown(f"subject of this {self.name} aligner:", subject, self.people)
        return self.people[subject]

    def matrix(self, subject: str) -> Matrix:
        """The map ``(V_s, V)``, sparse or factored where it is; ``np.asarray`` makes the latter whole."""
        return self.person(subject).matrix

    def covered(self, subject: str) -> np.ndarray:
        """Places this person says anything about, ``(V,)`` bool."""
        return self.person(subject).covered

    def heard(self, subject: str) -> dict[str, Any] | None:
        """Sessions and number of trials of the view a person's map was learned from; None where none or not kept."""
        found: dict[str, Any] | None = self.provenance.get("people", {}).get(subject)
        return found

    def check_apart(self, ids: Iterable[str], hashes: Sequence[str] | np.ndarray | None = None) -> None:
        """Refuse stimuli that this aligner was fitted on.

        Parameters
        ----------
        ids : iterable of str
            Stimuli to be scored.
        hashes : sequence of str, optional
            Their content hashes. A name then counts only with its content, and a picture counts under any name.

        Raises
        ------
        LeakageError
            Naming some of them.
        """
        names = [str(name) for name in ids]
        if hashes is None:
            seen = [name for name in names if name in self.content]
        else:
            pictures = set(self.content.values()) if self.has_pictures else set()
            pairs = zip(names, np.asarray(hashes, dtype=str).tolist(), strict=True)
            seen = [name for name, content in pairs if self.content.get(name) == content or content in pictures]
        if seen:
            raise LeakageError(
                f"the {self.name} aligner was fitted on {len(seen)} of the {len(names)} stimuli to be scored, such as "
                f"{', '.join(seen[:3])}: fit it on a split that holds them out"
            )

    # -- computing ----------------------------------------------------------------------------------------------

    def transform(self, subject: str, responses: np.ndarray) -> np.ndarray:
        """Responses of one person in the template.

        Parameters
        ----------
        responses : (n, V_s) array
            Scaled as those it was fitted on.

        Returns
        -------
        (n, V) float32 ndarray
            NaN at places the person does not cover.
        """
        person = self.person(subject)
        responses = np.asarray(responses, dtype=np.float32)
        if responses.ndim != 2 or responses.shape[1] != person.n_voxels:
            raise InputError(
                f"responses of {subject} must be (trials, {person.n_voxels} voxels), found shape {responses.shape}"
            )
        return person.apply(responses)

    def filled(self, subject: str, responses: np.ndarray) -> np.ndarray:
        """`transform` for what must be finite: zero at places the person does not cover, which `places` tells."""
        return np.nan_to_num(self.transform(subject, responses), copy=False, nan=0.0)

    def places(self, subject: str) -> Table:
        """The template's places, with a column ``covered``: whether this person says anything about them."""
        voxels = self.template.voxels
        columns = {name: voxels[name] for name in voxels.columns}
        return Table({**columns, "covered": self.covered(subject)})

    def space(self) -> dict[str, Any]:
        """The template as `Recording.meta` tells a person's space."""
        return {
            "space": self.template.name,
            "affine": None,
            "volume_shape": None,
            "n_vertices": self.template.n_vertices,
        }

    def inverse(self, subject: str, maps: np.ndarray) -> np.ndarray:
        """Maps over the template brought back to a person's voxels.

        Resampling maps go back by their row-normalised transpose (each voxel takes the mean of the places it gave to),
        functional ones by a pseudo-inverse. For maps (importance, weights, contributions), not for responses: what the
        way into the template has lost does not come back.

        Parameters
        ----------
        maps : (n, V) or (V,) array
            Values at places the person does not cover are ignored.

        Returns
        -------
        (n, V_s) or (V_s,) float32 ndarray
            NaN at voxels that reach no place of the template.
        """
        person = self.person(subject)
        values = np.asarray(maps, dtype=np.float32)
        if values.shape[-1] != self.template.size or values.ndim not in (1, 2):
            raise InputError(f"maps must be (n, {self.template.size} places), found shape {values.shape}")
        values = np.where(person.covered, values, 0.0)
        if not np.isfinite(values).all():
            raise InputError(f"maps hold NaN or infinite values at places that {subject} covers")
        if subject not in self._backwards:
            self._backwards[subject] = self._backward(person)
        native = np.asarray(values @ self._backwards[subject], dtype=np.float32)
        native[..., ~reached(person.matrix, 1)] = np.nan
        return native

    def _backward(self, person: PersonMap) -> Matrix:
        """The map ``(V, V_s)`` from the template back to the voxels."""
        if isinstance(person.matrix, Factored):
            return person.matrix.pinv(_RCOND)
        if not sparse.issparse(person.matrix):
            return np.linalg.pinv(person.matrix, rcond=_RCOND)
        totals = np.asarray(person.matrix.sum(axis=1)).ravel()
        scale = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals != 0)
        return sparse.csr_array((sparse.diags_array(scale) @ person.matrix).T)

    # -- on disk ------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and plain values needed to add people later."""
        return {}, {}

    def _restore(self, tensors: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back what `_state` gave."""

    def save(self, path: str | Path) -> Path:
        """Write the aligner as a folder of plain files, atomically: see `phosphene.alignment.store`."""
        from phosphene.alignment.store import save_aligner

        return save_aligner(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Aligner:
        """Read an aligner folder; every array is held against its checksum, nothing in it is executed."""
        from phosphene.alignment.store import load_aligner

        return load_aligner(path)
