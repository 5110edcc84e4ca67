"""What every encoder promises: shapes, identity, save and load, errors that name the thing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phosphene.encoders import ENCODERS, Encoder, encode, make_encoder
from phosphene.encoders.gabor import GaborEncoder
from phosphene.encoders.pixels import PixelGridEncoder
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet

NAMES = ["gabor", "pixels", "tfidf-svd4", "labels", "labels:room", "z:pixels", "z:tfidf-svd4", "z:labels:room"]


def _fitted(name: str, stimuli: StimulusSet) -> Encoder:
    encoder = make_encoder(name)
    return encoder.fit(stimuli) if encoder.needs_fit else encoder


@pytest.mark.parametrize("name", NAMES)
def test_shapes_types_and_rows(name: str, stimuli: StimulusSet) -> None:
    encoder = _fitted(name, stimuli)
    whole = encoder.encode(stimuli)
    assert whole.pooled.shape[0] == len(stimuli)
    assert all(array.dtype == np.float32 for array in whole.kinds().values())
    some = encoder.encode(stimuli, [5, 2])
    for kind, array in some.kinds().items():
        np.testing.assert_allclose(array, whole.kinds()[kind][[5, 2]], rtol=1e-5, atol=1e-6)
    one = encoder.encode(stimuli, 3)
    assert one.pooled.shape == (1, *whole.pooled.shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_saved_encoder_comes_back(name: str, stimuli: StimulusSet, tmp_path: Path) -> None:
    encoder = _fitted(name, stimuli)
    encoder.save(tmp_path / "encoder")
    again = Encoder.load(tmp_path / "encoder")
    assert type(again) is type(encoder)
    assert again.identity == encoder.identity
    assert again.label == encoder.label == name
    assert again.fitted_on == encoder.fitted_on
    np.testing.assert_array_equal(again.encode(stimuli).pooled, encoder.encode(stimuli).pooled)
    files = {path.name for path in (tmp_path / "encoder").iterdir()}
    assert files <= {"config.json", "state.safetensors"}


def test_identity_is_the_same_in_another_process() -> None:
    script = (
        "from phosphene.encoders import make_encoder\n"
        "from phosphene.stimuli import StimulusSet\n"
        "s = StimulusSet(['a', 'b', 'c'], captions=[['a red ball'], ['two dogs'], ['the sea']],"
        " labels={'label': ['x', 'y', 'x']})\n"
        "for n in ('gabor', 'pixels'): print(make_encoder(n).identity)\n"
        "for n in ('tfidf-svd2', 'labels', 'z:tfidf-svd2'): print(make_encoder(n).fit(s).identity)\n"
    )
    seen = set()
    for seed, threads in (("1", "1"), ("2", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1
    assert len(set(seen.pop().split())) == 5


def test_identity_tells_settings_and_training_apart(stimuli: StimulusSet) -> None:
    assert make_encoder("gabor").identity != make_encoder("gabor", grid=8).identity
    assert make_encoder("gabor").identity != make_encoder("pixels").identity
    half = stimuli.select(stimuli.ids[:12])
    assert make_encoder("tfidf-svd4").fit(stimuli).identity != make_encoder("tfidf-svd4").fit(half).identity
    assert make_encoder("tfidf-svd4").fit(stimuli).identity != make_encoder("tfidf-svd3").fit(stimuli).identity


def test_unfitted_encoder_says_what_to_do(stimuli: StimulusSet, tmp_path: Path) -> None:
    encoder = make_encoder("tfidf-svd4")
    for attempt in (
        lambda: encoder.encode(stimuli),
        lambda: encoder.identity,
        lambda: encoder.save(tmp_path / "e"),
        lambda: encoder.encode_captions([["a dog"]]),
    ):
        with pytest.raises(InputError, match=r"fit_on=training_ids"):
            attempt()
    with pytest.raises(InputError, match="learns nothing"):
        make_encoder("gabor").fit(stimuli)


@pytest.mark.parametrize("name", ["gabro", "tfidf-svd", "gabor:3", "labels:", "hf-text:", "", "given"])
def test_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(
        InputError, match=r"unknown encoder .*gabor.*hf-text:MODEL.*labels.*minilm.*pixels.*tfidf-svd30"
    ):
        make_encoder(name)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"orientation.*did you mean 'orientations'"):
        make_encoder("gabor", orientation=3)
    with pytest.raises(InputError, match="grid = 7 does not divide size = 128"):
        make_encoder("gabor", grid=7)
    with pytest.raises(InputError, match="beyond"):
        make_encoder("gabor", size=32, grid=4)
    with pytest.raises(InputError, match="components"):
        make_encoder("tfidf-svd0")
    with pytest.raises(InputError, match="says components = 30"):
        make_encoder("tfidf-svd30", components=20)
    with pytest.raises(InputError, match="hf:HUB-NAME"):
        make_encoder("hf")
    with pytest.raises(InputError, match="needs the encoder to standardise"):
        make_encoder("z")


def test_stimuli_without_what_is_read() -> None:
    bare = StimulusSet(["a", "b"], captions=[["a dog"], []])
    with pytest.raises(InputError, match="'gabor' reads pixels"):
        encode(bare, "gabor")
    full = StimulusSet(["c", "d", "e"], captions=[["a red dog"], ["two dogs"], ["red sea"]])
    with pytest.raises(InputError, match=r"1 of 2 stimuli have none: b"):
        encode(bare, make_encoder("tfidf-svd1").fit(full))
    with pytest.raises(InputError, match=r"label column 'label'.*none"):
        encode(bare, "labels", fit_on=["a"])


def test_another_encoder_is_refused(stimuli: StimulusSet, tmp_path: Path) -> None:
    make_encoder("gabor").save(tmp_path / "encoder")
    assert isinstance(GaborEncoder.load(tmp_path / "encoder"), GaborEncoder)
    with pytest.raises(InputError, match="holds an encoder 'gabor', not 'pixels'"):
        PixelGridEncoder.load(tmp_path / "encoder")


def test_changed_or_damaged_folder_is_refused(stimuli: StimulusSet, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    with pytest.raises(InputError, match="not a folder"):
        Encoder.load(folder)

    make_encoder("gabor").save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "config": {**config["config"], "grid": 8}}))
    with pytest.raises(InputError, match="does not match the recorded"):
        Encoder.load(folder)
    (folder / "config.json").write_text(json.dumps({**config, "encoder": "nonsense"}))
    with pytest.raises(InputError, match="'nonsense'"):
        Encoder.load(folder)
    (folder / "config.json").write_text(json.dumps({"encoder": "gabor"}))
    with pytest.raises(InputError, match="missing arrays, config"):
        Encoder.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        Encoder.load(folder)


def test_state_other_than_saved_is_refused(stimuli: StimulusSet, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "encoder"
    make_encoder("tfidf-svd4").fit(stimuli).save(folder)
    state = load_file(str(folder / "state.safetensors"))
    state["components"] = state["components"] * 1.5
    save_file(state, str(folder / "state.safetensors"))
    with pytest.raises(InputError, match="checksums differ"):
        Encoder.load(folder)
    (folder / "state.safetensors").write_bytes((folder / "state.safetensors").read_bytes()[:50])
    with pytest.raises(InputError, match="not a readable safetensors"):
        Encoder.load(folder)
    (folder / "state.safetensors").unlink()
    with pytest.raises(InputError, match="is missing"):
        Encoder.load(folder)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["PHOSPHENE_TRAP"],)


def test_a_pickle_instead_of_state_is_not_opened(
    stimuli: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOSPHENE_TRAP", str(tmp_path / "sprung"))
    folder = tmp_path / "encoder"
    make_encoder("tfidf-svd4").fit(stimuli).save(folder)
    (folder / "state.safetensors").write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(InputError, match="safetensors"):
        Encoder.load(folder)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(_Trap()))  # noqa: S301
    assert (tmp_path / "sprung").exists(), "the trap itself must work"


def test_every_registered_encoder_has_its_parts() -> None:
    for name, kind in ENCODERS.items():
        assert kind.name == name
        assert kind.__doc__
        assert kind.Config.model_config["extra"] == "forbid"


def test_every_encoder_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    for name in ENCODERS:
        assert f"`{name}" in page, f"docs/encoders.md does not mention {name}"
