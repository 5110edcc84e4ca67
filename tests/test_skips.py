"""A run of `make test` may skip for what a machine lacks, and for nothing that it has set up."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("reason", "mode", "code"),
    [
        ("no GPU here", "whole", 0),
        ("REAL DATA ABSENT: actions96", "whole", 0),
        ("transformers is not installed", "whole", 1),
        ("transformers is not installed", "", 0),
    ],
)
def test_what_was_set_up_is_not_skipped(tmp_path, monkeypatch, reason, mode, code):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_one.py").write_text(
        f"import pytest\n\ndef test_it(): pass\n\n@pytest.mark.skip(reason={reason!r})\ndef test_skipped(): pass\n"
    )
    monkeypatch.setenv("PHOSPHENE_TESTS", mode)
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stdout
    assert ("though everything was set up: " in done.stdout) == bool(code)
