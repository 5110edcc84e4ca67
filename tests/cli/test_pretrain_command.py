"""``phosphene pretrain``: scenes, folders, COCO, classes, studies; what is wrong is said in one message."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phosphene.cli import main
from phosphene.cli.pretraining import _opened, _Source
from phosphene.encoders import encode, make_encoder
from phosphene.encoders.images import at_size
from phosphene.encoders.pixels import PixelGridEncoder, PixelsConfig
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet, read_folder
from phosphene.table import Table

SMALL = """
[model]
image_size = 16
patch = 4
width = 16
heads = 2
spectral_blocks = 1
spatial_blocks = 1
embed = 12
token_embed = 8
text_width = 16
text_heads = 2
text_blocks = 1
text_context = 120
vocabulary = 400
[training]
steps = 3
batch_size = 6
log_steps = 1
probe_pictures = 6
[data]
only = { shape = ["ring", "heart", "star"], colour = ["red", "green", "blue"] }
group = 6
rule = "none"
"""
WORDS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Twelve pictures as a folder with captions, as COCO, and sorted by class; and the settings."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "small.toml").write_text(SMALL)
    rng = np.random.default_rng(0)
    names = [f"p{row:02d}" for row in range(12)]
    for row, name in enumerate(names):
        pixels = rng.integers(0, 40, (20, 24, 3), dtype=np.uint8)
        pixels[..., row % 3] += 200
        for file in (root / "folder" / f"{name}.png", root / "classes" / WORDS[row % 3] / f"{name}.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    said = [f"something {WORDS[row % 3]}, number {row}" for row in range(12)]
    Table({"stimulus_id": names, "caption": said}).write_tsv(root / "folder" / "captions.tsv")
    coco = {
        "images": [{"id": row, "file_name": f"{name}.png"} for row, name in enumerate(names)],
        "annotations": [{"id": row, "image_id": row, "caption": text} for row, text in enumerate(said)],
    }
    (root / "coco.json").write_text(json.dumps(coco))
    return root


@pytest.fixture
def run(monkeypatch, capsys, place):
    """Runs the command with the small settings; gives exit status, output, errors."""

    def runner(*words: object, settings: bool = True) -> tuple[int, str, str]:
        config = ["--config", place / "small.toml"] if settings else []
        monkeypatch.setattr(sys, "argv", ["phosphene", "pretrain", *map(str, [*words, *config])])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return runner


def facts(out: Path) -> dict:
    return json.loads((out / "model" / "config.json").read_text())["facts"]


def test_scenes_to_an_encoder_and_on_to_the_lab_s_own_pictures(run, place, tmp_path):
    status, out, err = run("--out", tmp_path / "a", "--seed", 2, "--json", tmp_path / "told.json")
    assert status == 0, err
    assert "zero-shot, seen compositions, shape: " in out
    assert "chance 33 %" in out
    assert json.loads((tmp_path / "told.json").read_text())["model"]["data"] == {"source": "scenes"}
    encoder = make_encoder(f"mlip:{tmp_path / 'a' / 'model'}")
    stimuli = StimulusSet(["x"], np.zeros((1, 16, 16, 3), np.uint8))
    assert encode(stimuli, encoder).shape("pooled") == (12,)
    words = ["--from", tmp_path / "a" / "model", "--out", tmp_path / "b", "--set", "training.steps=2"]
    status, out, err = run(place / "folder", *words, "--set", "training.batch_size=6", settings=False)
    assert status == 0, err
    assert "retrieval, held-out pictures, image to text: " in out
    assert facts(tmp_path / "b")["steps"] == 2
    assert facts(tmp_path / "b")["start"] is not None


def test_coco_with_its_own_held_out_part(run, place, tmp_path):
    status, _, err = run(place / "coco.json", "--out", tmp_path / "a", "--images", place / "folder")
    assert status == 0, err
    assert facts(tmp_path / "a")["data"]["captions"] == 10
    status, _, err = run(place / "folder", "--out", tmp_path / "b", "--held-out", place / "folder")
    assert status == 2
    assert "12 pictures are in both 'training' and 'held-out': p00 = p00" in err


def test_both_sources_are_described_apart(run, place, tmp_path):
    rng = np.random.default_rng(1)
    for row in range(6):
        file = tmp_path / "other" / f"p{row:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(file)
    content = json.loads((place / "coco.json").read_text())
    content = {key: entries[:6] for key, entries in content.items()}
    (tmp_path / "held.json").write_text(json.dumps(content))
    words = [place / "coco.json", "--images", place / "folder", "--out", tmp_path / "a"]
    status, _, err = run(*words, "--held-out", tmp_path / "held.json", "--held-out-images", tmp_path / "other")
    assert status == 0, err
    assert (facts(tmp_path / "a")["data"]["training_pictures"], facts(tmp_path / "a")["data"]["held_out_pictures"]) == (
        12,
        6,
    )
    # a folder to train on, COCO to probe: --images would have been refused
    words = [place / "folder", "--out", tmp_path / "b", "--held-out", tmp_path / "held.json"]
    status, _, err = run(*words, "--held-out-images", tmp_path / "other")
    assert status == 0, err


def read(folder):
    with _opened([_Source(folder, None, None)], None, None, 16) as (stimuli,):
        return at_size(stimuli, 16, 1.0).pixels()


def test_pictures_that_are_not_square_are_trained_on_as_encoders_see_them(tmp_path):
    rng = np.random.default_rng(0)
    for folder, shapes in (("alike", [(20, 30)] * 3), ("mixed", [(20, 30), (40, 24), (20, 20), (26, 26)])):
        (tmp_path / folder).mkdir()
        for row, shape in enumerate(shapes):
            pixels = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"p{row}.png")
        words = {"stimulus_id": [f"p{row}" for row in range(len(shapes))], "caption": [*"abcd"[: len(shapes)]]}
        Table(words).write_tsv(tmp_path / folder / "captions.tsv")
    encoder = PixelGridEncoder(PixelsConfig(size=16))
    seen = encoder.encode_pixels(read_folder(tmp_path / "alike").pixels()).pooled.reshape(3, 16, 16, 3)
    assert np.abs(read(tmp_path / "alike") / 255 - seen).max() < 0.51 / 255
    # which has to be cropped does not depend on what else lies there: copies are known by their pixels
    mixed = read(tmp_path / "mixed")
    (tmp_path / "mixed" / "p1.png").unlink()
    Table({"stimulus_id": ["p0", "p2", "p3"], "caption": [*"acd"]}).write_tsv(tmp_path / "mixed" / "captions.tsv")
    assert np.array_equal(read(tmp_path / "mixed"), mixed[[0, 2, 3]])


def captioned(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    captions = [f"picture {name} of {folder.name}" for name in pictures]
    Table({"stimulus_id": [*pictures], "caption": captions}).write_tsv(folder / "captions.tsv")
    return folder


@pytest.mark.parametrize("mixed", ["train", "held"])
def test_a_file_in_both_parts_is_known_also_where_one_part_alone_differs_in_size(run, tmp_path, mixed):
    rng = np.random.default_rng(0)
    shared, *others = (rng.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(7))
    uneven = rng.integers(0, 255, (40, 24, 3), dtype=np.uint8)
    train = {"a": shared, **{f"t{row}": pixels for row, pixels in enumerate(others[:4])}}
    held = {"b": shared, **{f"h{row}": pixels for row, pixels in enumerate(others[4:])}}
    (train if mixed == "train" else held)["uneven"] = uneven
    train_at, held_at = captioned(tmp_path / "train", train), captioned(tmp_path / "held", held)
    status, _, err = run(train_at, "--held-out", held_at, "--out", tmp_path / "run")
    assert status == 2
    assert "1 picture is in both 'training' and 'held-out': a = b" in err


def test_classes_with_prompts(run, place, tmp_path):
    words = ["--labels", "paint", "--prompt", "a {} thing", "--prompt", "{}", "--set", "data.held_out=0.4"]
    status, out, err = run(place / "classes", "--out", tmp_path, *words)
    assert status == 0, err
    assert "zero-shot, held-out pictures, paint: " in out
    assert facts(tmp_path)["data"]["captions"] == 2 * facts(tmp_path)["data"]["training_pictures"]


def test_of_a_study_the_training_part_is_used(run, tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"s{row}" for row in range(8)]
    stimuli = StimulusSet(ids, rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8), [[f"number {i}"] for i in ids])
    person = Recording("sub-01", np.ones((8, 1), "float32"), Table({"stimulus_id": ids}), Table({"voxel": [0]}))
    Study(stimuli, [person], splits={"default": {"train": ids[:6], "test": ids[6:]}}).save(tmp_path / "study.h5")
    status, _, err = run(tmp_path / "study.h5", "--out", tmp_path / "a", "--set", "data.held_out=0")
    assert status == 0, err
    assert facts(tmp_path / "a")["data"]["fitted_on"] == ids[:6]


def test_every_mistake_has_its_message(run, place, tmp_path):
    (place / "gone.json").write_text((place / "coco.json").read_text().replace("p03.png", "p99.png"))
    for words, message in (
        ((place / "gone.json", "--images", place / "folder"), "1 of 12 images"),
        (("--labels", "paint"), "--labels go with pictures to train on: give their PATH"),
        ((place / "folder", "--prompt", "a {}"), "--prompt goes with --labels COLUMN"),
        ((place / "folder", "--images", place), "--images goes with a COCO .json"),
        ((place / "folder", "--split", "one"), "--split goes with a study"),
        ((place / "folder", "--held-out-images", place), "--held-out-images go with held-out pictures"),
        ((place / "folder", "--held-out", place / "folder", "--held-out-split", "x"), "--held-out-split goes with a"),
        ((place / "folder", "--held-out", place / "folder", "--held-out-images", place), "--held-out-images goes with"),
        (("--set", "model.image_size=30"), "patch = 4 does not divide image_size = 30"),
        (("--tokenizer", place / "coco.json"), "not a tokenizer of the tokenizers library"),
        (("--preset", "poket"), "did you mean 'pocket'?"),
        (("--set", "trainning.steps=3"), "unknown table of settings 'trainning'"),
        ((place / "folder", "--set", "model.text_context=4"), "captions are longer than the context of 4 tokens"),
    ):
        status, _, err = run(*words, "--out", tmp_path / "x")
        assert status == 2, words
        assert message in err.replace("\n", " "), err
    status, _, err = run("--out", tmp_path / "x", settings=False)
    assert status == 2
    assert "Give --preset, --from or --config" in err
