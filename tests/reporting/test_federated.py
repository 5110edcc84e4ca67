"""The page of a federated run: what is told stands on it, what was not done is said, nothing is left unescaped."""

from __future__ import annotations

import copy
import html
import re
from pathlib import Path

import browser
import pytest
from made import HOSTILE

from phosphene.reporting import report_federated

PATTERNS = ("all", "fmri", "image", "text", "fmri+image", "fmri+text", "image+text")
SITES = {"clinic-a": 0.62, "clinic-b": 0.41, "clinic-c": 0.55}


def scores(shift: float = 0.0) -> dict:
    """Of three sites, the second the worst under every pattern."""
    found = {}
    for number, pattern in enumerate(PATTERNS):
        sites = {name: {"accuracy": value - shift - 0.01 * number} for name, value in SITES.items()}
        metrics = ["accuracy"]
        if pattern in ("fmri", "text", "fmri+text"):
            metrics.append("top-1 brain_to_image")
            sites = {name: each | {"top-1 brain_to_image": each["accuracy"] / 4} for name, each in sites.items()}
        mean = {metric: sum(each[metric] for each in sites.values()) / 3 for metric in metrics}
        found[pattern] = {
            "mean": mean,
            "worst": {metric: {"site": "clinic-b", "value": sites["clinic-b"][metric]} for metric in metrics},
            "sites": sites,
            "intervals": {"accuracy": [mean["accuracy"] - 0.05, mean["accuracy"] + 0.05]},
        }
    return {
        "patterns": found,
        "chances": {"accuracy": 0.2, "commonest": 0.3, "top-1": 0.025, "two-way": 0.5, "gallery": 40.0},
    }


def record(number: int, **changes) -> dict:
    base = {
        "round": number, "used": dict.fromkeys(SITES, 1.5), "refused": {}, "without_prototype": [], "suppressed": 0,
        "missing": {}, "idle": [], "metrics": {name: {"loss total": 2.0 / number} for name in SITES},
        "bytes_up": dict.fromkeys(SITES, 250_000), "bytes_down": 200_000, "seconds": 0.5,
        "fractions": {}, "epsilon": {}, "seen": "contributions",
    }  # fmt: skip
    return base | changes


def told() -> dict:
    """A run of three rounds without protection."""
    shares = {"missing fmri": 0.25, "missing image": 0.5, "missing text": 0.0, "complete": 0.4}
    blank = shares | {"complete": 0.0}
    return {
        "study": {"name": "made", "split": "default", "virtual": "phosphene.virtual"},
        "encoders": ["pixels (aa)", "tfidf (bb)"],
        "classes_from": "label columns group",
        "classes": ["animal", "tool", "food", "face", "place"],
        "people": {name: [[f"sub-{name[-1]}", 1200]] for name in SITES},
        "sites": {name: [f"sub-{name[-1]}"] for name in SITES},
        "trials": dict.fromkeys(SITES, 240),
        "test_trials": dict.fromkeys(SITES, 40),
        "fractions": {"clinic-a": shares, "clinic-b": shares, "clinic-c": blank},
        "history": [
            record(1),
            record(2, used={"clinic-a": 1.0}, missing={"clinic-b": "it dropped out"}, idle=["clinic-c"]),
            record(3, used={"clinic-a": 1.0, "clinic-b": 1.0}, refused={"clinic-c": "its update has norm 99"}),
        ],
        "secure": False,
        "notes": ["a setting that nobody asked for"],
        "settings": {"model": {"width": 32, "heads": ["classification"]}, "server": {"max_ratio": None}, "seed": 0},
        "scores": scores(),
    }


def protected() -> dict:
    """The same under protection, with what it costs and an audit of two arms."""
    promise = {
        "unit": "trial", "meaning": "one trial is there or not", "epsilon": 7.25, "delta": 1e-5, "rounds": 3,
        "site": "clinic-a", "covered": ["weights"], "noise": {"weights": 2.0}, "not_protected": ["a person"],
    }  # fmt: skip
    site = promise | {"unit": "site", "meaning": "everything of one site", "epsilon": None, "covered": [], "noise": {}}
    attacks = [
        ("membership by loss", "AUC", 0.81, 0.76, 0.86, 0.5),
        ("membership by distance, fmri", "AUC", 0.7, 0.6, 0.8, 0.5),
        ("inversion, all counts, fmri", "top-1", 0.4, 0.2, 0.6, 0.1),
        ("inversion, counts below 2, fmri", "top-1", 0.9, 0.8, 1.0, 0.1),
    ]
    keys = ("name", "measure", "value", "low", "high", "chance")
    bare = [dict(zip(keys, each, strict=True)) | {"succeeds": True} for each in attacks]
    hidden = [bare[0] | {"value": 0.51, "low": 0.45, "high": 0.57, "succeeds": False}]
    return told() | {
        "privacy": {
            "settings": {"update_limit": 1.0, "update_noise": 4.0, "feature_limit": None},
            "units": {"trial": promise, "site": site},
        },
        "history": [record(n, epsilon={"trial": 2.0 * n, "site": None}, metrics={}) for n in (1, 2, 3)],
        "unprotected": scores(-0.2),
        "audit": {"unprotected": dict.fromkeys(SITES, bare), "protected": dict.fromkeys(SITES, hidden)},
        "secure": True,
    }


def text_of(path: Path) -> str:
    """What a reader reads: no tags, no script, no style."""
    page = re.sub(r"<(script|style)>.*?</\1>", " ", path.read_text(), flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("federated") / "plain.html"
    return text_of(report_federated(told(), path, command="phosphene federate made.h5"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_federated(protected(), tmp_path_factory.mktemp("federated") / "guarded.html")


def test_sites_and_what_they_miss(plain: str) -> None:
    for words in ("clinic-a sub-a 1,200 240", "75 % 50 % 100 % 40 %", "clinic-c has no complete trial"):
        assert words in plain.replace("\u00a0", " ")


def test_rounds_with_who_was_missing_and_why(plain: str) -> None:
    assert "2 contributions did not count" in plain
    assert "Round 2, clinic-b missing: it dropped out" in plain
    assert "Round 3, clinic-c refused: its update has norm 99" in plain
    assert "0.25 MB by each site" in plain
    assert "Loss of training at the sites" in plain


def test_encoders_that_stayed_as_they_were(plain: str, tmp_path: Path) -> None:
    assert "Too few sites had a modality" not in plain
    found = told()
    found["history"] = [record(n, unmoved=["text", "fmri"] if n == 2 else ["text"]) for n in (1, 2, 3)]
    words = text_of(report_federated(found, tmp_path / "page.html"))
    assert (
        "the encoder of words stayed as it was in every round; the encoder of fMRI stayed as it was in round 2."
        in words
    )


def test_the_headline_is_the_brain_alone_beside_guessing(plain: str) -> None:
    plain = plain.replace("\u00a0", " ")
    assert (
        "Across 3 sites the brain alone names the right class of 52 % of held-out stimuli; guessing gives 30 %" in plain
    )
    assert "3 virtual people at 3 sites, one network, 3 rounds" in plain
    assert "a random class 20.0 %, always the commonest 30.0 %; a random picture 2.5 % of 40" in plain
    assert "worst: 40.0 %" in plain
    assert "phosphene federate made.h5" in plain


def test_a_score_at_chance_is_said_to_be_at_chance(tmp_path: Path) -> None:
    low = told() | {"scores": scores(0.22)}
    found = text_of(report_federated(low, tmp_path / "page.html")).replace("\u00a0", " ")
    assert "names the right class of 30 % of held-out stimuli: not told from what guessing gives, 30 %" in found


def test_several_classes_a_trial_and_a_network_without_classes(tmp_path: Path) -> None:
    several = copy.deepcopy(told())
    for found in several["scores"]["patterns"].values():
        found["intervals"] = {"mAP": found["intervals"]["accuracy"]}
        for place in (found["mean"], found["worst"], *found["sites"].values()):
            place["mAP"] = place.pop("accuracy")
    several["scores"]["chances"] = {"mAP": 0.25, "top-1": 0.025, "gallery": 40.0}
    found = text_of(report_federated(several, tmp_path / "page.html")).replace("\u00a0", " ")
    assert "the brain alone ranks the classes with a precision of 52 %; guessing gives 25 %" in found
    assert "a random order 25.0 %" in found
    for found in several["scores"]["patterns"].values():
        found["intervals"] = {}
        for place in (found["mean"], found["worst"], *found["sites"].values()):
            del place["mAP"]
    found = text_of(report_federated(several, tmp_path / "page.html")).replace("\u00a0", " ")
    assert "3 sites trained one network for 3 rounds" in found
    assert "The class" not in found.split("Scores by site")[2]
    assert "The picture, found among all of the test" in found


def test_what_was_not_done_is_said(plain: str, tmp_path: Path) -> None:
    assert "No noise was asked for, so nothing is promised: the server saw every site’s weights" in plain
    assert "No audit was asked for (--audit): what leaks was not measured." in plain
    bare = {name: value for name, value in told().items() if name != "scores"} | {"test_trials": {}}
    found = text_of(report_federated(bare, tmp_path / "page.html"))
    assert "3 sites trained one network for 3 rounds" in found
    assert "Nothing was scored" in found


def test_promises_with_their_unit_and_their_end(guarded: Path) -> None:
    found = text_of(guarded).replace("\u00a0", " ")
    assert "Per trial one trial is there or not ε = 7.25 at δ = 1e-05, 3 rounds, clinic-a released most" in found
    assert "Not protected a person" in found
    assert "no promise ε is infinite" in found
    assert "update_limit 1, update_noise 4." in found
    assert "brain alone 71.7 % 51.7 % +20.0" in found
    assert "nothing but sums over sites: pairwise masks hide" in found
    assert "Sites under protection tell no loss" not in found  # epsilon is drawn there
    assert "Epsilon spent" in found


def test_the_audit_of_every_site_with_and_without_protection(guarded: Path) -> None:
    found, page = text_of(guarded).replace("\u00a0", " "), guarded.read_text()
    assert found.count("Was this trial trained on?") == 3
    assert found.count("0.81 ! → 0.51") == 3
    assert "0.70 ! → none" in found  # no prototype is left to attack
    assert "by loss, chance 0.50; unprotected 0.81, 95 % interval 0.76 to 0.86; protected 0.51" in page
    assert "Which trial is this prototype made of? top-1 of 10" in found
    assert found.count("By the number of trials behind a prototype") == 3


def test_prototypes_that_were_not_inverted_are_told(tmp_path: Path) -> None:
    given = protected()
    absent = "Prototypes were not inverted: none of it can be read, or too few others of every class were held back."
    assert absent not in text_of(report_federated(given, tmp_path / "all.html"))
    rows = given["audit"]["unprotected"]
    few = {name: [each for each in rows[name] if "inversion" not in each["name"]] for name in rows}
    page = report_federated({**given, "audit": {"unprotected": few}}, tmp_path / "few.html")
    assert text_of(page).count(absent) == 3


def test_names_may_hold_any_characters(tmp_path: Path) -> None:
    name = f"clinic {HOSTILE}"
    strange = copy.deepcopy(told())
    for key in ("sites", "people", "trials", "test_trials", "fractions"):
        strange[key] = {(name if site == "clinic-a" else site): each for site, each in strange[key].items()}
    strange["classes"][0] = strange["study"]["name"] = HOSTILE
    del strange["scores"]
    strange["history"][1]["missing"] = {name: HOSTILE}
    page = report_federated(strange, tmp_path / "page.html").read_text()
    assert HOSTILE not in page
    assert html.escape(HOSTILE).replace("&quot;", "&#34;") in page


@pytest.mark.skipif(browser.find() is None, reason="NO CHROMIUM FOUND: THE PAGE IS NOT TESTED IN A BROWSER")
def test_it_renders_without_a_complaint_also_on_a_telephone(guarded: Path) -> None:
    with browser.Browser(str(browser.find())) as tab:
        for width in (1366, 400):
            tab.size(width, 900)
            tab.open(guarded)
            assert tab.complaints == []
            assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
            assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run("document.querySelectorAll('.attack svg .mark').length") == 3 * 5
