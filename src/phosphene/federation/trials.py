"""`Trials`: what one site has learned from, or is asked about; labels lie apart from what inference may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["FMRI", "IMAGE", "MODALITIES", "TEXT", "Inputs", "Trials"]

MODALITIES = ("fmri", "image", "text")
FMRI, IMAGE, TEXT = range(3)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What inference may see of some trials: no labels, no ids.

    What is not present is set to zero here, so that nothing hidden can find its way to a result.

    Attributes
    ----------
    subjects : (n,) ndarray of str
        Whose brain it was; empty text where there is no brain.
    responses : dict of str to Tensor (n_s, V_s)
        Of each person, float32, their trials in the order in which they come.
    image : Tensor (n, D_i)
        Embeddings of a frozen encoder, float32.
    text : Tensor (n, D_t)
    present : Tensor (n, 3) of bool
        Which modalities a trial has, in the order of `MODALITIES`; at least one.
    adapted : bool
        Responses are not voxels, but what people's adapters have made of them; see `phosphene.federation.adapter`.

    Raises
    ------
    InputError
        For sizes that do not fit each other, a trial without any modality, an fMRI trial of nobody, and numbers that
        are present and not finite.
    """

    subjects: np.ndarray
    responses: dict[str, Tensor]
    image: Tensor
    text: Tensor
    present: Tensor
    adapted: bool = False

    def __post_init__(self) -> None:
        self._check_sizes()
        hide = ~self.present
        object.__setattr__(self, "image", _shown(self.image, hide[:, IMAGE], "image"))
        object.__setattr__(self, "text", _shown(self.text, hide[:, TEXT], "text"))
        shown = {
            person: _shown(rows, hide[torch.from_numpy(self.subjects == person), FMRI], f"fmri of {person}")
            for person, rows in self.responses.items()
        }
        object.__setattr__(self, "responses", shown)

    def _check_sizes(self) -> None:
        n = len(self.subjects)
        if self.present.shape != (n, len(MODALITIES)) or self.present.dtype != torch.bool:
            raise InputError(
                f"present must be ({n}, {len(MODALITIES)}) booleans for {n} trials, found "
                f"{tuple(self.present.shape)} {self.present.dtype}"
            )
        for name, rows in (("image", self.image), ("text", self.text)):
            if rows.ndim != 2 or len(rows) != n:
                raise InputError(f"{name} embeddings must be ({n}, width), found {tuple(rows.shape)}")
        if n and not bool(self.present.any(dim=1).all()):
            row = int((~self.present.any(dim=1)).nonzero()[0])
            raise InputError(f"trial {row} has no modality at all; leave it out, at least one is needed")
        nobody = torch.from_numpy(self.subjects == "") & self.present[:, FMRI]
        if bool(nobody.any()):
            raise InputError(f"trial {int(nobody.nonzero()[0])} has an fMRI response of nobody: name the subject")
        for person in sorted(set(self.subjects.tolist()) - {""}):
            found = 0 if person not in self.responses else len(self.responses[person])
            if found != (wanted := int((self.subjects == person).sum())):
                raise InputError(f"{person} has {wanted} trials, found {found} rows of responses")
        if strange := sorted(self.responses.keys() - set(self.subjects.tolist())):
            raise InputError(f"responses of {', '.join(strange)}, who have no trial")

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def people(self) -> dict[str, int]:
        """Voxels of each person."""
        return {person: rows.shape[1] for person, rows in self.responses.items()}

    def select(self, rows: Tensor) -> Inputs:
        """These trials, in this order."""
        chosen = self.subjects[rows.numpy()]
        responses = {}
        for person, values in self.responses.items():
            place = torch.from_numpy(np.cumsum(self.subjects == person) - 1)
            if len(own := rows[torch.from_numpy(chosen == person)]):
                responses[person] = values[place[own]]
        return Inputs(chosen, responses, self.image[rows], self.text[rows], self.present[rows], self.adapted)

    def hiding(self, present: Tensor) -> Inputs:
        """The same trials with modalities hidden; what is hidden is gone from the result.

        Raises
        ------
        InputError
            Where `present` (n, 3) shows what was not there, or leaves a trial without anything.
        """
        if present.shape == self.present.shape and bool((present & ~self.present).any()):
            row = int((present & ~self.present).any(dim=1).nonzero()[0])
            raise InputError(f"trial {row} has only {_words(self.present[row])}; {_words(present[row])} were asked for")
        return replace(self, present=present)


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials of one site in one role, with labels.

    Attributes
    ----------
    inputs : Inputs
    ids : (n,) ndarray of str
        The stimulus of each trial.
    labels : Tensor (n, C), optional
        Soft labels in [0, 1], float32.
    units : (n,) ndarray of str
        What is never parted when trials are held back from each other, such as both videos of an action; the stimulus
        where nothing else is given.
    """

    inputs: Inputs
    ids: np.ndarray
    labels: Tensor | None = field(default=None)
    units: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=str))

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.inputs):
            raise InputError(f"{len(self.inputs)} trials need as many stimulus ids, found {len(self.ids)}")
        if not len(self.units):
            object.__setattr__(self, "units", self.ids)
        if len(self.units) != len(self.ids):
            raise InputError(f"{len(self.ids)} trials need as many units, found {len(self.units)}")
        if self.labels is None:
            return
        if self.labels.ndim != 2 or len(self.labels) != len(self.inputs):
            raise InputError(f"labels must be ({len(self.inputs)}, classes), found {tuple(self.labels.shape)}")
        if not bool(((self.labels >= 0) & (self.labels <= 1)).all()):
            raise InputError("soft labels lie in [0, 1]; found numbers outside, or that are none")

    @classmethod
    def of_study(
        cls,
        view: StudyView,
        image: Targets | int,
        text: Targets | int,
        labels: np.ndarray | None = None,
        present: np.ndarray | None = None,
        averaged: bool = False,
    ) -> Trials:
        """Trials of everybody in a view, one person after the other.

        Parameters
        ----------
        view : StudyView
        image, text : Targets or int
            Of the view's stimuli; pooled embeddings are taken. Where the site has none, the width that the sites
            agreed on: the modality is missing then.
        labels : (stimuli, C) ndarray, optional
            Of the stimuli in the order of the view: see `phosphene.federation.classes`.
        present : (n, 3) ndarray of bool, optional
            By default everything that was given is there; see `phosphene.federation.missing`.
        averaged : bool
            One trial a stimulus and person, with the mean of its repeats.
        """
        subjects, ids, responses = [], [], {}
        for person in view.subjects:
            if averaged:
                shown, rows = view.averaged(person)
            else:
                shown, rows = view.trials(person)["stimulus_id"].astype(str), view.responses(person)
            if len(shown):
                subjects += [person] * len(shown)
                ids.append(shown)
                responses[person] = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
        seen = np.concatenate(ids) if ids else np.empty(0, dtype=str)
        trials = cls._made(np.array(subjects, dtype=str), responses, seen, image, text)
        trials = replace(trials, units=np.asarray(view.units_of(seen), dtype=str))
        if labels is not None:
            if len(labels) != len(view.stimulus_ids):
                raise InputError(f"the view has {len(view.stimulus_ids)} stimuli, found labels of {len(labels)}")
            row_of = {name: row for row, name in enumerate(view.stimulus_ids.tolist())}
            of_trial = np.asarray(labels, dtype=np.float32)[[row_of[name] for name in seen.tolist()]]
            trials = replace(trials, labels=torch.from_numpy(of_trial))
        return trials if present is None else trials.hiding(present)

    @classmethod
    def of_stimuli(
        cls,
        ids: np.ndarray,
        image: Targets | int,
        text: Targets | int,
        labels: np.ndarray | None = None,
        units: np.ndarray | None = None,
    ) -> Trials:
        """Stimuli without a brain, such as public pictures with captions: one trial each.

        Parameters
        ----------
        ids : (n,) ndarray of str
        image, text : Targets or int
            As of `of_study`.
        labels : (n, C) ndarray, optional
        units : (n,) ndarray of str, optional
        """
        ids = np.asarray(ids, dtype=str)
        trials = cls._made(np.full(len(ids), ""), {}, ids, image, text)
        trials = trials if units is None else replace(trials, units=np.asarray(units, dtype=str))
        return trials if labels is None else replace(trials, labels=torch.tensor(labels, dtype=torch.float32))

    @classmethod
    def _made(
        cls,
        subjects: np.ndarray,
        responses: dict[str, Tensor],
        ids: np.ndarray,
        image: Targets | int,
        text: Targets | int,
    ) -> Trials:
        present = torch.ones(len(ids), len(MODALITIES), dtype=torch.bool)
        present[:, FMRI] = torch.from_numpy(subjects != "")
        present[:, IMAGE], present[:, TEXT] = not isinstance(image, int), not isinstance(text, int)
        return cls(Inputs(subjects, responses, _pooled(image, ids), _pooled(text, ids), present), ids)

    @classmethod
    def joined(cls, parts: Sequence[Trials]) -> Trials:
        """Trials of several people or sources as those of one site.

        Raises
        ------
        InputError
            For a person in two parts, or parts with and without labels.
        """
        if len({part.labels is None for part in parts}) != 1:
            raise InputError("parts with labels and parts without them (or no part at all) do not join")
        people = [person for part in parts for person in part.inputs.people]
        if len(set(people)) < len(people):
            raise InputError(f"a person stands in two parts: {', '.join(sorted(people))}")
        each = [part.inputs for part in parts]
        inputs = Inputs(
            np.concatenate([one.subjects for one in each]),
            {person: rows for one in each for person, rows in one.responses.items()},
            torch.cat([one.image for one in each]),
            torch.cat([one.text for one in each]),
            torch.cat([one.present for one in each]),
        )
        labels = [part.labels for part in parts if part.labels is not None]
        ids, units = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "units"))
        return cls(inputs, ids, torch.cat(labels) if labels else None, units)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def present(self) -> Tensor:
        """Which modalities each trial has, (n, 3) bool."""
        return self.inputs.present

    @property
    def complete(self) -> Tensor:
        """Trials that have everything, (n,) bool."""
        return self.present.all(dim=1)

    def select(self, rows: Tensor) -> Trials:
        """These trials, in this order."""
        labels = None if self.labels is None else self.labels[rows]
        return Trials(self.inputs.select(rows), self.ids[rows.numpy()], labels, self.units[rows.numpy()])

    def hiding(self, present: np.ndarray | Tensor) -> Trials:
        """The same trials with modalities hidden: see `Inputs.hiding`."""
        return replace(self, inputs=self.inputs.hiding(torch.as_tensor(present)))


def _pooled(targets: Targets | int, ids: np.ndarray) -> Tensor:
    if isinstance(targets, int):
        return torch.zeros(len(ids), targets)
    return torch.from_numpy(np.ascontiguousarray(targets.of(ids, "pooled"), dtype=np.float32))


def _shown(rows: Tensor, hidden: Tensor, what: str) -> Tensor:
    """Rows with what is hidden at zero; what is left must be finite."""
    shown = torch.where(hidden[:, None], torch.zeros((), dtype=torch.float32), rows.to(torch.float32))
    if not bool(torch.isfinite(shown).all()):
        row = int((~torch.isfinite(shown)).any(dim=1).nonzero()[0])
        raise InputError(
            f"{what}: row {row} holds numbers that are not finite; a modality that is missing is marked so"
        )
    return shown


def _words(present: Tensor) -> str:
    return ", ".join(name for name, held in zip(MODALITIES, cast(list[bool], present.tolist()), strict=True) if held)
