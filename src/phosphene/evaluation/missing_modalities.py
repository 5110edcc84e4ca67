"""What networks of sites decode when modalities are missing: complete test trials, shown in part, scored by pattern.

Classification has sense under every pattern. Retrieval of the picture has sense only where the picture is hidden, as it
would be copied; of a text alone it is a reference without a brain. Predictions come from `federation.predict`, which
has no way in for labels. `leak_with_labels` is the exception that shows what a leak would score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from phosphene.errors import InputError, unknown
from phosphene.evaluation.metrics import count_true, similarity, top_k, two_way
from phosphene.evaluation.multilabel import average_precision, chance_precision
from phosphene.evaluation.statistics import Resampler
from phosphene.federation.inference import Predicted, predict
from phosphene.federation.library import PrototypeLibrary
from phosphene.federation.model import PmcmModel
from phosphene.federation.retrieval import prototypes_of
from phosphene.federation.settings import FederationSettings
from phosphene.federation.trials import MODALITIES, Inputs, Trials

__all__ = [
    "PATTERNS",
    "RETRIEVED",
    "Network",
    "calibration_error",
    "chances",
    "leak_with_labels",
    "one_class_each",
    "score_pattern",
    "shown",
]

PATTERNS: dict[str, tuple[bool, ...]] = {
    "all": (True, True, True),
    "fmri": (True, False, False),
    "image": (False, True, False),
    "text": (False, False, True),
    "fmri+image": (True, True, False),
    "fmri+text": (True, False, True),
    "image+text": (False, True, True),
}
"""What of (fMRI, image, text) a test trial shows."""
RETRIEVED = ("fmri", "text", "fmri+text")
"""Patterns under which the picture is hidden, so that finding it among the test pictures is no copying."""

_SPLIT = "test"
_BINS = 15
_LOWER_IS_BETTER = ("ECE",)


@dataclass(frozen=True, eq=False)
class Network:
    """What a site predicts with.

    Attributes
    ----------
    model : PmcmModel
        With the site's people.
    library : PrototypeLibrary
        The server's.
    settings : FederationSettings
        They name the rule of inference.
    """

    model: PmcmModel
    library: PrototypeLibrary
    settings: FederationSettings

    def predict(self, inputs: Inputs) -> Predicted:
        """Predictions of trials with what they show."""
        return predict(self.model, inputs, self.library, self.settings.inference, self.settings.library.min_count)


def shown(inputs: Inputs, pattern: str) -> Inputs:
    """Complete trials with all hidden that is not of the pattern.

    Raises
    ------
    InputError
        For an unknown pattern, and for trials that lack what it shows.
    """
    if pattern not in PATTERNS:
        raise unknown("pattern of inference", pattern, PATTERNS)
    return inputs.hiding(torch.tensor(PATTERNS[pattern]).expand(len(inputs), len(MODALITIES)))


@torch.no_grad()
def leak_with_labels(network: Network, trials: Trials, pattern: str) -> Predicted:
    """A LEAK, to be marked as one wherever it is shown: what is missing is replaced by the true class's prototypes.

    A network that learned with such masks reads the label off them. Nothing that does not know the answer could score
    so; a result near this one means that labels found a way in.

    Raises
    ------
    InputError
        For trials without labels.
    """
    if trials.labels is None:
        raise InputError("the row that leaks labels needs labels")
    was = network.model.training
    network.model.eval()
    inputs = shown(trials.inputs, pattern)
    features = network.model.encode(inputs)
    prototypes = network.library.release(network.settings.library.min_count)
    vectors, found = prototypes_of(trials.labels.argmax(dim=1), features, inputs.present, prototypes)
    masks = torch.where(found[..., None], vectors, network.model.tokens.expand_as(features))
    fused = network.model.fuse(features, inputs.present, masks)
    network.model.train(was)
    embedding = None if fused.embedding is None else functional.normalize(fused.embedding, dim=1)
    return Predicted(fused.logits, embedding, fused.z)


def one_class_each(tests: Mapping[str, Trials]) -> bool:
    """Whether every trial has exactly one class; accuracy has sense then, mean average precision elsewhere.

    Raises
    ------
    InputError
        Naming a site without labels, and trials without a class where no trial has several: a stimulus of a class that
        training does not know would turn accuracy into mean average precision for all.
    """
    counts = {}
    for name, trials in tests.items():
        if trials.labels is None:
            raise InputError(f"the test trials of {name} have no labels: there is nothing to score")
        counts[name] = (trials.labels > 0).sum(dim=1)
    if any(bool((each > 1).any()) for each in counts.values()):
        return False
    blank = {name: sorted(set(tests[name].ids[(each == 0).numpy()].tolist())) for name, each in counts.items()}
    if faults := [f"{len(ids)} stimuli of {name}, such as {ids[0]}" for name, ids in blank.items() if ids]:
        raise InputError(
            f"every trial has one class, but some are of none that is known: {'; '.join(faults)}. Leave them out of "
            f"the split, or name label columns in which they have a class that occurs in training"
        )
    return True


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = _BINS) -> float:
    r"""Expected calibration error :math:`\sum_b \frac{n_b}{n} |acc_b - conf_b|` over bins of equal width.

    Guo et al., On calibration of modern neural networks, 2017.

    Parameters
    ----------
    confidence : (n,) array
        In [0, 1].
    correct : (n,) array
        0 or 1.
    bins : int

    Examples
    --------
    >>> calibration_error(np.array([0.9, 0.9]), np.array([1.0, 0.0])).__round__(3)
    0.4
    """
    place = np.clip((np.asarray(confidence) * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(place, weights=np.asarray(correct, dtype=float) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(place))


# -- scores ------------------------------------------------------------------------------------------------------


def score_pattern(
    predicted: Mapping[str, Predicted],
    tests: Mapping[str, Trials],
    pattern: str,
    resampler: Resampler,
    units: Mapping[str, str],
    task: str,
) -> dict[str, Any]:
    """Scores of all sites under one pattern.

    Parameters
    ----------
    predicted : mapping of str to Predicted
        By site, of its test trials in their order.
    tests : mapping of str to Trials
        Complete, with labels, by site.
    pattern : str
        Of `PATTERNS`.
    resampler : Resampler
        Of the units of the split "test": the same for all arms that are to be paired.
    units : mapping of str to str
        Unit of resampling of each stimulus.
    task : {"ce", "bce"}
        How logits become probabilities, for the calibration error.

    Returns
    -------
    dict
        ``mean`` over sites, ``worst`` (site and value), ``sites`` (means over a site's people) of every metric:
        accuracy, macro-F1 and ECE where each trial has one class, else mAP and ECE; under `RETRIEVED`, top-1 and
        two-way in both directions among the person's own test pictures. ``draws``: the mean over sites in every
        resample, of accuracy or mAP, and of top-1 (mean of both directions).
    """
    single = one_class_each(tests)
    sites: dict[str, dict[str, float]] = {}
    draws: dict[str, list[np.ndarray]] = {}
    for name, trials in tests.items():
        people = []
        for person in _people(trials):
            rows = np.flatnonzero(trials.inputs.subjects == person)
            weights = resampler.weights(_SPLIT, np.array([units[each] for each in trials.ids[rows].tolist()]))
            scores, drawn = _person(predicted[name], trials, rows, weights, single, task, pattern in RETRIEVED)
            people.append(scores)
            for metric, values in drawn.items():
                draws.setdefault(metric, []).append(values / len(_people(trials)))
        sites[name] = {metric: float(np.mean([each[metric] for each in people])) for metric in people[0]}
    metrics = list(next(iter(sites.values())))
    return {
        "mean": {metric: float(np.mean([each[metric] for each in sites.values()])) for metric in metrics},
        "worst": {metric: _worst(sites, metric) for metric in metrics},
        "sites": sites,
        "draws": {metric: (np.sum(values, axis=0) / len(sites)).round(5).tolist() for metric, values in draws.items()},
    }


def chances(tests: Mapping[str, Trials]) -> dict[str, float]:
    """What knows nothing scores, and how many pictures a person's gallery holds.

    Accuracy: of a random class (`accuracy`) and of always saying the commonest one of the test (`commonest`);
    macro-F1: of the latter; mAP: of a random order; retrieval: of a random one.
    """
    single = one_class_each(tests)
    galleries = np.array([int((each.inputs.subjects == p).sum()) for each in tests.values() for p in _people(each)])
    found = {"top-1": float((1 / galleries).mean()), "two-way": 0.5, "gallery": float(galleries.mean())}
    labels = [each.labels.numpy() > 0 for each in tests.values() if each.labels is not None]
    n_classes = labels[0].shape[1]
    if single:
        commonest = float(np.mean([each.mean(axis=0).max() for each in labels]))
        f1 = float(np.mean([2 * p / (1 + p) / each.any(axis=0).sum() for each in labels for p in [each.mean(0).max()]]))
        return {"accuracy": 1 / n_classes, "commonest": commonest, "macro-F1": f1, **found}
    precisions = [chance_precision(len(each), int(n)) for each in labels for n in each.sum(axis=0) if n]
    return {"mAP": float(np.mean(precisions)), **found}


def _people(trials: Trials) -> list[str]:
    return sorted(set(trials.inputs.subjects.tolist()))


def _worst(sites: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, Any]:
    pick = max if metric in _LOWER_IS_BETTER else min
    name = pick(sites, key=lambda site: sites[site][metric])
    return {"site": name, "value": sites[name][metric]}


def _person(
    predicted: Predicted,
    trials: Trials,
    rows: np.ndarray,
    weights: np.ndarray,
    single: bool,
    task: str,
    with_retrieval: bool,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores of one person's trials, and in every resample."""
    at = torch.from_numpy(rows)
    scores: dict[str, float] = {}
    drawn: dict[str, np.ndarray] = {}
    assert trials.labels is not None
    if predicted.logits is not None:
        found = _one_class if single else _several_classes
        scores, drawn = found(predicted.logits[at], trials.labels[at], weights, task)
    if with_retrieval and predicted.embedding is not None:
        table = similarity(predicted.embedding[at].numpy(), trials.inputs.image[at].numpy())
        hits = []
        for way, each in (("brain_to_image", table), ("image_to_brain", table.T)):
            counts = count_true(each)
            hits.append(top_k(counts, 1))
            scores |= {f"top-1 {way}": float(hits[-1].mean()), f"two-way {way}": float(two_way(counts).mean())}
        drawn["top-1"] = _weighted(np.mean(hits, axis=0), weights)
    return scores, drawn


def _one_class(
    logits: Tensor, labels: Tensor, weights: np.ndarray, task: str
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    truth, said = labels.argmax(dim=1).numpy(), logits.argmax(dim=1).numpy()
    correct = (truth == said).astype(float)
    confidence = _probabilities(logits, task).amax(dim=1).numpy()
    scores = {
        "accuracy": float(correct.mean()),
        "macro-F1": _macro_f1(truth, said, logits.shape[1]),
        "ECE": calibration_error(confidence, correct),
    }
    return scores, {"accuracy": _weighted(correct, weights)}


def _macro_f1(truth: np.ndarray, said: np.ndarray, n_classes: int) -> float:
    """Mean over the classes that occur of 2 hits / (true + said); checks of a library take longer than that here."""
    hits, true, claimed = (np.bincount(each, minlength=n_classes) for each in (truth[truth == said], truth, said))
    occur = true > 0
    return float((2 * hits[occur] / (true + claimed)[occur]).mean())


def _several_classes(
    logits: Tensor, labels: Tensor, weights: np.ndarray, task: str
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    truth, said = labels.numpy() > 0, logits.numpy()
    columns = np.flatnonzero(truth.any(axis=0))
    if not len(columns):
        raise InputError("a person's test trials have no class at all: nothing can be scored")
    found = [average_precision(truth[:, c], said[:, c]) for c in columns]
    counted = weights.astype(float)
    drawn = np.stack([average_precision(truth[:, c], said[:, c], counted) for c in columns])
    scores = {
        "mAP": float(np.mean(found)),
        "ECE": calibration_error(_probabilities(logits, task).numpy().ravel(), truth.ravel()),
    }
    return scores, {"mAP": np.nanmean(drawn, axis=0)}


def _probabilities(logits: Tensor, task: str) -> Tensor:
    return logits.softmax(dim=1) if task == "ce" else logits.sigmoid()


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean in every resample; a resample with none of the trials has the plain mean."""
    total = weights.sum(axis=1)
    return np.where(total > 0, weights @ values / np.maximum(total, 1), values.mean())
