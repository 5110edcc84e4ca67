"""What is scored is what was trained and what is written: no random embedding, no rounded transform."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pairs import coloured, counted, tiny

from phosphene.encoders import encode, make_encoder
from phosphene.encoders.mlip import MLIP, load_model, store
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet
from phosphene.training.pretraining import pretrain, pretrain_settings


def _run(out: Path, start: Path | None = None, **tables: dict) -> Path:
    settings = tiny(**tables) if start is None else {"training": tiny()["training"], **tables}
    return pretrain(None, coloured(24), out=out, start=start, progress=False, settings=settings)


def _scored(model: Path) -> set[str]:
    return {score["score"] for score in json.loads((model / "config.json").read_text())["facts"]["scores"]}


@pytest.mark.parametrize(
    ("zero", "left", "scored"),
    [
        ((), (), {"spatial", "spatial + frequency", "spatial + frequency + tokens"}),
        (("frequency",), ("frequency",), {"spatial", "spatial + frequency + tokens"}),
        (
            ("spatial_token", "frequency_token"),
            ("spatial_token", "frequency_token"),
            {"spatial", "spatial + frequency"},
        ),
        (
            ("frequency", "spatial_token", "frequency_token"),
            ("frequency", "spatial_token", "frequency_token"),
            {"spatial"},
        ),
    ],
)
def test_random_embeddings_are_told_and_not_scored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, zero: tuple, left: tuple, scored: set
) -> None:
    model = _run(tmp_path, objective={f"{part}_weight": 0.0 for part in zero}, training={"steps": 1})
    assert _scored(model) == scored
    words = f"these embeddings, which are random: {', '.join(left)}."
    assert (words in (model / "card.md").read_text()) == bool(left)
    assert (f"stay random: {', '.join(left)} " in caplog.text) == bool(left)


def test_of_a_model_to_start_from_nothing_is_said_to_be_random(tmp_path: Path) -> None:
    first = _run(tmp_path / "first", training={"steps": 1})
    second = _run(tmp_path / "second", first, objective={"frequency_weight": 0.0})
    assert "random:" not in (second / "card.md").read_text()


def test_what_nothing_trained_is_kept_with_the_model_and_guides_no_merging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    untrained, merge = {"frequency_weight": 0.0}, {"tokens": 0.8, "guide": "frequency"}
    first = _run(tmp_path / "first", objective=untrained, training={"steps": 1})
    with pytest.raises(InputError, match="nothing trained the frequency embedding"):
        encode(coloured(4), make_encoder(f"mlip:{first}", domain="frequency"), cache=False)
    guided, cue = [], MLIP._cue
    monkeypatch.setattr(MLIP, "_cue", lambda self, texts: guided.append(cue(self, texts)) or guided[-1])
    still = _run(tmp_path / "still", first, model={"merge": merge}, training={"steps": 1})  # as random as it began
    assert set(guided) == {None}
    assert "which are random: frequency." in (still / "card.md").read_text()
    assert "stay random: frequency " in caplog.text
    guided.clear()
    trained = _run(tmp_path / "trained", first, objective={"frequency_weight": 1.0}, model={"merge": merge})
    assert None not in guided
    assert "random:" not in (trained / "card.md").read_text()
    assert encode(coloured(4), make_encoder(f"mlip:{trained}", domain="frequency"), cache=False).shape() == (12,)


def test_presets_train_every_embedding_that_they_have() -> None:
    for name in ("pocket", "pocket-cpu", "vit-b-16", "vit-b-32"):
        assert pretrain_settings(name).untrained == ()


def test_rounding_weights_leaves_the_transforms_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[MLIP] = []
    module = sys.modules[pretrain.__module__]
    finish = module._finish

    def spy(run: object, settings: object, model: MLIP, *others: object) -> None:
        scored.append(model)
        finish(run, settings, model, *others)

    monkeypatch.setattr(module, "_finish", spy)
    model = {"image_size": 20}  # 5 x 5 patches: no cosine of their transform is a number of half precision
    written = _run(tmp_path, model=model, training={"steps": 1, "save_precision": "float16"})
    pixels = torch.randn(4, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(
            scored[0].encode_image(pixels).frequency, load_model(written)[0].encode_image(pixels).frequency
        )


def test_pictures_known_under_another_name_are_remembered(tmp_path: Path) -> None:
    pictures = coloured(24)
    model = _run(tmp_path, training={"steps": 1}, data={"held_out": 0.0})
    study = StimulusSet(
        [f"nsd-{row}" for row in range(26)], np.concatenate([pictures.pixels(), coloured(2, seed=9).pixels()])
    )
    study = study.with_captions([["other words"]] * 26)
    known = {f"nsd-{row}" for row in range(24)}
    for name in ("mlip", "mlip-text", "z:mlip"):
        targets = encode(study, f"{name}:{model}", fit_on=study.ids[24:], cache=tmp_path / "cache", progress=False)
        assert targets.fitted_on >= known | set(pictures.ids.tolist())
        assert ("nsd-25" in targets.fitted_on) == name.startswith("z:")
    assert encode(study, "pocket", cache=False, progress=False).fitted_on is None


def test_pictures_that_were_compared_once_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _run(tmp_path / "run", training={"steps": 1}, data={"held_out": 0.0})
    parsed, parse = [], store.read_json
    monkeypatch.setattr(store, "read_json", lambda path: parsed.append(path) or parse(path))
    remembered = []
    for expected in (12 + 12 + 12, 12, 12 + 12):  # keys of the cache, embeddings, comparison
        stimuli, pixels = counted(coloured(12, size=20))
        targets = encode(stimuli, f"mlip:{model}", cache=tmp_path / "cache", progress=False)
        assert pixels.read == expected
        remembered.append(targets.fitted_on)
        for file in (tmp_path / "cache" / "pictures").iterdir():
            if expected == 12:  # a damaged one is written anew
                file.write_text(file.read_text().replace("0", "1"))
    assert remembered[0] == remembered[1] == remembered[2]
    assert len(parsed) <= 1
