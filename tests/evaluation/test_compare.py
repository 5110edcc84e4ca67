"""Runs side by side: paired, or refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.evaluation import compare, evaluate
from phosphene.training import fit

QUIET = {"rivals": (), "n_boot": 50, "n_perm": 50, "progress": False}


@pytest.fixture(scope="module")
def runs(folded):
    study, targets, decoders = folded
    weak = {
        split: fit("ridge", study.using(split), targets, progress=False, penalties=(300.0,), pool_subjects=True)
        for split in decoders
    }
    return (
        evaluate(decoders, study, targets, unit="group", name="strong", **QUIET),
        evaluate(weak, study, targets, unit="group", name="weak", **QUIET),
    )


def test_values_and_differences_equal_those_of_the_scorecards(runs):
    strong, weak = runs
    found = compare([strong, weak])
    assert found.names == ["strong", "weak"]
    for row in found.rows:
        card = strong if row["run"] == "strong" else weak
        assert row["value"] == pytest.approx(card.get(row["metric"], row["direction"]).value)
        if row["run"] == "weak":
            other = strong.get(row["metric"], row["direction"]).value
            assert row["difference"] == pytest.approx(row["value"] - other)
            assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    row = next(
        r for r in found.rows if (r["run"], r["metric"], r["direction"]) == ("weak", "two-way", "brain_to_image")
    )
    assert row["difference"] < 0
    assert "minus strong" in found.table()
    assert f"{row['difference']:+.3f}" in found.table()


def test_a_run_against_itself_differs_by_nothing(runs):
    strong, _ = runs
    for row in compare({"a": strong, "b": strong}).rows:
        if row["run"] == "b":
            assert row["difference"] == 0
            assert row["interval"] == (0, 0)
            assert row["p"] in (1.0, None)


def test_files_are_compared_and_written(runs, tmp_path):
    paths = [card.save(tmp_path / f"{card.method}.json") for card in runs]
    found = compare(paths)
    assert found.to_dict()["rows"] == compare(list(runs)).to_dict()["rows"]
    found.save(tmp_path / "comparison.json")
    assert '"reference": "strong"' in (tmp_path / "comparison.json").read_text()


def test_equal_names_are_numbered(runs):
    strong, _ = runs
    assert compare([strong, strong, strong]).names == ["strong", "strong (2)", "strong (3)"]


def test_means_are_over_common_people(runs, folded):
    study, targets, decoders = folded
    strong, _ = runs
    one = evaluate(decoders, study, targets, unit="group", subjects=["sub-02"], **QUIET)
    found = compare({"both": strong, "one": one})
    assert found.subjects == ["sub-02"]
    values = {row["run"]: row["value"] for row in found.rows if row["metric"] == "two-way"}
    assert values["both"] == values["one"]
    assert strong.get("two-way").value != values["both"]


def test_different_protocols_are_refused(runs, folded, linear, ridge):
    study, targets, decoders = folded
    strong, _ = runs
    other_unit = evaluate(decoders, study, targets, **QUIET)
    with pytest.raises(InputError, match=r"differ in unit \(group and stimulus\)"):
        compare([strong, other_unit])
    fewer = evaluate(decoders, study, targets, unit="group", repeats=1, **QUIET)
    with pytest.raises(InputError, match=r"repeats averaged \(all and 1\)"):
        compare([strong, fewer])
    elsewhere = evaluate(ridge, *linear, **QUIET)
    with pytest.raises(InputError, match=r"study .* splits"):
        compare([strong, elsewhere])
    with pytest.raises(InputError, match="at least 2 scorecards, found 1"):
        compare([strong])


def test_other_stimuli_of_one_person_are_refused(runs):
    strong, weak = runs
    records = [dict(record) for record in weak.stimuli]
    records[0]["ids"] = [*records[0]["ids"][:-1], "another"]
    with pytest.raises(InputError, match="different stimuli of sub-01"):
        compare([strong, dataclasses.replace(weak, stimuli=records)])
    with pytest.raises(InputError, match="keeps no ranks of sub-01"):
        compare([strong, dataclasses.replace(weak, stimuli=[])])


def test_the_interval_finds_a_difference_of_known_size(runs):
    """Ranks worsened for one query in three: top-1 falls by the share of hits among them."""
    strong, _ = runs
    records = []
    for record in strong.stimuli:
        rank = np.array(record["rank"]["brain_to_image"])
        rank[::3] += 1
        records.append({**record, "rank": {**record["rank"], "brain_to_image": rank.tolist()}})
    worse = dataclasses.replace(strong, stimuli=records, method="strong")
    row = next(r for r in compare({"a": strong, "b": worse}).rows if r["run"] == "b")
    hits = [np.array(r["rank"]["brain_to_image"])[::3] == 1 for r in strong.stimuli]
    assert row["difference"] == pytest.approx(-np.mean([h.sum() / 54 for h in hits]))
    assert row["interval"][1] < 0
    assert row["p"] < 0.05


def test_accuracy_is_paired_where_all_runs_classified(linear, ridge):
    study, targets = linear
    poor = fit("ridge", study, targets, progress=False, penalties=(1e6,), pool_subjects=True)
    good, bad = (
        evaluate(d, study, targets, protocols=["classification"], **QUIET | {"rivals": ("mean",)})
        for d in (ridge, poor)
    )
    rows = [row for row in compare({"good": good, "bad": bad}).rows if row["metric"] == "accuracy"]
    assert [row["run"] for row in rows] == ["good", "bad"]
    assert rows[0]["direction"] == "classification:label"
    for row, card in zip(rows, (good, bad), strict=True):
        assert row["value"] == pytest.approx(card.get("accuracy").value)
    plain = evaluate(poor, study, targets, protocols=["retrieval"], **QUIET)
    assert not [row for row in compare({"good": good, "plain": plain}).rows if row["metric"] == "accuracy"]
