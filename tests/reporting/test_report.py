"""`report` on small real parts: two people, one split or folds, pictures or captions only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest

from phosphene.encoders import encode
from phosphene.errors import InputError
from phosphene.evaluation import Scorecard, evaluate
from phosphene.recordings import Recording, Study
from phosphene.reporting import account, compose, gallery, render, report
from phosphene.reporting.page import ALL, GROUPS
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.training import fit

N, TRAIN, SIDE = 60, 42, 6
IDS = [f"scene-{number:03d}" for number in range(N)]
FOLDS = {
    "fold-0": {"train": IDS[:TRAIN], "test": IDS[TRAIN:]},
    "fold-1": {"train": IDS[N - TRAIN :], "test": IDS[: N - TRAIN]},
}


def make_study(
    pixels: bool = True, repeats: int = 2, coordinates: bool = True, splits: Any = None, informative: str = ""
) -> Study:
    """People whose voxels (of one region, if named) see the mean colours of a picture's corners, with noise."""
    frames = np.stack([made.frame(number, 16) for number in range(N)])
    features = frames.reshape(N, 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(N, -1) / 255.0
    stimuli = StimulusSet(IDS, pixels=frames if pixels else None, captions=[[made.caption(k)] for k in range(N)])
    people = []
    for person in range(2):
        random = np.random.default_rng(person)
        shown = np.tile(np.arange(N), repeats)
        weights = random.normal(size=(features.shape[1], SIDE**3))
        index = np.argwhere(np.ones((SIDE,) * 3))
        areas = {"V1": index[:, 1] < 3, "V4": index[:, 1] >= 3}
        if informative:
            weights *= areas[informative]
        responses = features[shown] @ weights + random.normal(0, 0.3, (len(shown), SIDE**3))
        columns: dict[str, Any] = {"vertex": np.arange(SIDE**3)} | {f"roi_{name}": mask for name, mask in areas.items()}
        if coordinates:
            columns |= {axis: index[:, k] for k, axis in enumerate("ijk")}
        trials = Table({"stimulus_id": np.array(IDS)[shown]})
        voxels, affine = Table(columns), np.diag([2.0, 2.0, 2.0, 1.0]) if coordinates else None
        people.append(
            Recording(f"sub-{person + 1:02d}", responses.astype("float32"), trials, voxels, "test", affine=affine)
        )
    return Study(stimuli, people, splits or {"default": FOLDS["fold-0"]}, name="made", licence="CC0-1.0")


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Study, Any, Scorecard]:
    study = make_study()
    targets = encode(study.stimuli, "pixels", progress=False)
    decoder = fit("ridge", study, targets, kind="pooled", progress=False)
    card = evaluate(decoder, study, targets, rivals=("mean", "nearest"), n_boot=50, n_perm=50, progress=False)
    return decoder, study, targets, card


def test_one_file_tells_the_whole_story(parts: Any, tmp_path: Path) -> None:
    decoder, study, targets, card = parts
    path = report(decoder, study, targets, card, tmp_path / "r.html", command="phosphene demo --seed 0")
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
    html = path.read_text(encoding="utf-8")
    assert len(html) < 1_500_000
    for words in ("phosphene demo --seed 0", "sub-02", "nearest", "CC0-1.0", study.digest, "averaged over 2 repeats"):
        assert words in html


def test_the_page_repeats_the_scorecard_exactly(parts: Any) -> None:
    decoder, study, targets, card = parts
    page = compose(decoder, study, targets, card, importance=False)
    assert page.people == (ALL, "sub-01", "sub-02")
    hero = page.hero[0]
    for bar in hero.bars:
        score = card.get("top-1", method=bar.method)
        assert (bar.value, (bar.low, bar.high), hero.chance) == (score.value, score.interval, score.chance)
    assert len(page.rows) == len(card.scores)
    assert [audit.verdict for audit in page.audits if audit.name == "Overlap of training and test"] != ["unknown"]


def test_cases_agree_with_ranks_and_are_best_median_and_worst(parts: Any) -> None:
    decoder, study, targets, card = parts
    page = compose(decoder, study, targets, card, importance=False, max_examples=2)
    queries = gallery.collect(card)
    assert len(queries) == 2 * (N - TRAIN)
    by_group = {group: [c.rank for c in page.cases if c.group == group and ALL in c.people] for group in GROUPS}
    ranks = sorted(query.rank for query in queries)
    assert by_group["best"] == ranks[:2]
    assert sorted(by_group["worst"]) == ranks[-2:]
    assert ranks[:2] <= by_group["median"] <= ranks[-2:]
    assert np.median(ranks) == pytest.approx(np.median(by_group["median"]), abs=1.5)
    for case in page.cases:
        assert case.pool == N - TRAIN
        assert len(case.retrieved) == 5
        places = [place for place, item in enumerate(case.retrieved, 1) if item.correct]
        assert places == ([case.rank] if case.rank <= 5 else [])
        assert case.picture is not None


def test_importance_goes_to_the_brain_it_belongs_to(parts: Any) -> None:
    decoder, study, targets, card = parts
    maps = {"sub-01": np.where(study.recordings["sub-01"].rois["V4"], 1.0, 0.1)}
    page = compose(decoder, study, targets, card, importance=maps)
    (found,) = page.brains
    assert found.person == "sub-01"
    assert [(region.name, round(region.value, 2)) for region in found.regions] == [("V4", 1.0), ("V1", 0.1)]
    assert len(found.views) == 3
    with pytest.raises(InputError, match=r"importance of sub-01 must be \(216,\)"):
        compose(decoder, study, targets, card, importance={"sub-01": np.ones(5)})


def test_measured_importance_finds_the_informative_region() -> None:
    study = make_study(informative="V4")
    targets = encode(study.stimuli, "pixels", progress=False)
    decoder = fit("ridge", study, targets, kind="pooled", progress=False)
    card = evaluate(decoder, study, targets, rivals=(), n_boot=0, n_perm=0, progress=False)
    given, own = (compose(decoder, study, chosen, card) for chosen in (targets, None))
    # both people have the same voxels, so there is a map of both together
    assert [brain.person for brain in given.brains] == [ALL, "sub-01", "sub-02"]
    for found in given.brains:
        assert [region.name for region in found.regions] == ["V4", "V1"]
        assert found.regions[0].value > 0.5 > found.regions[1].value
    assert "Haufe" in given.brain_note
    # without targets the decoder's own encoder makes the same ones
    assert given.brains == own.brains


def test_too_few_test_stimuli_for_importance_are_said_in_words() -> None:
    study = make_study(splits={"default": {"train": IDS[:-2], "test": IDS[-2:]}})
    targets = encode(study.stimuli, "pixels", progress=False)
    decoder = fit("ridge", study, targets, kind="pooled", progress=False)
    card = evaluate(decoder, study, targets, rivals=(), n_boot=0, n_perm=0, progress=False)
    assert "at least three held-out stimuli" in render(compose(decoder, study, targets, card))


def test_without_coordinates_repeats_pixels_or_curves_the_page_says_so() -> None:
    study = make_study(pixels=False, repeats=1, coordinates=False)
    targets = encode(study.stimuli, "tfidf-svd3", fit_on=FOLDS["fold-0"]["train"], progress=False)
    decoder = fit("ridge", study, targets, kind="pooled", progress=False)
    card = evaluate(decoder, study, targets, rivals=(), n_boot=0, n_perm=0, progress=False)
    page = compose(decoder, study, targets, card, importance={"sub-02": np.ones(SIDE**3)})
    html = render(page)
    for words in (
        "single response",
        "no pixels, so captions stand for the stimuli",
        "no coordinates that can be drawn",
        "shown more than once, so it cannot be measured",
        "ridge is solved in one step: there is no curve to draw",
        "No rival was scored beside it",
        "The command that made this report was not recorded",
        made.caption(TRAIN),
    ):
        assert words in html
    assert all(case.picture is None for case in page.cases)


def test_folds_are_told_together() -> None:
    study = make_study(splits=FOLDS)
    targets = encode(study.stimuli, "pixels", progress=False)
    decoders = {
        split: fit("ridge", study.using(split), targets, kind="pooled", progress=False) for split in study.split_names
    }
    card = evaluate(decoders, study, targets, rivals=("mean",), n_boot=20, n_perm=20, progress=False)
    page = compose(decoders, study, dict.fromkeys(FOLDS, targets), card)
    assert all(len(brain.views) == 3 for brain in page.brains)
    tested = next(fact for fact in page.facts if fact.label == "Test pictures")
    assert (tested.value, tested.note) == ("36", "2 folds of 18")
    assert len(gallery.collect(card)) == 2 * 36
    assert "fold-0, fold-1" in dict(page.protocol)["Part"]


def test_a_scorecard_read_back_gives_the_same_page(parts: Any, tmp_path: Path) -> None:
    decoder, study, targets, card = parts
    again = Scorecard.load(card.save(tmp_path / "card.json"))
    assert compose(decoder, study, None, again, importance=False) == compose(
        decoder, study, targets, card, importance=False
    )


def test_a_scorecard_of_another_study_is_refused(parts: Any) -> None:
    decoder, _, targets, card = parts
    with pytest.raises(InputError, match="the scorecard was measured on study 'made'"):
        compose(decoder, make_study(repeats=3), targets, card)
    with pytest.raises(InputError, match="mapping of split names to decoders is empty"):
        compose({}, make_study(), targets, card)
    with pytest.raises(InputError, match="max_examples must be at least 1"):
        compose(decoder, make_study(), targets, card, max_examples=0)


def test_curves_come_from_the_record_of_training() -> None:
    records = [
        {"epoch": 1, "loss": 3.0, "validation": {"loss": 3.5, "top-1": 0.1, "two-way": 0.6}},
        {"epoch": 2, "loss": 2.0},
        {"epoch": 3, "loss": 1.5, "validation": {"loss": 2.5, "top-1": 0.2, "two-way": 0.7}},
    ]
    loss, top, two_way = account.curves({"curves": records, "best_epoch": 3})
    assert [(line.name, line.x, line.y) for line in loss.series] == [
        ("training", (1.0, 2.0, 3.0), (3.0, 2.0, 1.5)),
        ("validation", (1.0, 3.0), (3.5, 2.5)),
    ]
    assert loss.marks == ((3.0, "best"),)
    assert top.series[0].y == (0.1, 0.2)
    assert two_way.percent
    assert account.curves({}) == ()


def test_leaks_found_by_an_audit_are_loud(parts: Any) -> None:
    card = parts[-1]
    fold = {"ids": 0, "contents": 2, "captions": 0, "test_stimuli": 18, "examples": ["scene-050"]}
    leaky = dataclasses.replace(card, audits={**card.audits, "overlap": {"default": fold}})
    found = account.audits(leaky)[0]
    assert found.verdict == "bad"
    assert "scene-050" in found.finding


def test_cases_never_repeat_in_small_studies() -> None:
    for size in range(1, 12):
        queries = [gallery.Query("sub-01", f"s{k}", 1.0 + k % 3, size, ()) for k in range(size)]
        chosen = [query.identifier for group in gallery.choose(queries, 3).values() for query in group]
        assert len(chosen) == len(set(chosen)) > 0
    assert gallery.choose([], 3) == {"best": [], "median": [], "worst": []}
