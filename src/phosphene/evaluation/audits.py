"""Audits: what could make a score look better than it is, and splits that rule one of them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.errors import InputError
from phosphene.evaluation.metrics import count_true, similarity, top_k, two_way
from phosphene.evaluation.statistics import noise_ceiling

if TYPE_CHECKING:
    from phosphene.recordings import StudyView
    from phosphene.stimuli import StimulusSet

_BLOCK_ROWS = 8192
_CEILING_VALUES = 2**27  # trials x voxels read at once for the noise ceiling: half a gigabyte

__all__ = [
    "closer_to_training",
    "leave_cluster_out",
    "participation_ratio",
    "repeat_ceiling",
    "semantic_leakage",
    "stimulus_overlap",
]


def participation_ratio(x: np.ndarray) -> float:
    """Effective rank: ``(sum of eigenvalues)^2 / sum of squared eigenvalues`` of the covariance of the rows.

    1 when all rows lie on a line, min(n - 1, D) when variance is spread evenly; no threshold to choose.

    Parameters
    ----------
    x : (n, D) array
        Predictions or targets; tokens as rows of their own, ``(n * tokens, width)``.

    Examples
    --------
    >>> round(participation_ratio(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 6)
    2.0
    """
    mean = x.mean(axis=0, dtype=np.float64)
    # both products have the same non-zero eigenvalues; the smaller is cheaper
    if x.shape[0] <= x.shape[1]:
        centred = x - mean
        gram = centred @ centred.T
    else:
        gram = np.zeros((x.shape[1], x.shape[1]))
        for start in range(0, len(x), _BLOCK_ROWS):
            centred = x[start : start + _BLOCK_ROWS] - mean
            gram += centred.T @ centred
    squares = float((gram**2).sum())
    size = float(np.abs(x).max(initial=0.0)) ** 2 * np.prod(x.shape)
    return 0.0 if np.trace(gram) <= 1e-14 * size else float(np.trace(gram)) ** 2 / squares


def stimulus_overlap(train: StimulusSet, test: StimulusSet) -> dict[str, Any]:
    """Stimuli that stand on both sides: by id, by content, by a caption.

    Returns
    -------
    dict
        ``ids``, ``contents`` (test stimuli whose content hash occurs in training), ``captions`` (test stimuli one of
        whose captions occurs in training, letter case and spaces aside): counts; ``examples``: up to five test ids.
    """
    known_ids, known_hashes = set(train.ids.tolist()), set(train.hashes.tolist())
    known_captions = {_folded(text) for texts in train.captions for text in texts}
    same_id = [name for name in test.ids.tolist() if name in known_ids]
    same_content = [n for n, h in zip(test.ids.tolist(), test.hashes.tolist(), strict=True) if h in known_hashes]
    same_caption = [
        name
        for name, texts in zip(test.ids.tolist(), test.captions, strict=True)
        if any(_folded(text) in known_captions for text in texts)
    ]
    return {
        "ids": len(same_id),
        "contents": len(same_content),
        "captions": len(same_caption),
        "test_stimuli": len(test),
        "examples": list(dict.fromkeys([*same_id, *same_content, *same_caption]))[:5],
    }


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def closer_to_training(predictions: np.ndarray, truth: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Whether a prediction is more similar (cosine) to some training target than to its own target.

    Common for honest decoders of many training stimuli; close to all of them means that the decoder names what it
    knows rather than what was seen.

    Parameters
    ----------
    predictions, truth : (n, D) arrays
    training : (m, D) array

    Returns
    -------
    (n,) bool
    """
    own = np.array([similarity(p[None], t[None])[0, 0] for p, t in zip(predictions, truth, strict=True)])
    return similarity(predictions, training).max(axis=1) > own


def semantic_leakage(test: np.ndarray, training: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """How near the test targets lie to training targets, against how near training targets lie to each other.

    A decoder can look good by recognising which cluster of training stimuli a response belongs to. Where almost every
    test stimulus has a training neighbour in its cluster, repeat the evaluation with `leave_cluster_out`.

    Parameters
    ----------
    test : (n, D) array
    training : (m, D) array

    Returns
    -------
    dict
        ``test_to_training`` and ``within_training``: median cosine to the nearest (other) training target;
        ``near_duplicates``: share of test stimuli with a training target at cosine 0.99 or more;
        ``in_training_clusters``: share of test stimuli whose k-means cluster holds training stimuli; ``clusters``: k.
    """
    nearest = similarity(test, training).max(axis=1)
    among = similarity(training, training)
    np.fill_diagonal(among, -1.0)
    everything = np.concatenate([test, training])
    k = int(np.clip(round(np.sqrt(len(everything) / 2)), 2, len(everything)))
    codes = _clusters(everything, k, seed)
    shared = np.isin(codes[: len(test)], codes[len(test) :])
    return {
        "test_to_training": float(np.median(nearest)),
        "within_training": float(np.median(among.max(axis=1))) if len(training) > 1 else None,
        "near_duplicates": float((nearest >= 0.99).mean()),
        "in_training_clusters": float(shared.mean()),
        "clusters": k,
        "training_items_used": len(training),
    }


def _clusters(embeddings: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    directions = np.divide(embeddings, lengths, out=np.zeros_like(embeddings, dtype=np.float64), where=lengths > 0)
    k = min(k, len(np.unique(directions, axis=0)))
    return np.asarray(KMeans(n_clusters=k, n_init=4, random_state=seed).fit_predict(directions))


def repeat_ceiling(views: Sequence[StudyView], subject: str, seed: int = 0) -> dict[str, Any] | None:
    """What repeats say about the best any decoder could do; None where nothing was repeated.

    Two ceilings: of every voxel (explainable variance of the averaged responses), and of identification: the stimulus
    of one half of the repeats is looked for among the means of the other half by pattern correlation. The second is
    no strict bound (a decoder may know which voxels to trust, and both halves are noisy), but its order of magnitude.

    Parameters
    ----------
    views : sequence of StudyView
        The scored part of each fold; folds are averaged by their number of repeated stimuli.
    subject : str
    seed : int
        Which repeats fall into which half.

    Returns
    -------
    dict or None
        ``repeated_stimuli``; ``voxel_median`` and ``voxel_p90``: explainable variance for the number of repeats there
        are; ``voxel_median_single``: for one trial; ``halves_two_way`` and ``halves_top_1``.
    """
    found, sizes = [], []
    for number, view in enumerate(views):
        shown = view.trials(subject)["stimulus_id"]
        names, counts = np.unique(shown, return_counts=True)
        if (counts > 1).sum() < 2:
            continue
        rows = np.flatnonzero(np.isin(shown, names[counts > 1]))
        if len(rows) * view.n_voxels(subject) > _CEILING_VALUES:
            most = max(2, int(_CEILING_VALUES / view.n_voxels(subject) / counts.max()))
            rows = rows[np.isin(shown[rows], names[counts > 1][:most])]
        responses, shown = view.responses(subject, rows), shown[rows]
        whole, single = noise_ceiling(responses, shown), noise_ceiling(responses, shown, averaged=1)
        halves = _split_halves(responses, shown, np.random.default_rng((seed, 6, number)))
        own = count_true(similarity(*halves, "pearson"))
        found.append(
            {
                "voxel_median": float(np.median(whole)),
                "voxel_p90": float(np.quantile(whole, 0.9)),
                "voxel_median_single": float(np.median(single)),
                "halves_two_way": float(two_way(own).mean()),
                "halves_top_1": float(top_k(own, 1).mean()),
            }
        )
        sizes.append(len(halves[0]))
    if not found:
        return None
    means = {key: float(np.average([entry[key] for entry in found], weights=sizes)) for key in found[0]}
    return {"repeated_stimuli": sum(sizes), **means}


def _split_halves(
    responses: np.ndarray, shown: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean response to each stimulus over a random half of its trials, and over the other half."""
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name in np.unique(shown):
        rows = generator.permutation(np.flatnonzero(shown == name))
        middle = len(rows) // 2
        halves[0].append(responses[rows[:middle]].mean(axis=0))
        halves[1].append(responses[rows[middle:]].mean(axis=0))
    return np.stack(halves[0]), np.stack(halves[1])


def leave_cluster_out(
    stimuli: StimulusSet,
    embeddings: np.ndarray | None = None,
    *,
    n_clusters: int = 20,
    n_splits: int = 5,
    unit: str | None = None,
    seed: int = 0,
) -> dict[str, dict[str, list[str]]]:
    """Splits in which whole clusters of alike stimuli are held out.

    No response is looked at, and the clusters decide nothing but the split: encoders and decoders are fitted on the
    training part of each split afterwards, as with any other split, and see nothing of what is made here.

    Parameters
    ----------
    stimuli : StimulusSet
    embeddings : (n, D) array, optional
        One vector a stimulus, in the order of `stimuli`; by default TF-IDF of the captions.
    n_clusters : int
        Clusters of k-means on the directions of the embeddings; few and large ones make the harder test.
    n_splits : int
        Folds; clusters are dealt out so that folds have similar numbers of stimuli.
    unit : str, optional
        Label column whose values stay together as well: a unit goes where its mean embedding goes.
    seed : int

    Returns
    -------
    dict
        ``{"cluster-0": {"train": ids, "test": ids}, ...}`` for ``study.with_splits``; every stimulus is a test
        stimulus once.

    Raises
    ------
    InputError
        Without captions or embeddings, or with fewer clusters than splits.
    """
    vectors = _caption_vectors(stimuli) if embeddings is None else np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(stimuli):
        raise InputError(f"embeddings must be ({len(stimuli)}, D), one row a stimulus, found {vectors.shape}")
    if not 2 <= n_splits <= n_clusters:
        raise InputError(f"n_splits must lie between 2 and n_clusters = {n_clusters}, found {n_splits}")
    groups = stimuli.ids if unit is None else stimuli.labels[unit].astype(str)
    names, codes = np.unique(groups, return_inverse=True)
    means = np.zeros((len(names), vectors.shape[1]))
    np.add.at(means, codes, vectors)
    means /= np.bincount(codes)[:, None]
    if len(names) < n_clusters:
        raise InputError(f"{n_clusters} clusters cannot be made of {len(names)} units")
    cluster = _clusters(means, n_clusters, seed)[codes]
    sizes = np.bincount(cluster)
    if len(sizes) < n_splits:
        raise InputError(f"the embeddings form only {len(sizes)} distinct clusters, fewer than {n_splits} splits")
    fold_of, filled = np.zeros(len(sizes), dtype=int), np.zeros(n_splits)
    for number in np.argsort(-sizes, kind="stable"):
        fold_of[number] = int(filled.argmin())
        filled[fold_of[number]] += sizes[number]
    fold = fold_of[cluster]
    return {
        f"cluster-{number}": {
            "train": stimuli.ids[fold != number].tolist(),
            "test": stimuli.ids[fold == number].tolist(),
        }
        for number in range(n_splits)
    }


def _caption_vectors(stimuli: StimulusSet) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts: Sequence[str] = [" ".join(captions) for captions in stimuli.captions]
    if not all(text.strip() for text in texts):
        empty = sum(not text.strip() for text in texts)
        raise InputError(f"{empty} of {len(texts)} stimuli have no caption: give embeddings to cluster by")
    return np.asarray(TfidfVectorizer(sublinear_tf=True).fit_transform(texts).toarray())
