"""Vision towers against transformers called directly, on random CLIP and SigLIP models of a few kilobytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="vision towers need transformers: not installed")
import tiny_models  # noqa: E402

from phosphene.encoders import Encoder, Targets, encode, make_encoder  # noqa: E402
from phosphene.encoders.preprocessing import read_preprocessing  # noqa: E402
from phosphene.errors import InputError, MissingDependencyError  # noqa: E402
from phosphene.stimuli import StimulusSet  # noqa: E402


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    tiny_models.clip(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-siglip"
    tiny_models.siglip(folder)
    return folder


def _direct(folder: Path, kind: str, stimuli: StimulusSet) -> tuple[torch.nn.Module, object]:
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    pixels = torch.from_numpy(read_preprocessing(folder).apply(stimuli.frames()))
    with torch.no_grad():
        return model, model.vision_model(pixel_values=pixels, output_hidden_states=True)


@pytest.mark.parametrize("layer", [-1, 3, 2, 0, -4])
@pytest.mark.parametrize("projected", [True, False])
def test_clip_tokens_of_every_layer(layer: int, projected: bool, clip: Path, stimuli: StimulusSet) -> None:
    batch = make_encoder(f"hf:{clip}", layer=layer, projected=projected).encode(stimuli)
    model, output = _direct(clip, "CLIPModel", stimuli)
    with torch.no_grad():
        expected = output.hidden_states[layer]
        if projected:
            expected = model.visual_projection(model.vision_model.post_layernorm(expected))
        pooled = model.visual_projection(output.pooler_output)
    assert batch.tokens is not None
    assert batch.tokens.shape == (24, 17, 24 if projected else 32)
    np.testing.assert_allclose(batch.tokens, expected.numpy(), atol=2e-4)
    np.testing.assert_allclose(batch.pooled, pooled.numpy(), atol=2e-4)


def test_the_class_token_of_the_projected_last_layer_is_the_pooled_embedding(clip: Path, stimuli: StimulusSet) -> None:
    batch = make_encoder(f"hf:{clip}").encode(stimuli)
    assert batch.tokens is not None
    np.testing.assert_allclose(batch.tokens[:, 0], batch.pooled, atol=1e-5)


@pytest.mark.parametrize(("layer", "projected"), [(-1, True), (-1, False), (1, False), (0, True)])
def test_siglip_tokens(layer: int, projected: bool, siglip: Path, stimuli: StimulusSet) -> None:
    batch = make_encoder(f"hf:{siglip}", layer=layer, projected=projected).encode(stimuli)
    model, output = _direct(siglip, "SiglipModel", stimuli)
    expected = output.hidden_states[layer]
    if projected:
        expected = model.vision_model.post_layernorm(expected)
        if layer == -1:
            np.testing.assert_allclose(expected.detach(), output.last_hidden_state, atol=1e-5)
    assert batch.tokens is not None
    np.testing.assert_allclose(batch.tokens, expected.detach().numpy(), atol=2e-4)
    np.testing.assert_allclose(batch.pooled, output.pooler_output.numpy(), atol=2e-4)


def test_a_vision_tower_saved_alone(clip: Path, tmp_path: Path, stimuli: StimulusSet) -> None:
    alone = tmp_path / "alone"
    transformers.CLIPVisionModelWithProjection.from_pretrained(clip, config=_vision_config(clip)).save_pretrained(alone)
    shutil.copy(clip / "preprocessor_config.json", alone)
    one, two = make_encoder(f"hf:{alone}"), make_encoder(f"hf:{clip}")
    np.testing.assert_allclose(one.encode(stimuli).pooled, two.encode(stimuli).pooled, atol=1e-5)


def _vision_config(folder: Path) -> object:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


def test_identity_follows_weights_preprocessing_and_layer_not_the_place(clip: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(clip, tmp_path / "moved"))
    first = make_encoder(f"hf:{clip}").identity
    assert make_encoder(f"hf:{moved}").identity == first
    assert make_encoder(f"hf:{moved}", layer=3).identity == first, "the last layer by its number"
    assert make_encoder(f"hf:{moved}", layer=2).identity != first
    assert make_encoder(f"hf:{moved}", projected=False).identity != first
    tiny_models._preprocessor(moved, resample=2)
    assert make_encoder(f"hf:{moved}").identity != first
    tiny_models.clip(moved, seed=1)
    assert make_encoder(f"hf:{moved}").identity != first


def test_changed_weights_are_noticed_by_the_cache(tmp_path: Path, stimuli: StimulusSet) -> None:
    folder = tmp_path / "model"
    tiny_models.clip(folder, seed=0)
    before = encode(stimuli, f"hf:{folder}")
    tiny_models.clip(folder, seed=1)
    after = encode(stimuli, f"hf:{folder}")
    assert before.identity != after.identity
    assert not np.allclose(before.of(["s00"]), after.of(["s00"]))


def test_saved_without_weights_or_places_and_found_again(
    clip: Path, tmp_path: Path, stimuli: StimulusSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = encode(stimuli, make_encoder(f"hf:{clip}", layer=2))
    targets.save(tmp_path / "t")
    for file in (tmp_path / "t").rglob("*.json"):
        assert str(clip.parent) not in file.read_text()
    monkeypatch.chdir(tmp_path)
    again = Targets.open(tmp_path / "t")
    assert again.identity == targets.identity
    assert again.encoder.label == "hf:tiny-clip"
    with pytest.raises(InputError, match=r"'tiny-clip' is neither a local folder.*hf download tiny-clip"):
        again.encoder.encode(stimuli)
    again.encoder.locate(clip)
    np.testing.assert_allclose(again.encoder.encode(stimuli).pooled, targets.of(stimuli.ids), atol=1e-5)
    monkeypatch.setenv("PHOSPHENE_MODELS", str(clip.parent))
    found = Encoder.load(tmp_path / "t" / "encoder")
    np.testing.assert_allclose(found.encode(stimuli).pooled, targets.of(stimuli.ids), atol=1e-5)


def test_other_weights_under_the_same_name_are_refused(clip: Path, tmp_path: Path, stimuli: StimulusSet) -> None:
    make_encoder(f"hf:{clip}").save(tmp_path / "e")
    tiny_models.clip(tmp_path / "other", seed=5)
    encoder = Encoder.load(tmp_path / "e")
    encoder.locate(tmp_path / "other")
    with pytest.raises(InputError, match=r"not the one encoder 'hf:tiny-clip' was made with: weights differ"):
        encoder.encode(stimuli)
    with pytest.raises(InputError, match=r"no config\.json"):
        encoder.locate(tmp_path)


def test_weights_as_a_pickle_are_refused(clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only as pytorch_model\.bin: a pickle can run any code"):
        encode(StimulusSet(["a"], pixels=np.zeros((1, 8, 8, 3), np.uint8)), f"hf:{folder}")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="no weights"):
        _ = make_encoder(f"hf:{folder}").identity


def test_missing_and_damaged_weights_are_refused(clip: Path, tmp_path: Path, stimuli: StimulusSet) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(clip, tmp_path / "damaged"))
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing or misshapen: visual_projection\.weight"):
        make_encoder(f"hf:{folder}").encode(stimuli)
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        make_encoder(f"hf:{folder}").encode(stimuli)


def test_other_models_and_layers_are_refused(tmp_path: Path, clip: Path) -> None:
    tiny_models.bert(tmp_path / "bert")
    with pytest.raises(InputError, match=r"kind of vision model .* 'bert'.*clip, clip_vision_model, siglip"):
        _ = make_encoder(f"hf:{tmp_path / 'bert'}").identity
    with pytest.raises(InputError, match=r"layers 0 to 3 \(or -1 to -4\), found layer 4"):
        _ = make_encoder(f"hf:{clip}", layer=4).identity
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"without config\.json"):
        _ = make_encoder(f"hf:{tmp_path / 'empty'}").identity


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match="phosphene downloads nothing by itself"):
        _ = make_encoder("hf:openai/clip-vit-large-patch14").identity


def test_a_model_in_the_hub_cache_is_found_by_name(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stimuli: StimulusSet
) -> None:
    import huggingface_hub.constants

    hub = tmp_path / "hub"
    snapshot = hub / "models--nobody--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(clip, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    encoder = make_encoder("hf:nobody/tiny")
    assert encoder.identity == make_encoder(f"hf:{clip}").identity
    assert encoder.label == "hf:nobody/tiny"
    encoder.save(tmp_path / "e")
    np.testing.assert_array_equal(Encoder.load(tmp_path / "e").encode(stimuli).pooled, encoder.encode(stimuli).pooled)


def test_weights_in_several_files(clip: Path, tmp_path: Path, stimuli: StimulusSet) -> None:
    folder = tmp_path / "sharded"
    transformers.CLIPModel.from_pretrained(clip).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    shutil.copy(clip / "preprocessor_config.json", folder)
    expected = make_encoder(f"hf:{clip}").encode(stimuli)
    np.testing.assert_allclose(make_encoder(f"hf:{folder}").encode(stimuli).pooled, expected.pooled, atol=1e-6)
    lost = sorted(folder.glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(InputError, match=rf"lacks weight files named by its index: {lost.name}"):
        make_encoder(f"hf:{folder}").encode(stimuli)


def test_without_transformers_the_install_words(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'phosphene\[clip\]'"):
        _ = make_encoder(f"hf:{clip}").identity
