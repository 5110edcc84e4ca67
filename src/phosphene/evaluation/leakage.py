"""What a decoder, or the encoder of its targets, has seen of what it is to be scored on: refused where that is sure.

Names of stimuli mean something within one study only, so contents are held against contents: a decoder remembers the
content hash of every training stimulus (``provenance["training_content"]``, by id), in whatever study file it lay.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from phosphene.decoders import Decoder
from phosphene.encoders import Targets
from phosphene.errors import LeakageError
from phosphene.evaluation.scoring import Fold
from phosphene.recordings import Study, StudyView

__all__ = ["doubts", "refuse_leakage", "refuse_seen", "scaled_by_what_is_scored", "scaling_notes", "with_known_fit"]

log = logging.getLogger(__name__)


def with_known_fit(fold: Fold) -> Fold:
    """The fold with targets that say which stimuli of this very study their encoder was fitted on.

    An encoder that learns remembers names. Where the decoder knows the contents behind them, a stimulus of this study
    counts only with the same content: another study's ``s01`` is another stimulus.
    """
    remembered, content = fold.targets.fitted_on, _content(fold)
    if remembered is None or content is None:
        return fold
    known, unsure = {name: content[name] for name in remembered if name in content}, remembered - content.keys()
    here = frozenset(_seen(fold.study, fold.decoder, fold.study.stimuli.ids, known)) | unsure
    old = fold.targets
    return replace(fold, targets=Targets(old.ids, old.tokens, old.pooled, old.encoder, here))


def refuse_leakage(fold: Fold) -> None:
    """Refuse to score stimuli that the decoder or the encoder of its targets was fitted on.

    Raises
    ------
    LeakageError
        Naming some of them.
    """
    scored = fold.view.stimulus_ids.tolist()
    if leaked := sorted(set(scored) & (fold.targets.fitted_on or frozenset())):
        raise LeakageError(
            f"the target encoder {fold.targets.encoder.label!r} was fitted on {len(leaked)} of the {len(scored)} "
            f"stimuli to be scored (split {fold.split!r}), {_such_as(leaked)}: fit it on the training part"
        )
    refuse_seen(fold.study, fold.decoder, fold.view)


def refuse_seen(study: Study, decoder: Decoder, view: StudyView) -> None:
    """Refuse to score stimuli of a view that a decoder, or the aligner in front of it, was fitted on.

    Raises
    ------
    LeakageError
        Naming some of them.
    """
    scored, facts = view.stimulus_ids.tolist(), decoder.provenance
    if decoder.aligner is not None and decoder.aligner.fitted_on:
        decoder.aligner.check_apart(scored, view.stimuli.hashes)
    if leaked := sorted(_seen(study, decoder, scored, facts.get("training_content") or {})):
        raise LeakageError(
            f"the decoder was fitted on the training part of split {facts.get('split')!r} of study "
            f"{facts.get('study')!r}, which holds {len(leaked)} of the {len(scored)} stimuli to be scored "
            f"({view.role} of {view.split_name!r}), {_such_as(leaked)}"
        )


def doubts(folds: Sequence[Fold]) -> list[str]:
    """What could not be held against what was seen in training, in words."""
    notes = []
    for fold in folds:
        content = _content(fold)
        if content is None:
            if fold.decoder.provenance:
                notes.append(
                    f"the decoder of split {fold.split!r} keeps no record of its training stimuli: that it never saw "
                    "the scored ones could not be checked"
                )
            continue
        hashes = _hashes(fold.study)
        named = [name for name in fold.view.stimulus_ids.tolist() if content.get(name, hashes[name]) != hashes[name]]
        if named:
            notes.append(
                f"{len(named)} scored stimuli have names of training stimuli of the decoder of split {fold.split!r} "
                f"but other contents ({_such_as(named)}): they were taken for other stimuli"
            )
        if not fold.study.stimuli.has_pixels and (alike := _alike(fold, content)):
            notes.append(
                f"{len(alike)} scored stimuli have the captions and labels of training stimuli of the decoder of split "
                f"{fold.split!r} ({_such_as(alike)}): without pictures, whether they are the same could not be checked"
            )
    return notes


def scaled_by_what_is_scored(folds: Sequence[Fold], people: Sequence[str]) -> list[str]:
    """People whose scored responses helped to set the mean and deviation they are z-scored with."""
    return [person for person in people if any(_scaling(fold, person) == "scored" for fold in folds)]


def scaling_notes(folds: Sequence[Fold], people: Sequence[str]) -> list[str]:
    """How people were z-scored who had no part in training, where it is not as for everybody else."""
    notes = []
    own = scaled_by_what_is_scored(folds, people)
    if own:
        notes.append(
            f"transductive: responses of {', '.join(own)} were z-scored within sessions with mean and deviation of the "
            "scored responses themselves (what was shown was not used)"
        )
    new = [p for p in people if p not in own and any(_is_new(f, p) and _scaling(f, p) == "training" for f in folds)]
    if new:
        notes.append(
            f"{', '.join(new)} had no part in training the decoder; their responses were z-scored within sessions with "
            "mean and deviation of their own responses to the training part of the scored study"
        )
    return notes


def _is_new(fold: Fold, person: str) -> bool:
    return person not in fold.decoder.subjects


def _scaling(fold: Fold, person: str) -> str:
    """``"none"``, ``"training"``, or ``"scored"`` where scored responses are among those the scaling was taken from."""
    if fold.study.scaling == "none":
        return "none"
    shown = fold.study.recordings[person].trials["stimulus_id"]
    splits = fold.study.split_names
    train = fold.study.roles().get("train", []) if fold.study.current_split in splits else []
    used = shown[np.isin(shown, train)]
    return "scored" if np.isin(used if len(used) else shown, fold.view.stimulus_ids).any() else "training"


def _content(fold: Fold) -> Mapping[str, str] | None:
    """Content hash of every training stimulus of the decoder by id; None where it was not kept."""
    found: Any = fold.decoder.provenance.get("training_content")
    return found


def _hashes(study: Study) -> dict[str, str]:
    stimuli = study.stimuli
    return dict(zip(stimuli.ids.tolist(), stimuli.hashes.tolist(), strict=True))


def _seen(study: Study, decoder: Decoder, ids: Iterable[str], content: Mapping[str, str]) -> list[str]:
    """Those of the stimuli that are among `content`: by name and hash, in another study by the hash of a picture alone.

    Equal pictures under two names of one study are left to the audit of overlap; without pictures, equal captions and
    labels do not make two stimuli one.
    """
    hashes = _hashes(study)
    elsewhere = decoder.provenance.get("study_digest") != study.digest and study.stimuli.has_pixels
    anywhere = set(content.values()) if elsewhere else set()
    return [name for name in ids if content.get(name) == hashes[name] or hashes[name] in anywhere]


def _alike(fold: Fold, content: Mapping[str, str]) -> list[str]:
    """Scored stimuli whose captions and labels are those of a training stimulus of another study."""
    if fold.decoder.provenance.get("study_digest") == fold.study.digest or not any(fold.study.stimuli.captions):
        return []
    hashes, known = _hashes(fold.study), set(content.values())
    return [name for name in fold.view.stimulus_ids.tolist() if hashes[name] in known]


def _such_as(names: Sequence[str]) -> str:
    return f"such as {', '.join(names[:3])}"
