"""Preprocessing against transformers' own image processors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from phosphene.encoders.preprocessing import read_preprocessing
from phosphene.errors import InputError

transformers = pytest.importorskip("transformers", reason="preprocessing is held against transformers: not installed")


def _frames(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(64, 64), (50, 81), (97, 45), (24, 24), (32, 32)])
@pytest.mark.parametrize(
    ("processor", "settings"),
    [
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "do_center_crop": False, "resample": 2}),
        ("SiglipImageProcessorPil", {"size": {"height": 32, "width": 48}}),
        ("SiglipImageProcessorPil", {"size": {"height": 16, "width": 16}, "do_normalize": False}),
    ],
)
def test_agrees_with_transformers(shape: tuple[int, int], processor: str, settings: dict, tmp_path: Path) -> None:
    if not hasattr(transformers, processor):
        pytest.skip(f"this transformers has no {processor} to compare with")
    theirs = getattr(transformers, processor)(**settings)
    theirs.save_pretrained(tmp_path)
    frames = _frames(*shape)
    expected = np.stack([np.asarray(theirs(frame)["pixel_values"][0]) for frame in frames])
    ours = read_preprocessing(tmp_path).apply(frames)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_old_and_nested_files_are_read(tmp_path: Path) -> None:
    old = {"size": 32, "crop_size": 28, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    read = read_preprocessing(tmp_path)
    assert (read.shortest_edge, read.crop) == (32, (28, 28))
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": old}))
    assert read_preprocessing(tmp_path) == read


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        read_preprocessing(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": 32, "image_std": [1, 1, 1]}))
    with pytest.raises(InputError, match="image_mean"):
        read_preprocessing(tmp_path)
    file.write_text(json.dumps({"do_pad": True}))
    with pytest.raises(InputError, match="do_pad is not supported"):
        read_preprocessing(tmp_path)
    file.write_text(json.dumps({"size": {"height": 8, "width": 8}, "crop_size": 16, "do_normalize": False}))
    with pytest.raises(InputError, match="does not fit"):
        read_preprocessing(tmp_path).apply(_frames(20, 20))
