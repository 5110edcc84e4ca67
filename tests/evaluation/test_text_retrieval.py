"""Image as pivot: fitted without brain data, applied to what is predicted from brain; captions shown twice are one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phosphene.decoders import make_decoder
from phosphene.encoders import Targets, given_targets, make_encoder
from phosphene.errors import InputError, LeakageError
from phosphene.evaluation import text_retrieval
from phosphene.evaluation.text_retrieval import METRICS
from phosphene.files import read_json, write_json
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.training import Pivot, fit_pivot
from phosphene.training.pivot import caption_items

IMAGE, TEXT = 12, 9


def made(noise=0.3, n=160, n_test=40):
    """Two people; text is linear in the image; every tenth stimulus has the caption of the one before."""
    rng = np.random.default_rng(0)
    ids = np.array([f"s{number:03d}" for number in range(n)])
    factors = rng.normal(size=(n, 6))
    twin = np.arange(n) % 10 == 9
    factors[twin] = factors[np.flatnonzero(twin) - 1]
    pooled = factors @ rng.normal(size=(6, IMAGE)) + 0.1 * rng.normal(size=(n, IMAGE))
    spread = rng.normal(size=(n, 4, IMAGE))
    tokens = pooled[:, None] + spread - spread.mean(axis=1, keepdims=True)
    text = factors @ rng.normal(size=(6, TEXT))
    captions = [[f"scene {number - int(twin[number])}"] for number in range(n)]
    people = []
    for subject in ("sub-01", "sub-02"):
        x = factors @ rng.normal(size=(6, 30)) + noise * rng.normal(size=(n, 30))
        voxels = Table({axis: np.arange(30) for axis in "ijk"})
        people.append(Recording(subject, x.astype("float32"), Table({"stimulus_id": ids}), voxels))
    study = Study(
        StimulusSet(ids, captions=captions), people, {"default": {"train": ids[n_test:], "test": ids[:n_test]}}
    )
    images = Targets(ids, tokens.astype("float32"), pooled.astype("float32"), make_encoder("gabor"))
    return study, images, given_targets(ids, text)


@pytest.fixture(scope="module")
def world():
    return made()


def decoder_of(study, targets, kind="pooled"):
    view = study.split("train")
    decoder = make_decoder("ridge", subjects=dict.fromkeys(study.subjects, 30), target_shape=targets.shape(kind))
    decoder.solve(view, targets, kind, progress=False)
    decoder.encoder = targets.encoder
    return decoder


def test_brain_to_text_by_the_image_and_directly(world):
    study, images, texts = world
    for kind in ("pooled", "tokens"):
        pivot = fit_pivot(study, images, texts, kind=kind, progress=False)
        card = text_retrieval(decoder_of(study, images, kind), study, texts, pivot, n_boot=200)
        direct = text_retrieval(decoder_of(study, texts), study, texts, n_boot=0)
        for direction in ("brain_to_text", "text_to_brain"):
            found = card.get("top-1", direction)
            assert found.gallery == 36
            assert found.chance == pytest.approx(1 / 36)
            assert found.interval[0] <= found.value <= found.interval[1]
            assert found.interval[0] > 0.4
            assert direct.get("top-1", direction).value > 0.4
            assert found.value == pytest.approx(
                np.mean([card.get("top-1", direction, s).value for s in study.subjects])
            )
        assert card.facts["pivot_pairs"] == 120
        assert all(f" {name} " in card.table() for name in METRICS)
        assert card.to_dict()["scores"][0]["subject"] == "sub-01"


def test_equal_captions_are_one_item(world):
    study, _, texts = world
    card = text_retrieval(decoder_of(study, texts), study, texts, n_boot=0)
    assert card.get("top-1", "brain_to_text", "sub-01").queries == 40
    assert card.get("top-1", "text_to_brain", "sub-01").queries == 36
    assert caption_items([["b", "a"], ["a", "b"], ["a"]]).tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="1 of 2 stimuli have no caption"):
        caption_items([["a"], []])


def test_without_signal_it_is_at_chance():
    study, images, texts = made(noise=1000.0)
    pivot = fit_pivot(study, images, texts, progress=False)
    card = text_retrieval(decoder_of(study, images), study, texts, pivot, n_boot=0)
    assert card.get("two-way", "brain_to_text").value == pytest.approx(0.5, abs=0.15)


def test_contrastive_passes_start_at_ridge_and_keep_the_best(world):
    study, images, texts = world
    ridge = fit_pivot(study, images, texts, epochs=0, progress=False)
    more = fit_pivot(study, images, texts, epochs=5, progress=False, patience=0)
    curve = more.provenance["curve"]
    assert curve[0] == ridge.provenance["validation_top-1"]
    assert more.provenance["validation_top-1"] == max(curve)
    assert len(curve) == 6
    fitted = fit_pivot(study, images, texts, epochs=5, progress=False, patience=0, validation_fraction=0.0)
    assert not np.allclose(fitted.weight, ridge.weight)
    again = fit_pivot(study, images, texts, epochs=5, progress=False, patience=0, validation_fraction=0.0)
    np.testing.assert_array_equal(fitted.weight, again.weight)


def test_without_passes_it_is_ridge_with_its_means(world):
    study, images, texts = world
    ids = study.split("train").stimulus_ids
    far = [
        Targets(each.ids, None, (each.pooled + shift).astype("float32"), each.encoder)
        for each, shift in ((images, -4), (texts, 7))
    ]
    pivot = fit_pivot(study, *far, epochs=0, validation_fraction=0.0, progress=False)
    x, y = (each.of(ids, "pooled").astype(float) for each in far)
    units = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    whole = pivot.provenance["penalty"] * np.square(units).sum(axis=1).mean()
    weight = np.linalg.solve(units.T @ units + whole * np.eye(IMAGE), units.T @ (y - y.mean(axis=0)))
    np.testing.assert_allclose(pivot.predict(far[0].of(ids, "pooled")), units @ weight + y.mean(axis=0), atol=1e-4)


def test_dimensions_that_do_not_vary_change_nothing(world):
    study, images, texts = world
    constant = np.tile(np.array([0.0, 0.1, 50.0], dtype="float32"), (len(images.ids), 1))
    constant[::2, 1] = np.nextafter(constant[0, 1], np.float32(1))  # by rounding alone
    wider = Targets(images.ids, None, np.hstack([images.pooled, constant]), images.encoder)
    ridge, beside = (fit_pivot(study, each, texts, epochs=0, progress=False) for each in (images, wider))
    np.testing.assert_allclose(beside.predict(wider.pooled), ridge.predict(images.pooled), atol=1e-4)
    assert np.isfinite(fit_pivot(study, wider, texts, epochs=2, progress=False).predict(wider.pooled)).all()


def test_the_passes_and_their_validation_see_the_expected_noise(world):
    study, images, texts = world
    step = {"epochs": 1, "batch_size": 200, "validation_fraction": 0.0, "progress": False}
    for noise, alike in ((0.0, True), (1.0, False)):  # one step on all pairs: the seed decides the noise alone
        one, two = (fit_pivot(study, images, texts, noise=noise, seed=seed, **step).weight for seed in (0, 1))
        assert np.allclose(one, two, rtol=1e-3, atol=1e-5) == alike
    noisy, clean = (
        fit_pivot(study, images, texts, noise=noise, epochs=0, validation_fraction=0.5, progress=False).provenance
        for noise in (2.0, 0.0)
    )
    # without noise on what it is validated by, the first would find 56 %
    assert noisy["validation_top-1"] < 0.3 < 0.9 < clean["validation_top-1"]


def test_of_epochs_that_are_equally_good_the_first_is_kept(world):
    study, images, texts = world
    still = {"learning_rate": 1e-12, "validation_fraction": 0.5, "progress": False}
    found = fit_pivot(study, images, texts, epochs=9, patience=2, **still)
    assert found.provenance["best_epoch"] == 0
    assert found.provenance["curve"] == [found.provenance["validation_top-1"]] * 3


def test_expected_noise_is_a_penalty_and_serves_noisy_embeddings(world):
    study, images, texts = world
    fits = {
        noise: fit_pivot(study, images, texts, noise=noise, epochs=0, validation_fraction=0.0, progress=False)
        for noise in (0.0, 1.0, 2.0)
    }
    ids = study.split("train").stimulus_ids
    x = images.of(ids, "pooled").astype(float)
    units = x / x.std(axis=0, ddof=1)
    size = np.square(units - units.mean(axis=0)).sum(axis=1).mean()
    for noise in (1.0, 2.0):  # the expectation of X'X over noise of that deviation, in units of the mean squared norm
        assert fits[noise].provenance["penalty"] - fits[0.0].provenance["penalty"] == pytest.approx(
            len(ids) * noise**2 / size, rel=1e-4
        )
    test = study.split("test").stimulus_ids
    clean, truth = images.of(test, "pooled"), texts.of(test, "pooled")
    predicted = clean + clean.std(axis=0) * np.random.default_rng(1).normal(size=clean.shape).astype("float32")

    def matched(pivot):
        said = pivot.predict(predicted)
        found = (said / np.linalg.norm(said, axis=1, keepdims=True)) @ (
            truth / np.linalg.norm(truth, axis=1, keepdims=True)
        ).T
        return float(np.mean(found < np.diag(found)[:, None]))

    assert matched(fits[1.0]) > matched(fits[0.0]) + 0.05
    refined = fit_pivot(study, images, texts, noise=1.0, epochs=5, patience=0, progress=False)
    again = fit_pivot(study, images, texts, noise=1.0, epochs=5, patience=0, progress=False)
    assert torch.equal(refined.weight, again.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0, "temperature": 0.1}, "temperature = 0.1: no use with epochs = 0"),
        ({"validation_fraction": 0.0, "patience": 3}, "patience = 3 needs validation_fraction above 0"),
    ],
)
def test_settings_of_a_pivot_without_a_use_are_refused(settings, message, world):
    study, images, texts = world
    with pytest.raises(InputError, match=message):
        fit_pivot(study, images, texts, progress=False, **settings)


def test_straight_to_the_text_there_is_one_output(world):
    study, _, texts = world
    with pytest.raises(InputError, match="what = 'target' is for a pivot"):
        text_retrieval(decoder_of(study, texts), study, texts, what="target")
    assert text_retrieval(decoder_of(study, texts), study, texts, what="embedding", n_boot=0).scores


def test_saved_and_loaded_it_says_the_same(world, tmp_path):
    study, images, texts = world
    pivot = fit_pivot(study, images, texts, progress=False)
    loaded = Pivot.load(pivot.save(tmp_path / "pivot"))
    assert {path.name for path in (tmp_path / "pivot").iterdir()} == {"config.json", "pivot.safetensors"}
    np.testing.assert_array_equal(loaded.predict(images.pooled), pivot.predict(images.pooled))
    assert loaded.provenance == pivot.provenance
    config = read_json(tmp_path / "pivot" / "config.json")
    for name in ("kind", "images", "texts", "provenance"):
        write_json(tmp_path / "pivot" / "config.json", {key: each for key, each in config.items() if key != name})
        with pytest.raises(InputError, match=f"of the pivot is damaged: it lacks {name}"):
            Pivot.load(tmp_path / "pivot")
    write_json(tmp_path / "pivot" / "config.json", config)
    (tmp_path / "pivot" / "pivot.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pivot\.safetensors is not readable"):
        Pivot.load(tmp_path / "pivot")


def test_what_was_scored_was_not_fitted_on(world):
    study, images, texts = world
    with pytest.raises(LeakageError, match="3 of the 5 pairs are not in the training part"):
        fit_pivot(study, images, texts, ids=["s001", "s002", "s003", "s100", "s101"], progress=False)
    knowing = Targets(texts.ids, None, texts.pooled, texts.encoder, texts.ids)
    with pytest.raises(LeakageError, match="fitted on 40 stimuli outside"):
        fit_pivot(study, images, knowing, progress=False)
    pivot = fit_pivot(study, images, texts, progress=False)
    other = study.with_splits({"other": {"train": study.stimuli.ids[:80], "test": study.stimuli.ids[80:]}}).using(
        "other"
    )
    with pytest.raises(LeakageError, match="the pivot was fitted on 80 of the 80"):
        text_retrieval(decoder_of(study, images), other, texts, pivot)


def test_what_does_not_fit_is_refused(world):
    study, images, texts = world
    pivot = fit_pivot(study, images, texts, progress=False)
    with pytest.raises(InputError, match="fitted on pooled targets, the decoder predicts tokens"):
        text_retrieval(decoder_of(study, images, "tokens"), study, texts, pivot)
    with pytest.raises(InputError, match="fitted on other image embeddings"):
        text_retrieval(decoder_of(study, texts), study, texts, pivot)
    other = given_targets(texts.ids, texts.of(texts.ids, "pooled"), label="other")
    with pytest.raises(InputError, match="the pivot was made for another encoder"):
        text_retrieval(decoder_of(study, images), study, other, pivot)
    with pytest.raises(InputError, match="encoder 'gabor' looks at pictures"):
        text_retrieval(decoder_of(study, images), study, images)
    with pytest.raises(InputError, match="encoder 'gabor' looks at pictures"):
        fit_pivot(study, images, images, progress=False)
    with pytest.raises(InputError, match="this ridge decoder was made for encoder"):
        text_retrieval(decoder_of(study, images), study, texts)
    with pytest.raises(InputError, match=r"width 12, found \(2, 5\)"):
        pivot.predict(np.zeros((2, 5)))
    with pytest.raises(InputError, match="three different captions or more, found 2"):
        fit_pivot(study, images, texts, ids=["s100", "s101"], progress=False)
    with pytest.raises(InputError, match="subject sub-02 named twice"):
        text_retrieval(decoder_of(study, texts), study, texts, subjects=["sub-02", "sub-02"])
    with pytest.raises(InputError, match="no text retrieval figure top-3"):
        text_retrieval(decoder_of(study, texts), study, texts, n_boot=0).get("top-3", "brain_to_text")
