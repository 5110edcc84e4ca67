"""Scores of one person: predictions of every fold, values per query, resamples and null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.errors import InputError, unknown
from phosphene.evaluation.audits import closer_to_training, participation_ratio
from phosphene.evaluation.metrics import METRICS, class_centroids, count_true, rank, similarity
from phosphene.evaluation.protocols import Outcome, Protocol, Ranking
from phosphene.evaluation.rivals import Predictor, target_blocks
from phosphene.evaluation.statistics import Resampler, Shuffler, weighted_summary

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["Classes", "Fold", "FoldData", "Key", "PersonData", "PersonResult", "Setting", "prepare", "score"]

#: task (short protocol name), direction, metric
Key = tuple[str, str, str]

_TOP = 5
_AUDIT_VALUES = 2**26


@dataclass(frozen=True)
class Fold:
    """One split: what is scored on it."""

    split: str
    study: Study
    decoder: Decoder
    targets: Targets
    view: StudyView
    train: StudyView | None

    @property
    def kind(self) -> str:
        """Which targets the decoder predicts."""
        return self.decoder.target_kind


@dataclass(frozen=True)
class Classes:
    """Class embeddings of one fold: names (k,), embeddings (k, D), and the class of every stimulus by id."""

    names: np.ndarray
    embeddings: np.ndarray
    of: Mapping[str, str]

    def codes(self, ids: np.ndarray, column: str) -> np.ndarray:
        """Number of each stimulus' class."""
        known = {str(name): code for code, name in enumerate(self.names.tolist())}
        labels = [self.of[stimulus] for stimulus in ids.tolist()]
        if strange := sorted(set(labels) - set(known)):
            raise InputError(
                f"{column} {strange[0]!r} has no class embedding (known: {', '.join(known)}); classes that training "
                "never showed need class_targets, e.g. text embeddings of their names"
            )
        return np.array([known[label] for label in labels])


@dataclass(frozen=True)
class Setting:
    """What every person is scored under."""

    protocols: Sequence[Protocol]
    classes: Mapping[tuple[str, str], Classes]  # by split and label column
    units: Mapping[str, Mapping[str, str]]  # by split: unit of each stimulus id
    shufflers: Mapping[str, Shuffler]
    resampler: Resampler
    repeats: int | None
    seed: int


@dataclass(frozen=True)
class FoldData:
    """One person's part of one fold."""

    fold: Fold
    ids: np.ndarray
    responses: np.ndarray
    truth: np.ndarray
    permutations: np.ndarray


@dataclass(frozen=True)
class PersonData:
    """One person's test responses of all folds; queries are counted through over folds."""

    subject: str
    folds: list[FoldData]
    units: np.ndarray  # (n,) name of split and unit of each query
    weights: np.ndarray  # (n_boot, n) how often each query counts in each resample


@dataclass
class PersonResult:
    """What one method gives for one person."""

    values: dict[Key, np.ndarray] = field(default_factory=dict)
    sizes: dict[Key, np.ndarray] = field(default_factory=dict)
    null: dict[Key, np.ndarray] = field(default_factory=dict)
    boot: dict[Key, np.ndarray] = field(default_factory=dict)
    extra: dict[Key, dict[str, Any]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)

    def value(self, key: Key) -> float:
        """Mean (or median) over queries."""
        return float(np.median(self.values[key]) if _summary(key) == "median" else self.values[key].mean())


def _summary(key: Key) -> str:
    return METRICS[key[2]].summary if key[2] in METRICS else "mean"


def prepare(folds: Sequence[Fold], subject: str, setting: Setting) -> PersonData:
    """Read a person's test responses and lay out resamples and permutations."""
    parts, units, weights = [], [], []
    for fold in folds:
        ids, responses = fold.view.averaged(subject, setting.repeats)
        if len(ids) < 2:
            raise InputError(
                f"{subject} saw {len(ids)} stimuli of the {fold.view.role} part of split {fold.split!r}; "
                "at least 2 are needed to compare candidates"
            )
        truth = fold.targets.of(ids, fold.kind).reshape(len(ids), -1)
        parts.append(FoldData(fold, ids, responses, truth, setting.shufflers[fold.split].permutations(ids)))
        of_fold = np.array([setting.units[fold.split][name] for name in ids.tolist()])
        units.append(np.array([f"{fold.split}\t{unit}" for unit in of_fold.tolist()]))
        weights.append(setting.resampler.weights(fold.split, of_fold))
    return PersonData(subject, parts, np.concatenate(units), np.concatenate(weights, axis=1).astype(np.float64))


def score(data: PersonData, predictors: Sequence[Predictor], setting: Setting) -> PersonResult:
    """Predict every fold and score it under every protocol.

    Parameters
    ----------
    data : PersonData
    predictors : sequence of Predictor
        One a fold.
    """
    outcomes: dict[Key, list[Outcome]] = {}
    result = PersonResult()
    records, audits = [], []
    for part, predict in zip(data.folds, predictors, strict=True):
        predictions = np.asarray(predict(part.responses))
        if predictions.shape != part.truth.shape:
            raise InputError(f"predictions have shape {predictions.shape}, their targets {part.truth.shape}")
        tables: dict[str, np.ndarray] = {}
        rankings: dict[tuple[str, bool, str], Ranking] = {}
        for protocol in setting.protocols:
            for direction, ranking in _rankings(protocol, part, predictions, setting, tables, rankings).items():
                outcome = protocol.score(ranking, part.permutations, seed=setting.seed)
                for name in protocol.metric_names:
                    outcomes.setdefault((protocol.name, direction, name), []).append(outcome)
        cosine = _table(tables, "cosine", part, predictions)
        records.append(_record(part, cosine, setting.units[part.fold.split]))
        audits.append(_audit(part, predictions, setting.seed))
    for key, parts in outcomes.items():
        _summarise(result, key, parts, data.weights)
    result.record = _joined(records)
    for protocol in setting.protocols:
        if protocol.label is not None:
            key = (protocol.name, "brain_to_label", "accuracy")
            result.extra[key] = _majority(data, protocol, setting)
            result.record.setdefault("accuracy", {})[protocol.name] = result.values[key].tolist()
    result.audit = _averaged(audits, [len(part.ids) for part in data.folds])
    return result


def _rankings(
    protocol: Protocol,
    part: FoldData,
    predictions: np.ndarray,
    setting: Setting,
    tables: dict[str, np.ndarray],
    known: dict[tuple[str, bool, str], Ranking],
) -> dict[str, Ranking]:
    """Ranking in each direction of a protocol; those that another protocol made already are taken from `known`."""
    if protocol.label is not None:
        classes = setting.classes[part.fold.split, protocol.label]
        table = similarity(predictions, classes.embeddings, protocol.similarity)
        return {"brain_to_label": Ranking(table, classes.codes(part.ids, protocol.label))}
    keys = {direction: (protocol.similarity, protocol.transductive, direction) for direction in protocol.directions}
    if not all(key in known for key in keys.values()):
        table = protocol.corrected(_table(tables, protocol.similarity, part, predictions))
        truth = np.arange(len(part.ids))
        for direction, key in keys.items():
            known[key] = Ranking(table if direction == "brain_to_image" else np.ascontiguousarray(table.T), truth)
    return {direction: known[key] for direction, key in keys.items()}


def _table(tables: dict[str, np.ndarray], kind: str, part: FoldData, predictions: np.ndarray) -> np.ndarray:
    """Similarity of predictions with targets, computed once a kind: with wide tokens it is what takes the time."""
    if kind not in tables:
        tables[kind] = similarity(predictions, part.truth, kind)
    return tables[kind]


def _summarise(result: PersonResult, key: Key, parts: list[Outcome], weights: np.ndarray) -> None:
    name = key[2]
    result.values[key] = np.concatenate([part.values[name] for part in parts])
    result.sizes[key] = np.concatenate([np.full(len(part.values[name]), part.size) for part in parts])
    if len(weights):
        result.boot[key] = weighted_summary(
            result.values[key], weights, "median" if _summary(key) == "median" else "mean"
        )
    if name in parts[0].expected:
        result.extra[key] = {"expected": float(np.concatenate([part.expected[name] for part in parts]).mean())}
    if name in parts[0].null:
        if _summary(key) == "median":
            result.null[key] = np.median(np.concatenate([part.null[name] for part in parts], axis=1), axis=1)
        else:
            totals = sum(part.null[name].sum(axis=1, dtype=np.float64) for part in parts)
            result.null[key] = np.asarray(totals) / len(result.values[key])


def _majority(data: PersonData, protocol: Protocol, setting: Setting) -> dict[str, Any]:
    labels = [
        setting.classes[part.fold.split, str(protocol.label)].of[name]
        for part in data.folds
        for name in part.ids.tolist()
    ]
    return {"majority": float(np.unique(labels, return_counts=True)[1].max() / len(labels))}


def _record(part: FoldData, table: np.ndarray, units: Mapping[str, str]) -> dict[str, Any]:
    """Ranks and what was retrieved, stimulus by stimulus: for the report and for later pairing."""
    best = np.argsort(-table, axis=1, kind="stable")[:, :_TOP]
    counts = {"brain_to_image": count_true(table), "image_to_brain": count_true(table.T)}
    return {
        "ids": part.ids.tolist(),
        "split": [part.fold.split] * len(part.ids),
        "unit": [units[name] for name in part.ids.tolist()],
        "candidates": [len(part.ids)] * len(part.ids),
        "rank": {direction: rank(c).tolist() for direction, c in counts.items()},
        "ties": {direction: c.ties.tolist() for direction, c in counts.items()},
        "top": part.ids[best].tolist(),
    }


def _joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for key, first in records[0].items():
        if isinstance(first, dict):
            joined[key] = {inner: [v for record in records for v in record[key][inner]] for inner in first}
        else:
            joined[key] = [value for record in records for value in record[key]]
    return joined


def _audit(part: FoldData, predictions: np.ndarray, seed: int) -> dict[str, float]:
    shape = part.fold.targets.shape(part.fold.kind)
    found = {
        "effective_rank": participation_ratio(predictions.reshape(-1, shape[-1])),
        "effective_rank_of_targets": participation_ratio(part.truth.reshape(-1, shape[-1])),
    }
    if part.fold.train is not None:
        known = part.fold.train.stimulus_ids
        most = max(100, _AUDIT_VALUES // part.truth.shape[1])
        if len(known) > most:
            known = np.sort(np.random.default_rng((seed, 4)).choice(known, most, replace=False))
        training = part.fold.targets.of(known, part.fold.kind).reshape(len(known), -1)
        found["closer_to_training"] = float(closer_to_training(predictions, part.truth, training).mean())
        found["training_items_used"] = float(len(known))
    return found


def _averaged(audits: list[dict[str, float]], sizes: list[int]) -> dict[str, float]:
    return {key: float(np.average([audit[key] for audit in audits], weights=sizes)) for key in audits[0]}


def make_classes(fold: Fold, column: str, labels: Mapping[str, str], given: Mapping[str, np.ndarray] | None) -> Classes:
    """Class embeddings of a fold: those given, else the mean of each class's training targets."""
    width = int(np.prod(fold.targets.shape(fold.kind)))
    if given is not None:
        embeddings = np.stack([np.asarray(vector, dtype=np.float64).ravel() for vector in given.values()])
        if embeddings.shape[1] != width:
            raise InputError(f"class_targets have width {embeddings.shape[1]}, the decoder predicts {width}")
        return Classes(np.array([str(name) for name in given]), embeddings, labels)
    if fold.train is None:
        raise InputError(
            f"classification:{column} needs class_targets, or a training part whose targets give the class means"
        )
    ids = fold.train.stimulus_ids
    of_train = np.array([labels[name] for name in ids.tolist()])
    names = np.unique(of_train)
    sums = np.zeros((len(names), width))
    for rows, block in target_blocks(fold.targets, ids, fold.kind):
        here, centroids = class_centroids(block, of_train[rows])
        counts = np.array([(of_train[rows] == name).sum() for name in here.tolist()])
        sums[np.searchsorted(names, here)] += centroids * counts[:, None]
    totals = np.array([(of_train == name).sum() for name in names.tolist()])
    return Classes(names, sums / totals[:, None], labels)


def label_of(labels: Any, ids: np.ndarray, column: str) -> dict[str, str]:
    """Label of each stimulus by id; a column that is not there lists those that are."""
    if column not in labels:
        raise unknown("label column", column, labels.columns)
    return dict(zip(ids.tolist(), labels[column].astype(str).tolist(), strict=True))
