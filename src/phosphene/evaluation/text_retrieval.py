"""Retrieval of captions from brain responses and back, in a stated gallery of distinct captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from phosphene.errors import InputError, LeakageError, refuse_doubles
from phosphene.evaluation.leakage import refuse_leakage
from phosphene.evaluation.metrics import Counts, Metric, count_true, metric, similarity
from phosphene.evaluation.scoring import Fold
from phosphene.evaluation.statistics import Resampler, bootstrap_people, percentile_interval, weighted_summary
from phosphene.training.pivot import Pivot, caption_items, check_text

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["TextCard", "TextQueries", "TextScore", "text_retrieval"]

METRICS = ("top-1", "top-5", "top-10", "two-way", "median-rank")
POOL = 300
DIRECTIONS = ("brain_to_text", "text_to_brain")
_MEAN = "mean"


@dataclass(frozen=True)
class TextScore:
    """One figure: of a person or the mean of all.

    Attributes
    ----------
    subject, direction, metric : str
        ``"top-1 of 300"`` is the expected hit in a gallery of 300 drawn at random.
    value, chance : float
    interval : (float, float) or None
        Percentile interval over distinct captions (over units, where the study names one).
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
class TextQueries:
    """What every query of one person in one direction found.

    Attributes
    ----------
    subject, direction : str
    names : (n,) ndarray of str
        The stimulus that was seen; of a caption, the first stimulus of the scored part that has it.
    units : (n,) ndarray of int
        Captions of one number are resampled together.
    counts : Counts
        Candidates more and equally similar than the true one, and how many candidates there are.
    """

    subject: str
    direction: str
    names: np.ndarray
    units: np.ndarray
    counts: Counts

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        greater, ties, gallery = self.counts
        found = {"greater": greater.tolist(), "ties": ties.tolist(), "gallery": gallery}
        return {"subject": self.subject, "direction": self.direction, "names": self.names.tolist(), **found}


@dataclass(frozen=True)
class TextCard:
    """All figures of one method.

    Attributes
    ----------
    method : str
    scores : list of TextScore
    facts : dict
        Role, split, encoder of the text, pairs the pivot was fitted on.
    queries : list of TextQueries
        From which they were made, and from which methods are compared in pairs.
    """

    method: str
    scores: list[TextScore]
    facts: dict[str, Any] = field(default_factory=dict)
    queries: list[TextQueries] = field(default_factory=list)

    def get(self, metric: str, direction: str, subject: str = _MEAN) -> TextScore:
        """One figure; an unknown one is an error that lists the known."""
        for score in self.scores:
            if (score.metric, score.direction, score.subject) == (metric, direction, subject):
                return score
        known = sorted({f"{s.metric} {s.direction} {s.subject}" for s in self.scores})
        raise InputError(f"no text retrieval figure {metric} {direction} {subject}; there are: {', '.join(known)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        scores, queries = [vars(score) for score in self.scores], [each.to_dict() for each in self.queries]
        return {"method": self.method, **self.facts, "scores": scores, "queries": queries}

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
    whichever stimulus showed it, and a caption looks for the mean prediction of its stimuli. Ties share the hit. Where
    everybody's gallery is larger than 300, top-1 and top-5 of 300 stand beside those of the whole.

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
        Resamples of captions (of units, where the study names one), the same ones for everybody.

    Returns
    -------
    TextCard
        Per person, and the mean over people.

    Raises
    ------
    LeakageError
        When decoder, pivot or an encoder have seen stimuli to be scored.
    InputError
        For targets of other encoders or of pictures, stimuli without captions, fewer than two captions.
    """
    check_text(texts)
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
    refuse_doubles("subject", people)
    if not people:
        raise InputError(f"nobody of study {study.name!r} is known to this {decoder.name} decoder")
    items = caption_items(view.stimuli.captions)
    groups = _Groups(dict(zip(view.stimulus_ids.tolist(), items.tolist(), strict=True)), _units(view, items))
    queries = [each for person in people for each in _person(decoder, view, texts, pivot, person, what, groups)]
    resampler = Resampler({role: groups.units}, n_boot, seed) if n_boot else None
    weights = None if resampler is None else [resampler.weights(role, each.units) for each in queries]
    scores = [row for person in people for row in _scores(person, queries, weights)] + _scores(_MEAN, queries, weights)
    facts = {
        "role": role,
        "split": study.current_split,
        "texts": texts.encoder.label,
        "text_identity": texts.identity,
        "pivot_pairs": None if pivot is None else pivot.provenance["n_pairs"],
        "subjects": people,
    }
    return TextCard(name or (decoder.name if pivot is None else f"{decoder.name} by pivot"), scores, facts, queries)


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
class _Groups:
    """The caption of each stimulus by id, as a number, and the unit of each caption."""

    item: dict[str, int]
    units: np.ndarray


def _units(view: StudyView, items: np.ndarray) -> np.ndarray:
    """What each caption is resampled with, ``(captions,)``: all that share a unit of the study, by any stimulus."""
    _, codes = np.unique(view.units, return_inverse=True)
    n_items, n_units = int(items.max()) + 1, int(codes.max()) + 1
    pairs = sparse.coo_array((np.ones(len(items)), (items, codes)), shape=(n_items, n_units))
    both: np.ndarray = sparse.csgraph.connected_components(sparse.block_array([[None, pairs], [pairs.T, None]]))[1]
    return both[:n_items]


def _person(
    decoder: Decoder,
    view: StudyView,
    texts: Targets,
    pivot: Pivot | None,
    person: str,
    what: Any,
    groups: _Groups,
) -> list[TextQueries]:
    """What one person's responses and their captions find, direction by direction."""
    ids, responses = view.averaged(person)
    item = np.array([groups.item[name] for name in ids.tolist()], dtype=np.int64)
    distinct, first, which = np.unique(item, return_index=True, return_inverse=True)
    if len(distinct) < 2:
        raise InputError(f"{person} saw {len(distinct)} different captions in the {view.role} part; two are needed")
    said = decoder.predict(responses, person, what=what)
    said = said.reshape(len(said), -1) if pivot is None else pivot.predict(said)
    gallery = texts.of(ids[first], "pooled")
    mean = np.zeros((len(distinct), said.shape[1]))
    np.add.at(mean, which, said)
    mean /= np.bincount(which)[:, None]
    forth = count_true(similarity(said, gallery), which)
    back = count_true(similarity(gallery, mean), np.arange(len(distinct)))
    return [
        TextQueries(person, "brain_to_text", ids, groups.units[item], forth),
        TextQueries(person, "text_to_brain", ids[first], groups.units[distinct], back),
    ]


def rules_for(queries: Sequence[TextQueries]) -> dict[str, Metric]:
    """The metrics by name; pools only where they are smaller than everybody's gallery."""
    rules = {name: metric(name) for name in METRICS}
    if min(each.counts.size for each in queries) > POOL:
        rules |= {f"{name} of {POOL}": metric(name, POOL) for name in ("top-1", "top-5")}
    return rules


def _scores(who: str, queries: Sequence[TextQueries], weights: Sequence[np.ndarray] | None) -> list[TextScore]:
    """Figures of one person, or the mean over several: each first summarised for itself."""
    scores = []
    for direction in DIRECTIONS:
        rows = [n for n, each in enumerate(queries) if each.direction == direction and who in (_MEAN, each.subject)]
        counts = [queries[n].counts for n in rows]
        sizes = np.array([each.size for each in counts])
        for name, rule in rules_for(queries).items():
            values = [rule.values(each) for each in counts]
            interval = None
            if weights is not None:
                boots = [weighted_summary(v, weights[n], rule.summary) for v, n in zip(values, rows, strict=True)]
                interval = percentile_interval(bootstrap_people(np.stack(boots)))
            summary = np.median if rule.summary == "median" else np.mean
            value = float(np.mean([summary(each) for each in values]))
            chance = float(np.mean([rule.chance(np.array([size])) for size in sizes]))
            gallery = POOL if name.endswith(f" of {POOL}") else int(sizes.max())
            n_queries = sum(len(each) for each in values)
            scores.append(TextScore(who, direction, name, value, chance, interval, gallery, n_queries))
    return scores
