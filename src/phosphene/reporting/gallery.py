"""Test stimuli with what was retrieved for them: best, median and worst by rank, chosen by rule and not by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phosphene.files import digest
from phosphene.reporting.page import ALL, GROUPS, Candidate, Case, Group
from phosphene.reporting.pictures import album

if TYPE_CHECKING:
    from phosphene.evaluation import Scorecard
    from phosphene.stimuli import StimulusSet

__all__ = ["Query", "captions", "choose", "collect", "show"]


@dataclass(frozen=True)
class Query:
    """One response of one person to a test stimulus, and what was found for it.

    `rank` starts from 1, ties counting one half; `candidates` is how many it was one of.
    """

    person: str
    identifier: str
    rank: float
    candidates: int
    top: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Where the right one stands between first (0) and last (1): comparable over pools of different size."""
        return (self.rank - 1) / max(1, self.candidates - 1)


def collect(scorecard: Scorecard) -> list[Query]:
    """Queries of the evaluated method, from brain to stimulus, of all people and folds."""
    found = []
    for record in scorecard.stimuli:
        if record.get("method", scorecard.method) != scorecard.method:
            continue
        ranks = record["rank"]["brain_to_image"]
        columns = zip(record["ids"], ranks, record["candidates"], record["top"], strict=True)
        found += [Query(record["subject"], name, float(r), int(c), tuple(top)) for name, r, c, top in columns]
    return found


def choose(queries: Sequence[Query], most: int) -> dict[Group, list[Query]]:
    """At most `most` queries of lowest, middle and highest rank; no query is in two groups.

    Among equal ranks a hash of the names decides, so that neither luck nor a hand does.

    Examples
    --------
    >>> queries = [Query("sub-01", f"s{k}", k + 1, 9, ()) for k in range(9)]
    >>> {group: [q.rank for q in chosen] for group, chosen in choose(queries, 2).items()}
    {'best': [1, 2], 'median': [5, 6], 'worst': [9, 8]}
    """
    ordered = sorted(queries, key=lambda query: (query.fraction, digest(query.person, query.identifier)))
    size = len(ordered)
    count = max(1, min(most, size // 3)) if size else 0
    best, worst = ordered[:count], ordered[max(count, size - count) :][::-1]
    middle = (size - count + 1) // 2
    median = [query for query in ordered[middle : middle + count] if query not in best and query not in worst]
    return {"best": best, "median": median, "worst": worst}


def show(
    scorecard: Scorecard,
    stimuli: StimulusSet,
    people: Sequence[str],
    most: int = 3,
) -> tuple[Case, ...]:
    """Cases of every person, and of everybody where there are several.

    Parameters
    ----------
    scorecard : Scorecard
        Its `stimuli` hold rank and retrieved items of every query.
    stimuli : StimulusSet
        Pixels, captions or labels of test stimuli; what is not there is not shown.
    people : sequence of str
        Views of the page (`page.ALL` among them).
    most : int
        Cases a group and view.
    """
    queries = collect(scorecard)
    views: dict[tuple[Query, Group], list[str]] = {}
    for person in people:
        own = [query for query in queries if person in (ALL, query.person)]
        for group, chosen in choose(own, most).items():
            for query in chosen:
                views.setdefault((query, group), []).append(person)
    shown = Counter(name for query, _ in views for name in (query.identifier, *query.top))
    words = captions(stimuli, shown)
    pictures: Mapping[str, Any] = {}
    if stimuli.has_pixels:
        alts = {name: caption or f"stimulus {name}" for name, caption in words.items()}
        pictures = album(list(shown), lambda names: stimuli.frames(stimuli.rows(list(names))), alts, shown)
    cases = []
    for group in GROUPS:
        for (query, of_group), where in views.items():
            if of_group == group:
                cases.append(_case(query, group, tuple(where), words, pictures))
    return tuple(cases)


def captions(stimuli: StimulusSet, identifiers: Iterable[str]) -> dict[str, str]:
    """One line a stimulus: its first caption, else its class, else nothing."""
    names = list(identifiers)
    rows = stimuli.rows(names)
    column = next((name for name in ("label", "category", "class") if name in stimuli.labels), None)
    told = {}
    for name, row in zip(names, rows.tolist(), strict=True):
        texts = stimuli.captions[row]
        told[name] = texts[0] if texts else str(stimuli.labels[column][row]) if column else ""
    return told


def _case(
    query: Query, group: Group, views: tuple[str, ...], words: Mapping[str, str], pictures: Mapping[str, Any]
) -> Case:
    retrieved = tuple(
        Candidate(name, words[name], None, name == query.identifier, pictures.get(name)) for name in query.top
    )
    return Case(
        person=query.person,
        people=views,
        group=group,
        identifier=query.identifier,
        caption=words[query.identifier],
        rank=query.rank,
        pool=query.candidates,
        retrieved=retrieved,
        picture=pictures.get(query.identifier),
    )
