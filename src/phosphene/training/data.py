"""From a study to step batches: responses and targets held in memory where they fit, else read step by step."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from phosphene.training.prefetch import prefetched
from phosphene.training.sampling import BatchSampler

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["Budget", "PersonSamples", "StepBatch", "StepLoader", "TargetRows", "plan_memory"]

_BLOCK_BYTES = 32 * 2**20
_MOST_PREFETCHED = 2


class StepBatch:
    """What one process needs for one step; the index tensors describe the batch of all processes.

    A plain class on purpose: Fabric rounds the tensors of tuples and data classes to the precision of the network,
    and targets and responses must stay float32.

    Attributes
    ----------
    calls : list of (str, Tensor (b, V))
        Person and responses of each decoder call of this process.
    targets : Tensor (U, D)
        Flattened targets of the distinct stimuli of the global batch.
    stimulus : Tensor (B,)
        Row of `targets` of each prediction: process by process, in each one person by person.
    partner : Tensor (B,) or None
        Row of `targets` of the stimulus mixed in; None when nothing is mixed.
    share : Tensor (B,) or None
        Weight of the own response.
    sizes : tuple of int
        Predictions of each process; their sum is B.
    labels : Tensor (U, classes) or None
        Which classes the distinct stimuli have.
    """

    def __init__(
        self,
        calls: list[tuple[str, Tensor]],
        targets: Tensor,
        stimulus: Tensor,
        partner: Tensor | None,
        share: Tensor | None,
        sizes: tuple[int, ...],
        labels: Tensor | None = None,
    ) -> None:
        self.calls, self.targets, self.stimulus = calls, targets, stimulus
        self.partner, self.share, self.sizes, self.labels = partner, share, sizes, labels

    def to(self, device: torch.device) -> StepBatch:
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        return StepBatch(
            calls=[(name, responses.to(device)) for name, responses in self.calls],
            targets=self.targets.to(device),
            stimulus=self.stimulus.to(device),
            partner=None if self.partner is None else self.partner.to(device),
            share=None if self.share is None else self.share.to(device),
            sizes=self.sizes,
            labels=None if self.labels is None else self.labels.to(device),
        )


class Budget:
    """Memory that may still be filled with data."""

    def __init__(self, gigabytes: float) -> None:
        self.left = int(gigabytes * 1e9)

    def take(self, size: int) -> bool:
        """Reserve `size` bytes, if there are that many left."""
        if size > self.left:
            return False
        self.left -= size
        return True


def plan_memory(gigabytes: float, everything: int, batch: int) -> tuple[Budget, int]:
    """How much to hold, and how many batches to prepare ahead, within one limit.

    Parameters
    ----------
    gigabytes : float
        The limit.
    everything : int
        Bytes of all data.
    batch : int
        Bytes of the data of one step; while a batch is put together it takes up to twice that.

    Returns
    -------
    budget : Budget
    ahead : int
        0 where all data fit, or where not even one batch more does.
    """
    limit = int(gigabytes * 1e9)
    if everything <= limit:
        return Budget(gigabytes), 0
    ahead = max(0, min(_MOST_PREFETCHED, limit // max(batch, 1) - 1))
    return Budget((limit - (ahead + 1) * batch) / 1e9 if ahead else gigabytes), ahead


class PersonSamples:
    """Samples of one person: single trials, or means over the trials of a stimulus.

    Parameters
    ----------
    view : StudyView
        Part of a study; only its trials are ever read.
    subject : str
    index : mapping of str to int
        Row of each stimulus of the view in the targets.
    repeats : {"single", "average"}
    """

    def __init__(
        self, view: StudyView, subject: str, index: dict[str, int], repeats: Literal["single", "average"]
    ) -> None:
        self.view, self.subject = view, subject
        shown = np.array([index[name] for name in view.trials(subject)["stimulus_id"].tolist()], dtype=np.int64)
        rows = np.arange(len(shown))
        if repeats == "average":
            self.stimulus, sizes = np.unique(shown, return_counts=True)
            rows = np.argsort(shown, kind="stable")
        else:
            self.stimulus, sizes = shown, np.ones(len(shown), dtype=np.int64)
        self._rows = rows
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._held: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.stimulus)

    @property
    def n_voxels(self) -> int:
        """Voxels of the person."""
        return self.view.n_voxels(self.subject)

    @property
    def nbytes(self) -> int:
        """Bytes of all samples in memory."""
        return 4 * len(self) * self.n_voxels

    @property
    def held(self) -> bool:
        """Whether all samples are in memory."""
        return self._held is not None

    def hold(self, budget: Budget) -> None:
        """Load everything into memory if the budget allows it."""
        if not self.held and budget.take(self.nbytes):
            held = np.empty((len(self), self.n_voxels), dtype=np.float32)
            for samples, block in self.blocks():
                held[samples] = block
            self._held = held

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Walk through all samples in bounded memory: pairs of sample numbers and responses."""
        trials = max(1, _BLOCK_BYTES // (4 * self.n_voxels))
        size = max(1, trials * len(self) // max(1, len(self._rows)))
        for start in range(0, len(self), size):
            samples = np.arange(start, min(start + size, len(self)))
            yield samples, self.read(samples)

    def read(self, samples: np.ndarray) -> np.ndarray:
        """Responses of these samples, float32 (n, V), in the order asked for."""
        if self._held is not None:
            return self._held[samples]
        starts, sizes = self._starts[samples], self._starts[samples + 1] - self._starts[samples]
        if np.all(sizes == 1):
            return self.view.responses(self.subject, self._rows[starts])
        ends = np.cumsum(sizes)
        within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        trials = self.view.responses(self.subject, self._rows[np.repeat(starts, sizes) + within])
        return np.add.reduceat(trials, ends - sizes, axis=0) / sizes[:, None].astype(np.float32)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every voxel over the samples, (V,) float32 each, accumulated in float64."""
        count, mean, squares = 0, np.zeros(self.n_voxels), np.zeros(self.n_voxels)
        for _, block in self.blocks():
            # Chan's update: no cancellation between large sums
            centre = block.mean(axis=0, dtype=np.float64)
            away = centre - mean
            squares += ((block - centre) ** 2).sum(axis=0) + away**2 * (count * len(block) / (count + len(block)))
            count += len(block)
            mean += away * len(block) / count
        return mean.astype(np.float32), np.sqrt(squares / max(count, 1)).astype(np.float32)


class TargetRows:
    """Flattened targets of some stimuli, by number, in the type they are stored in; their classes, ``(n, classes)``."""

    def __init__(
        self, targets: Targets, ids: Sequence[str] | np.ndarray, kind: str, labels: np.ndarray | None = None
    ) -> None:
        self.ids, self.labels = np.asarray(ids, dtype=str), labels
        self.width = int(np.prod(targets.shape(kind)))
        self._array = getattr(targets, kind)
        self._rows = targets.rows(self.ids)
        self._held: np.ndarray | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one stimulus' target."""
        return self.width * int(np.dtype(self._array.dtype).itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all targets."""
        return len(self.ids) * self.row_bytes

    def hold(self, budget: Budget) -> None:
        """Load everything into memory if the budget allows it."""
        if self._held is None and budget.take(self.nbytes):
            held = np.empty((len(self.ids), self.width), dtype=self._array.dtype)
            size = max(1, _BLOCK_BYTES // self.row_bytes)
            for start in range(0, len(held), size):
                held[start : start + size] = self.read(np.arange(start, min(start + size, len(held))))
            self._held = held

    @property
    def held(self) -> bool:
        """Whether all targets are in memory."""
        return self._held is not None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Targets (n, D) as stored; float16 is half the way to a GPU, and exact in float32 there."""
        if self._held is not None:
            return self._held[rows]
        values = np.asarray(self._array[self._rows[rows]]).reshape(len(rows), -1)
        _forget_pages(self._array)
        return values

    def variance(self, most: int = 1024) -> float:
        """Variance of a target dimension over stimuli, averaged over dimensions (from at most `most` stimuli)."""
        rows = np.unique(np.linspace(0, len(self.ids) - 1, min(most, len(self.ids))).astype(np.int64))
        total, squares = np.zeros(self.width), np.zeros(self.width)
        size = max(1, _BLOCK_BYTES // (8 * self.width))
        for start in range(0, len(rows), size):
            block = self.read(rows[start : start + size]).astype(np.float64)
            total += block.sum(axis=0)
            squares += (block**2).sum(axis=0)
        value = float(np.mean(squares / len(rows) - (total / len(rows)) ** 2))
        return value if value > 1e-12 else 1.0


def _forget_pages(array: object) -> None:
    """Let go of the pages of memory-mapped arrays: they would count as resident until memory runs short."""
    for part in getattr(array, "parts", [array]):
        base = getattr(part, "base", None)
        if isinstance(part, np.memmap) and part.mode == "r" and isinstance(base, mmap.mmap):
            base.madvise(getattr(mmap, "MADV_DONTNEED", 4))


class StepLoader:
    """Makes the batch of any step; prepares the next ones in a thread where data come from disk.

    Parameters
    ----------
    people : sequence of PersonSamples
    targets : TargetRows
        Indexed by the stimulus numbers of `people`.
    sampler : BatchSampler
    rank, processes : int
        This process and the number of all.
    mixing : tuple of (float, float)
        Probability and Beta parameter of mixing.
    mixing_steps : int
        Steps before this one are mixed.
    ahead : int
        Batches prepared ahead.
    """

    def __init__(
        self,
        people: Sequence[PersonSamples],
        targets: TargetRows,
        sampler: BatchSampler,
        rank: int = 0,
        processes: int = 1,
        mixing: tuple[float, float] = (0.5, 0.15),
        mixing_steps: int = 0,
        ahead: int = _MOST_PREFETCHED,
    ) -> None:
        self.people = {samples.subject: samples for samples in people}
        self.targets, self.sampler = targets, sampler
        self.rank, self.processes = rank, processes
        self._mixing, self._mixing_steps, self.ahead = mixing, mixing_steps, ahead

    def batch(self, step: int) -> StepBatch:
        """The batch of one step."""
        mixed = self.sampler.mixing(step, *self._mixing) if step < self._mixing_steps else None
        return self.assembled(self.sampler.draw(step), mixed)

    def assembled(
        self, drawn: dict[str, np.ndarray], mixed: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
    ) -> StepBatch:
        """The batch of these samples of each person, mixed with partners where these are given."""
        own: list[np.ndarray] = []
        other: list[np.ndarray] = []
        share: list[np.ndarray] = []
        sizes: list[int] = []
        for rank in range(self.processes):
            for name, samples in drawn.items():
                stimulus = self.people[name].stimulus[samples]
                own.append(stimulus[rank :: self.processes])
                if mixed is not None:
                    partner, weight = mixed[name]
                    other.append(stimulus[partner][rank :: self.processes])
                    share.append(weight[rank :: self.processes])
            sizes.append(sum(len(samples[rank :: self.processes]) for samples in drawn.values()))
        rows, where = np.unique(np.concatenate([*own, *other]), return_inverse=True)
        total = sum(sizes)
        return StepBatch(
            calls=[(name, self._responses(name, drawn[name], mixed)) for name in drawn],
            targets=torch.from_numpy(self.targets.read(rows)),
            stimulus=torch.from_numpy(where[:total]),
            partner=torch.from_numpy(where[total:]) if mixed is not None else None,
            share=torch.from_numpy(np.concatenate(share)) if mixed is not None else None,
            sizes=tuple(sizes),
            labels=None if self.targets.labels is None else torch.from_numpy(self.targets.labels[rows]),
        )

    def _responses(
        self, name: str, samples: np.ndarray, mixed: dict[str, tuple[np.ndarray, np.ndarray]] | None
    ) -> Tensor:
        """Responses of this process's part of a person's samples, mixed with their partners'."""
        part = slice(self.rank, None, self.processes)
        if mixed is None:
            return torch.from_numpy(self.people[name].read(samples[part]))
        partner, share = mixed[name]
        needed, where = np.unique(np.concatenate([samples[part], samples[partner][part]]), return_inverse=True)
        responses = torch.from_numpy(self.people[name].read(needed))
        own, other = torch.from_numpy(where).chunk(2)
        return torch.lerp(responses[other], responses[own], torch.from_numpy(share[part])[:, None])

    def walk(self, first: int, last: int) -> Iterator[StepBatch]:
        """Batches of steps `first` to `last` - 1."""
        in_memory = self.targets.held and all(samples.held for samples in self.people.values())
        yield from prefetched(self.batch, first, last, 0 if in_memory else self.ahead)
