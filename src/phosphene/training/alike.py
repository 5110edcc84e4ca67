"""A decoder trained once more for other targets: what direct training gives, beside a way that goes through its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.decoders.adaptable import settings_of_arm
from phosphene.errors import InputError
from phosphene.settings import merge
from phosphene.training.adapt import adapt, scarce_view
from phosphene.training.bench import shown_stimuli
from phosphene.training.fit import fit

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.encoders import Targets
    from phosphene.recordings import Study

__all__ = ["captioned", "check_alike", "fit_alike"]


def captioned(decoder: Decoder, study: Study, count: int | None = None, seed: int = 0) -> np.ndarray:
    """Training stimuli with captions that the people of a decoder saw in what it was trained on.

    Parameters
    ----------
    decoder : Decoder
    study : Study
        Its current split.
    count : int, optional
        So many of them, as many of everybody as can be, drawn at random; default: all.
    seed : int

    Returns
    -------
    (n,) ndarray of str
        In the order of the study.

    Raises
    ------
    InputError
        When nobody of the study is known to the decoder, or there are fewer.
    """
    people = [subject for subject in study.subjects if subject in decoder.subjects]
    if not people:
        raise InputError(f"nobody of study {study.name!r} is known to this {decoder.name} decoder")
    train = study.split("train").stimuli
    with_text = {name for name, texts in zip(train.ids.tolist(), train.captions, strict=True) if any(texts)}
    random, lists = np.random.default_rng(seed), []
    for subject in people:
        view = scarce_view(study, subject, _sessions(decoder, subject))
        seen = [name for name in view.stimulus_ids[shown_stimuli(view)].tolist() if name in with_text]
        lists.append([seen[row] for row in random.permutation(len(seen))])
    turns = dict.fromkeys(each[turn] for turn in range(max(map(len, lists))) for each in lists if turn < len(each))
    if len(turns) < max(count or 1, 1):
        raise InputError(
            f"{len(turns)} training stimuli that {', '.join(people)} saw have captions"
            + ("" if count is None else f", {count} were asked for")
        )
    chosen = set(list(turns)[:count])
    return np.array([name for name in train.ids.tolist() if name in chosen])


def _sessions(decoder: Decoder, subject: str) -> float | None:
    """The first sessions of a person that the decoder was adapted to; None where it was trained on all."""
    found: float | None = decoder.apart.get(subject, decoder.provenance).get("n_sessions")
    return found


def fit_alike(
    decoder: Decoder,
    study: Study,
    targets: Targets,
    *,
    stimuli: Sequence[str] | np.ndarray | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    training: Mapping[str, Any] | None = None,
) -> Decoder:
    """Train a decoder of the same kind, people, sessions and settings for other (pooled) targets.

    People who were adapted to are adapted to again, by the same arm.

    Parameters
    ----------
    decoder : Decoder
        That `fit` or `adapt` gave.
    study : Study
        That it was trained on; its current split is used.
    targets : Targets
    stimuli : sequence of str, optional
        Of the training part, those to train on (default: all).
    out : path, optional
        Folder of its run (``base/``) and of those of the people adapted to (``people/``), which resume.
    progress : bool
    training : mapping, optional
        Settings of training over those of the decoder; of a stage, those that are not named stay.

    Raises
    ------
    InputError
        For a decoder whose making is not kept: merged, of the arms ``full`` and ``from-scratch``, with newcomers, or
        adapted beside an aligner.
    """
    told = decoder.provenance
    check_alike(decoder)
    folder = None if out is None else Path(out)
    words: dict[str, Any] = {"progress": progress, "stimuli": stimuli}
    stages = {} if decoder.closed_form else told["training"]
    later = [stage for stage in decoder.stages() if stage != "training"] if stages else []
    idle = decoder.config.without_use()
    found = fit(
        decoder.name,
        study,
        targets,
        subjects=[subject for subject in decoder.subjects if subject not in decoder.apart],
        seed=told["seed"],
        out=None if folder is None else folder / "base",
        kind="pooled",
        aligner=decoder.aligner,
        training=merge({**stages, **{stage: told[stage]["training"] for stage in later}}, training or {}),
        **{name: value for name, value in decoder.config.model_dump().items() if name not in idle},
        **words,
    )
    for subject, facts in decoder.apart.items():
        found = adapt(
            found,
            study,
            targets,
            subject,
            sessions=facts["n_sessions"],
            arm=facts["arm"],
            out=None if folder is None else folder / "people" / subject,
            seed=facts["seed"],
            training=merge(facts["training"], training or {}),
            **{name: value for name, value in facts["adapter"].items() if name in settings_of_arm(facts["arm"])},
            **words,
        )
    return found


def check_alike(decoder: Decoder) -> None:
    """Refuse decoders that `fit_alike` cannot make once more.

    Raises
    ------
    InputError
        Naming why.
    """
    told = decoder.provenance
    faults = {
        "how it was fitted is not kept": "seed" not in told or not (decoder.closed_form or "training" in told),
        "it was merged from one of many people": "merged" in told,
        f"it is of the arm {told.get('arm')!r} of one person alone": "arm" in told,
        "people were added to it": "newcomers" in told,
        "people were adapted to beside an aligner": any("borrowed" in facts for facts in decoder.apart.values()),
    }
    found = [words for words, is_so in faults.items() if is_so]
    if found:
        raise InputError(
            f"this {decoder.name} decoder cannot be trained once more by itself: {', and '.join(found)}; train one for "
            "these targets (fit, adapt) and name that, or leave it out"
        )
