"""MLIP as a model and as encoders: towers, variants, tokenizer, folder on disk, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from phosphene.encoders import Encoder, encode, make_encoder
from phosphene.encoders.merging.fidelity import fidelity
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.mlip import MLIP, MLIPConfig, Tokenizer, load_model, save_model, similarities
from phosphene.encoders.mlip.similarity import SCORES
from phosphene.errors import InputError
from phosphene.nn.late_interaction import late_interaction
from phosphene.settings import load_preset
from phosphene.stimuli import StimulusSet
from phosphene.stimuli.scenes import scene_set

TINY = {
    "image_size": 32,
    "patch": 8,
    "width": 16,
    "heads": 2,
    "spectral_blocks": 1,
    "spatial_blocks": 2,
    "embed": 12,
    "token_embed": 8,
    "text_width": 16,
    "text_heads": 2,
    "text_blocks": 1,
    "vocabulary": 300,
}
VARIANTS = [
    {},
    {"stem": "patch"},
    {"arrangement": "parallel"},
    {"spectral_filter": "lowpass"},
    {"spectral_filter": "highpass"},
    {"token_heads": False},
    {"frequency_head": False},
    {"frequency_head": False, "spectral_blocks": 0, "token_heads": False},
    {"text_causal": True},
]
CAPTIONS = ["a red ball", "a blue box left of a green tree", "two drops"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([text for texts in scene_set(200, size=32).captions for text in texts], 300)


def _model(**settings: object) -> MLIP:
    torch.manual_seed(0)
    return MLIP(MLIPConfig.build({**TINY, **settings}))


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(path, _model(), tokenizer, card="# tiny\n", facts={"steps": 0})
    return path


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_parameter_of_every_variant_is_alive(variant: dict, tokenizer: Tokenizer) -> None:
    model = _model(**variant)
    pixels = model.prepare(torch.from_numpy(scene_set(3, size=32).pixels()))
    ids, valid = tokenizer.encode(CAPTIONS, 64)
    image, text = model(pixels, ids, valid)
    loss = text.pooled.square().sum() + sum(
        (value * torch.randn_like(value)).sum() for value in (*image, text.tokens) if value is not None
    )
    loss.backward()
    # text positions beyond the longest caption, and tokens that did not occur, have nothing to learn here
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []
    assert image.spatial.shape == text.pooled.shape == (3, 12)
    assert (image.frequency is None) == (not model.config.frequency_head)
    if model.config.token_heads:
        assert image.spatial_tokens.shape == (3, 16, 8)
        assert text.tokens.shape == (*ids.shape, 8)
        assert text.mask.sum() == valid.sum() - 2 * len(CAPTIONS)
    else:
        assert image.spatial_tokens is None
        assert text.tokens is None


def test_padding_changes_no_embedding(tokenizer: Tokenizer) -> None:
    for causal in (False, True):
        model = _model(text_causal=causal).eval()
        together = model.encode_text(*tokenizer.encode(CAPTIONS, 64)).pooled
        alone = torch.cat([model.encode_text(*tokenizer.encode([text], 64)).pooled for text in CAPTIONS])
        assert torch.allclose(together, alone, atol=1e-6)


def test_causal_text_does_not_look_ahead(tokenizer: Tokenizer) -> None:
    ids, valid = tokenizer.encode(["a red ball", "a red tree"], 64)
    first = int((ids[0] != ids[1]).int().argmax())
    for causal in (True, False):
        words = _model(text_causal=causal).eval().encode_text(ids, valid).tokens
        assert torch.allclose(words[0, :first], words[1, :first], atol=1e-6) == causal


def test_sequential_attention_sees_the_filtered_patches() -> None:
    pixels = MLIP.prepare(torch.from_numpy(scene_set(2, size=32).pixels()))
    for arrangement, sees in (("sequential", True), ("parallel", False)):
        model = _model(arrangement=arrangement).eval()
        before = model.encode_image(pixels)
        with torch.no_grad():
            model.image.spectral[0].filter.filter.add_(0.5)
        after = model.encode_image(pixels)
        assert torch.allclose(before.spatial, after.spatial) != sees
        assert not torch.allclose(before.frequency, after.frequency)


def test_model_comes_back_from_its_folder(folder: Path, tokenizer: Tokenizer) -> None:
    model, again = load_model(folder)
    assert not model.training
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.encode_image(pixels).spatial, _model().eval().encode_image(pixels).spatial)
    for found, wanted in zip(again.encode(CAPTIONS, 64), tokenizer.encode(CAPTIONS, 64), strict=True):
        assert torch.equal(found, wanted)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "card.md"}


def test_half_precision_halves_the_file(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(tmp_path / "half", _model(), tokenizer, half=True)
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    pixels = torch.randn(2, 3, 32, 32)
    whole, half = (load_model(path)[0].encode_image(pixels).spatial for path in (folder, tmp_path / "half"))
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(whole, half).min() > 0.999


def test_the_gpu_preset_ships_in_half_precision_alone() -> None:
    model = MLIP(MLIPConfig.build(load_preset("encoders", "mlip", "pocket")["model"]))
    values = sum(tensor.numel() for tensor in model.state_dict().values())
    assert 2 * values < 16e6 < 4 * values  # bytes; a shipped file may have 16 MB


def test_encoders_of_a_model(folder: Path, tmp_path: Path) -> None:
    stimuli = scene_set(6, size=48)
    image, text = make_encoder(f"mlip:{folder}"), make_encoder(f"mlip-text:{folder}")
    targets = encode(stimuli, image, cache=tmp_path / "cache", progress=False)
    assert targets.shape("tokens") == (17, 12)
    assert targets.shape("pooled") == (12,)
    np.testing.assert_allclose(targets.of(stimuli.ids, "tokens")[:, 0], targets.of(stimuli.ids, "pooled"), atol=1e-6)
    frequency = make_encoder(f"mlip:{folder}", domain="frequency").encode(stimuli)
    assert frequency.tokens.shape == (6, 16, 12)
    np.testing.assert_allclose(frequency.tokens.mean(axis=1), frequency.pooled, atol=1e-5)
    states = make_encoder(f"mlip:{folder}", projected=False).encode(stimuli)
    assert states.tokens.shape == (6, 17, 16)
    assert text.encode(stimuli).pooled.shape == (6, 12)
    identities = {e.identity for e in (image, text, make_encoder(f"mlip:{folder}", domain="frequency"))}
    assert len(identities) == 3


def test_saved_encoder_finds_its_model_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stimuli = scene_set(3, size=32)
    for name in ("mlip", "mlip-text", "z:mlip"):
        encoder = make_encoder(f"{name}:{folder}")
        encoder = encoder.fit(stimuli) if encoder.needs_fit else encoder
        encoder.save(tmp_path / name.replace(":", "-"))
        monkeypatch.setenv("PHOSPHENE_MODELS", str(folder.parent))
        again = Encoder.load(tmp_path / name.replace(":", "-"))
        assert str(folder.parent) not in (tmp_path / name.replace(":", "-") / "config.json").read_text()
        assert again.identity == encoder.identity
        np.testing.assert_array_equal(again.encode(stimuli).pooled, encoder.encode(stimuli).pooled)


@pytest.mark.parametrize(("run", "name"), [("ours", "ours"), ("pocket", "pocket/model")])
def test_a_model_is_called_by_the_name_of_its_run(
    run: str, name: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stimuli = tmp_path / "runs" / run / "model", scene_set(3, size=32)
    made.parent.mkdir(parents=True)
    save_model(made, _model(), tokenizer)
    (made.parent / "config.json").write_text('{"training": {}}')  # as a run has it
    monkeypatch.chdir(tmp_path)
    for kind in ("mlip", "mlip-text"):
        for source in (str(made), f"runs/{run}/model"):
            encoder = make_encoder(f"{kind}:{source}")
            assert encoder.label == encoder.saved_label == f"{kind}:{name}"
        encoder.save(tmp_path / kind)
        assert json.loads((tmp_path / kind / "config.json").read_text())["config"]["source"] == name
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("PHOSPHENE_MODELS", str(tmp_path / "runs"))
            again = Encoder.load(tmp_path / kind)
            assert (again.label, again.identity) == (f"{kind}:{name}", encoder.identity)
            np.testing.assert_array_equal(again.encode(stimuli).pooled, encoder.encode(stimuli).pooled)
            assert make_encoder(f"{kind}:{name}").identity == encoder.identity
        lost = Encoder.load(tmp_path / kind)
        lost.locate(made.parent)  # the folder of the run does as well
        np.testing.assert_array_equal(lost.encode(stimuli).pooled, encoder.encode(stimuli).pooled)
    assert make_encoder(f"mlip:runs/{run}").identity == make_encoder(f"mlip:{made}").identity


@pytest.mark.parametrize("made", ["pocket", "pocket/model"])
def test_a_shipped_name_that_is_also_a_folder_is_refused_as_ambiguous(
    made: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = make_encoder("pocket").identity
    assert make_encoder("mlip:pocket").identity == shipped
    (tmp_path / made).parent.mkdir(exist_ok=True)
    save_model(tmp_path / made, _model(), tokenizer)
    for name in ("mlip:pocket", "mlip-text:pocket", "z:mlip:pocket"):
        with pytest.raises(
            InputError, match=r"'pocket' is a shipped model and a folder: \./pocket names .* plain pocket"
        ):
            make_encoder(name)
    assert make_encoder("mlip:./pocket").identity != shipped
    assert make_encoder("pocket").identity == shipped
    assert make_encoder("z:pocket").inner.identity == shipped
    monkeypatch.setenv("PHOSPHENE_MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(InputError, match=r"a folder: /.*/pocket names"):
        make_encoder("mlip:pocket")


def test_the_frequency_domain_has_nothing_to_merge(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    name, stimuli = f"mlip:{folder}", scene_set(3, size=32)
    for merge in ({"tokens": 0.5}, {"flops": 0.9, "guide": "frequency"}, {"r": 1}):
        with pytest.raises(InputError, match=r"the spatial stage, which domain = 'frequency' does not read"):
            encode(stimuli, make_encoder(name, domain="frequency", merge=merge), cache=False, progress=False)
    with pytest.raises(InputError, match="domain = 'frequency' does not read"):
        fidelity(stimuli, make_encoder(name, domain="frequency"), repeats=1)
    whole = make_encoder(name, domain="frequency")
    assert make_encoder(name, domain="frequency", merge={}).identity == whole.identity
    # a model trained with merging, even by a guide that needs texts, has a frequency domain like any other
    save_model(tmp_path / "m", _model(merge={"tokens": 0.5, "guide": "text"}), tokenizer)
    merging = make_encoder(f"mlip:{tmp_path / 'm'}", domain="frequency")
    assert not merging.merge_plan().active
    np.testing.assert_array_equal(merging.encode(stimuli).pooled, whole.encode(stimuli).pooled)


def test_a_model_trained_with_merging_gives_unmerged_targets_unless_told_otherwise(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stimuli, trained = scene_set(4, size=32), {"tokens": 0.5, "guide": "both"}
    save_model(tmp_path / "m", _model(merge=trained), tokenizer)
    save_model(tmp_path / "plain", _model(), tokenizer)
    name = f"mlip:{tmp_path / 'm'}"
    whole, merged = make_encoder(name), make_encoder(name, merge=trained)
    assert not whole.merge_plan().active
    assert whole.identity == make_encoder(name, merge={}).identity != merged.identity
    assert "merging" not in whole._facts()
    without = make_encoder(f"mlip:{tmp_path / 'plain'}").encode(stimuli)
    np.testing.assert_array_equal(whole.encode(stimuli).tokens, without.tokens)
    words = "m was trained with token merging, which is left out: merge.tokens = 0.5, merge.guide = 'both'"
    assert words in caplog.text
    caplog.clear()
    model = load_model(tmp_path / "m")[0]
    states = model.spatial_projection(model.image_states(model.prepare(torch.from_numpy(stimuli.pixels()))).spatial)
    np.testing.assert_allclose(merged.encode(stimuli).pooled, states[:, 0].detach().numpy(), atol=1e-6)
    assert not np.allclose(merged.encode(stimuli).pooled, without.pooled, atol=1e-4)
    assert "left out" not in caplog.text


def test_a_changed_or_damaged_model_is_refused(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        save_model(tmp_path / name, _model(), tokenizer)
        return tmp_path / name

    other = copy("weights")
    (other / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="not a readable safetensors"):
        load_model(other)
    save_model(tmp_path / "donor", _model(stem="patch"), tokenizer)
    (other / "model.safetensors").write_bytes((tmp_path / "donor" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="does not hold the weights that were saved"):
        load_model(other)
    other = copy("tokenizer")
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not the tokenizer that was saved"):
        load_model(other)
    other = copy("config")
    content = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(InputError, match="model format 99"):
        load_model(other)
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(InputError, match=r"no MLIP model .nowhere.*shipped"):
        make_encoder("mlip:nowhere").identity


def test_a_model_without_frequency_domain_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(tmp_path / "m", _model(frequency_head=False), tokenizer)
    with pytest.raises(InputError, match="frequency"):
        make_encoder(f"mlip:{tmp_path / 'm'}", domain="frequency").encode(scene_set(2, size=32))


def _untrained(path: Path, tokenizer: Tokenizer, facts: dict, **settings: object) -> str:
    save_model(path, _model(**settings), tokenizer, facts=facts)
    return f"mlip:{path}"


# as models tell it now, and as earlier ones did, in their settings alone
TOLD = {"untrained": ["frequency"]}
IN_SETTINGS = {"start": None, "settings": {"objective": {"spatial_weight": 1.0, "frequency_weight": 0.0}}}


@pytest.mark.parametrize("facts", [TOLD, IN_SETTINGS])
def test_an_embedding_that_nothing_trained_is_no_target(facts: dict, tokenizer: Tokenizer, tmp_path: Path) -> None:
    stimuli, name = scene_set(3, size=32), _untrained(tmp_path / "m", tokenizer, facts)
    with pytest.raises(InputError, match=r"nothing trained the frequency embedding .* domain = 'spatial'.*projected"):
        encode(stimuli, make_encoder(name, domain="frequency"), cache=False)
    states = make_encoder(name, domain="frequency", projected=False)
    found = states.encode(stimuli)
    np.testing.assert_allclose(found.pooled, found.tokens.mean(axis=1), atol=1e-5)  # nor is it pooled by that map
    trained = make_encoder(_untrained(tmp_path / "t", tokenizer, {}), domain="frequency", projected=False)
    np.testing.assert_array_equal(trained.encode(stimuli).tokens, found.tokens)
    assert trained.identity != states.identity
    spatial = make_encoder(name)
    assert spatial.identity == make_encoder(f"mlip:{tmp_path / 't'}").identity
    both = {"untrained": ["frequency", "frequency_token"]}
    beside = _untrained(tmp_path / "p", tokenizer, both, arrangement="parallel")  # then nothing trains that branch
    with pytest.raises(InputError, match="nothing trained the frequency embedding"):
        encode(stimuli, make_encoder(beside, domain="frequency", projected=False), cache=False)


def test_a_model_says_what_nothing_trained_unless_its_start_may_have(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for facts in ({}, {**IN_SETTINGS, "start": "abc"}, {**IN_SETTINGS, "untrained": []}):
        name = _untrained(tmp_path / str(len(list(tmp_path.iterdir()))), tokenizer, facts)
        assert make_encoder(name, domain="frequency").encode(scene_set(2, size=32)).pooled.shape == (2, 12)


@pytest.mark.parametrize("guide", ["frequency", "both", "text"])
def test_an_embedding_that_nothing_trained_guides_no_merging(
    guide: str, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stimuli, merge = scene_set(16, size=32), {"tokens": 0.6, "guide": guide, "strength": 1.0}
    texts = {"texts": ("a red ball",)} if guide == "text" else {}
    trained = make_encoder(_untrained(tmp_path / "t", tokenizer, {}), merge=merge, **texts)
    assert trained.encode(stimuli) is not None
    assert "random" not in caplog.text
    untrained = make_encoder(_untrained(tmp_path / "m", tokenizer, TOLD), merge=merge, **texts)
    found = untrained.encode(stimuli).pooled
    untrained.encode(stimuli)
    assert caplog.text.count("nothing trained the frequency embedding of this model") == 1
    assert untrained.identity != trained.identity
    assert not np.allclose(found, trained.encode(stimuli).pooled, atol=1e-4)
    # neither the random projection takes part, nor what leads to it alone
    other = load_model(tmp_path / "m")[0]
    with torch.no_grad():
        other.frequency_projection.weight.add_(1.0)
        other.image.frequency_norm.weight.copy_(torch.linspace(-1.0, 1.0, 16))
    save_model(tmp_path / "o", other, tokenizer, facts=TOLD)
    again = make_encoder(f"mlip:{tmp_path / 'o'}", merge=merge, **texts)
    np.testing.assert_array_equal(again.encode(stimuli).pooled, found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 30}, "patch = 8 does not divide image_size = 30"),
        ({"image_size": 36, "patch": 6}, "patch = 6 is no power of two"),
        ({"image_size": 16}, "at least 3 x 3 patches, found 2 x 2"),
        ({"heads": 3}, "heads = 3 does not divide width = 16"),
        ({"spectral_blocks": 0}, "needs spectral_blocks of at least 1"),
        ({"arrangement": "parallel", "frequency_head": False}, "nothing else reads that branch"),
        ({"depth": 3}, "depth"),
    ],
)
def test_settings_that_cannot_be(settings: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        MLIPConfig.build({**TINY, **settings})


def test_captions_at_the_door(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="1 of 2 captions are empty, the first is number 1"):
        tokenizer.encode(["a ball", "  "], 64)
    with pytest.raises(InputError, match="there are no captions to encode"):
        tokenizer.encode([], 64)
    long = "a red ball left of a blue box above a green tree behind a yellow star"
    with pytest.raises(InputError, match=r"longer than the context of 8 tokens, for example 'a red ball"):
        tokenizer.encode([long, "a ball"], 8)
    ids, valid = tokenizer.encode([long, "a ball"], 8, truncate=True)
    assert ids.shape == (2, 8)
    assert int(ids[0, -1]) == 2
    assert bool(valid[0].all())
    assert "1 of 2 captions were cut to 8 tokens" in caplog.text
    marks = tokenizer.encode(["<pad> <end>"], 64)[0][0]
    assert int((marks == 2).sum()) == 1  # a caption that spells a mark is text like any other
    with pytest.raises(InputError, match="not a tokenizer"):
        Tokenizer.from_json("{}")


RATES = [{"tokens": 0.5}, {"flops": 0.85}, {"r": 2, "schedule": "constant"}]
GUIDES = ["none", "spatial", "frequency", "both", "text"]


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_merging_inside_the_tower(rate: dict, guide: str, tokenizer: Tokenizer) -> None:
    pixels = MLIP.prepare(torch.from_numpy(scene_set(3, size=32).pixels()))
    model, whole = _model(merge={**rate, "guide": guide}), _model()
    texts = model.encode_text(*tokenizer.encode(["a red ball"], 64)).pooled
    image = model.encode_image(pixels, texts=texts)
    merged = sum(model.image.rates)
    assert merged > 0
    assert image.spatial_tokens.shape[1] == 16 - merged
    assert torch.equal(image.sizes.sum(dim=1), torch.full((3,), 16.0))
    assert torch.equal(image.frequency, whole.encode_image(pixels).frequency)
    assert not torch.equal(image.spatial, whole.encode_image(pixels).spatial)
    image.spatial.square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_guides_choose_differently_and_each_is_read() -> None:
    pixels = MLIP.prepare(torch.from_numpy(scene_set(16, size=32).pixels()))
    found = {}
    for guide in ("none", "spatial", "frequency", "both"):
        model = _model(merge={"tokens": 0.6, "guide": guide, "strength": 1.0})
        found[guide] = model.image_states(pixels).merged.source
    assert len({tuple(source.flatten().tolist()) for source in found.values()}) == 4


def test_no_merging_is_bit_for_bit_the_plain_tower() -> None:
    pixels = torch.randn(2, 3, 32, 32)
    for merge in ({}, {"r": 0}, {"tokens": 1.0}, {"flops": 1.0}):
        assert torch.equal(_model(merge=merge).encode_image(pixels).spatial, _model().encode_image(pixels).spatial)


def test_merged_encoder_gives_the_full_grid_under_its_own_identity(folder: Path) -> None:
    stimuli = scene_set(4, size=32)
    plain = make_encoder(f"mlip:{folder}")
    restored = make_encoder(f"mlip:{folder}", merge={"tokens": 0.5})
    folded = make_encoder(f"mlip:{folder}", merge={"tokens": 0.5, "restore": False})
    assert restored.encode(stimuli).tokens.shape == plain.encode(stimuli).tokens.shape == (4, 17, 12)
    assert folded.encode(stimuli).tokens.shape[1] < 17
    assert len({encoder.identity for encoder in (plain, restored, folded)}) == 3
    with pytest.raises(InputError, match=r"tokens = 0\.01 is out of reach"):
        make_encoder(f"mlip:{folder}", merge={"tokens": 0.01}).encode(stimuli)
    guided = make_encoder(f"mlip:{folder}", merge={"tokens": 0.5, "guide": "text"})
    with pytest.raises(InputError, match="guided by text needs texts"):
        guided.encode(stimuli)
    spoken = make_encoder(f"mlip:{folder}", merge={"tokens": 0.5, "guide": "text"}, texts=("a red ball",))
    assert spoken.encode(stimuli).tokens.shape == (4, 17, 12)


def test_a_model_that_merges_otherwise_shares_its_weights(folder: Path) -> None:
    model = load_model(folder)[0]
    twin = model.with_merge(MergeSettings(tokens=0.5))
    assert not twin.training
    assert twin.config.merge == MergeSettings(tokens=0.5)
    assert model.config.merge is None
    own, others = dict(model.named_parameters()), dict(twin.named_parameters())
    assert own.keys() == others.keys()
    for name, parameter in own.items():
        assert others[name].data_ptr() == parameter.data_ptr()
        assert not others[name].requires_grad
    pixels = torch.randn(2, 3, 32, 32)
    merged = load_model(folder, MergeSettings(tokens=0.5))[0]
    assert torch.equal(twin.encode_image(pixels).spatial, merged.encode_image(pixels).spatial)
    before = torch.random.get_rng_state()
    model.with_merge(None)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_that_merges_otherwise_knows_what_nothing_trained(tokenizer: Tokenizer, tmp_path: Path) -> None:
    merge, pixels = MergeSettings(tokens=0.6, guide="frequency", strength=1.0), torch.randn(8, 3, 32, 32)
    found = {}
    for name, facts in (("untrained", TOLD), ("trained", {})):
        _untrained(tmp_path / name, tokenizer, facts)
        twin, loaded = load_model(tmp_path / name)[0].with_merge(merge), load_model(tmp_path / name, merge)[0]
        found[name] = twin.encode_image(pixels).spatial
        assert torch.equal(found[name], loaded.encode_image(pixels).spatial)
    assert not torch.equal(found["untrained"], found["trained"])


@pytest.mark.parametrize(
    ("settings", "random"),
    [
        ({}, ("spatial", "frequency", "spatial_token", "frequency_token")),
        ({"token_heads": False}, ("spatial", "frequency")),
        ({"frequency_head": False}, ("spatial", "spatial_token")),
        ({"frequency_head": False, "token_heads": False}, ("spatial",)),
    ],
)
def test_an_embedding_that_is_not_there_is_not_called_untrained(settings: dict, random: tuple) -> None:
    config = MLIPConfig.build({**TINY, **settings})
    weights = dict.fromkeys(("spatial", "frequency", "spatial_token", "frequency_token"), 0.0)
    assert config.untrained(weights) == random
    assert config.untrained({**weights, "spatial": 1.0}) == random[1:]


def test_flops_budget_counts_what_merging_cannot_change() -> None:
    from phosphene.encoders.mlip.image import _flops_before, merge_rates
    from phosphene.nn.cost import multiply_adds

    for settings in ({}, {"stem": "patch"}, {"width": 64, "heads": 4, "image_size": 64, "spectral_blocks": 3}):
        config = MLIPConfig.build({**TINY, **settings})
        tower = MLIP(config).image
        pixels = torch.zeros(1, 3, config.image_size, config.image_size)

        def before(tower: torch.nn.Module = tower, pixels: torch.Tensor = pixels) -> None:
            x = tower.stem(pixels).flatten(2).permute(2, 0, 1)
            for block in tower.spectral:
                x = block(x)

        assert _flops_before(config) == pytest.approx(2 * multiply_adds(before), rel=0.05)
        merged = MLIPConfig.build({**TINY, **settings, "merge": {"flops": 0.85}})
        shares = [multiply_adds(lambda c=c, p=pixels: MLIP(c).image(p)) for c in (merged, config)]
        assert shares[0] / shares[1] == pytest.approx(0.85, abs=0.05)
        assert sum(merge_rates(merged)) > 0


@pytest.mark.parametrize("guide", ["none", "both"])
def test_merging_tower_compiles_whole_and_runs_in_bf16(guide: str) -> None:
    model = _model(merge={"tokens": 0.5, "guide": guide}).eval()
    pixels = MLIP.prepare(torch.from_numpy(scene_set(2, size=32).pixels()))
    expected = model.encode_image(pixels)
    compiled = torch.compile(model.encode_image, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(pixels).spatial, expected.spatial, atol=1e-5)
    assert torch.allclose(compiled(pixels[:1]).spatial, expected.spatial[:1], atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encode_image(pixels)
    assert torch.nn.functional.cosine_similarity(half.frequency.float(), expected.frequency).min() > 0.99
    assert torch.equal(half.sizes.sum(dim=1), expected.sizes.sum(dim=1))
    assert half.sizes.dtype == torch.float32


def test_similarities_add_up_what_both_sides_have(tokenizer: Tokenizer) -> None:
    pixels = MLIP.prepare(torch.from_numpy(scene_set(3, size=32).pixels()))
    words = tokenizer.encode(CAPTIONS, 64)
    model = _model().eval()
    image, text = model(pixels, *words)
    found = similarities(image, text)
    assert tuple(found) == SCORES
    cosine = torch.nn.functional.cosine_similarity
    spatial = cosine(image.spatial[:, None], text.pooled[None], dim=-1)
    frequency = cosine(image.frequency[:, None], text.pooled[None], dim=-1)
    assert torch.allclose(found["spatial"], spatial, atol=1e-5)
    assert torch.allclose(found["spatial + frequency"], spatial + frequency, atol=1e-5)
    ways = [late_interaction(grid, text.tokens, text.mask) for grid in (image.spatial_tokens, image.frequency_tokens)]
    whole = spatial + frequency + sum(way for both in ways for way in both) / 2
    assert torch.allclose(found["spatial + frequency + tokens"], whole, atol=1e-5)
    assert tuple(similarities(image, text, tokens=False)) == SCORES[:2]
    plain = _model(frequency_head=False, spectral_blocks=0, token_heads=False).eval()
    assert tuple(similarities(*plain(pixels, *words))) == SCORES[:1]


@pytest.mark.parametrize("stem", ["conv", "patch"])
@pytest.mark.parametrize("shape", [(30, 30), (36, 36), (32, 40)])
def test_pictures_of_another_size_are_neither_filled_up_nor_cut_off(stem: str, shape: tuple[int, int]) -> None:
    model = _model(stem=stem)
    with pytest.raises(InputError, match=rf"takes pictures of 32 x 32 pixels, found {shape[0]} x {shape[1]}"):
        model.encode_image(torch.zeros(1, 3, *shape))


def test_an_empty_caption_beside_others_is_named_by_its_stimulus(folder: Path) -> None:
    encoder = make_encoder(f"mlip-text:{folder}")
    with pytest.raises(InputError, match=r"1 of 2 stimuli have an empty caption beside others: s2"):
        encode(StimulusSet(["s1", "s2"], captions=[["a ball"], ["a box", " "]]), encoder, cache=False)
    with pytest.raises(InputError, match=r"1 of 2 stimuli have none: s2"):
        encode(StimulusSet(["s1", "s2"], captions=[["a ball"], [" "]]), encoder, cache=False)


def test_tokens_of_one_domain_alone_count_too(tokenizer: Tokenizer) -> None:
    image, text = _model().eval()(torch.randn(3, 3, 32, 32), *tokenizer.encode(CAPTIONS, 64))
    found = similarities(image._replace(spatial_tokens=None), text)
    there, back = late_interaction(image.frequency_tokens, text.tokens, text.mask)
    assert torch.allclose(found[SCORES[2]], found[SCORES[1]] + (there + back) / 2, atol=1e-5)
