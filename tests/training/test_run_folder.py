"""What a run folder takes for the same run, and what may change after a stop."""

from __future__ import annotations

import json

import pytest

from phosphene.errors import InputError
from phosphene.training.log import read_log
from phosphene.training.run_folder import RunFolder, differences, note_stop
from phosphene.training.settings import TrainingConfig


def settings(rate=1e-3, **stages):
    tables = {"training": {"learning_rate": rate}, **stages}
    return {"seed": 0, **{name: TrainingConfig.build(table).model_dump(mode="json") for name, table in tables.items()}}


def test_what_is_missing_and_what_is_none_are_the_same():
    assert differences({"seed": 0}, {"seed": 0, "tokenizer": None}) == []
    assert differences({"seed": 0, "start": None}, {"seed": 0}) == []
    assert differences({"seed": 0}, {"seed": 0, "tokenizer": "x"}) == ["tokenizer was None, is now 'x'"]


def test_where_a_run_goes_may_change_in_every_stage():
    run = settings(personal={"memory_gb": 0.1})
    assert differences(run, settings(personal={"memory_gb": 0.2})) == []
    assert differences(run, settings(personal={"epochs": 3})) == ["personal.epochs was 100, is now 3"]


@pytest.mark.parametrize("stage", ["", "personal"])
def test_after_a_stop_the_rate_may_change_once(tmp_path, stage):
    first = settings(personal={"learning_rate": 1e-3})
    lower = settings(1e-4, personal={"learning_rate": 1e-4})
    RunFolder(tmp_path, first).begin()
    with pytest.raises(
        InputError, match=r"personal\.learning_rate was 0\.001, is now 0\.0001; training\.learning_rate"
    ):
        RunFolder(tmp_path, lower)
    note_stop(tmp_path / stage, 7, "the loss became nan")
    assert RunFolder(tmp_path, first).changes == []
    with pytest.raises(InputError, match="seed was 0, is now 1"):
        RunFolder(tmp_path, {**lower, "seed": 1})
    changed = {"personal.learning_rate": [1e-3, 1e-4], "training.learning_rate": [1e-3, 1e-4]}
    run = RunFolder(tmp_path, lower)
    run.begin()
    assert run.changes == [{"step": 7, "what": "the loss became nan", "changed": changed}]
    assert read_log(run.log) == [{"event": "change", **run.changes[0]}]
    again = RunFolder(tmp_path, lower)
    again.begin()
    assert again.changes == run.changes
    assert len(read_log(run.log)) == 1
    with pytest.raises(InputError, match=r"was 0\.0001, is now 0\.001"):
        RunFolder(tmp_path, first)


def test_a_finished_run_is_not_given_out_for_one_with_other_settings(tmp_path):
    RunFolder(tmp_path, settings()).begin()
    note_stop(tmp_path, 7, "the loss became nan")  # and then it went on as it was
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.json").write_text(json.dumps({}))
    assert RunFolder(tmp_path, settings()).finished
    with pytest.raises(InputError, match="holds a run with other settings"):
        RunFolder(tmp_path, settings(1e-4))
