"""Pictures from folders: lazily decoded, and refused by name when wrong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from phosphene.errors import InputError
from phosphene.stimuli import read_folder


def picture(path, size=(6, 4), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


def test_pictures_captions_and_frames(tmp_path):
    for name, value in (("b", 2), ("a", 1)):
        picture(tmp_path / f"{name}.png", value=value)
    (tmp_path / "captions.tsv").write_text("stimulus_id\tcaption\na\tone\nb\ttwo\na\tuno\n")
    s = read_folder(tmp_path)
    assert s.ids.tolist() == ["a", "b"]
    assert s.captions == (("one", "uno"), ("two",))
    assert s.pixels()[:, 0, 0, 0].tolist() == [1, 2]
    assert s.frame_shape == (4, 6, 3)

    clips = tmp_path / "clips"
    for clip in ("x", "y"):
        for frame in range(3):
            picture(clips / clip / f"{frame:02d}.png", value=10 * frame)
    assert read_folder(clips).frame_shape == (3, 4, 6, 3)
    assert read_folder(clips).frames()[0, 0, 0, 0] == 10


def test_sizes_must_agree_or_be_asked_for(tmp_path):
    picture(tmp_path / "a.png", (6, 4))
    picture(tmp_path / "b.png", (8, 4))
    with pytest.raises(InputError, match=r"different sizes: .*a\.png is 4 x 6, .*b\.png is 4 x 8.*--image-size"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, size=5).pixels().shape == (2, 5, 5, 3)


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match="holds no images"):
        read_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png is not a readable image"):
        read_folder(tmp_path)
    picture(tmp_path / "a.png")
    s = read_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png: the stimulus is missing on disk"):
        s.pixels()
