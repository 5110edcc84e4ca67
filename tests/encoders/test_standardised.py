"""z:NAME: mean 0 and deviation 1 over training stimuli, and nothing of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_stimuli import make_stimuli

from phosphene.encoders import Encoder, encode, make_encoder
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet


@pytest.mark.parametrize("kind", ["tokens", "pooled"])
def test_z_scores_over_training_stimuli(kind: str, stimuli: StimulusSet) -> None:
    train, rest = stimuli.ids[:16], stimuli.ids[16:]
    plain, scored = encode(stimuli, "gabor"), encode(stimuli, "z:gabor", fit_on=train)
    mean, deviation = plain.of(train, kind).mean(0), plain.of(train, kind).std(0)
    for ids in (train, rest):
        np.testing.assert_allclose(scored.of(ids, kind), (plain.of(ids, kind) - mean) / deviation, atol=2e-3)
    np.testing.assert_allclose(scored.of(train, kind).std(0), 1, atol=1e-3)


def test_held_out_stimuli_change_nothing(stimuli: StimulusSet) -> None:
    train = stimuli.ids[:16]
    pixels = stimuli.pixels().copy()
    pixels[16:] = 0
    changed = StimulusSet(stimuli.ids, pixels=pixels, captions=stimuli.captions, labels=stimuli.labels)
    one, two = (encode(s, "z:pixels", fit_on=train) for s in (stimuli, changed))
    assert one.identity == two.identity
    assert one.fitted_on == frozenset(train.tolist())
    np.testing.assert_array_equal(one.of(train), two.of(train))


def test_what_the_weights_were_trained_on_is_remembered_beside_what_it_was_fitted_on(
    stimuli: StimulusSet, tmp_path: Path
) -> None:
    import torch

    from phosphene.encoders.mlip import MLIP, MLIPConfig, Tokenizer, save_model

    sizes = {"image_size": 32, "width": 16, "heads": 2, "spatial_blocks": 1, "text_width": 16, "text_heads": 2}
    torch.manual_seed(0)
    words = Tokenizer.train(["a red ball"], 300)
    facts = {"data": {"fitted_on": ["elsewhere", str(stimuli.ids[-1])]}}
    save_model(tmp_path / "model", MLIP(MLIPConfig.build({**sizes, "vocabulary": 300})), words, facts=facts)
    train = stimuli.ids[:16].tolist()
    targets = encode(stimuli, f"z:mlip:{tmp_path / 'model'}", fit_on=train, cache=False)
    assert targets.fitted_on == {*train, *facts["data"]["fitted_on"]}
    targets.encoder.save(tmp_path / "saved")
    again = Encoder.load(tmp_path / "saved")
    assert again.trained_on == targets.fitted_on
    assert again.fitted_on == set(train)


def test_identity_follows_training_and_the_inner_encoder(stimuli: StimulusSet) -> None:
    there = make_encoder("z:pixels").fit(stimuli)
    assert make_encoder("z:pixels").fit(stimuli.select(stimuli.ids[::-1])).identity == there.identity
    assert make_encoder("z:pixels").fit(make_stimuli(seed=4)).identity != there.identity
    assert make_encoder("z:pixels", settings={"size": 8}).fit(stimuli).identity != there.identity


def test_what_does_not_vary_becomes_zero() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    pixels[:, :, :8] = 77
    still = StimulusSet([f"s{i}" for i in range(6)], pixels=pixels)
    values = encode(still, "z:pixels", fit_on=still.ids).of(still.ids).reshape(6, 16, 16, 3)
    assert (values[:, :, :8] == 0).all()
    assert (values[:, :, 8:].std(0) > 0.99).all()


def test_a_model_folder_does_not_enter_what_is_saved(
    stimuli: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="text encoders need transformers: not installed")
    import tiny_models

    tiny_models.bert(tmp_path / "models" / "tiny-bert")
    encoder = make_encoder(f"z:hf-text:{tmp_path / 'models' / 'tiny-bert'}", settings={"normalise": False}).fit(stimuli)
    encoder.save(tmp_path / "e")
    assert str(tmp_path) not in (tmp_path / "e" / "config.json").read_text()
    monkeypatch.setenv("PHOSPHENE_MODELS", str(tmp_path / "models"))
    again = Encoder.load(tmp_path / "e")
    assert again.identity == encoder.identity
    assert again.label == "z:hf-text:tiny-bert"
    np.testing.assert_allclose(again.encode(stimuli).pooled, encoder.encode(stimuli).pooled, atol=1e-5)


def test_wrong_inner_encoders_are_named() -> None:
    with pytest.raises(InputError, match="unknown encoder 'gabro'"):
        make_encoder("z:gabro")
    with pytest.raises(InputError, match="unknown encoder 'given'"):
        make_encoder("z:given")
