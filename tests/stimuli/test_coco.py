"""COCO-style captions: what is read, and what is refused by name."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from phosphene.errors import InputError
from phosphene.stimuli import read_coco

IMAGES = [{"id": 12, "file_name": "a.png", "height": 4}, {"id": 7, "file_name": "more/b.png"}]
CAPTIONS = [
    {"id": 1, "image_id": 7, "caption": "a boat "},
    {"id": 2, "image_id": 12, "caption": "a cat"},
    {"id": 3, "image_id": 7, "caption": "a ship at sea"},
]


def written(folder, images=IMAGES, annotations=CAPTIONS, **other):
    path = folder / "captions.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, **other}))
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for value, (name, size) in enumerate((("a.png", (6, 4)), ("more/b.png", (4, 8))), start=1):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), 10 * value, np.uint8)).save(path)
    return folder


def test_images_and_their_captions_are_read(tmp_path, pictures):
    stimuli = read_coco(written(tmp_path), pictures, size=5)
    assert stimuli.ids.tolist() == ["12", "7"]
    assert stimuli.captions == (("a cat",), ("a boat", "a ship at sea"))
    assert stimuli.labels["file_name"].tolist() == ["a.png", "more/b.png"]
    assert stimuli.frame_shape == (5, 5, 3)
    assert stimuli.pixels()[:, 2, 2, 0].tolist() == [10, 20]


def test_pixels_are_lazy_and_cropped_as_those_of_folders(tmp_path, pictures):
    wide = np.zeros((4, 6, 3), np.uint8)
    wide[:, 1:5] = 200
    Image.fromarray(wide).save(pictures / "a.png")
    stimuli = read_coco(written(tmp_path), pictures, size=4)
    assert (stimuli.pixels([0]) == 200).all(), "the square in the middle"
    (pictures / "a.png").unlink()
    assert (stimuli.pixels([1]) == 20).all()
    with pytest.raises(InputError, match=r"a\.png: the stimulus is missing on disk"):
        stimuli.pixels([0])


def test_sizes_must_be_asked_for(tmp_path, pictures):
    with pytest.raises(InputError, match="different sizes"):
        read_coco(written(tmp_path), pictures)
    assert read_coco(written(tmp_path), pictures, fit=True).frame_shape == (4, 4, 3)


def test_images_without_captions_are_left_out_aloud(tmp_path, pictures, caplog):
    with caplog.at_level(logging.WARNING):
        stimuli = read_coco(written(tmp_path, annotations=CAPTIONS[1:2]), pictures)
    assert stimuli.ids.tolist() == ["12"]
    assert "1 of 2 images have no caption" in caplog.text
    with pytest.raises(InputError, match="holds no captions"):
        read_coco(written(tmp_path, annotations=[]), pictures)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"annotations": [*CAPTIONS, {"id": 9, "image_id": 12, "caption": "  "}]},
            r"1 captions are empty.*image 12 \(ann",
        ),
        (
            {"annotations": [*CAPTIONS, {"id": 9, "image_id": 13, "caption": "x"}]},
            "1 captions belong to no listed image.* 13",
        ),
        ({"annotations": [*CAPTIONS, CAPTIONS[0]]}, "1 annotation ids occur more than once, such as 1"),
        ({"images": [*IMAGES, IMAGES[1]]}, "1 image ids occur more than once, such as 7"),
        ({"images": [{"id": 1}]}, r"images\[0\] needs 'file_name' \(text\), found None"),
        (
            {"images": [{"id": 1.5, "file_name": "a.png"}]},
            r"images\[0\] needs 'id' \(a whole number or text\), found 1.5",
        ),
        ({"images": ["a.png"]}, r"images\[0\] needs 'id'"),
        ({"annotations": [{"image_id": 12}]}, r"annotations\[0\] needs 'caption'"),
        ({"annotations": {"12": "a cat"}}, "must be an object with lists 'images' and 'annotations'"),
        ({"images": [{"id": 12, "file_name": "../a.png"}]}, "image 12 must have a file name inside the images folder"),
        (
            {
                "images": [*IMAGES, {"id": 8, "file_name": "c.png"}],
                "annotations": [*CAPTIONS, {"image_id": 8, "caption": "x"}],
            },
            r"1 of 3 images of .*captions\.json are missing in .*pictures, such as c\.png",
        ),
    ],
)
def test_wrong_content_is_named(tmp_path, pictures, content, words):
    with pytest.raises(InputError, match=words):
        read_coco(written(tmp_path, **content), pictures)


def test_wrong_files_are_named(tmp_path, pictures):
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        read_coco(tmp_path / "none.json", pictures)
    (tmp_path / "captions.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"captions\.json is not readable JSON"):
        read_coco(tmp_path / "captions.json", pictures)
    (tmp_path / "captions.json").write_text("[1]")
    with pytest.raises(InputError, match="must be an object with lists"):
        read_coco(tmp_path / "captions.json", pictures)
    with pytest.raises(InputError, match="elsewhere is not a folder"):
        read_coco(written(tmp_path), tmp_path / "elsewhere")
