"""The contract of all decoders: responses of one person in, a prediction out; saved as plain files."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from phosphene.decoders.aligned import AlignedInput
from phosphene.decoders.folder import load_decoder, save_decoder
from phosphene.decoders.prediction import Prediction
from phosphene.decoders.settings import ClassesConfig, DecoderConfig, Episodes
from phosphene.errors import InputError, unknown
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.decoders.importance import Importance
    from phosphene.encoders import Encoder, Targets
    from phosphene.recordings import StudyView

__all__ = ["ClassesConfig", "Decoder", "DecoderConfig", "Episodes", "Prediction"]

log = logging.getLogger(__name__)


class Standardiser(nn.Module):
    """Mean and deviation of one person's voxels over training trials; leaves responses alone until it is set."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, n_voxels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_voxels))
        self.register_buffer("deviation", torch.ones(n_voxels))

    def forward(self, responses: Tensor) -> Tensor:
        return (responses - self.mean.to(responses.dtype)) / self.deviation.to(responses.dtype)


class Decoder(nn.Module, ABC):
    """Base of all decoders.

    A subclass declares `name` and `Config`, builds its layers in ``__init__`` (after calling this one), adds a
    person's own layers in `_add_input`, and computes in `_decode`. Closed-form ones set `closed_form`, write `solve`.

    Parameters
    ----------
    config : DecoderConfig
        Settings.
    subjects : mapping of str to int
        Voxels of each person.
    target_shape : (tokens, width) or (width,)
        Shape of one stimulus' target.

    Attributes
    ----------
    target_kind : str
        ``"tokens"`` or ``"pooled"``: which targets of the encoder it was fitted to.
    encoder : Encoder or None
        The (fitted) encoder of its targets, kept so that other stimuli can be encoded in the same way.
    provenance : dict
        Study, split, seed, versions: set by `phosphene.fit`.
    voxel_tables, spaces : dict
        Each person's voxel table and space, so that maps find their way back to the brain.
    aligner : Aligner or None
        What takes everybody's voxels into the common space in which it decodes: see `align`.
    apart : dict
        What is known of people who were added with adapters; they are saved in files of their own.
    """

    name: ClassVar[str]
    Config: ClassVar[type[DecoderConfig]] = DecoderConfig
    closed_form: ClassVar[bool] = False

    def __init__(self, config: Any, subjects: Mapping[str, int], target_shape: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.target_shape = tuple(int(n) for n in target_shape)
        if len(self.target_shape) not in (1, 2) or min(self.target_shape) < 1:
            raise InputError(f"target_shape must be (tokens, width) or (width,), found {tuple(target_shape)}")
        if not subjects:
            raise InputError("a decoder needs at least one subject with its number of voxels")
        self.target_kind = "tokens" if len(self.target_shape) == 2 else "pooled"
        self.encoder: Encoder | None = None
        self.provenance: dict[str, Any] = {}
        self.voxel_tables: dict[str, Table] = {}
        self.spaces: dict[str, dict[str, Any]] = {}
        self.subjects: dict[str, int] = {}
        self.apart: dict[str, dict[str, Any]] = {}
        self.standardisers = nn.ModuleList()
        self.aligner: Aligner | None = None
        self.fronts = nn.ModuleList()
        for subject, n_voxels in subjects.items():
            self._register(subject, n_voxels)

    # -- people -------------------------------------------------------------------------------------------------

    @property
    def subject_free(self) -> bool:
        """Whether it takes people it was never trained on (``subject=None``)."""
        return bool(self.config.pool_subjects)

    @property
    def n_outputs(self) -> int:
        """Numbers predicted a trial."""
        return int(np.prod(self.target_shape))

    def index(self, subject: str) -> int:
        """Position of a person; an unknown one lists the known ones."""
        if subject not in self.subjects:
            raise unknown(f"subject of this {self.name} decoder:", subject, self.subjects)
        return list(self.subjects).index(subject)

    def known_as(self, person: str) -> str | None:
        """The name under which a person is decoded: their own, or None for strangers to a `subject_free` decoder.

        Raises
        ------
        InputError
            For somebody unknown where everybody has an input of their own, or an aligner stands in front: how their
            voxels come into its template is not known, even where these happen to be as many as it has places.
        """
        if person in self.subjects:
            return person
        if self.aligner is not None:
            raise InputError(
                f"the aligner in front of this {self.name} decoder does not take {person!r} into the template "
                f"{self.aligner.template.name}, only {', '.join(self.subjects)}: add the person to the aligner "
                "(aligner.add) and to the decoder (add_subject); responses that lie in the template already are "
                "decoded without a name (subject=None)"
            )
        if not self.subject_free:
            raise unknown(f"subject of this {self.name} decoder:", person, self.subjects)
        return None

    def refuse_known(self, subject: str) -> None:
        """Refuse a person it knows where a new one is to be added.

        Raises
        ------
        InputError
        """
        if subject in self.subjects:
            raise InputError(
                f"subject {subject!r} is in this {self.name} decoder already ({', '.join(self.subjects)}); "
                "if this is another person, give them another name"
            )

    def _register(self, subject: str, n_voxels: int) -> None:
        self.refuse_known(subject)
        if n_voxels < 1:
            raise InputError(f"subject {subject!r} has {n_voxels} voxels; at least one is needed")
        first = next(iter(self.subjects.values()), n_voxels)
        if self.subject_free and n_voxels != first:
            raise InputError(
                f"pool_subjects needs one voxel grid: subject {subject!r} has {n_voxels} voxels, the others {first}; "
                "align the people first, or use pool_subjects=False"
            )
        self.subjects[subject] = int(n_voxels)
        self.standardisers.append(Standardiser(n_voxels))

    def add_subject(self, subject: str, n_voxels: int) -> None:
        """Add a person; what the others have is not touched. An aligner in front must know them already.

        Raises
        ------
        InputError
            For a person it knows, or one whose voxels (with an aligner in front: their own, or the template's places)
            are another number.
        """
        if self.aligner is not None:
            counts = tuple(int(n) for n in self.aligner.matrix(subject).shape)
            if n_voxels not in counts:
                raise InputError(
                    f"the aligner in front of this {self.name} decoder takes {counts[0]} voxels of {subject} to "
                    f"{counts[1]} places, found {n_voxels} voxels"
                )
            n_voxels = counts[1]
        self._register(subject, n_voxels)
        if self.aligner is not None:
            self.align(self.aligner)
        if not self.subject_free:
            self._add_input(subject, n_voxels)

    @abstractmethod
    def _add_input(self, subject: str, n_voxels: int) -> None:
        """Make the layers that belong to one person only."""

    def align(self, aligner: Aligner) -> None:
        """Put an aligner in front: responses come in as recorded, and are decoded in its template.

        `subjects` then counts the places of the template. The aligner is saved with the decoder. Somebody who is added
        to the aligner later is known here after another call.

        Raises
        ------
        InputError
            For a person the aligner does not know, or a template of another size.
        """
        for subject, n_places in self.subjects.items():
            person = aligner.person(subject)
            if person.matrix.shape[1] != n_places:
                raise InputError(
                    f"{subject}: this {self.name} decoder was built for {n_places} voxels, the template "
                    f"{aligner.template.name} has {person.matrix.shape[1]} places"
                )
        device = next(iter(self.buffers())).device
        self.aligner = aligner
        self.fronts = nn.ModuleList([AlignedInput(aligner.person(subject)) for subject in self.subjects]).to(device)

    def set_standardiser(self, subject: str, mean: np.ndarray | Tensor, deviation: np.ndarray | Tensor) -> None:
        """Set mean and deviation ``(voxels,)`` of a person's responses, taken over training trials.

        Voxels that do not vary keep a deviation of one.
        """
        standardiser = self.standardisers[self.index(subject)]
        assert isinstance(standardiser, Standardiser)
        spread = torch.as_tensor(deviation, dtype=torch.float32)
        standardiser.mean.copy_(torch.as_tensor(mean, dtype=torch.float32))
        standardiser.deviation.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def meet(self, subject: str, voxels: Table) -> None:
        """Be told of a person's own voxels, as recorded, before any aligner; for decoders that look at anatomy."""

    def arrange_voxels(self, subject: str, voxels: Table, space: Mapping[str, Any] | None = None) -> None:
        """Tell the decoder where a person's voxels lie; kept for maps, and for decoders that order voxels."""
        n_voxels = list(self.subjects.values())[self.index(subject)]
        if len(voxels) != n_voxels:
            raise InputError(f"{subject}: the voxels table has {len(voxels)} rows, the decoder {n_voxels} voxels")
        self.voxel_tables[subject] = voxels
        self.spaces[subject] = dict(space or {})

    # -- computing ----------------------------------------------------------------------------------------------

    def forward(self, responses: Tensor, subject: str | None = None) -> Prediction:
        """Predict from one person's responses.

        Parameters
        ----------
        responses : Tensor of shape (b, voxels)
            As recorded (the decoder standardises them itself), finite.
        subject : str or None
            Whose responses they are. None, or a person never trained on, only where the decoder is `subject_free`;
            with an aligner in front only None, for responses that lie in its template already.

        Raises
        ------
        InputError
            For an unknown person, another number of voxels, NaN or infinite responses.
        """
        output = self._decode(self._standardised(responses, subject), subject)
        return output if isinstance(output, Prediction) else Prediction.of(output, self.target_shape)

    @abstractmethod
    def _decode(self, responses: Tensor, subject: str | None) -> Tensor | Prediction:
        """From checked, standardised responses ``(b, voxels)`` to ``(b, *target_shape)`` (or flat), or all heads."""

    def stages(self) -> tuple[str, ...]:
        """Its training runs, one after the other; settings of later ones lie under their names, over the first's."""
        return ("training",)

    def check_stages(self) -> None:
        """Refuse settings that a later one of the `stages` would stumble over, before the first is trained."""

    def begin(self, stage: str) -> None:
        """Prepare for one of the `stages`: freeze what it does not train, switch on what it adds."""

    def episodes(self, stage: str) -> Episodes | None:
        """How a stage adapts to each person within every step; None where it is trained as usual."""
        return None

    def penalties(self) -> dict[str, Tensor]:
        """Weighted terms of the loss that the forward passes since the last call gave rise to, by name."""
        return {}

    def _standardised(self, responses: Tensor, subject: str | None) -> Tensor:
        if subject is None and not self.subject_free:
            raise InputError(
                f"this {self.name} decoder needs to know whose responses these are: {', '.join(self.subjects)}"
            )
        named = None if subject is None else self.known_as(subject)
        at = None if named is None else self.index(named)
        front: Any = None if at is None or self.aligner is None else self.fronts[at]
        n_voxels = list(self.subjects.values())[at or 0] if front is None else front.n_voxels
        if responses.ndim != 2 or responses.shape[1] != n_voxels:
            raise InputError(
                f"responses of {subject or 'a new person'} must be (trials, {n_voxels} voxels), "
                f"found shape {tuple(responses.shape)}"
            )
        if not bool(torch.isfinite(responses).all()):
            row, column = torch.nonzero(~torch.isfinite(responses))[0].tolist()
            raise InputError(f"responses hold NaN or infinite values, the first in row {row} at voxel {column}")
        if at is not None:
            standardised: Tensor = self.standardisers[at](responses if front is None else front(responses))
            # where somebody covers nothing, they say nothing: the mean over training trials
            return standardised if front is None else torch.where(front.covered, standardised, 0.0)
        return self._as_of_a_stranger(responses)

    def _as_of_a_stranger(self, responses: Tensor) -> Tensor:
        """Standardise by the mean over people of what was taken from their training trials, where they cover a place.

        What nobody covers says nothing.
        """
        means = torch.stack([s.mean for s in self.standardisers])  # type: ignore[misc]
        spreads = torch.stack([s.deviation for s in self.standardisers])  # type: ignore[misc]
        if self.aligner is None:
            return (responses - means.mean(dim=0)) / spreads.mean(dim=0)
        covered = torch.stack([front.covered for front in self.fronts])  # type: ignore[misc]
        count = covered.sum(dim=0)
        mean, spread = ((each * covered).sum(dim=0) / count.clamp_min(1) for each in (means, spreads))
        return torch.where(count > 0, (responses - mean) / torch.where(count > 0, spread, 1.0), 0.0)

    @torch.no_grad()
    def predict(
        self,
        responses: np.ndarray,
        subject: str | None = None,
        batch_size: int = 256,
        what: Literal["embedding", "target", "classes"] = "embedding",
    ) -> np.ndarray:
        """What a decoder says of an array of responses, in batches, float32.

        Parameters
        ----------
        responses : (trials, voxels) array
        subject : str, optional
        batch_size : int
        what : {"embedding", "target", "classes"}
            What is compared with targets and the predicted target, both ``(trials, *target_shape)``; or logits of
            labels, ``(trials, classes)``.
        """
        training, device = self.training, next(iter(self.buffers())).device
        self.eval()
        parts = []
        for start in range(0, max(1, len(responses)), batch_size):
            block = torch.tensor(np.asarray(responses[start : start + batch_size], dtype=np.float32), device=device)
            found = getattr(self(block, subject), what)
            if found is None:
                raise InputError(f"this {self.name} decoder has no head for classes")
            parts.append(found.float().cpu().numpy())
        self.train(training)
        joined = np.concatenate(parts)
        return joined if what == "classes" else joined.reshape(len(joined), *self.target_shape)

    def check_targets(self, targets: Targets) -> None:
        """Refuse targets of another encoder than its own, or of another shape.

        Raises
        ------
        InputError
        """
        if self.encoder is not None:
            targets.require(self.encoder, f"this {self.name} decoder")
        if targets.shape(self.target_kind) != self.target_shape:
            raise InputError(
                f"the decoder predicts {self.target_kind} of shape {self.target_shape}, the targets have "
                f"{targets.shape(self.target_kind)}"
            )

    def solve(self, view: StudyView, targets: Targets, kind: str, progress: bool = True) -> None:
        """Fit in closed form (only decoders with `closed_form`)."""
        raise InputError(f"{self.name} has no closed form; it is trained by gradient descent")

    def warm_start(
        self, view: StudyView, targets: Targets, kind: str, progress: bool = True, stage: str = "training"
    ) -> bool:
        """Set first weights that have a closed form, before gradient descent; by default there are none.

        Parameters
        ----------
        view : StudyView
            The part of the training data that is trained on, without what is set aside for validation.
        targets : Targets
        kind : {"tokens", "pooled"}
        progress : bool
            Show progress.
        stage : str
            Which of `stages` is about to start; a later one starts from the weights of the one before.

        Returns
        -------
        bool
            Whether anything was set: such a start is validated too, and kept when training does not improve on it.
        """
        return False

    def conclude(self, view: StudyView, targets: Targets, kind: str) -> None:
        """Keep what later closed forms need of the trained weights; called once after the last stage."""

    def importance(self, view: StudyView, targets: Targets, subject: str, method: str = "auto") -> Importance:
        """Which voxels and regions carry the answer, on held-out stimuli; see `phosphene.decoders.importance`."""
        from phosphene.decoders.importance import importance

        return importance(self, view, targets, subject, method)

    # -- on disk ------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the decoder as a folder of plain files, atomically; see `phosphene.decoders.folder`."""
        return save_decoder(self, Path(path))

    def _base_state(self) -> dict[str, Tensor]:
        """What ``model.safetensors`` holds: everything but what belongs to people who are kept apart."""
        return self.state_dict()

    def _save_people(self, path: Path) -> None:
        """Write the people who are kept apart into a decoder's folder."""

    def _load_people(self, path: Path, without: Collection[str]) -> None:
        """Bring the people back who are kept apart in a decoder's folder."""

    @classmethod
    def load(cls, path: str | Path, *, without: Collection[str] = ()) -> Decoder:
        """Read a decoder folder; nothing in it is executed.

        Parameters
        ----------
        path : path
        without : collection of str
            Adapted people (in ``people/``) who are to be left there.

        Raises
        ------
        InputError
            When a file is missing or damaged, is no safetensors file, does not fit the settings, or is the adapter of
            another base model.
        """
        return load_decoder(Path(path), without)

    def _make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Give buffers whose shape only fitting decides the shape they have in the file."""
