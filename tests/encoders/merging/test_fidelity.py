"""The fidelity report: figures against their own definition, the rate chosen, bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

transformers = pytest.importorskip("transformers", reason="vision towers need transformers: not installed")
import tiny_models  # noqa: E402
from sklearn.neighbors import NearestNeighbors  # noqa: E402

import phosphene.encoders.merging.fidelity as fidelity_module  # noqa: E402
from phosphene.encoders import make_encoder  # noqa: E402
from phosphene.encoders.merging.encoder import MergeableEncoder  # noqa: E402
from phosphene.encoders.merging.fidelity import Fidelity, FidelityReport, fidelity  # noqa: E402
from phosphene.errors import InputError  # noqa: E402
from phosphene.stimuli import StimulusSet  # noqa: E402
from phosphene.stimuli.scenes import scene_set  # noqa: E402


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    tiny_models.clip(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> StimulusSet:
    return scene_set(30, size=48)


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


def _nearest(pooled: np.ndarray) -> np.ndarray:
    return NearestNeighbors(n_neighbors=2, metric="cosine").fit(pooled).kneighbors(pooled)[1][:, 1]


def test_figures_are_what_they_say(clip: Path, pictures: StimulusSet) -> None:
    report = fidelity(pictures, f"hf:{clip}", [0.8, 0.6], batch_size=7, repeats=1)
    full = make_encoder(f"hf:{clip}").encode(pictures)
    for row in report.rows:
        encoder = make_encoder(f"hf:{clip}", merge={"flops": row.rate})
        merged = encoder.encode(pictures)
        assert row.rates == encoder.merge_plan().rates
        assert row.remaining == 17 - sum(row.rates) < row.tokens == 17
        assert row.flops == pytest.approx(row.rate, abs=0.05)
        found = _cosines(full.pooled, merged.pooled)
        assert row.cosine == pytest.approx(found.mean(), abs=1e-5)
        assert row.cosine_low == pytest.approx(np.percentile(found, 5), abs=1e-5)
        assert row.token_cosine == pytest.approx(_cosines(full.tokens, merged.tokens).mean(), abs=1e-5)
        assert row.agreement == pytest.approx((_nearest(full.pooled) == _nearest(merged.pooled)).mean())
        assert row.speed > 0
    assert report.rows[0].cosine > report.rows[1].cosine
    assert report.protocol["identity"] == make_encoder(f"hf:{clip}").identity
    assert report.protocol["images"] == 30
    assert report.protocol["timed_images"] == 7
    assert report.protocol["chance_agreement"] == pytest.approx(1 / 29)
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["rate"] == 0.8


@pytest.mark.parametrize("block", [1, 7, 30, 1024])
def test_neighbours_block_by_block_are_those_of_all_at_once(block: int) -> None:
    pooled = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    np.testing.assert_array_equal(fidelity_module._nearest(pooled, block), _nearest(pooled))


def test_a_rate_of_one_is_the_tower_itself(clip: Path, pictures: StimulusSet) -> None:
    row = fidelity(pictures, f"hf:{clip}", [1.0], by="tokens", repeats=1).rows[0]
    assert (row.agreement, row.remaining, row.flops) == (1.0, 17, 1.0)
    assert row.cosine == pytest.approx(1, abs=1e-12)
    assert row.token_cosine == pytest.approx(1, abs=1e-12)


def test_the_encoders_own_settings_say_all_but_the_rate(clip: Path, pictures: StimulusSet) -> None:
    words = {"guide": "text", "strength": 2.0, "schedule": "constant", "restore": False, "r": 1}
    encoder = make_encoder(f"hf:{clip}", merge=words, texts=("a dog",))
    report = fidelity(pictures, encoder, [0.7], repeats=1)
    alike = {key: value for key, value in words.items() if key not in ("r", "restore")}
    merged = make_encoder(f"hf:{clip}", merge={**alike, "flops": 0.7}, texts=("a dog",)).encode(pictures)
    full = make_encoder(f"hf:{clip}").encode(pictures)
    assert report.rows[0].cosine == pytest.approx(_cosines(full.pooled, merged.pooled).mean(), abs=1e-5)
    assert report.protocol["guide"] == "text"
    assert report.protocol["texts"] == ["a dog"]
    assert (
        dataclasses.replace(report, wanted=0.01)
        .text()
        .endswith("--merge-guide text --merge-text 'a dog' --set merge.strength=2.0 --set merge.schedule=constant")
    )
    assert encoder.config.merge.r == 1, "the encoder that was given is as it was"


def test_usual_rates_are_those_within_reach(clip: Path, pictures: StimulusSet) -> None:
    report = fidelity(pictures, f"z:hf:{clip}", repeats=1)
    assert [row.rate for row in report.rows] == [0.9, 0.8, 0.7, 0.6]
    assert report.wanted is report.chosen is None
    with pytest.raises(InputError, match=r"flops = 0\.3 is out of reach: .* 0\.583"):
        fidelity(pictures, f"hf:{clip}", [0.9, 0.3])


def _row(rate: float, cosine: float) -> Fidelity:
    return Fidelity(rate, (1, 0), 17, 16, rate, cosine, cosine, None, 1.0, 1 / rate)


def _report(wanted: float | None) -> FidelityReport:
    protocol = {"images": 9, "guide": "none", "schedule": "decreasing", "clock": "wall time", "device": "gpu"}
    protocol |= {"timed_images": 4, "repeats": 2, "chance_agreement": 0.125}
    rows = (_row(0.9, 0.999), _row(0.7, 0.985), _row(0.5, 0.99), _row(0.3, 0.9))
    return FidelityReport("hf:x", "tokens", rows, protocol, wanted)


def test_the_rate_of_a_wanted_cosine() -> None:
    assert _report(0.99).chosen.rate == 0.5
    assert _report(0.995).chosen.rate == 0.9
    assert (
        "tokens = 0.5 (50% of the operations, 2.00x); phosphene encode ... --merge-tokens 0.5" in _report(0.99).text()
    )
    assert _report(1.0).chosen is None
    assert "no rate keeps a mean cosine of 1: the most is 0.9990, at tokens = 0.9" in _report(1.0).text()
    assert "no rate keeps a mean cosine of 0.99901: the most is 0.9990, at" in _report(0.99901).text()
    nearly = FidelityReport("hf:x", "tokens", (_row(0.9, 0.99996),), _report(1.0).protocol, 0.99999)
    assert "no rate keeps a mean cosine of 0.99999: the most is 0.99996, at tokens = 0.9" in nearly.text()
    assert "mean cosine" not in _report(None).text()
    assert len({line.rstrip()[-1:] for line in _report(None).text().splitlines()[4:]}) == 1, "columns end together"


def test_bad_input(clip: Path, pictures: StimulusSet) -> None:
    few = pictures.select(pictures.ids[:2])
    with pytest.raises(InputError, match="at least 3 of them, found 2"):
        fidelity(few, f"hf:{clip}")
    with pytest.raises(InputError, match="at least 3 of them, found 0"):
        fidelity(StimulusSet(["a", "b", "c"], captions=[["x"]] * 3), f"hf:{clip}")
    with pytest.raises(InputError, match=r"above 0 and at most 1, found 1\.2"):
        fidelity(pictures, f"hf:{clip}", cosine=1.2)
    with pytest.raises(InputError, match=r"unknown measure of a merging rate 'flop'; did you mean 'flops'"):
        fidelity(pictures, f"hf:{clip}", by="flop")
    with pytest.raises(InputError, match="repeats must be at least 1"):
        fidelity(pictures, f"hf:{clip}", repeats=0)
    for size in (0, -1):
        with pytest.raises(InputError, match=f"batch_size must be at least 1, found {size}"):
            fidelity(pictures, f"hf:{clip}", batch_size=size)
    with pytest.raises(InputError, match=r"'z:gabor' has no tower .*; pocket, mlip:FOLDER, hf:MODEL have"):
        fidelity(pictures, "z:gabor")
    with pytest.raises(InputError, match=r"tokens = 1\.5"):
        fidelity(pictures, f"hf:{clip}", [1.5], by="tokens")
    with pytest.raises(InputError, match="no rate of merging was given"):
        fidelity(pictures, f"hf:{clip}", [])
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        fidelity(pictures, f"hf:{clip}", device="gpu")


def test_every_encoder_with_the_setting_keeps_its_promises() -> None:
    from phosphene.encoders import ENCODERS

    able = [kind for kind in ENCODERS.values() if "merge" in kind.Config.model_fields]
    assert {kind.name for kind in able} == {"hf", "mlip"}
    assert all(issubclass(kind, MergeableEncoder) for kind in able)
    assert all(kind in able or not issubclass(kind, MergeableEncoder) for kind in ENCODERS.values())


def test_mlip_towers_too(tmp_path: Path, pictures: StimulusSet, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from phosphene.encoders.mlip import MLIP, MLIPConfig, Tokenizer, save_model, store

    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "embed": 12, "token_embed": 8, "text_width": 16, "text_heads": 2}
    depth = {"spectral_blocks": 1, "spatial_blocks": 3, "text_blocks": 1, "vocabulary": 300, "image_size": 48}
    tokenizer = Tokenizer.train([text for texts in pictures.captions for text in texts], 300)
    model = MLIP(MLIPConfig.build({**sizes, **depth, "merge": {"tokens": 0.9}}))
    save_model(tmp_path / "tiny", model, tokenizer, card="# tiny\n", facts={})
    load, loaded = store.load_model, []
    monkeypatch.setattr(store, "load_model", lambda *some: loaded.append(some) or load(*some))
    report = fidelity(pictures, f"mlip:{tmp_path / 'tiny'}", [0.5, 0.8], by="tokens", repeats=1, cosine=0.5)
    assert len(loaded) == 1
    assert [row.remaining for row in report.rows] == [19, 30]
    assert report.rows[0].cosine < report.rows[1].cosine < 1
    whole = make_encoder(f"mlip:{tmp_path / 'tiny'}", merge={})
    assert report.protocol["identity"] == whole.identity
    full = whole.encode(pictures).pooled
    half = make_encoder(f"mlip:{tmp_path / 'tiny'}", merge={"tokens": 0.5}).encode(pictures).pooled
    assert report.rows[0].cosine == pytest.approx(_cosines(full, half).mean(), abs=1e-5)
