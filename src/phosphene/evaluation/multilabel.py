"""Several labels a stimulus: average precision, area under the curve and Hamming distance, person by person.

Classes without a positive among the scored stimuli have neither average precision nor a curve, those without a negative
no curve: they are left out of the means, which are printed with how many entered. Hamming distance knows them all (to
say one of them is wrong), and stands beside what saying "nothing" scores: with few labels a stimulus it hardly
separates decoders.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.decoders import ClassesConfig, Decoder
from phosphene.errors import InputError, refuse_doubles, unknown
from phosphene.evaluation.leakage import refuse_seen
from phosphene.evaluation.scorecard import plain
from phosphene.evaluation.statistics import Resampler, bootstrap_people, percentile_interval
from phosphene.files import write_json
from phosphene.recordings import Study
from phosphene.stimuli.multilabel import label_matrix

__all__ = ["LabelCard", "LabelScore", "auc", "average_precision", "chance_precision", "evaluate_labels", "hamming"]

log = logging.getLogger(__name__)

MEAN = "mean"
METRICS = ("mAP", "AUC", "Hamming")


def _grouped(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order from the highest score, and first and last position of everybody's group of equal scores."""
    order = np.argsort(-scores, kind="stable")
    _, group, count = np.unique(-scores[order], return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1
    return order, (last - count + 1)[group], last[group]


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under precision over recall, in steps; equal scores count as one threshold.

    Parameters
    ----------
    truth : (n,) bool array
    scores : (n,) array
    weights : (m, n) array, optional
        How often each stimulus counts in each of m resamples; default: once, in one.

    Returns
    -------
    (m,) float64 ndarray
        NaN where no positive counts.

    Examples
    --------
    >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7])).round(3).tolist()
    [0.833]
    """
    order, _, last = _grouped(scores)
    counted = _weights(truth, weights)[:, order]
    positive = counted * truth[order]
    found, taken = positive.cumsum(axis=1)[:, last], counted.cumsum(axis=1)[:, last]
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    return _ratio((positive * precision).sum(axis=1), positive.sum(axis=1))


def auc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of pairs of a positive and a negative in the right order, ties counting a half; as `average_precision`.

    NaN where no positive or no negative counts.

    Examples
    --------
    >>> auc(np.array([True, False, True]), np.array([0.9, 0.8, 0.7])).tolist()
    [0.5]
    """
    order, first, last = _grouped(scores)
    counted = _weights(truth, weights)[:, order]
    positive, negative = counted * truth[order], counted * ~truth[order]
    ahead = np.concatenate([np.zeros((len(negative), 1)), negative.cumsum(axis=1)], axis=1)
    total = negative.sum(axis=1, keepdims=True)
    below = total - (ahead[:, first] + ahead[:, last + 1]) / 2
    return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * total[:, 0])


def hamming(truth: np.ndarray, said: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of wrong labels over all classes, ``(m,)``; `truth` and `said` are (n, classes) bool."""
    wrong = (truth != said).mean(axis=1)
    counted = _weights(wrong, weights)
    return _ratio(counted @ wrong, counted.sum(axis=1))


def _weights(like: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return np.ones((1, len(like))) if weights is None else np.asarray(weights, dtype=np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


@dataclass(frozen=True)
class LabelScore:
    """One figure.

    Attributes
    ----------
    method, subject : str
        `subject` is ``"mean"`` for the mean over people.
    metric : {"mAP", "AUC", "Hamming"}
        The first two are means over classes.
    value, low, high : float
        With its 95 % interval over stimuli, centred on the value; NaN (null in files) without resamples, or where
        nothing could be measured.
    chance : float
        Of a random order (expected; the AUC's is a half); Hamming: of saying nothing.
    classes : int
        Classes that entered the mean (of AUC those with a positive and a negative), of Hamming distance all; of the
        mean over people: the fewest of anybody.
    n : int
        Stimuli (of the mean: of all people).
    """

    method: str
    subject: str
    metric: str
    value: float
    low: float
    high: float
    chance: float
    classes: int
    n: int


@dataclass(frozen=True)
class LabelCard:
    """Scores of several labels, and differences between the first method and the others.

    Attributes
    ----------
    scores : list of LabelScore
    differences : list of LabelScore
        First method minus `method`, on the same resamples of stimuli; means over people.
    left_out : dict of str to list of str
        Classes without a positive among the scored stimuli, by person.
    facts : dict
        Study, split, role, unit, seed.
    always : dict of str to list of str
        Classes without a negative, which have no AUC, by person.
    """

    scores: list[LabelScore]
    differences: list[LabelScore]
    left_out: dict[str, list[str]]
    facts: dict[str, Any]
    always: dict[str, list[str]] = field(default_factory=dict)

    def get(self, metric: str, subject: str = MEAN, method: str | None = None) -> LabelScore:
        """One figure; by default the mean over people of the first method."""
        method = method or self.scores[0].method
        for score in self.scores:
            if (score.metric, score.subject, score.method) == (metric, subject, method):
                return score
        raise unknown("label score", f"{method} {subject} {metric}", [f"{s.method} {s.subject}" for s in self.scores])

    def table(self) -> str:
        """All figures as text."""
        lines = [f"{'method':24} {'subject':10} {'metric':8} {'value':>6}  {'95 % interval':16} {'chance':>6} classes"]
        for score in self.scores:
            interval = "" if np.isnan(score.low) else f"{score.low:.3f} to {score.high:.3f}"
            lines.append(
                f"{score.method:24} {score.subject:10} {score.metric:8} {_figure(score.value)}  {interval:16} "
                f"{score.chance:6.3f} {score.classes:7d}"
            )
        for row in self.differences:
            if np.isnan(row.value):
                lines.append(f"{self.scores[0].method} - {row.method}: {row.metric} - (not measured)")
                continue
            lines.append(
                f"{self.scores[0].method} - {row.method}: {row.metric} {row.value:+.3f} "
                f"({row.low:+.3f} to {row.high:+.3f})"
            )
        lines += [
            f"{subject}: {len(names)} classes without a {what} left out: {', '.join(names[:8])}"
            for what, by_person in (("positive", self.left_out), ("negative (of AUC)", self.always))
            for subject, names in by_person.items()
            if names
        ]
        return "\n".join(lines)

    def save(self, path: str | Path) -> Path:
        """Write everything as JSON."""
        write_json(Path(path), plain({"format": "phosphene-labels", **asdict(self)}))
        return Path(path)


def _figure(value: float) -> str:
    """Six characters; a dash where nothing could be measured."""
    return f"{'-':>6}" if np.isnan(value) else f"{value:6.3f}"


def evaluate_labels(
    decoder: Decoder,
    study: Study,
    *,
    role: str = "test",
    subjects: Sequence[str] | None = None,
    rivals: Mapping[str, Decoder | Mapping[str, Decoder]] | None = None,
    repeats: int | None = None,
    unit: str | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> LabelCard:
    """Score the classes a decoder says, beside rivals with the same classes, on the same stimuli.

    Parameters
    ----------
    decoder : Decoder
        With a head for classes.
    study : Study
        Its current split.
    role : str
    subjects : sequence of str, optional
        Default: all of the study.
    rivals : mapping of name to Decoder, optional
        Or to one decoder a person, by their names.
    repeats : int, optional
        Average so many repeats of a stimulus; default: all.
    unit : str, optional
        Label column whose values are resampled as blocks; default the study's own unit, else stimuli.
    n_boot, seed : int
        Resamples of units, the same for all people and methods.
    name : str, optional
        What the decoder is called.

    Raises
    ------
    InputError
        For decoders without classes, or with different ones; two methods of one name; nobody to score; when no class
        has a positive.
    LeakageError
        When a decoder was fitted on what is scored.
    """
    first = name or decoder.name
    if first in (rivals or {}):
        raise InputError(f"a rival is called {first!r} like the decoder itself: give one of them another name (name=)")
    if subjects is not None and not subjects:
        raise InputError("subjects is empty: name at least one person")
    refuse_doubles("subject", subjects or ())
    if repeats is not None and repeats < 1:
        raise InputError(f"repeats must be at least 1, or None for all of them; found {repeats}")
    methods: dict[str, Decoder | Mapping[str, Decoder]] = {first: decoder, **(rivals or {})}
    columns, classes = _classes_of(methods)
    view = study.split(role)
    for one in methods.values():
        for each in _decoders(one):
            refuse_seen(study, each, view)
    if unit is not None and unit not in study.stimuli.labels:
        raise unknown("unit (a label column of the stimuli)", unit, study.stimuli.labels.columns)
    of_stimuli = view.units if unit is None else view.stimuli.labels[unit].astype(str)
    units = dict(zip(view.stimulus_ids.tolist(), of_stimuli.tolist(), strict=True))
    resampler = Resampler({role: of_stimuli}, n_boot, seed)
    truth_of = dict(zip(view.stimulus_ids.tolist(), label_matrix(view.stimuli.labels, columns, classes), strict=True))
    people = list(study.subjects if subjects is None else subjects)
    scores: list[LabelScore] = []
    drawn: dict[tuple[str, str], list[np.ndarray]] = {}
    values: dict[tuple[str, str], list[float]] = {}
    left_out: dict[str, list[str]] = {}
    always: dict[str, list[str]] = {}
    for person in people:
        ids, responses = view.averaged(person, repeats)
        truth = np.stack([truth_of[each] for each in ids.tolist()]) if len(ids) else np.zeros((0, len(classes)), bool)
        present: np.ndarray = np.asarray(truth.any(axis=0))
        if not present.any():
            raise InputError(f"{person}: none of the {len(classes)} classes has a positive among {len(ids)} stimuli")
        left_out[person] = [classes[column] for column in np.flatnonzero(~present)]
        weights = resampler.weights(role, np.array([units[each] for each in ids.tolist()])).astype(np.float64)
        always[person] = [classes[column] for column in np.flatnonzero(truth.all(axis=0))]
        for method, given in methods.items():
            one = _decoder_of(method, given, person)
            logits = one.predict(responses, one.known_as(person), what="classes")
            counts = {"mAP": int(present.sum()), "AUC": int(present.sum()) - len(always[person])}
            for metric, (value, boot, chance) in _measured(truth, logits, present, weights).items():
                interval = _interval(boot, value)
                sizes = (counts.get(metric, len(classes)), len(ids))
                scores.append(LabelScore(method, person, metric, value, *interval, chance, *sizes))
                drawn.setdefault((method, metric), []).append(boot)
                values.setdefault((method, metric), []).append(value)
    means = _means(methods, scores, drawn, values)
    differences = _differences(methods, drawn, values, means)
    unit_name = unit or study.unit or "stimulus"
    facts = {"study": study.name, "split": study.current_split, "role": role, "unit": unit_name, "seed": seed}
    facts["n_boot"] = n_boot
    return LabelCard([*means, *scores], differences, left_out, {**facts, "classes": list(classes)}, always)


def _decoders(given: Decoder | Mapping[str, Decoder]) -> list[Decoder]:
    """The decoder of everybody, or those of single people."""
    return list(given.values()) if isinstance(given, Mapping) else [given]


def _decoder_of(method: str, given: Decoder | Mapping[str, Decoder], person: str) -> Decoder:
    if not isinstance(given, Mapping):
        return given
    if person not in given:
        raise unknown(f"person of {method!r}:", person, given)
    return given[person]


def _classes_of(
    methods: Mapping[str, Decoder | Mapping[str, Decoder]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    for name, decoder in ((name, each) for name, given in methods.items() for each in _decoders(given)):
        config = decoder.config
        if not isinstance(config, ClassesConfig) or not config.classes:
            raise InputError(f"{name} has no head for classes: fit it with class_columns")
        here = (config.class_columns, config.classes)
        if found is not None and here != found:
            raise InputError(f"{name} knows other classes than {next(iter(methods))}: they cannot be compared")
        found = here
    assert found is not None
    return found


def chance_precision(n: int, positives: int) -> float:
    r"""Average precision that a random order of n stimuli is expected to have.

    At rank k stands a positive with probability p / n; of the k - 1 before it (k - 1)(p - 1) / (n - 1) are expected to
    be positive too: :math:`\frac{1}{n} \sum_k \frac{1}{k} \big(1 + (k - 1) \frac{p - 1}{n - 1}\big)`.

    Examples
    --------
    >>> round(chance_precision(20, 1), 3), chance_precision(5, 5)
    (0.18, 1.0)
    """
    if n == 1:
        return 1.0
    ranks = np.arange(1, n + 1)
    return float(np.mean((1 + (ranks - 1) * (positives - 1) / (n - 1)) / ranks))


def _measured(
    truth: np.ndarray, logits: np.ndarray, present: np.ndarray, weights: np.ndarray
) -> dict[str, tuple[float, np.ndarray, float]]:
    """Value, resampled values and chance of every metric: Hamming of all classes, the others of those present."""
    columns = np.flatnonzero(present)

    def over_classes(measure: Any, counted: np.ndarray | None) -> np.ndarray:
        table = np.stack([measure(truth[:, c], logits[:, c], counted) for c in columns])
        shown = np.isfinite(table)
        return _ratio(np.where(shown, table, 0.0).sum(axis=0), shown.sum(axis=0).astype(float))

    said = logits > 0
    random = float(np.mean([chance_precision(len(truth), int(truth[:, c].sum())) for c in columns]))
    return {
        "mAP": (
            float(over_classes(average_precision, None)[0]),
            over_classes(average_precision, weights),
            random,
        ),
        "AUC": (float(over_classes(auc, None)[0]), over_classes(auc, weights), 0.5),
        "Hamming": (float(hamming(truth, said)[0]), hamming(truth, said, weights), truth.mean()),
    }


def _interval(boot: np.ndarray, value: float, least: float = 0.0) -> tuple[float, float]:
    """95 % over resamples, within `least` and 1, moved so that their mean is the value; NaN where there are none.

    Average precision of a resample is too high: a positive that is drawn twice ranks above itself, and a class that
    lost its few positives leaves the mean. Left where it is, the interval may not even hold the value.
    """
    if not np.isfinite(boot).any():
        return np.nan, np.nan
    low, high = percentile_interval(boot + (value - np.nanmean(boot)))
    return max(low, least), min(high, 1.0)


def _means(
    methods: Collection[str],
    scores: Sequence[LabelScore],
    drawn: Mapping[tuple[str, str], list[np.ndarray]],
    values: Mapping[tuple[str, str], list[float]],
) -> list[LabelScore]:
    """Means over people, who are fixed; stimuli are resampled."""
    means = []
    for method in methods:
        for metric in METRICS:
            rows = [score for score in scores if (score.method, score.metric) == (method, metric)]
            boot = bootstrap_people(np.stack(drawn[method, metric]))
            value = float(np.mean(values[method, metric]))
            low, high = _interval(boot, value)
            chance, n = float(np.mean([row.chance for row in rows])), sum(row.n for row in rows)
            classes = min(row.classes for row in rows)
            means.append(LabelScore(method, MEAN, metric, value, low, high, chance, classes, n))
    return means


def _differences(
    methods: Collection[str],
    drawn: Mapping[tuple[str, str], list[np.ndarray]],
    values: Mapping[tuple[str, str], list[float]],
    means: Sequence[LabelScore],
) -> list[LabelScore]:
    first, *others = methods
    rows = []
    for other in others:
        for metric in METRICS:
            whole = next(score for score in means if (score.method, score.metric) == (other, metric))
            boot = bootstrap_people(np.stack(drawn[first, metric]) - np.stack(drawn[other, metric]))
            value = float(np.mean(np.subtract(values[first, metric], values[other, metric])))
            low, high = _interval(boot, value, least=-1.0)
            rows.append(LabelScore(other, MEAN, metric, value, low, high, 0.0, whole.classes, whole.n))
    return rows
