"""Settings of an encoder from a file and from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from phosphene.cli import app
from phosphene.errors import InputError
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table


def test_encode_takes_settings_from_a_file_and_from_the_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path / "cache"))
    person = Recording("sub-01", np.ones((2, 1), "float32"), Table({"stimulus_id": ["a", "b"]}), Table({"voxel": [0]}))
    Study(StimulusSet(["a", "b"], pixels=np.zeros((2, 16, 16, 3), "uint8")), [person]).save(tmp_path / "study.h5")
    (tmp_path / "pixels.toml").write_text("grid = 2\nsize = 8\n")
    words = ["encode", str(tmp_path / "study.h5"), "--encoder", "pixels", "--out", str(tmp_path / "targets")]
    words += ["--config", str(tmp_path / "pixels.toml"), "--json", str(tmp_path / "told.json")]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert json.loads((tmp_path / "told.json").read_text())["shapes"]["tokens"][0] == 4
    assert CliRunner().invoke(app, [*words, "--set", "grid=4"]).exit_code == 0
    assert json.loads((tmp_path / "told.json").read_text())["shapes"]["tokens"][0] == 16
    (tmp_path / "pixels.toml").write_text("gird = 2\n")
    with pytest.raises(InputError, match="did you mean 'grid'"):
        CliRunner().invoke(app, words, catch_exceptions=False)
