"""Retrieval of captions from brain responses and back, in a stated gallery of distinct captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from phosphene.errors import InputError, LeakageError
from phosphene.evaluation.leakage import refuse_leakage
from phosphene.evaluation.metrics import count_true, metric, similarity
from phosphene.evaluation.scoring import Fold
from phosphene.training.pivot import Pivot, caption_items

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["TextCard", "TextScore", "text_retrieval"]

METRICS = ("top-1", "top-5", "top-10", "two-way", "median-rank")
DIRECTIONS = ("brain_to_text", "text_to_brain")
_MEAN = "mean"


@dataclass(frozen=True)
class TextScore:
    """One figure: of a person or the mean of all.

    Attributes
    ----------
    subject, direction, metric : str
    value, chance : float
    interval : (float, float) or None
        Percentile interval over distinct captions.
    gallery : int
        Distinct captions among which (or among whose mean predictions) is searched; the largest of several people.
    queries : int
    """

    subject: str
    direction: str
    metric: str
    value: float
    chance: float
    interval: tuple[float, float] | None
    gallery: int
    queries: int


@dataclass(frozen=True)
class TextCard:
    """All figures of one method.

    Attributes
    ----------
    method : str
    scores : list of TextScore
    facts : dict
        Role, split, encoder of the text, pairs the pivot was fitted on.
    """

    method: str
    scores: list[TextScore]
    facts: dict[str, Any] = field(default_factory=dict)

    def get(self, metric: str, direction: str, subject: str = _MEAN) -> TextScore:
        """One figure; an unknown one is an error that lists the known."""
        for score in self.scores:
            if (score.metric, score.direction, score.subject) == (metric, direction, subject):
                return score
        known = sorted({f"{s.metric} {s.direction} {s.subject}" for s in self.scores})
        raise InputError(f"no text retrieval figure {metric} {direction} {subject}; there are: {', '.join(known)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"method": self.method, **self.facts, "scores": [vars(score) for score in self.scores]}

    def table(self) -> str:
        """The means over people, as lines of text."""
        lines = [f"{self.method}: text retrieval, {self.facts.get('role', '')} of {self.facts.get('split', '')}"]
        for score in self.scores:
            if score.subject == _MEAN:
                interval = "" if score.interval is None else f" [{score.interval[0]:.3f}, {score.interval[1]:.3f}]"
                lines.append(
                    f"  {score.direction:<14} {score.metric:<12} {score.value:.3f}{interval}  chance "
                    f"{score.chance:.3f}  {score.gallery} captions"
                )
        return "\n".join(lines)


def text_retrieval(
    decoder: Decoder,
    study: Study,
    texts: Targets,
    pivot: Pivot | None = None,
    *,
    role: str = "test",
    subjects: Sequence[str] | None = None,
    what: Literal["target", "embedding"] | None = None,
    name: str | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> TextCard:
    """Score brain to text and text to brain on held-out stimuli.

    Stimuli with equal captions are one item: the gallery holds every caption once, a response finds its caption
    whichever stimulus showed it, and a caption looks for the mean prediction of its stimuli. Ties share the hit.

    Parameters
    ----------
    decoder : Decoder
        Of image embeddings, with a `pivot`; or of the text embeddings themselves, without.
    study : Study
        Its current split is used; responses of a stimulus are averaged over repeats.
    texts : Targets
        Caption embeddings of the study's stimuli.
    pivot : Pivot, optional
    role : str
    subjects : sequence of str, optional
        Default: all whom the decoder knows.
    what : {"target", "embedding"}
        Which output of the decoder goes through the pivot: the predicted target (default), or what it compares with
        targets. Without a pivot it is the embedding, and nothing else.
    name : str, optional
        Of the method.
    n_boot, seed : int
        Resamples of captions, the same ones for everybody.

    Returns
    -------
    TextCard
        Per person, and the mean over people.

    Raises
    ------
    LeakageError
        When decoder, pivot or an encoder have seen stimuli to be scored.
    InputError
        For targets of other encoders, stimuli without captions, fewer than two captions.
    """
    view = study.split(role)
    fold = Fold(study.current_split, study, decoder, texts, view, None)
    refuse_leakage(fold)
    if pivot is None and what == "target":
        raise InputError(
            "what = 'target' is for a pivot; without one the decoder's own embedding is compared with text"
        )
    what = what or ("embedding" if pivot is None else "target")
    if pivot is None:
        if decoder.encoder is not None:
            texts.require(decoder.encoder, f"this {decoder.name} decoder")
    else:
        _check_pivot(pivot, decoder, texts, view)
    people = [each for each in study.subjects if each in decoder.subjects] if subjects is None else list(subjects)
    if not people:
        raise InputError(f"nobody of study {study.name!r} is known to this {decoder.name} decoder")
    items = dict(zip(view.stimulus_ids.tolist(), caption_items(view.stimuli.captions).tolist(), strict=True))
    draws = np.random.default_rng(seed).poisson(1.0, (n_boot, 1 + max(items.values()))) if n_boot else None
    found = {person: _person(decoder, view, texts, pivot, person, what, items) for person in people}
    scores = [score for person in people for score in _scores(person, {person: found[person]}, draws)]
    scores += _scores(_MEAN, found, draws)
    facts = {
        "role": role,
        "split": study.current_split,
        "texts": texts.encoder.label,
        "pivot_pairs": None if pivot is None else pivot.provenance["n_pairs"],
        "subjects": people,
    }
    return TextCard(name or (decoder.name if pivot is None else f"{decoder.name} by pivot"), scores, facts)


def _check_pivot(pivot: Pivot, decoder: Decoder, texts: Targets, view: StudyView) -> None:
    if decoder.encoder is not None:
        pivot.check(decoder.encoder, decoder.target_kind)
    texts.require(pivot.texts, "the pivot")
    seen = set(pivot.provenance["training_content"].values())
    hashes = view.stimuli.hashes.tolist()
    leaked = [name for name, each in zip(view.stimulus_ids.tolist(), hashes, strict=True) if each in seen]
    if leaked:
        raise LeakageError(
            f"the pivot was fitted on {len(leaked)} of the {len(hashes)} stimuli to be scored, such as "
            f"{', '.join(leaked[:3])}"
        )


@dataclass(frozen=True)
class _Found:
    """Values of one person: by direction and metric one a query, and the item of each query."""

    values: dict[tuple[str, str], np.ndarray]
    items: dict[str, np.ndarray]
    gallery: int


def _person(
    decoder: Decoder,
    view: StudyView,
    texts: Targets,
    pivot: Pivot | None,
    person: str,
    what: Any,
    items: dict[str, int],
) -> _Found:
    ids, responses = view.averaged(person)
    item = np.array([items[name] for name in ids.tolist()], dtype=np.int64)
    distinct, first, which = np.unique(item, return_index=True, return_inverse=True)
    if len(distinct) < 2:
        raise InputError(f"{person} saw {len(distinct)} different captions in the {view.role} part; two are needed")
    said = decoder.predict(responses, person, what=what)
    said = said.reshape(len(said), -1) if pivot is None else pivot.predict(said)
    gallery = texts.of(ids[first], "pooled")
    mean = np.zeros((len(distinct), said.shape[1]))
    np.add.at(mean, which, said)
    mean /= np.bincount(which)[:, None]
    counts = {
        "brain_to_text": count_true(similarity(said, gallery), which),
        "text_to_brain": count_true(similarity(gallery, mean), np.arange(len(distinct))),
    }
    values = {(direction, name): metric(name).values(counts[direction]) for direction in DIRECTIONS for name in METRICS}
    return _Found(values, {"brain_to_text": item, "text_to_brain": distinct}, len(distinct))


def _scores(who: str, found: dict[str, _Found], draws: np.ndarray | None) -> list[TextScore]:
    """Figures of one person, or the mean over several: each first summarised for itself."""
    scores = []
    for direction in DIRECTIONS:
        for name in METRICS:
            rule = metric(name)
            summary = np.median if rule.summary == "median" else np.mean
            values = [each.values[direction, name] for each in found.values()]
            interval = None
            if draws is not None:
                resampled = [
                    _resampled(each.values[direction, name], draws[:, each.items[direction]], rule.summary)
                    for each in found.values()
                ]
                low, high = np.nanpercentile(np.mean(resampled, axis=0), [2.5, 97.5])
                interval = float(low), float(high)
            sizes = np.array([each.gallery for each in found.values()])
            scores.append(
                TextScore(
                    who,
                    direction,
                    name,
                    float(np.mean([summary(each) for each in values])),
                    float(np.mean([rule.chance(np.array([size])) for size in sizes])),
                    interval,
                    int(sizes.max()),
                    sum(len(each) for each in values),
                )
            )
    return scores


def _resampled(values: np.ndarray, weights: np.ndarray, summary: str) -> np.ndarray:
    """Weighted mean (or median) of the values under each resample, ``(n_boot,)``."""
    if summary == "mean":
        return (weights @ values) / np.maximum(weights.sum(axis=1), 1)
    return np.array([np.median(np.repeat(values, each)) if each.any() else np.nan for each in weights])
