"""A study folder without people: pictures, captions and labels of a site without a brain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from phosphene.cli import app
from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.recordings.readers.folder import import_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    (made / "stimuli").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(made / "stimuli" / f"s{number}.png")
    (made / "stimuli.tsv").write_text("stimulus_id\tgroup\n" + "".join(f"s{n}\tg{n % 2}\n" for n in range(4)))
    (made / "captions.tsv").write_text("stimulus_id\tcaption\n" + "".join(f"s{n}\ta thing\n" for n in range(4)))
    return made


def test_stimuli_alone_are_read_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.h5"
    done = CliRunner().invoke(app, ["import", "folder", str(folder), "--out", str(out), "--stimuli-alone"])
    assert done.exit_code == 0, done.output
    assert "4 stimuli, 0 people" in done.output
    with Study.open(out, stimuli_alone=True) as study:
        view = study.split("train")
        assert view.stimulus_ids.tolist() == ["s0", "s1", "s2", "s3"]
        assert view.stimuli.labels["group"].tolist() == ["g0", "g1", "g0", "g1"]
        assert view.stimuli.pixels().shape == (4, 8, 8, 3)
        assert view.stimuli.captions[0] == ("a thing",)
    with pytest.raises(InputError, match="at least one person"):
        Study.open(out)


def test_people_are_neither_left_out_nor_made_up(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.h5"
    with pytest.raises(InputError, match="holds no folder of a person"):
        import_folder(folder, out)
    (folder / "sub-01").mkdir()
    with pytest.raises(InputError, match=r"holds people, or no stimuli\.tsv"):
        import_folder(folder, out, stimuli_alone=True)
    (folder / "sub-01").rmdir()
    (folder / "stimuli.tsv").unlink()
    with pytest.raises(InputError, match=r"holds people, or no stimuli\.tsv"):
        import_folder(folder, out, stimuli_alone=True)
    assert not out.exists()
