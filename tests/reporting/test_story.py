"""A scorecard in words: headline, standfirst, charts and rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from phosphene.evaluation import Score, Scorecard
from phosphene.reporting import story
from phosphene.reporting.page import ALL


def score(value: float, **changes: Any) -> Score:
    """A score of lite-mind: top-1 among 300 pictures, mean over people."""
    base = Score(
        method="lite-mind",
        subject=ALL,
        metric="top-1",
        direction="brain_to_image",
        similarity="cosine",
        pool={"size": 300, "smallest": 300, "draws": 1},
        value=value,
        chance=1 / 300,
        interval=(value - 0.04, value + 0.04),
        interval_over="stimulus and people",
        null={"mean": 1 / 300, "std": 0.003, "p": 0.001},
        n=600,
        task="retrieval-full-cosine",
        protocol="retrieval-full-cosine | test of default | repeats all | seed 0",
    )
    return dataclasses.replace(base, **changes)


def card(*scores: Score, comparisons: list[dict[str, Any]] | None = None) -> Scorecard:
    return Scorecard("lite-mind", {}, list(scores), comparisons or [])


def people(value: float, **changes: Any) -> list[Score]:
    """Scores of two people and their mean."""
    return [
        score(value, **changes),
        score(value - 0.1, subject="sub-01", **changes),
        score(value + 0.1, subject="sub-02", **changes),
    ]


def plain(words: str) -> str:
    return words.replace("\u00a0", " ")


def test_the_headline_is_one_plain_sentence() -> None:
    told = story.tell(card(*people(0.412)), "picture", repeats=1)
    assert plain(told.headline) == (
        "From one person’s single response, the right one of 300 pictures is found first "
        "in 41 % of cases (chance 0.3 %)."
    )
    told = story.tell(card(*people(0.412)), "clip", repeats=3)
    assert told.headline.startswith("From one person’s response, averaged over 3 repeats, the right one of 300 clips")
    assert story.tell(card(*people(0.412)), virtual=True).headline.startswith(
        "From one virtual person’s single response"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "two-way", "chance": 0.5}, "the right one of two stimuli is told in 70 % of cases (chance 50 %)"),
        (
            {"metric": "accuracy", "chance": 1 / 8, "pool": {"size": 8, "smallest": 8, "draws": 1}},
            "the right one of 8 classes is named in 70 % of cases (chance 12 %)",
        ),
        (
            {"pool": {"size": 20, "smallest": 18, "draws": 1}, "chance": 0.052},
            "the right one of 18 to 20 stimuli is found first in 70 % of cases (chance 5.2 %)",
        ),
    ],
)
def test_the_headline_fits_the_metric(changes: dict[str, Any], words: str) -> None:
    assert words in plain(story.tell(card(score(0.7, **changes)), "stimulus").headline)


def test_a_median_rank_is_told_as_a_rank_and_lower_is_better() -> None:
    ranks = {"metric": "median-rank", "chance": 150.5}
    rival = score(9.0, method="ridge", interval=(7.0, 11.0), **ranks)
    told = story.tell(card(score(12.0, interval=(9.0, 15.0), **ranks), rival))
    assert "stands at rank 12 (chance 150)" in told.headline.replace("chance 150.5", "chance 150")
    assert "The rival ridge does better: 9" in told.standfirst
    (chart,) = told.hero
    assert chart.lower_is_better
    assert not chart.percent
    assert chart.top >= chart.chance


def test_chance_is_said_to_be_chance() -> None:
    null = {"mean": 1 / 300, "std": 0.003, "p": 0.4}
    assert "not distinguishable from chance" in story.tell(card(score(0.004, null=null))).headline
    without_null = score(0.004, null=None, interval=(0.0, 0.01))
    assert "not distinguishable from chance" in story.tell(card(without_null)).headline
    assert "not distinguishable" not in story.tell(card(score(0.4, null=None))).headline


def test_the_standfirst_names_the_best_rival_and_the_paired_difference() -> None:
    wanted = {"rival": "ridge", "subject": ALL, "metric": "top-1", "direction": "brain_to_image"}
    paired = {**wanted, "task": "retrieval-full-cosine", "difference": 0.06, "interval": (0.01, 0.12)}
    rivals = [score(0.35, method="ridge"), score(0.003, method="mean")]
    words = plain(story.tell(card(*people(0.41), *rivals, comparisons=[paired])).standfirst)
    assert words.startswith("This is lite-mind, mean over 2 people; 95 % interval 37 % to 45 %.")
    assert "The strongest rival, ridge, reaches 35 % (difference +6.0 points, interval +1.0 to +12.0)." in words
    paired["interval"] = (-0.01, 0.12)
    words = plain(story.tell(card(*people(0.41), *rivals, comparisons=[paired])).standfirst)
    assert "ridge, is level with it: 35 % (difference +6.0 points, interval −1.0 to +12.0)." in words
    rivals[0] = score(0.5, method="ridge")
    assert "The rival ridge does better: 50 %." in plain(story.tell(card(*people(0.41), *rivals)).standfirst)
    assert "No rival was scored" in story.tell(card(score(0.4))).standfirst
    itself = score(0.41, method="lite-mind (rival)")
    assert "No rival was scored" in story.tell(card(score(0.41), itself)).standfirst


def test_one_person_stands_alone_without_a_mean() -> None:
    told = story.tell(card(score(0.4), score(0.4, subject="sub-07")))
    assert told.people == ("sub-07",)
    assert {row.person for row in told.rows} == {"sub-07"}
    assert "of sub-07" in told.standfirst


def test_charts_have_dots_of_people_and_keep_colours() -> None:
    told = story.tell(card(*people(0.4), *people(0.3, method="nearest"), *people(0.35, method="ridge")))
    chart = told.hero[0]
    assert [bar.method for bar in chart.bars] == ["lite-mind", "ridge", "nearest"]
    assert [bar.tone for bar in chart.bars] == [0, 1, 2]
    assert [dot.value for dot in chart.bars[0].dots] == pytest.approx([0.3, 0.5])
    assert chart.person == ALL
    assert told.hero[1].bars[0].dots == ()
    assert 0 < chart.share(chart.chance) < chart.share(0.35) < chart.share(0.4) < 100


def test_full_gallery_leads_and_the_rest_stands_beside() -> None:
    drawn = {"pool": {"size": 300, "smallest": 300, "draws": 30}, "task": "retrieval-300x30-cosine"}
    full = {"pool": {"size": 982, "smallest": 982, "draws": 1}, "chance": 1 / 982}
    scores = [score(0.6, **drawn), score(0.4, **full), score(0.9, metric="two-way", task="two-way-cosine", chance=0.5)]
    scores += [score(0.5, direction="image_to_brain", **full)]
    told = story.tell(card(*scores))
    assert [(chart.direction, chart.bars[0].value) for chart in told.hero] == [
        ("brain_to_image", 0.4),
        ("image_to_brain", 0.5),
    ]
    assert [chart.metric for chart in told.charts] == ["top-1", "two-way"]
    assert "300 candidates × 30 draws" in told.charts[0].note
    assert told.directions == (("brain_to_image", "brain → picture"), ("image_to_brain", "picture → brain"))


def test_transductive_scores_never_lead_and_are_flagged() -> None:
    csls = score(0.8, transductive=True, task="retrieval-full-cosine-csls")
    told = story.tell(card(csls, score(0.4)))
    assert "40 %" in plain(told.headline)
    assert "transductive" in told.charts[0].note
    assert next(row.protocol for row in told.rows if row.value == 0.8).endswith("uses all test responses at once")


def test_every_score_has_a_row_even_without_interval_or_null() -> None:
    scores = [*people(0.4), *people(0.3, method="ridge", interval=None, null=None)]
    told = story.tell(card(*scores))
    assert len(told.rows) == len(scores)
    row = next(row for row in told.rows if row.method == "ridge")
    assert (row.low, row.high, row.p) == (None, None, None)


def test_an_empty_scorecard_is_told() -> None:
    told = story.tell(card())
    assert told.headline == "lite-mind was given no score."
    assert told.hero == told.charts == told.rows == ()
