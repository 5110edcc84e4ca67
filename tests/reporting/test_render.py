"""The page as HTML: self-contained, escaped, with words for every picture and for what is missing."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import made
import pytest

from phosphene.reporting import Page, render

VOID = {"meta", "link", "img", "input", "br", "hr"}
LOADING = {"src", "href", "srcset", "poster", "data", "action"}


class Seen(HTMLParser):
    """Start tags with attributes, text outside style and script, and whether tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def seen(full_report: Path) -> Seen:
    return Seen(full_report.read_text(encoding="utf-8"))


def test_tags_are_balanced_and_ids_unique(seen: Seen) -> None:
    assert seen.open == []
    ids = Counter(attributes["id"] for _, attributes in seen.tags if "id" in attributes)
    assert max(ids.values()) == 1
    anchors = {attributes["href"][1:] for attributes in seen.all("a")}
    assert anchors <= set(ids)


def test_nothing_is_loaded_from_elsewhere(full_report: Path, seen: Seen) -> None:
    for tag, attributes in seen.tags:
        for name in LOADING & set(attributes):
            assert attributes[name].startswith(("data:", "#")), (tag, name, attributes[name][:60])
    html = full_report.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    assert len(html) < 5_000_000


def test_every_picture_has_words(seen: Seen) -> None:
    pictures = seen.all("img")
    assert len(pictures) > 50
    # the lens is empty until a picture is enlarged
    assert [attributes["alt"] for attributes in pictures].count("") == 1
    for attributes in seen.all("svg"):
        named = attributes.get("aria-label") or attributes.get("aria-labelledby")
        assert attributes.get("aria-hidden") == "true" or (attributes.get("role") == "img" and named)


def test_a_bar_is_read_aloud_with_interval_and_chance(seen: Seen) -> None:
    labels = [attributes.get("aria-label", "") for attributes in seen.all("svg")]
    spoken = [label.replace("\u00a0", " ") for label in labels]
    assert "lite-mind: 41.0 %, 95 % interval 37.7 % to 44.3 %, chance 0.33 %" in spoken


def test_all_groups_of_cases_are_in_the_page(seen: Seen) -> None:
    groups = [attributes["data-cases"] for attributes in seen.all("div") if "data-cases" in attributes]
    assert groups == ["best", "median", "worst"]
    assert "rank 188 of 300" in seen.text


@pytest.mark.parametrize(("rank", "start"), [(3, "median"), (1, "every")])
def test_failures_are_never_hidden_at_first(rank: int, start: str) -> None:
    page = made.full_page(with_pixels=False)
    cases = tuple(dataclasses.replace(c, rank=rank) if c.group == "median" else c for c in page.cases)
    chosen = [a for a in Seen(render(dataclasses.replace(page, cases=cases))).all("input") if a["name"] == "cases"]
    assert [a["value"] for a in chosen if "checked" in a] == [start]


def test_hostile_words_stay_words(hostile_report: Path) -> None:
    seen = Seen(hostile_report.read_text(encoding="utf-8"))
    assert made.HOSTILE in seen.text
    assert len(seen.all("script")) == 2
    assert all("onerror" not in attributes for _, attributes in seen.tags)


@pytest.mark.parametrize(
    "field", ["title", "headline", "standfirst", "command", "created", "cases_absent", "brain_absent"]
)
def test_every_sentence_is_escaped(field: str) -> None:
    page = dataclasses.replace(bare(), **{field: made.HOSTILE})
    html = render(page)
    assert "<script>window" not in html
    assert "<img src=x" not in html
    assert made.HOSTILE in Seen(html).text


def test_captions_stand_where_there_are_no_pictures(hostile_report: Path) -> None:
    seen = Seen(hostile_report.read_text(encoding="utf-8"))
    assert not [attributes for attributes in seen.all("img") if attributes.get("class") == "pic"]
    assert made.caption(3) in seen.text


def test_missing_parts_are_said_in_words() -> None:
    page = dataclasses.replace(
        bare(), brain_absent="The voxels have no coordinates.", curves_absent="Ridge is solved in one step: no curve.",
        cases_absent="No test stimulus.", audits_absent="Audits were not run.",
    )  # fmt: skip
    text = Seen(render(page)).text
    for words in (
        page.brain_absent,
        page.curves_absent,
        page.cases_absent,
        page.audits_absent,
        "The scorecard is empty.",
    ):
        assert words in text


def test_unmeasured_values_are_a_dash_and_sort_last() -> None:
    row = dataclasses.replace(made.full_page().rows[0], low=None, high=None, p=None, chance=None, n=None)
    seen = Seen(render(dataclasses.replace(bare(), rows=(row,))))
    assert [a["data-value"] for a in seen.all("td") if "data-value" in a][1:] == ["", "", "", ""]


def bare() -> Page:
    return Page("bare", "Nothing was found.", "", "ridge", ("sub-01",), (("brain_to_image", "brain → image"),), ())
