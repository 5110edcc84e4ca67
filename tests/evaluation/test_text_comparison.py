"""Two ways to text in pairs: what is subtracted, how sure that is, what is refused; galleries of 300, units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from phosphene.encoders import given_targets
from phosphene.errors import InputError
from phosphene.evaluation import compare_text, text_retrieval
from phosphene.evaluation.metrics import Counts
from phosphene.evaluation.text_retrieval import DIRECTIONS, METRICS, TextCard, TextQueries
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.training import fit

WAY = "brain_to_text"


def card(name, ranks, units=None, names=None, **facts):
    """Each person's queries, of which so many candidates are more similar, among 40."""
    queries = []
    for subject, greater in ranks.items():
        n = len(greater)
        rows = np.arange(n) if units is None else np.asarray(units)
        counts = Counts(np.asarray(greater), np.zeros(n, dtype=int), 40)
        of = np.array([f"s{row}" for row in range(n)]) if names is None else np.array(names)
        queries += [TextQueries(subject, way, of, rows, counts) for way in DIRECTIONS]
    return TextCard(name, [], {"role": "test", **facts}, queries)


def test_differences_are_paired_by_query_and_averaged_over_people():
    rng = np.random.default_rng(0)
    hard = {person: rng.integers(0, 30, size=60) for person in ("sub-01", "sub-02")}
    better = {person: np.maximum(ranks - 2, 0) for person, ranks in hard.items()}
    found = compare_text(card("a", better), card("b", hard)).row("two-way", WAY)
    expected = np.mean([(hard[person] - better[person]).mean() / 39 for person in hard])
    assert found["difference"] == pytest.approx(expected)
    assert found["first"] - found["second"] == pytest.approx(expected)
    # the queries differ by far more than the methods: only pairs see how sure the difference is
    assert found["interval"][1] - found["interval"][0] < 0.02
    assert found["interval"][0] > 0
    assert found["p"] < 0.01
    same = compare_text(card("a", hard), card("b", hard)).row("top-5", WAY)
    assert (same["difference"], same["p"]) == (0.0, 1.0)
    median = compare_text(card("a", better), card("b", hard), n_boot=0).row("median-rank", "text_to_brain")
    assert median["difference"] < 0
    assert median["p"] is median["interval"] is None


def test_captions_of_one_unit_count_together():
    ranks, none = {"sub-01": np.repeat([0, 20], [30, 10])}, {"sub-01": np.full(40, 20)}
    units = np.repeat(np.arange(4), 10)
    apart = compare_text(card("a", ranks), card("b", none)).row("top-1", WAY)
    together = compare_text(card("a", ranks, units), card("b", none, units)).row("top-1", WAY)
    assert apart["difference"] == together["difference"] == 0.75
    assert np.diff(together["interval"]) > 1.5 * np.diff(apart["interval"])
    assert together["p"] > 0.1 > apart["p"]  # of four units, three alike


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (card("a", {"sub-01": [1, 2]}), "both methods are called 'a'"),
        (card("b", {"sub-01": [1, 2]}, split="fold-2"), r"not .* same protocol; they differ in the split: None and"),
        (card("b", {"sub-02": [1, 2]}), "no person in common"),
        (card("b", {"sub-01": [1, 2]}, names=["s0", "s7"]), "scored on different captions of sub-01"),
    ],
    ids=["name", "split", "people", "captions"],
)
def test_what_cannot_be_paired_is_refused(other, message):
    with pytest.raises(InputError, match=message):
        compare_text(card("a", {"sub-01": [0, 2]}), other)
    with pytest.raises(InputError, match="no comparison of top-3"):
        compare_text(card("a", {"sub-01": [0, 2]}), card("b", {"sub-01": [1, 2]})).row("top-3", WAY)


def world(n_test, noise=0.5, unit=None):
    """Text is linear in responses; captions are all different but the first two of the test part."""
    rng = np.random.default_rng(1)
    n = n_test + 120
    ids = np.array([f"s{number:03d}" for number in range(n)])
    text = rng.normal(size=(n, 8)).astype("float32")
    text[1] = text[0]
    x = text @ rng.normal(size=(8, 20)) + noise * rng.normal(size=(n, 20))
    voxels, trials = Table({axis: np.arange(20) for axis in "ijk"}), Table({"stimulus_id": ids})
    captions = [[f"scene {max(number, 1)}"] for number in range(n)]
    labels = Table({"action": np.array([f"act {number // 2}" for number in range(n)])})
    person = Recording("sub-01", x.astype("float32"), trials, voxels)
    stimuli = StimulusSet(ids, captions=captions, labels=labels)
    study = Study(stimuli, [person], {"default": {"train": ids[n_test:], "test": ids[:n_test]}}, unit=unit)
    return study, given_targets(ids, text)


def test_a_gallery_of_300_stands_beside_a_larger_one():
    study, texts = world(341, noise=3.0)
    decoder = fit("ridge", study, texts, progress=False)
    found = text_retrieval(decoder, study, texts, n_boot=0)
    whole, pool = found.get("top-1", WAY), found.get("top-1 of 300", WAY)
    assert (whole.gallery, pool.gallery) == (340, 300)
    assert pool.chance == pytest.approx(1 / 300)
    assert whole.value < pool.value < whole.value + 0.1  # fewer candidates, a little easier
    assert any(" top-1 of 300 " in line and "300 captions" in line for line in found.table().splitlines())
    small, texts = world(60)
    of_60 = text_retrieval(fit("ridge", small, texts, progress=False), small, texts, n_boot=0)
    assert {score.metric for score in of_60.scores} == set(METRICS)


def test_intervals_and_pairs_keep_the_units_of_the_study():
    study, texts = world(60, unit="action")
    decoder = fit("ridge", study, texts, progress=False)
    (forth, back) = text_retrieval(decoder, study, texts, n_boot=50).queries
    # 59 captions of 30 actions: the two stimuli of the first caption are of one action
    assert (len(forth.names), len(back.names)) == (60, 59)
    assert len(np.unique(forth.units)) == len(np.unique(back.units)) == 30
    assert forth.units[0] == forth.units[1] != forth.units[2]
    # a caption that two actions share makes them one
    labels = study.stimuli.labels["action"].copy()
    labels[1] = "act 1"
    other = StimulusSet(study.stimuli.ids, captions=study.stimuli.captions, labels=Table({"action": labels}))
    joined = Study(other, study.recordings, {"default": study.roles()}, unit="action")
    found = text_retrieval(fit("ridge", joined, texts, progress=False), joined, texts, n_boot=0).queries[0]
    assert len(set(found.units[:4])) == 1
    assert len(np.unique(found.units)) == 29


def test_plain_values_hold_what_pairs_are_made_of():
    made = card("a", {"sub-01": [0, 2]})
    plain = replace(made).to_dict()
    assert plain["queries"][0] == {
        "subject": "sub-01",
        "direction": WAY,
        "names": ["s0", "s1"],
        "greater": [0, 2],
        "ties": [0, 0],
        "gallery": 40,
    }
