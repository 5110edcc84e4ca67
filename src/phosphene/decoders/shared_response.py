"""Kernel ridge in a space that people share: for small studies of people on one voxel grid who saw the same stimuli.

Our own rival, no published method. A row is one person's response to one stimulus (repeats averaged), z-scored over
voxels and centred per person. Voxel v of person s is weighted by its agreement with the others,
``w_sv = max(floor, corr(x_sv, mean of the others))``; directions in which people differ on the same stimulus are damped
by ``M = (I + g/m R'R)^-1``, R being the rows minus the mean over people of their stimulus and m the mean squared length
of a row of R. With c the cosine of two rows under M, the kernel is::

    k = exp(sharpness (c - 1)) (1 + own [same person])

or c itself for a sharpness of zero. Ridge on it predicts the centred target; the prediction is brought to the mean
length of a centred target, because cosines with targets that share a large mean would otherwise see the mean alone.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from phosphene.decoders.base import Decoder, DecoderConfig
from phosphene.decoders.ridge import inner_folds
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = [
    "SharedResponse",
    "SharedResponseConfig",
    "SharedSpace",
    "agreement_weights",
    "kernel_of",
    "residual_operator",
    "standardise_rows",
    "whitening_matrix",
]

log = logging.getLogger(__name__)

_FEW = 10  # an agreement over fewer stimuli is noise
_MOST_ROWS = 20_000  # the kernel of the training rows is held in memory


class Choice(NamedTuple):
    """One candidate of what inner folds choose."""

    whitening: float
    sharpness: float
    own: float
    penalty: float


class SharedResponseConfig(DecoderConfig):
    """Settings of shared-response; of the first four, inner folds over units choose among the candidates.

    Attributes
    ----------
    whitening : tuple of float
        g, how strongly differences between people are damped; 0 does not.
    sharpness : tuple of float
        Of the kernel; 0 is linear in the cosine.
    own : tuple of float
        Extra weight of the person's own rows.
    penalty : tuple of float
        Of ridge, in units of the mean of the kernel's diagonal.
    floor : float
        Least weight of a voxel.
    folds : int
        Inner folds.
    """

    whitening: tuple[float, ...] = (0.5, 2.0)
    sharpness: tuple[float, ...] = (0.0, 8.0)
    own: tuple[float, ...] = (0.0, 8.0)
    penalty: tuple[float, ...] = (0.03, 0.3, 3.0)
    floor: float = Field(0.02, gt=0, le=1)
    folds: int = Field(4, ge=2)

    def candidates(self) -> list[Choice]:
        """All combinations."""
        return [Choice(*values) for values in itertools.product(self.whitening, self.sharpness, self.own, self.penalty)]


def standardise_rows(responses: Tensor) -> Tensor:
    """z-score every row ``(n, voxels)`` over its voxels: offset and gain of a single trial carry no content."""
    centred = responses - responses.mean(dim=1, keepdim=True)
    spread = centred.std(dim=1, keepdim=True, correction=0)
    return centred / torch.where(spread > 1e-9, spread, 1.0)


def agreement_weights(rows: Tensor, person: Tensor, stimulus: Tensor, floor: float) -> Tensor:
    """Correlation of each person's voxels with the mean of the others over shared stimuli, ``(people, voxels)``.

    At least `floor`; one everywhere for somebody who shares fewer than ten stimuli. Scaled to a mean square of
    1 / voxels, so that lengths of rows do not depend on their number.
    """
    n_people = int(person.max()) + 1
    weights = torch.ones(n_people, rows.shape[1], dtype=rows.dtype)
    same = (stimulus[:, None] == stimulus[None, :]).to(rows.dtype)
    for s in range(n_people):
        mine = torch.nonzero(person == s)[:, 0]
        others = same[mine] * (person != s).to(rows.dtype)
        shared = others.sum(dim=1) > 0
        if int(shared.sum()) >= _FEW:
            others = others[shared]
            theirs = (others @ rows) / others.sum(dim=1, keepdim=True)
            weights[s] = _columns_correlation(rows[mine[shared]], theirs).clamp_min(floor)
    return weights / (weights.square().mean() * rows.shape[1]).sqrt()


def _columns_correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    scale = a.norm(dim=0) * b.norm(dim=0)
    return torch.where(scale > 1e-12, (a * b).sum(dim=0) / scale.clamp_min(1e-12), 0.0)


def residual_operator(stimulus: Tensor) -> Tensor:
    """Matrix that takes rows to rows minus the mean of their stimulus, for stimuli with more than one row."""
    same = (stimulus[:, None] == stimulus[None, :]).double()
    operator = torch.eye(len(stimulus), dtype=torch.float64) - same / same.sum(dim=1, keepdim=True)
    return operator[same.sum(dim=1) > 1]


def whitening_matrix(gram: Tensor, residual: Tensor, strength: float) -> Tensor:
    """Q with ``a M b' = a b' - (a X') Q (X b')`` for training rows X: Woodbury, without a voxel-by-voxel matrix."""
    if not len(residual) or strength == 0:
        return torch.zeros_like(gram)
    scatter = residual @ gram @ residual.T
    mean_square = scatter.diagonal().mean().clamp_min(1e-12)
    ridge = mean_square / strength * torch.eye(len(scatter), dtype=scatter.dtype)
    return residual.T @ torch.linalg.solve(scatter + ridge, residual)


def kernel_of(cosine: Tensor, same_person: Tensor, sharpness: float, own: float) -> Tensor:
    """The kernel from cosines and whether rows are of one person, both ``(a, b)``."""
    kernel = torch.exp(sharpness * (cosine - 1)) if sharpness else cosine
    return kernel * (1 + own * same_person.to(kernel.dtype))


@dataclass(frozen=True)
class _Rows:
    """Training rows before anything is fitted to them."""

    responses: Tensor  # (N, V), z-scored over voxels
    person: Tensor
    stimulus: Tensor
    targets: Tensor  # (N, D)
    units: np.ndarray

    def take(self, rows: np.ndarray) -> _Rows:
        return _Rows(self.responses[rows], self.person[rows], self.stimulus[rows], self.targets[rows], self.units[rows])


@dataclass(frozen=True)
class _Space:
    """What puts responses into the shared space; fitted on rows."""

    centre: Tensor  # (people, V)
    weights: Tensor  # (people, V)
    rows: Tensor  # (N, V) centred and weighted training rows
    gram: Tensor  # (N, N)
    residual: Tensor

    @classmethod
    def fit(cls, data: _Rows, floor: float) -> _Space:
        people = range(int(data.person.max()) + 1)
        centre = torch.stack([data.responses[data.person == s].mean(dim=0) for s in people])
        centred = data.responses - centre[data.person]
        weights = agreement_weights(centred, data.person, data.stimulus, floor)
        rows = centred * weights[data.person]
        return cls(centre, weights, rows, rows @ rows.T, residual_operator(data.stimulus))


class SharedSpace(nn.Module):
    """The fitted state for people on one grid: plain buffers, empty until fitted."""

    centre: Tensor
    weights: Tensor
    rows: Tensor
    whitener: Tensor
    leftover: Tensor
    length: Tensor
    dual: Tensor
    mean: Tensor
    chosen: Tensor
    person: Tensor

    def __init__(self, n_voxels: int, n_outputs: int) -> None:
        super().__init__()
        shapes = {
            "centre": (0, n_voxels),
            "weights": (0, n_voxels),
            "rows": (0, n_voxels),
            "whitener": (0, 0),
            "leftover": (0, 0),
            "length": (0,),
            "dual": (0, n_outputs),
            "mean": (n_outputs,),
            "chosen": (len(Choice._fields) + 1,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("person", torch.zeros(0, dtype=torch.long))

    def set(self, data: _Rows, space: _Space, choice: Choice) -> None:
        """Fit to rows with the candidate that was chosen."""
        kernel, whitener, leftover, length = _training_kernel(data, space, choice)
        mean = data.targets.mean(dim=0)
        centred = data.targets - mean
        fitted = {
            "centre": space.centre,
            "weights": space.weights,
            "rows": space.rows,
            "whitener": whitener,
            "leftover": leftover,
            "length": length,
            "dual": _ridge(kernel, centred, choice.penalty),
            "mean": mean,
            "chosen": torch.tensor([*choice, float(centred.norm(dim=1).mean())]),
        }
        device = self.mean.device
        for name, tensor in fitted.items():
            self.register_buffer(name, tensor.float().contiguous().to(device))
        self.register_buffer("person", data.person.to(device))

    def forward(self, responses: Tensor, at: int) -> Tensor:
        """Predict ``(b, outputs)`` for the person `at`; one beyond the people fitted to is met as a stranger."""
        if not len(self.rows):
            return self.mean.expand(len(responses), -1)
        known = at < len(self.centre)
        query = standardise_rows(responses) - (self.centre[at] if known else self.centre.mean(dim=0))
        query = query * (self.weights[at] if known else self.weights.mean(dim=0))
        cosine = _cosine(query, query @ self.rows.T, self.whitener, self.leftover, self.length)
        _, sharpness, own, _, radius = self.chosen.tolist()
        deviation = kernel_of(cosine, self.person == at, sharpness, own if known else 0.0) @ self.dual
        return self.mean + radius * deviation / deviation.norm(dim=1, keepdim=True).clamp_min(1e-12)


class SharedResponse(Decoder):
    """Kernel ridge on responses in a space shared by people.

    With `pool_subjects` all people share one space, and people it was never trained on are taken. Without it, every
    person has a space of their own: a kernel ridge on the cosines of their responses.
    """

    name = "shared-response"
    Config = SharedResponseConfig
    closed_form = True

    def __init__(self, config: SharedResponseConfig, subjects: Mapping[str, int], target_shape: Sequence[int]) -> None:
        super().__init__(config, subjects, target_shape)
        self.spaces_of = nn.ModuleList()
        for subject, n_voxels in list(self.subjects.items())[: 1 if self.subject_free else None]:
            self._add_input(subject, n_voxels)

    def _add_input(self, subject: str, n_voxels: int) -> None:
        self.spaces_of.append(SharedSpace(n_voxels, self.n_outputs))

    def _make_room(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith("spaces_of."):
                _, number, buffer = name.split(".")
                self.spaces_of[int(number)].register_buffer(buffer, torch.empty_like(tensor))

    def _decode(self, responses: Tensor, subject: str | None) -> Tensor:
        at = self.index(subject) if subject in self.subjects else len(self.subjects)
        space, person = (0, at) if self.subject_free else (at, 0)
        # differences of large numbers: half precision would lose them
        with torch.autocast(responses.device.type, enabled=False):
            predicted: Tensor = self.spaces_of[space](responses.float(), person)
        return predicted

    def solve(self, view: StudyView, targets: Targets, kind: str, progress: bool = True) -> None:
        """Fit to the averaged responses of a training view.

        Candidates are compared by inner folds in which a unit is held out for everybody and everything, weights and
        whitening included, is fitted without it; the score is the mean margin of single rows.
        """
        people = list(self.subjects)
        groups = [people] if self.subject_free else [[subject] for subject in people]
        self.provenance["chosen"] = {}
        for space, group in zip(self.spaces_of, groups, strict=True):
            assert isinstance(space, SharedSpace)
            data = _collect(view, targets, kind, group)
            choice = self._choose(data)
            space.set(data, _Space.fit(data, self.config.floor), choice)
            self.provenance["chosen"][", ".join(group)] = choice._asdict()
            log.info("shared-response: %d rows of %d people, %s", len(data.targets), len(group), choice)

    def _choose(self, data: _Rows) -> Choice:
        config: Any = self.config
        candidates = config.candidates()
        if len(candidates) == 1:
            return candidates[0]
        scores = torch.zeros(len(candidates), dtype=torch.float64)
        for train, validation in inner_folds(data.units, config.folds):
            scores += _inner_scores(data.take(train), data.take(validation), candidates, config.floor)
        return candidates[int(scores.argmax())]


def _collect(view: StudyView, targets: Targets, kind: str, people: Sequence[str]) -> _Rows:
    ids, responses, person = [], [], []
    for at, subject in enumerate(people):
        names, averaged = view.averaged(subject)
        if len(names) < 2:
            raise InputError(f"{subject} has {len(names)} stimuli in the {view.role} part; at least two are needed")
        ids.append(names)
        responses.append(standardise_rows(torch.from_numpy(averaged).double()))
        person.append(torch.full((len(names),), at))
    shown = np.concatenate(ids)
    if len(shown) > _MOST_ROWS:
        raise InputError(
            f"shared-response keeps the kernel of all training rows: at most {_MOST_ROWS}, found {len(shown)}; "
            "use ridge or lite-mind for a study of this size"
        )
    _, stimulus = np.unique(shown, return_inverse=True)
    values = torch.from_numpy(targets.of(shown, kind).reshape(len(shown), -1)).double()
    return _Rows(torch.cat(responses), torch.cat(person), torch.from_numpy(stimulus), values, view.units_of(shown))


def _training_kernel(data: _Rows, space: _Space, choice: Choice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernel of the training rows, Q, I - Q G (G their Gram matrix), and their lengths under M."""
    whitener = whitening_matrix(space.gram, space.residual, choice.whitening)
    leftover = torch.eye(len(whitener), dtype=whitener.dtype) - whitener @ space.gram
    gram = space.gram @ leftover
    length = gram.diagonal().clamp_min(1e-12).sqrt()
    same = data.person[:, None] == data.person[None, :]
    kernel = kernel_of(gram / (length[:, None] * length), same, choice.sharpness, choice.own)
    return kernel, whitener, leftover, length


def _cosine(query: Tensor, cross: Tensor, whitener: Tensor, leftover: Tensor, length: Tensor) -> Tensor:
    """Cosines under M of new rows with the training rows, from their plain products ``cross``."""
    own = query.square().sum(dim=1) - ((cross @ whitener) * cross).sum(dim=1)
    return (cross @ leftover) / (own.clamp_min(1e-12).sqrt()[:, None] * length)


def _inner_scores(train: _Rows, validation: _Rows, candidates: Sequence[Choice], floor: float) -> Tensor:
    """Mean margin of the validation rows under each candidate."""
    space = _Space.fit(train, floor)
    query = (validation.responses - space.centre[validation.person]) * space.weights[validation.person]
    cross = query @ space.rows.T
    same = validation.person[:, None] == train.person[None, :]
    mean = train.targets.mean(dim=0)
    scores = []
    for _, same_kernel in itertools.groupby(candidates, key=lambda choice: choice[:3]):
        alike = list(same_kernel)
        kernel, whitener, leftover, length = _training_kernel(train, space, alike[0])
        cosine = _cosine(query, cross, whitener, leftover, length)
        new_kernel = kernel_of(cosine, same, alike[0].sharpness, alike[0].own)
        for choice in alike:
            predicted = new_kernel @ _ridge(kernel, train.targets - mean, choice.penalty)
            scores.append(_mean_margin(predicted, validation.targets - mean, validation))
    return torch.stack(scores)


def _ridge(kernel: Tensor, targets: Tensor, penalty: float) -> Tensor:
    ridge = penalty * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype)
    return torch.linalg.solve(kernel + ridge, targets)


def _mean_margin(deviation: Tensor, shown: Tensor, rows: _Rows) -> Tensor:
    """Mean over people of cos(own) - cos(others); both sides are deviations from the training mean."""
    cosine = nn.functional.normalize(deviation, dim=1) @ nn.functional.normalize(shown, dim=1).T
    people = [torch.nonzero(rows.person == s)[:, 0] for s in torch.unique(rows.person).tolist()]
    blocks = [cosine[mine][:, mine] for mine in people if len(mine) > 1]
    return torch.stack(
        [(b.diagonal().sum() - (b.sum() - b.diagonal().sum()) / (len(b) - 1)) / len(b) for b in blocks]
    ).mean()
