"""The log of a run and its progress bar."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from phosphene.errors import InputError
from phosphene.training import progress
from phosphene.training.log import RunLog, read_log


def test_a_resumed_log_forgets_work_that_was_lost(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    for step in (1, 2, 3):
        log.write({"event": "step", "step": step})
    with path.open("a") as stream:
        stream.write('{"event": "step", "st')  # cut off by a kill
    assert [record["step"] for record in read_log(path)] == [1, 2, 3]
    log = RunLog(path, step=2)
    log.write({"event": "step", "step": 3, "again": True})
    assert [record.get("again") for record in read_log(path)] == [None, None, True]
    log.write({"event": "change", "step": 3})
    RunLog(path)  # from the start; what was changed stays
    assert read_log(path) == [{"event": "change", "step": 3}]


def test_no_path_no_log(tmp_path):
    RunLog(None).write({"step": 1})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to write to")
def test_a_full_disk_is_told(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.path = Path("/dev/full")
    with pytest.raises(InputError, match="cannot write /dev/full: No space left"):
        log.write({"step": 1})


def test_the_bar_shows_on_terminals_only(monkeypatch):
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=120)
        monkeypatch.setattr(progress, "Console", lambda made=console, **kwargs: made)
        with progress.progress_bar("fit tiny", 10) as report:
            report(10, "loss 0.125")
        shown = stream.getvalue()
        assert ("fit tiny" in shown and "10/10" in shown and "loss 0.125" in shown) == terminal
        assert terminal or shown == ""
