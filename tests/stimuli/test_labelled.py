"""Class-named folders and captions from labels."""

from __future__ import annotations

import multiprocessing
import zipfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from PIL import Image

from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet, check_captions, fill_prompts, labelled, read_class_folders

PETS = StimulusSet(["a", "b", "c"], labels={"kind": ["cat", "owl", "cat"], "age": [1, 2, 3], "mass": [0.5, 1.0, 2.0]})


@pytest.fixture
def classes(tmp_path):
    folder = tmp_path / "photos"
    for part, offset in (("train", 0), ("test", 100)):
        for value, name in enumerate(("owl/2", "cat/1", "owl/1")):
            path = folder / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), offset + value, np.uint8)).save(path)
        (folder / part / "owl" / "notes.txt").write_text("not a picture")
    return folder


def zipped(folder):
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as out:
        for file in folder.rglob("*"):
            out.write(file, file.relative_to(folder))
    return archive


@pytest.mark.parametrize("packed", [False, True])
def test_folders_named_after_classes_are_read(classes, packed):
    source = zipped(classes) if packed else classes
    stimuli = read_class_folders(source, part="train")
    assert stimuli.ids.tolist() == ["cat-1", "owl-1", "owl-2"]
    assert stimuli.labels["category"].tolist() == ["cat", "owl", "owl"]
    assert stimuli.pixels()[:, 0, 0, 0].tolist() == [1, 2, 0]
    other = read_class_folders(source, size=2, part="test", column="bird")
    assert other.pixels([2]).tolist() == np.full((1, 2, 2, 3), 100).tolist()
    assert other.labels.columns == ("bird",)


def test_an_archive_is_read_again_in_another_process(classes):
    stimuli = read_class_folders(zipped(classes), part="train")
    here = stimuli.pixels()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert np.array_equal(pool.submit(stimuli.pixels, [2, 0]).result(), here[[2, 0]])


def test_missing_classes_and_damaged_archives_are_named(classes, tmp_path):
    for source in (classes, zipped(classes)):
        with pytest.raises(InputError, match=r"holds no folders of images .* named after classes"):
            read_class_folders(source)
    with pytest.raises(InputError, match="neither a folder nor a zip archive"):
        read_class_folders(classes, part="validation")
    (tmp_path / "no.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"no\.zip is not a readable zip archive"):
        read_class_folders(tmp_path / "no.zip")
    archive = zipped(classes)
    raw = archive.read_bytes()
    (tmp_path / "hurt.zip").write_bytes(raw.replace(b"\x89PNG", b"\x00PNG"))
    with pytest.raises(InputError, match=r"hurt\.zip:test/cat/1\.png cannot be read: Bad CRC"):
        read_class_folders(tmp_path / "hurt.zip", part="test").pixels()


def test_captions_come_from_labels():
    stimuli = labelled(PETS, "kind", ["a photo of a {}", "{}", "A {} at home"])
    assert stimuli.captions[0] == ("a photo of a cat", "cat", "A cat at home")
    assert stimuli.captions[1] == ("a photo of an owl", "owl", "An owl at home")
    assert stimuli.labels == PETS.labels
    assert labelled(PETS, "age", ["number {}"]).captions[2] == ("number 3",)
    assert len(labelled(PETS, "kind").captions[0]) > 1
    assert stimuli.hashes[0] != PETS.hashes[0]


def test_captions_replace_those_that_were_there_and_pixels_stay_lazy():
    class Unread:
        shape, dtype = (1, 2, 2, 3), np.dtype(np.uint8)

        def __getitem__(self, rows):
            raise AssertionError("pixels were read")

    stimuli = StimulusSet(["a"], pixels=Unread(), captions=[["x"]], labels={"kind": ["cat"]})
    assert labelled(stimuli, "kind", ["a {}"]).captions == (("a cat",),)


def test_prompts_fit_words():
    assert fill_prompts(["ice_cream"], ["a bowl of {}", "not a{}"]) == (("a bowl of ice cream", "not aice cream"),)
    with pytest.raises(InputError, match=r"must have one \{\} for the label, found 'a cat'"):
        fill_prompts(["cat"], ["a cat"])
    with pytest.raises(InputError, match=r"found 'a \{\} and a \{\}'"):
        fill_prompts(["cat"], ["a {} and a {}"])
    for prompts in ([], "a {}"):
        with pytest.raises(InputError, match="prompts must be a sequence of at least one"):
            fill_prompts(["cat"], prompts)
    with pytest.raises(InputError, match="word 1 for the prompts is empty"):
        fill_prompts(["cat", "_"])


def test_wrong_labels_are_named():
    with pytest.raises(InputError, match="did you mean 'kind'"):
        labelled(PETS, "kinds")
    with pytest.raises(InputError, match="label column 'mass' must hold words, found float64"):
        labelled(PETS, "mass")
    with pytest.raises(InputError, match="1 stimuli have no 'kind', such as b"):
        labelled(StimulusSet(["a", "b"], labels={"kind": ["cat", " "]}), "kind")


def test_missing_and_empty_captions_are_named():
    check_captions(labelled(PETS, "kind"))
    with pytest.raises(InputError, match="1 of 2 stimuli have no caption, such as b"):
        check_captions(StimulusSet(["a", "b"], captions=[["x"], []]))
    with pytest.raises(InputError, match="1 of 2 stimuli have an empty caption, such as a"):
        check_captions(StimulusSet(["a", "b"], captions=[["x", " "], ["y"]]))


def test_labelled_photos_are_read_from_their_archive(real_data):
    archive = real_data / "cifar10_6000" / "cifar10_6000.zip"
    if not archive.exists():
        pytest.skip(f"REAL DATA ABSENT: {archive}")
    test = labelled(read_class_folders(archive, part="test"), "category")
    assert len(test) == 1000
    assert test.frame_shape == (32, 32, 3)
    assert test.captions[0][0] == "a picture of an airplane"
    assert np.unique(test.labels["category"], return_counts=True)[1].tolist() == [100] * 10
    assert test.pixels(slice(0, 1000, 50)).std() > 40
    assert len(read_class_folders(archive, part="train")) == 5000
