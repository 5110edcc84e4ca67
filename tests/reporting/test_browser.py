"""The page in a real Chromium: it renders without a complaint and its interactions work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from test_decoded import decoded

from phosphene.reporting import report_decoded

FOUND = browser.find()
if FOUND is None:
    pytest.skip(
        "NO CHROMIUM FOUND: THE REPORT IS NOT TESTED IN A BROWSER. Install it with: apt-get install chromium",
        allow_module_level=True,
    )

VISIBLE = "(s) => Array.from(document.querySelectorAll(s)).filter((e) => e.offsetParent !== null)"


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Browser]:
    assert FOUND is not None
    with browser.Browser(FOUND) as opened:
        yield opened


@pytest.fixture
def page(tab: browser.Browser, full_report: Path) -> browser.Browser:
    tab.media()
    tab.size(1366, 900)
    tab.open(full_report)
    return tab


def visible(page: browser.Browser, selector: str) -> list[str]:
    """Texts of the elements that are shown."""
    return page.run(f"({VISIBLE})('{selector}').map((e) => e.textContent.replace(/\\s+/g, ' ').trim())")


def test_renders_without_a_complaint_or_a_request(page: browser.Browser) -> None:
    assert page.run("document.querySelector('h1').offsetHeight") > 20
    assert page.run("Array.from(document.images).every((i) => i.complete && i.naturalWidth > 0)")
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def test_a_complaint_would_be_noticed(page: browser.Browser) -> None:
    page.run("console.error('made')")
    page.run("setTimeout(() => { throw new Error('thrown') })")
    page.run("new Promise((done) => setTimeout(done, 30))")
    assert len(page.complaints) == 2


def test_direction_and_person_change_what_is_shown(page: browser.Browser) -> None:
    assert visible(page, "#hero h2") == ["The right one is found first all people · brain → image"]
    assert set(visible(page, "#scores td:nth-child(2)")) == {"all people"}
    assert visible(page, ".brain h3") == ["sub-01", "sub-02", "sub-03"]
    page.click("label[for=direction-1]")
    assert visible(page, "#hero h2") == ["The right one is found first all people · image → brain"]
    page.run("(() => { const s = document.querySelector('#person'); s.focus(); })()")
    page.press("ArrowDown", 40)
    assert visible(page, "#hero h2") == ["The right one is found first sub-01 · image → brain"]
    assert set(visible(page, "#scores td:nth-child(2)")) == {"sub-01"}
    assert {text.split(" rank")[0][:15] for text in visible(page, ".case .seen")} == {"Shown to sub-01"}
    assert visible(page, ".brain h3") == ["sub-01"]
    assert "person=sub-01" in page.run("location.hash")
    assert "image_to_brain" in page.run("location.hash")
    assert page.complaints == []


def test_best_median_worst_by_mouse_and_keyboard(page: browser.Browser) -> None:
    assert visible(page, ".group > h3") == ["Median cases"]
    page.click("label[for=cases-worst]")
    assert visible(page, ".group > h3") == ["Worst cases"]
    page.press("ArrowLeft", 37)
    assert visible(page, ".group > h3") == ["Median cases"]
    page.click("label[for=cases-every]")
    assert visible(page, ".group > h3") == ["Best cases", "Median cases", "Worst cases"]


def test_a_view_can_be_linked(page: browser.Browser, full_report: Path) -> None:
    page.open(full_report, "#person=sub-02&direction=image_to_brain&cases=worst")
    assert visible(page, "#hero h2") == ["The right one is found first sub-02 · image → brain"]
    assert visible(page, ".group > h3") == ["Worst cases"]
    page.run("location.hash = '#scorecard'")
    assert visible(page, ".group > h3") == ["Worst cases"]


def test_the_table_sorts_both_ways(page: browser.Browser) -> None:
    column = "Array.from(document.querySelectorAll('#scores tbody tr')).map((r) => Number(r.cells[3].dataset.value))"
    before = page.run(column)
    page.click("#scores thead th:nth-child(4) button")
    assert page.run(column) == sorted(before) != before
    page.press("Enter", 13)
    assert page.run(column) == sorted(before, reverse=True)
    assert page.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    page.click("#scores thead th:nth-child(7) button")
    p = page.run("Array.from(document.querySelectorAll('#scores tbody tr')).map((r) => r.cells[6].dataset.value)")
    assert p == sorted(p, key=lambda value: (value == "", value))


def test_a_picture_is_enlarged_and_closed(page: browser.Browser) -> None:
    assert page.run("document.querySelector('#lens').open") is False
    page.click(".group:not(.off-screen) .found .zoom")
    assert page.run("document.querySelector('#lens').open") is True
    assert page.run("document.querySelector('#lens figcaption').textContent").startswith("Found at place 1")
    page.press("Escape", 27)
    assert page.run("document.querySelector('#lens').open") is False
    assert page.complaints == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1366, 900)])
def test_fits_its_screen(page: browser.Browser, width: int, height: int, dark: bool) -> None:
    page.size(width, height, mobile=width < 500)
    page.media(dark=dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("getComputedStyle(document.body).colorScheme || 'normal'")
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(19, 20, 24)") is dark


def test_words_keep_their_contrast(page: browser.Browser) -> None:
    """Body, soft and method colours against card and paper: at least 4.5 to 1 for words, 3 to 1 for bars."""
    for dark in (False, True):
        page.media(dark=dark)
        names = ["paper", "card", "ink", "soft", "accent", "good", "warn", "bad", "t0", "t1", "t2", "t3", "t4", "t5"]
        found = page.run(
            "Object.fromEntries("
            + str(names)
            + ".map((n) => [n, getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim()]))"
        )
        for ground in ("paper", "card"):
            for name in names[2:]:
                assert contrast(found[ground], found[name]) > (3.0 if name.startswith("t") else 4.5), (
                    dark,
                    ground,
                    name,
                )


def test_reads_without_scripts(tab: browser.Browser, full_report: Path) -> None:
    html = full_report.read_text(encoding="utf-8")
    start = html.rindex("<script>")
    # as a reader without scripts has it: neither of the two runs
    plain = html[:start] + html[html.rindex("</script>") + 9 :]
    plain = plain.replace('<script>document.documentElement.classList.add("js");</script>', "")
    path = full_report.with_name("plain.html")
    path.write_text(plain, encoding="utf-8")
    tab.media()
    tab.open(path)
    assert visible(tab, ".group > h3") == ["Best cases", "Median cases", "Worst cases"]
    assert visible(tab, ".controls") == []
    assert len(visible(tab, "#hero h2")) == 2
    assert tab.complaints == []


def test_paper_shows_every_group_and_no_controls(page: browser.Browser) -> None:
    page.media("print")
    assert visible(page, ".group > h3") == ["Best cases", "Median cases", "Worst cases"]
    assert visible(page, ".controls") == []
    assert visible(page, "nav") == []


def test_hostile_words_do_not_run(tab: browser.Browser, hostile_report: Path) -> None:
    tab.media()
    tab.open(hostile_report)
    assert tab.run("window.stolen === undefined")
    assert tab.complaints == []


def contrast(first: str, second: str) -> float:
    """WCAG contrast of two #rrggbb or #rgb colours."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
        channels = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_of_decoded_responses(tab: browser.Browser, tmp_path: Path) -> None:
    found, stimuli = decoded()
    path = report_decoded(found, tmp_path / "decoded.html", stimuli=stimuli, command="phosphene decode ...")
    for width, height in ((1366, 900), (390, 844)):
        tab.media()
        tab.size(width, height)
        tab.open(path)
        assert tab.run("Array.from(document.images).every((i) => i.complete && i.naturalWidth > 0 && i.alt)")
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.complaints == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert len(visible(tab, ".answers")) == 4
    assert tab.run("window.stolen === undefined")
