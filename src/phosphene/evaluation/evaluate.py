"""`evaluate`: a decoder and its rivals under named protocols, with chance, intervals, nulls and audits."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene._version import __version__
from phosphene.errors import InputError, refuse_doubles, unknown
from phosphene.evaluation.assemble import comparisons, method_scores, stimulus_records
from phosphene.evaluation.audits import repeat_ceiling, semantic_leakage, stimulus_overlap
from phosphene.evaluation.leakage import doubts, refuse_leakage, scaled_by_what_is_scored, scaling_notes, with_known_fit
from phosphene.evaluation.protocols import resolve
from phosphene.evaluation.rivals import RIVALS, Predictor
from phosphene.evaluation.scorecard import Scorecard
from phosphene.evaluation.scoring import Fold, PersonResult, Setting, label_of, make_classes, prepare, score
from phosphene.evaluation.statistics import Resampler, Shuffler

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.encoders import Targets
    from phosphene.recordings import Study

__all__ = ["evaluate"]

log = logging.getLogger(__name__)

#: (fold, subject) -> what predicts that person's responses on that fold
PredictorOf = Callable[[Fold, str], Predictor]
_SEMANTIC_ITEMS = 3000


def evaluate(
    decoder: Decoder | Mapping[str, Decoder],
    study: Study,
    targets: Targets | Mapping[str, Targets] | None = None,
    *,
    role: str = "test",
    subjects: Sequence[str] | None = None,
    rivals: Sequence[str] | Mapping[str, Decoder | Mapping[str, Decoder] | None] = ("mean", "nearest", "ridge"),
    protocols: Sequence[str] | None = None,
    class_targets: Mapping[str, np.ndarray] | None = None,
    repeats: int | None = None,
    seed: int = 0,
    n_boot: int = 1000,
    n_perm: int = 1000,
    unit: str | None = None,
    csls: bool = False,
    name: str | None = None,
    progress: bool = True,
) -> Scorecard:
    """Score a decoder, and simple rivals beside it, on held-out stimuli.

    Every person is scored first, then the mean over people is taken. With several splits (folds), the candidates of
    a query are the test stimuli of its own fold; values of all folds are summarised query by query. Nothing is
    chosen here: the decoder is taken as it is.

    Parameters
    ----------
    decoder : Decoder, or mapping of split name to Decoder
        One decoder, scored on the study's current split; or one a fold.
    study : Study
        What to score it on: the study it was fitted on, or another one.
    targets : Targets, or mapping of split name to Targets, optional
        Targets of the study's stimuli. Left out, the stimuli are encoded by the decoder's own encoder: this is how a
        decoder of one study is scored on another with new stimuli, or (`subject_free` decoders) new people.
    role : str
        The part of the split to score on (``"all"``: every stimulus; no rival can be fitted then).
    subjects : sequence of str, optional
        People to score; default all of the study.
    rivals : sequence of str, or mapping
        ``"mean"``, ``"nearest"``, ``"ridge"``, fitted here on the training part; a mapping may add fitted decoders:
        ``{"ridge": None, "mindeye-mlp": other_decoder}``, one a fold by the names of splits, or one a person by
        theirs: single-person models beside one model of all.
    protocols : sequence of str, optional
        See `phosphene.evaluation.protocols`. Default: full gallery, pools of 300 x 30 draws where the gallery has
        more than 300 stimuli, two-way with cosine and with Pearson; classification where the targets are labels.
    class_targets : mapping of class name to (D,) array, optional
        Embeddings of the class names for ``classification:<column>`` (zero-shot); by default each class is the mean
        of its training targets.
    repeats : {None, 1, 2, 3, ...}
        Average the responses of a stimulus over its first so many repeats; None: all of them.
    seed : int
        Of drawn pools, resamples and permutations.
    n_boot, n_perm : int
        Resamples and permutations; 0 leaves interval or null out.
    unit : str, optional
        Label column whose values are resampled and shuffled as blocks; default the study's own unit, else stimuli.
    csls : bool
        Add hubness-corrected scores, flagged transductive.
    name : str, optional
        Name of the method in the scorecard; default the decoder's.
    progress : bool
        Show a progress bar (only on a terminal).

    Returns
    -------
    Scorecard

    Raises
    ------
    InputError
        Unknown names; a person the decoder does not know while it is not `subject_free`, or while an aligner stands in
        front of it; targets of another encoder.
    LeakageError
        When the encoder or the decoder was fitted on stimuli it is to be scored on.

    Examples
    --------
    >>> scores = evaluate(decoder, study, targets)                            # doctest: +SKIP
    >>> scores.get("top-1", "brain_to_image").value                           # doctest: +SKIP
    """
    if repeats is not None and repeats < 1:
        raise InputError(f"repeats must be at least 1, or None for all of them; found {repeats}")
    folds = _folds(decoder, study, targets, role, progress)
    people = _people(folds, study, subjects)
    notes = [*doubts(folds), *scaling_notes(folds, people)]
    for note in notes:
        log.warning("%s", note)
    contenders = _contenders(name or folds[0].decoder.name, folds, rivals, notes)
    setting = _setting(folds, study, people, protocols, class_targets, repeats, seed, n_boot, n_perm, unit, csls)
    results: dict[str, dict[str, PersonResult]] = {method: {} for method in contenders}
    units: dict[str, np.ndarray] = {}
    with _bar("evaluating", len(people) * len(contenders), progress) as advance:
        for person in people:
            data = prepare(folds, person, setting)
            units[person] = data.units
            for method, predictor_of in contenders.items():
                results[method][person] = score(data, [predictor_of(fold, person) for fold in folds], setting)
                advance()
    unit_name = unit or study.unit or "stimulus"
    facts = _facts(folds, study, people, setting, unit_name, n_boot, n_perm, role)
    suffix = f"| {role} of {', '.join(f.split for f in folds)} | repeats {facts['repeats']} | seed {seed}"
    resampled = setting.resampler.people(len(people))
    method, *others = contenders
    return Scorecard(
        method=method,
        protocol=facts,
        scores=[
            entry
            for m, by_person in results.items()
            for entry in method_scores(m, by_person, setting.protocols, resampled, unit_name, suffix)
        ],
        comparisons=[
            row
            for rival in others
            for row in comparisons(
                method, rival, results, setting.protocols, resampled, units, n_perm=n_perm, seed=seed
            )
        ],
        stimuli=stimulus_records(results),
        audits={
            "predictions": {m: {p: r.audit for p, r in by_person.items()} for m, by_person in results.items()},
            **_study_audits(folds, people, seed),
        },
        notes=notes,
    )


# -- what is scored ---------------------------------------------------------------------------------------------


def _folds(
    decoder: Decoder | Mapping[str, Decoder],
    study: Study,
    targets: Targets | Mapping[str, Targets] | None,
    role: str,
    progress: bool,
) -> list[Fold]:
    decoders = dict(decoder) if isinstance(decoder, Mapping) else {study.current_split: decoder}
    if not decoders:
        raise InputError("there is no decoder to evaluate: the mapping of split names to decoders is empty")
    if isinstance(targets, Mapping) and (missing := sorted(set(decoders) - set(targets))):
        raise unknown("split of the targets", missing[0], targets)
    log.debug("study %s", study.digest)  # computed once: what `using` copies shares it
    folds = []
    for split, one in decoders.items():
        here = study.using(split) if split in study.split_names or role != "all" else study
        view = here.split(role)
        train = here.split("train") if role not in ("all", "train") and "train" in here.roles() else None
        given = targets[split] if isinstance(targets, Mapping) else targets
        fold = with_known_fit(Fold(split, here, one, _targets_for(one, here, given, progress), view, train))
        refuse_leakage(fold)
        folds.append(fold)
    kinds = {fold.decoder.target_shape for fold in folds}
    if len(kinds) > 1:
        raise InputError(f"the decoders of the folds predict targets of different shapes: {sorted(kinds)}")
    return folds


def _targets_for(decoder: Decoder, study: Study, given: Targets | None, progress: bool) -> Targets:
    from phosphene.encoders import encode

    if given is None:
        if decoder.encoder is None:
            raise InputError(f"this {decoder.name} decoder carries no encoder: give the targets to compare with")
        given = encode(study.stimuli, decoder.encoder, progress=progress)
    decoder.check_targets(given)
    return given


def _people(folds: Sequence[Fold], study: Study, subjects: Sequence[str] | None) -> list[str]:
    people = list(study.subjects if subjects is None else subjects)
    refuse_doubles("subject", people)
    if not people:
        raise InputError("subjects is empty: name at least one person")
    for person in people:
        if person not in study.subjects:
            raise unknown("subject", person, study.subjects)
        for fold in folds:
            if person not in fold.decoder.subjects and not fold.decoder.subject_free:
                raise InputError(
                    f"this {fold.decoder.name} decoder was fitted on {', '.join(fold.decoder.subjects)} and takes "
                    f"nobody else; {person!r} needs a subject-free decoder (pool_subjects=True), adaptation, or "
                    "subjects=[...] to score only known people (--subject of phosphene evaluate and report)"
                )
            fold.decoder.known_as(person)  # refuses people whom an aligner in front does not know
    return people


def _contenders(
    method: str,
    folds: Sequence[Fold],
    rivals: Sequence[str] | Mapping[str, Decoder | Mapping[str, Decoder] | None],
    notes: list[str],
) -> dict[str, PredictorOf]:
    contenders: dict[str, PredictorOf] = {method: lambda fold, person: _predictor(fold.decoder, person)}
    wanted = dict(rivals) if isinstance(rivals, Mapping) else dict.fromkeys(rivals)
    for rival, fitted in wanted.items():
        called = f"{rival} (rival)" if rival in contenders else rival
        if fitted is not None:
            contenders[called] = _given_rival(rival, fitted, folds)
        elif rival not in RIVALS:
            raise unknown("rival", rival, RIVALS)
        elif any(fold.train is None for fold in folds):
            notes.append(f"rival {rival!r} left out: there is no training part to fit it on")
            log.warning("%s", notes[-1])
        else:
            contenders[called] = _fitted_rival(rival)
    return contenders


def _fitted_rival(rival: str) -> PredictorOf:
    def predictor(fold: Fold, person: str) -> Predictor:
        return RIVALS[rival](fold.study, person, fold.targets, fold.kind)

    return predictor


def _given_rival(rival: str, fitted: Decoder | Mapping[str, Decoder], folds: Sequence[Fold]) -> PredictorOf:
    decoders = dict(fitted) if isinstance(fitted, Mapping) else {folds[0].split: fitted}
    by_person = bool(decoders) and set(decoders) <= set(folds[0].study.subjects) - {fold.split for fold in folds}
    if by_person and len(folds) > 1:
        raise InputError(f"rival {rival!r} has one decoder a person: these are for one split, found {len(folds)}")
    for fold in folds:
        if not by_person and fold.split not in decoders:
            raise unknown(f"split of rival {rival!r}", fold.split, decoders)
        for other in decoders.values() if by_person else [decoders[fold.split]]:
            _check_rival(rival, other, fold)

    def predictor(fold: Fold, person: str) -> Predictor:
        if by_person and person not in decoders:
            raise unknown(f"person of rival {rival!r}:", person, decoders)
        return _predictor(decoders[person if by_person else fold.split], person)

    return predictor


def _check_rival(rival: str, other: Decoder, fold: Fold) -> None:
    if other.target_shape != fold.decoder.target_shape:
        raise InputError(
            f"rival {rival!r} predicts targets of shape {other.target_shape}, the decoder {fold.decoder.target_shape}"
        )
    if other.encoder is not None:
        fold.targets.require(other.encoder, f"rival {rival!r}")
    refuse_leakage(replace(fold, decoder=other))


def _predictor(decoder: Decoder, person: str) -> Predictor:
    subject = decoder.known_as(person)

    def predict(responses: np.ndarray) -> np.ndarray:
        return decoder.predict(responses, subject).reshape(len(responses), -1)

    return predict


def _setting(
    folds: Sequence[Fold],
    study: Study,
    people: Sequence[str],
    protocols: Sequence[str] | None,
    class_targets: Mapping[str, np.ndarray] | None,
    repeats: int | None,
    seed: int,
    n_boot: int,
    n_perm: int,
    unit: str | None,
    csls: bool,
) -> Setting:
    column = unit or study.unit
    if column is not None and column not in study.stimuli.labels:
        raise unknown("unit (a label column of the stimuli)", column, study.stimuli.labels.columns)
    ids = study.stimuli.ids
    unit_of = (
        dict(zip(ids.tolist(), ids.tolist(), strict=True))
        if column is None
        else label_of(study.stimuli.labels, ids, column)
    )
    smallest = min(len(np.unique(fold.view.trials(p)["stimulus_id"])) for fold in folds for p in people)
    encoder = folds[0].targets.encoder
    label = encoder.config.column if encoder.name == "labels" else None
    chosen = resolve(protocols, smallest, csls, label)
    units = {f.split: np.array([unit_of[name] for name in f.view.stimulus_ids.tolist()]) for f in folds}
    return Setting(
        protocols=chosen,
        classes={
            (f.split, p.label): make_classes(f, p.label, label_of(study.stimuli.labels, ids, p.label), class_targets)
            for f in folds
            for p in chosen
            if p.label is not None
        },
        units={f.split: unit_of for f in folds},
        shufflers={
            f.split: Shuffler(f.view.stimulus_ids, units[f.split], n_perm, (seed, 0, number))
            for number, f in enumerate(folds)
        },
        resampler=Resampler(units, n_boot, seed),
        repeats=repeats,
        seed=seed,
    )


# -- what is said about it --------------------------------------------------------------------------------------


def _study_audits(folds: Sequence[Fold], people: Sequence[str], seed: int) -> dict[str, Any]:
    overlap, semantic = {}, {}
    for number, fold in enumerate(folds):
        if fold.train is None:
            continue
        overlap[fold.split] = stimulus_overlap(fold.train.stimuli, fold.view.stimuli)
        known, generator = fold.train.stimulus_ids, np.random.default_rng((seed, 5, number))
        if len(known) > _SEMANTIC_ITEMS:
            known = np.sort(generator.choice(known, _SEMANTIC_ITEMS, replace=False))
        test = fold.targets.of(fold.view.stimulus_ids, "pooled")
        semantic[fold.split] = semantic_leakage(test, fold.targets.of(known, "pooled"), seed)
    return {
        "overlap": overlap,
        "semantic_leakage": semantic,
        "noise_ceiling": {p: c for p in people if (c := repeat_ceiling([f.view for f in folds], p, seed)) is not None},
    }


def _facts(
    folds: Sequence[Fold],
    study: Study,
    people: Sequence[str],
    setting: Setting,
    unit: str,
    n_boot: int,
    n_perm: int,
    role: str,
) -> dict[str, Any]:
    encoder = folds[0].targets.encoder
    return {
        "study": {"name": study.name, "digest": study.digest, "scaling": study.scaling},
        "transductive_scaling": scaled_by_what_is_scored(folds, people),
        "splits": [fold.split for fold in folds],
        "role": role,
        "subjects": list(people),
        "target": {
            "name": encoder.label,
            "identity": {fold.split: fold.targets.identity for fold in folds},
            "kind": folds[0].kind,
            "shape": list(folds[0].decoder.target_shape),
        },
        "candidates": "the stimuli of the same split and role that the person saw",
        "stimuli": {fold.split: len(fold.view.stimulus_ids) for fold in folds},
        "training_stimuli": {fold.split: len(fold.train.stimulus_ids) for fold in folds if fold.train is not None},
        "repeats": "all" if setting.repeats is None else setting.repeats,
        "trials_per_stimulus": {p: _trials_per_stimulus(folds, p, setting.repeats) for p in people},
        "unit": unit,
        "seed": setting.seed,
        "n_boot": n_boot,
        "n_perm": n_perm,
        "interval": "95 % percentile bootstrap over units within splits; the mean over people also over people",
        "null": "permutation of stimuli within splits, units as blocks; the same for every person",
        "tasks": [protocol.to_dict() for protocol in setting.protocols],
        "decoder": {
            fold.split: {k: v for k, v in fold.decoder.provenance.items() if k != "training_content"} for fold in folds
        },
        "versions": _versions(),
    }


def _trials_per_stimulus(folds: Sequence[Fold], person: str, repeats: int | None) -> float:
    """Mean number of trials that were averaged into one response."""
    counts = np.concatenate(
        [np.unique(fold.view.trials(person)["stimulus_id"], return_counts=True)[1] for fold in folds]
    )
    return float((counts if repeats is None else np.minimum(counts, repeats)).mean())


def _versions() -> dict[str, str]:
    import scipy
    import sklearn
    import torch

    return {
        "phosphene": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": torch.__version__,
    }


@contextmanager
def _bar(text: str, total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    if not (wanted and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)
