"""`Recording`: one person's responses, trial by voxel, with the way back to the brain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from phosphene.errors import InputError
from phosphene.recordings import maps
from phosphene.table import Table

if TYPE_CHECKING:
    import nibabel

__all__ = ["ROI_PREFIX", "Recording", "ResponseSource", "complete_trials", "named_regions"]

ROI_PREFIX = "roi_"
_BLOCK_BYTES = 32 * 2**20


class ResponseSource(Protocol):
    """A two-dimensional array read by rows: an ndarray or an HDF5 dataset."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


def named_regions(voxels: Table) -> dict[str, np.ndarray]:
    """Boolean masks over voxels: the columns ``roi_<NAME>`` by name."""
    names = [name for name in voxels.columns if name.startswith(ROI_PREFIX)]
    return {name[len(ROI_PREFIX) :]: voxels[name].astype(bool) for name in names}


def complete_trials(trials: Table, subject: str) -> Table:
    """Check the trial table and fill in ``session``, ``run`` and ``repeat`` where they are missing.

    Raises
    ------
    InputError
        Without a ``stimulus_id`` column.
    """
    if "stimulus_id" not in trials:
        raise InputError(f"{subject}: the trials table needs a column stimulus_id; found {', '.join(trials.columns)}")
    filled: dict[str, Any] = {"stimulus_id": trials["stimulus_id"].astype(str)}
    for name in ("session", "run"):
        if name not in trials:
            filled[name] = np.ones(len(trials), dtype=np.int64)
    if "repeat" not in trials:
        seen: dict[str, int] = {}
        repeat = np.empty(len(trials), dtype=np.int64)
        for row, stimulus in enumerate(filled["stimulus_id"].tolist()):
            repeat[row] = seen.get(stimulus, 0)
            seen[stimulus] = repeat[row] + 1
        filled["repeat"] = repeat
    return trials.with_columns(**filled)


class Recording:
    """Responses of one person, lazily read.

    Parameters
    ----------
    subject : str
        The person's name in the study, e.g. ``"sub-01"``.
    responses : ResponseSource
        ``(trials, voxels)``, an array or an open HDF5 dataset; arbitrary units (betas, per cent, z).
    trials : Table
        One row a trial, BIDS words: ``stimulus_id`` (required), ``session``, ``run``, ``onset`` (s), ``duration`` (s),
        ``repeat`` (0-based).
    voxels : Table
        One row a voxel: ``i, j, k`` (0-based volume indices) or ``vertex`` and ``hemisphere`` ("L", "R"); optional
        ``x, y, z`` (mm), ``ncsnr``, and boolean ``roi_<NAME>`` columns.
    space : str
        Name of the space, e.g. ``"func1pt8mm"``, ``"fsaverage5"``, ``"unknown"``.
    affine : (4, 4) array_like, optional
        Voxel indices to mm.
    volume_shape : (3,) sequence of int, optional
        Shape of the volume the indices point into.
    n_vertices : (2,) sequence of int, optional
        Vertices of the left and right surface mesh.
    tr : float, optional
        Seconds between volumes, where responses come from a time series.
    delay : float, optional
        Haemodynamic delay in seconds already applied to the responses.

    Raises
    ------
    InputError
        When the tables do not fit the responses.
    """

    def __init__(
        self,
        subject: str,
        responses: ResponseSource,
        trials: Table,
        voxels: Table,
        space: str = "unknown",
        affine: Any = None,
        volume_shape: Sequence[int] | None = None,
        n_vertices: Sequence[int] | None = None,
        tr: float | None = None,
        delay: float | None = None,
    ) -> None:
        if not subject or "/" in subject:
            raise InputError(f"a subject name must be non-empty and without '/', found {subject!r}")
        self.subject = subject
        self.responses = responses
        shape = tuple(responses.shape)
        if len(shape) != 2:
            raise InputError(f"{subject}: responses must be (trials, voxels), found shape {shape}")
        if len(trials) != shape[0]:
            raise InputError(
                f"{subject}: the trials table has {len(trials)} rows, the responses have {shape[0]} trials"
            )
        if len(voxels) != shape[1]:
            raise InputError(
                f"{subject}: the voxels table has {len(voxels)} rows, the responses have {shape[1]} voxels"
            )
        self.trials = complete_trials(trials, subject)
        self.voxels = voxels
        self.space = space
        self.affine = None if affine is None else np.asarray(affine, dtype=np.float64).reshape(4, 4)
        self.volume_shape = None if volume_shape is None else tuple(int(n) for n in volume_shape)
        self.n_vertices = None if n_vertices is None else tuple(int(n) for n in n_vertices)
        self.tr = tr
        self.delay = delay
        self._sound: np.ndarray | None = None

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return int(self.responses.shape[0])

    @property
    def n_voxels(self) -> int:
        """Number of voxels (or vertices)."""
        return int(self.responses.shape[1])

    @property
    def rois(self) -> dict[str, np.ndarray]:
        """Named regions: boolean masks over voxels."""
        return named_regions(self.voxels)

    def __repr__(self) -> str:
        return f"Recording({self.subject}: {self.n_trials} trials x {self.n_voxels} voxels, space {self.space})"

    def early(self, sessions: float) -> np.ndarray:
        """Which trials were recorded first, ``(trials,)`` bool: those of so many sessions, in order of time.

        Parameters
        ----------
        sessions : float
            2.5 takes the first two and the first half of the third.

        Raises
        ------
        InputError
            For none or fewer, or more than there are.
        """
        session = self.trials["session"]
        numbers = np.unique(session)
        if not 0 < sessions <= len(numbers):
            known = f"{len(numbers)} session{'s' * (len(numbers) > 1)}"
            raise InputError(f"{self.subject} has {known}; asked for the first {sessions:g}")
        whole = int(sessions)
        taken = np.isin(session, numbers[:whole])
        if sessions > whole:
            rows = np.flatnonzero(session == numbers[whole])
            taken[rows[: max(1, round((sessions - whole) * len(rows)))]] = True
        return taken

    def read(self, rows: Any = None, voxels: Any = None) -> np.ndarray:
        """Read trials, float32 ``(n, voxels)``, in the order asked for.

        Rows that lie together on disk are read together; nothing but the wanted rows enters memory.
        """
        wanted = np.arange(self.n_trials)[slice(None) if rows is None else rows]
        chosen: Any = slice(None) if voxels is None else voxels
        if isinstance(self.responses, np.ndarray):
            return np.ascontiguousarray(self.responses[wanted][:, chosen], dtype=np.float32)
        increasing, back = np.unique(wanted, return_inverse=True)
        width = len(np.arange(self.n_voxels)[chosen])
        block = np.empty((len(increasing), width), dtype=np.float32)
        edges = np.flatnonzero(np.diff(increasing) != 1) + 1
        for run in np.split(np.arange(len(increasing)), edges) if len(increasing) else []:
            first, last = int(increasing[run[0]]), int(increasing[run[-1]])
            block[run[0] : run[-1] + 1] = self.responses[first : last + 1][:, chosen]
        return block if np.array_equal(back, np.arange(len(back))) else block[back]

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Walk through trials in blocks of bounded memory: pairs of row numbers and float32 responses."""
        rows = np.arange(self.n_trials) if rows is None else np.asarray(rows)
        size = max(1, _BLOCK_BYTES // (4 * max(1, self.n_voxels)))
        for start in range(0, len(rows), size):
            yield rows[start : start + size], self.read(rows[start : start + size])

    def require_finite(self, rows: np.ndarray) -> None:
        """Refuse these trials where a response is NaN or infinite; all that is held in memory is looked at once.

        A file's were looked at when it was written.

        Raises
        ------
        InputError
            Naming the first trial and voxel.
        """
        if not isinstance(self.responses, np.ndarray):
            return
        if self._sound is None:
            parts = [np.isfinite(block).all(axis=1) for _, block in self.blocks()]
            self._sound = np.concatenate([np.ones(0, dtype=bool), *parts])
        bad = rows[~self._sound[rows]]
        if len(bad):
            voxel = int(np.flatnonzero(~np.isfinite(self.read(bad[:1])[0]))[0])
            raise InputError(
                f"{self.subject}: responses of {len(bad)} trials are NaN or infinite, the first in trial {bad[0]} at "
                f"voxel {voxel}; mask such voxels or drop such trials first"
            )

    def to_nifti(self, vector: Any) -> nibabel.Nifti1Image:
        """Write one value a voxel into a volume (outside the mask: zero)."""
        return maps.to_nifti(vector, self.voxels, self.affine, self.volume_shape)

    def to_gifti(self, vector: Any) -> dict[str, nibabel.GiftiImage]:
        """Write one value a vertex onto the surfaces ``"L"`` and ``"R"`` (outside the mask: NaN)."""
        return maps.to_gifti(vector, self.voxels, self.n_vertices)

    def meta(self) -> dict[str, Any]:
        """Everything but the arrays, as plain values: constructor words `space` to `delay`."""
        return {
            "space": self.space,
            "affine": None if self.affine is None else self.affine.tolist(),
            "volume_shape": self.volume_shape,
            "n_vertices": self.n_vertices,
            "tr": self.tr,
            "delay": self.delay,
        }
