"""The setting `merge` of vision encoders: what it gives, and which cache rows it shares with whom."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

transformers = pytest.importorskip("transformers", reason="vision towers need transformers: not installed")
import tiny_models  # noqa: E402

from phosphene.encoders import Encoder, Targets, encode, make_encoder  # noqa: E402
from phosphene.encoders.merging.settings import MergeSettings  # noqa: E402
from phosphene.errors import InputError  # noqa: E402
from phosphene.stimuli import StimulusSet  # noqa: E402

TEXTS = ("a dog", "a child holds the ball")


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


@pytest.fixture
def vision_alone(clip: Path, tmp_path: Path) -> Path:
    config = transformers.AutoConfig.from_pretrained(clip)
    config.vision_config.projection_dim = config.projection_dim
    network = transformers.CLIPVisionModelWithProjection.from_pretrained(clip, config=config.vision_config)
    network.save_pretrained(tmp_path / "alone")
    shutil.copy(clip / "preprocessor_config.json", tmp_path / "alone")
    return tmp_path / "alone"


def _identity(folder: Path, texts: tuple[str, ...] = (), **merge: Any) -> str:
    return make_encoder(f"hf:{folder}", merge=merge, texts=texts).identity


def test_the_full_grid_for_decoders_that_need_it(clip: Path, siglip: Path, stimuli: StimulusSet) -> None:
    for folder in (clip, siglip):
        full = make_encoder(f"hf:{folder}").encode(stimuli)
        merged = make_encoder(f"hf:{folder}", merge={"tokens": 0.6}).encode(stimuli)
        for kind, array in merged.kinds().items():
            assert array.shape == full.kinds()[kind].shape
            assert not np.allclose(array, full.kinds()[kind], atol=1e-3)
        kept = make_encoder(f"hf:{folder}", merge={"tokens": 0.6, "restore": False})
        assert kept.encode(stimuli).tokens.shape[1] == kept.merge_plan().remaining < full.tokens.shape[1]


@pytest.mark.parametrize(("layer", "projected"), [(0, False), (1, True), (2, False), (-1, True)])
def test_tokens_of_every_layer_on_the_full_grid(layer: int, projected: bool, clip: Path, stimuli: StimulusSet) -> None:
    settings = {"layer": layer, "projected": projected}
    full = make_encoder(f"hf:{clip}", **settings).encode(stimuli)
    encoder = make_encoder(f"hf:{clip}", **settings, merge={"r": 3, "schedule": "constant"})
    merged = encoder.encode(stimuli)
    assert merged.tokens.shape == full.tokens.shape
    distinct = [len(np.unique(tokens.round(4), axis=0)) for tokens in merged.tokens]
    assert set(distinct) == {17 - sum(encoder.merge_plan().rates[:layer]) if layer >= 0 else 17 - 9}
    if layer == 0:
        np.testing.assert_array_equal(merged.tokens, full.tokens)


def test_identity_is_of_the_schedule_not_of_the_words(clip: Path) -> None:
    plain = make_encoder(f"hf:{clip}").identity
    for nothing in ({}, {"r": 0}, {"tokens": 1.0, "guide": "both"}):
        assert _identity(clip, **nothing) == plain
    half = _identity(clip, tokens=0.5)
    assert half != plain
    assert _identity(clip, tokens=0.51) == half, "9 of 17 tokens both times"
    assert _identity(clip, tokens=0.5, balance=0.9) == half, "read by the guide 'both' alone"
    same = {_identity(clip, tokens=0.5, guide="text", texts=texts) for texts in (TEXTS, TEXTS[::-1])}
    assert len(same) == 1
    others = [
        _identity(clip, tokens=0.6),
        _identity(clip, tokens=0.5, schedule="constant"),
        _identity(clip, tokens=0.5, proportional=False),
        _identity(clip, tokens=0.5, restore=False),
        _identity(clip, tokens=0.5, guide="spatial"),
        _identity(clip, tokens=0.5, guide="spatial", strength=0.2),
        _identity(clip, tokens=0.5, guide="both"),
        _identity(clip, tokens=0.5, guide="both", balance=0.9),
        _identity(clip, tokens=0.5, guide="text", texts=("a dog",)),
        *same,
    ]
    assert len({plain, half, *others}) == len(others) + 2


def test_identity_without_merging_is_what_it_was(clip: Path) -> None:
    """Rows encoded before there was merging stay valid: nothing of it enters the facts or the settings hashed."""
    encoder = make_encoder(f"hf:{clip}")
    assert set(encoder._facts()) == {"weights", "architecture", "files", "preprocessing", "layer"}
    assert set(encoder._identity_config()) == {"projected"}


def test_the_cache_keeps_merged_and_unmerged_apart(clip: Path, stimuli: StimulusSet) -> None:
    full = encode(stimuli, f"hf:{clip}")
    merged = encode(stimuli, make_encoder(f"hf:{clip}", merge={"tokens": 0.5}))
    assert full.identity != merged.identity
    assert not np.allclose(full.of(stimuli.ids), merged.of(stimuli.ids), atol=1e-3)
    np.testing.assert_array_equal(encode(stimuli, f"hf:{clip}").of(stimuli.ids), full.of(stimuli.ids))


def test_saved_and_found_again(clip: Path, tmp_path: Path, stimuli: StimulusSet) -> None:
    encoder = make_encoder(f"hf:{clip}", merge={"flops": 0.8, "guide": "text"}, texts=TEXTS)
    targets = encode(stimuli, encoder)
    targets.save(tmp_path / "t")
    again = Targets.open(tmp_path / "t")
    assert again.identity == targets.identity
    again.encoder.locate(clip)
    np.testing.assert_allclose(again.encoder.encode(stimuli).pooled, targets.of(stimuli.ids), atol=1e-5)
    inside = make_encoder(f"z:hf:{clip}", settings={"merge": {"tokens": 0.5}}).fit(stimuli)
    inside.save(tmp_path / "z")
    assert Encoder.load(tmp_path / "z").inner.config.merge == MergeSettings.build({"tokens": 0.5})


def test_texts_of_the_models_own_tower_guide(clip: Path, siglip: Path, stimuli: StimulusSet) -> None:
    for folder in (clip, siglip):
        found = []
        for texts in (("a dog",), ("a dish", "the fence"), None):
            guide = {} if texts is None else {"guide": "text", "strength": 2.0}
            encoder = make_encoder(f"hf:{folder}", merge={"tokens": 0.6, **guide}, texts=texts or ())
            found.append(encoder.encode(stimuli).pooled)
        assert not np.allclose(found[0], found[2], atol=1e-4)
        assert not np.allclose(found[0], found[1], atol=1e-4)


def test_other_merging_on_the_same_network(clip: Path, stimuli: StimulusSet) -> None:
    encoder = make_encoder(f"hf:{clip}")
    merge = MergeSettings.build({"tokens": 0.5})
    twin = encoder.with_merge(merge)
    assert twin.network() is encoder.network()
    assert encoder.config.merge is None
    assert twin.identity == make_encoder(f"hf:{clip}", merge=merge).identity
    assert encoder.identity == make_encoder(f"hf:{clip}").identity
    np.testing.assert_array_equal(
        twin.encode(stimuli).pooled, make_encoder(f"hf:{clip}", merge=merge).encode(stimuli).pooled
    )


def test_wrong_settings(clip: Path, vision_alone: Path, stimuli: StimulusSet) -> None:
    with pytest.raises(InputError, match=r"tokens = 0\.05 is out of reach"):
        _identity(clip, tokens=0.05)
    with pytest.raises(InputError, match=r"flops = 0\.1 is out of reach"):
        encode(stimuli, make_encoder(f"hf:{clip}", merge={"flops": 0.1}))
    with pytest.raises(InputError, match="at most one of tokens, flops and r"):
        _identity(clip, tokens=0.5, flops=0.5)
    with pytest.raises(InputError, match=r"needs texts that say what to spare"):
        _identity(clip, tokens=0.5, guide="text")
    with pytest.raises(InputError, match=r"texts are read by merge\.guide = 'text' alone"):
        _identity(clip, tokens=0.5, texts=TEXTS)
    with pytest.raises(InputError, match="texts must not be empty"):
        _identity(clip, tokens=0.5, guide="text", texts=("a dog", " "))
    assert _identity(vision_alone, tokens=0.5, guide="both")
    with pytest.raises(InputError, match=r"own text tower, and .*alone has none"):
        _identity(vision_alone, tokens=0.5, guide="text", texts=TEXTS)
    bare = Path(shutil.copytree(clip, vision_alone.parent / "bare"))
    for file in bare.glob("token*"):
        file.unlink()
    guided = make_encoder(f"hf:{bare}", merge={"tokens": 0.5, "guide": "text"}, texts=TEXTS)
    with pytest.raises(InputError, match="no tokenizer"):
        guided.encode(stimuli)
