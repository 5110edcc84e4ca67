"""The target cache: what is kept, what is noticed, what is shared."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from encoder_stimuli import make_stimuli

from phosphene.encoders import EncodedBatch, Targets, encode, make_encoder
from phosphene.encoders.base import Encoder, EncoderConfig, PixelEncoder
from phosphene.encoders.targets import RowView
from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet


class CountingConfig(EncoderConfig):
    """Settings of the counting encoder."""

    scale: float = 1.0


class CountingEncoder(PixelEncoder):
    """Means of the channels; remembers how many stimuli it saw and can stop half way."""

    name: ClassVar[str] = "counting"
    Config: ClassVar[type[EncoderConfig]] = CountingConfig
    batch_size = 4

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__(config)
        self.seen = 0
        self.stop_after: int | None = None

    def encode_pixels(self, frames: np.ndarray) -> EncodedBatch:
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(frames)
        pooled = (self.config.scale * frames.mean((1, 2))).astype(np.float32)
        return EncodedBatch(tokens=np.stack([pooled, 2 * pooled], axis=1), pooled=pooled)


def _check(targets: Targets, stimuli: StimulusSet, scale: float = 1.0) -> None:
    expected = scale * stimuli.frames().mean((1, 2))
    np.testing.assert_allclose(targets.of(stimuli.ids), expected, rtol=1e-5)
    np.testing.assert_allclose(targets.of(stimuli.ids[::-1], "tokens")[:, 1], 2 * expected[::-1], rtol=1e-5)


def _changed(stimuli: StimulusSet, row: int) -> StimulusSet:
    pixels = stimuli.pixels().copy()
    pixels[row] = 255 - pixels[row]
    return StimulusSet(stimuli.ids, pixels=pixels, captions=stimuli.captions, labels=stimuli.labels)


def test_the_second_time_nothing_is_encoded(stimuli: StimulusSet) -> None:
    encoder = CountingEncoder()
    _check(encode(stimuli, encoder), stimuli)
    assert encoder.seen == 24
    again = encode(stimuli, encoder)
    _check(again, stimuli)
    assert encoder.seen == 24
    assert isinstance(again.tokens, np.memmap)
    assert not again.tokens.flags.writeable


def test_without_a_cache_nothing_is_written(stimuli: StimulusSet, tmp_path: Path) -> None:
    _check(encode(stimuli, CountingEncoder(), cache=False), stimuli)
    assert not (tmp_path / "cache").exists()


def test_rows_follow_the_stimulus_not_its_place(stimuli: StimulusSet) -> None:
    encoder = CountingEncoder()
    encode(stimuli, encoder)
    backwards = stimuli.select(stimuli.ids[::-1])
    targets = encode(backwards, encoder)
    _check(targets, backwards)
    assert encoder.seen == 24
    assert isinstance(targets.pooled, RowView)
    renamed = StimulusSet(
        [f"other-{i}" for i in range(24)], pixels=stimuli.pixels(), captions=stimuli.captions, labels=stimuli.labels
    )
    _check(encode(renamed, encoder), renamed)
    assert encoder.seen == 24


def test_interrupted_encoding_goes_on_where_it_was(stimuli: StimulusSet) -> None:
    encoder = CountingEncoder()
    encoder.stop_after = 12
    with pytest.raises(KeyboardInterrupt):
        encode(stimuli, encoder)
    encoder.stop_after = None
    _check(encode(stimuli, encoder), stimuli)
    assert encoder.seen == 24


def test_a_killed_process_loses_at_most_its_batch(stimuli: StimulusSet, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from encoder_stimuli import make_stimuli\n"
        "from test_cache import CountingEncoder\n"
        "from phosphene.encoders import encode\n"
        "class Dying(CountingEncoder):\n"
        "    def encode_pixels(self, frames):\n"
        "        if self.seen >= 8: os.kill(os.getpid(), 9)\n"
        "        return super().encode_pixels(frames)\n"
        "encode(make_stimuli(), Dying())\n"
    )
    died = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), capture_output=True)
    assert died.returncode == -9
    encoder = CountingEncoder()
    _check(encode(stimuli, encoder), stimuli)
    assert encoder.seen == 16


def test_growing_encodes_only_the_new(stimuli: StimulusSet) -> None:
    encoder = CountingEncoder()
    encode(stimuli.select(stimuli.ids[:10]), encoder)
    assert encoder.seen == 10
    _check(encode(stimuli, encoder), stimuli)
    assert encoder.seen == 24
    part = encode(stimuli.select(["s20", "s03"]), encoder)
    assert encoder.seen == 24
    _check(part, stimuli.select(["s20", "s03"]))


def test_a_changed_stimulus_is_noticed(stimuli: StimulusSet) -> None:
    encoder = CountingEncoder()
    encode(stimuli, encoder)
    changed = _changed(stimuli, 7)
    _check(encode(changed, encoder), changed)
    assert encoder.seen == 25
    _check(encode(stimuli, encoder), stimuli)
    assert encoder.seen == 25, "the old stimulus is still there"


def test_captions_matter_only_to_those_who_read_them(stimuli: StimulusSet) -> None:
    words = make_encoder("tfidf-svd3").fit(stimuli)
    other = StimulusSet(stimuli.ids, pixels=stimuli.pixels(), captions=[["a dog"], *stimuli.captions[1:]])
    before, after = encode(stimuli, words), encode(other, words)
    assert not np.allclose(before.of(["s00"]), after.of(["s00"]))
    np.testing.assert_array_equal(before.of(stimuli.ids[1:]), after.of(stimuli.ids[1:]))


def test_another_encoder_never_gets_old_rows(stimuli: StimulusSet) -> None:
    encode(stimuli, CountingEncoder())
    scaled = CountingEncoder(CountingConfig(scale=3.0))
    _check(encode(stimuli, scaled), stimuli, scale=3.0)
    assert scaled.seen == 24


def test_equal_stimuli_are_encoded_once() -> None:
    base = make_stimuli(4)
    rows = [0, 1, 0, 2, 0, 3]
    twice = StimulusSet([f"t{i}" for i in range(6)], pixels=base.pixels(rows))
    encoder = CountingEncoder()
    _check(encode(twice, encoder), twice)
    assert encoder.seen == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "index", "lost", "shapes"])
def test_damage_is_noticed_and_mended(
    damage: str, stimuli: StimulusSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = CountingEncoder()
    encode(stimuli, encoder, cache=tmp_path / "c")
    (part,) = (tmp_path / "c").glob("*/float32/part-*")
    tokens = part / "tokens.npy"
    if damage == "flip":
        raw = bytearray(tokens.read_bytes())
        raw[-20] ^= 1
        tokens.write_bytes(raw)
    elif damage == "truncate":
        os.truncate(tokens, tokens.stat().st_size - 1)
    elif damage == "index":
        (part / "index.json").write_text(json.dumps({"keys": ["x"], "kinds": ["tokens", "pooled"]}))
    elif damage == "lost":
        (part / "rows.npy").unlink()
    else:
        (part.parent.parent / "shapes.json").write_text("[]")
    with caplog.at_level(logging.WARNING):
        _check(encode(stimuli, encoder, cache=tmp_path / "c"), stimuli)
    if damage != "shapes":
        assert "damaged and will be encoded again" in caplog.text
    assert encoder.seen == 48
    _check(encode(stimuli, encoder, cache=tmp_path / "c"), stimuli)
    assert encoder.seen == 48


def test_two_writers_and_a_reader_at_once(stimuli: StimulusSet) -> None:
    encoders = [CountingEncoder() for _ in range(4)]
    results: dict[int, Targets] = {}

    def work(number: int) -> None:
        subset = stimuli if number % 2 else stimuli.select(stimuli.ids[6:18])
        results[number] = encode(subset, encoders[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        _check(results[number], stimuli if number % 2 else stimuli.select(stimuli.ids[6:18]))
    assert sum(encoder.seen for encoder in encoders) == 24


def test_half_precision_is_asked_for_or_chosen_for_large_grids(stimuli: StimulusSet) -> None:
    encoder = CountingEncoder()
    half = encode(stimuli, encoder, dtype="float16")
    assert half.tokens.dtype == np.float16
    assert half.of(["s00"]).dtype == np.float32
    np.testing.assert_allclose(half.of(stimuli.ids), stimuli.frames().mean((1, 2)), rtol=1e-3)
    assert encode(stimuli, encoder).tokens.dtype == np.float32, "other storage, other rows"
    assert half.identity == encoder.identity
    big = make_encoder("pixels", size=256, grid=1)
    assert encode(stimuli.select(["s00"]), big).tokens.dtype == np.float16
    with pytest.raises(InputError, match="beyond float16"):
        encode(stimuli, CountingEncoder(CountingConfig(scale=1e4)), dtype="float16")
    with pytest.raises(InputError, match="unknown storage type 'float64'"):
        encode(stimuli, encoder, dtype="float64")  # type: ignore[arg-type]


def test_what_fit_on_must_say(stimuli: StimulusSet) -> None:
    with pytest.raises(InputError, match=r"'tfidf-svd3' learns from data .*fit_on=ids"):
        encode(stimuli, "tfidf-svd3")
    with pytest.raises(InputError, match="s99"):
        encode(stimuli, "tfidf-svd3", fit_on=["s00", "s99"])
    unfitted = make_encoder("tfidf-svd3")
    one = encode(stimuli, unfitted, fit_on=stimuli.ids[:12])
    two = encode(stimuli, unfitted, fit_on=stimuli.ids[12:])
    assert one.fitted_on == frozenset(stimuli.ids[:12].tolist())
    assert two.fitted_on == frozenset(stimuli.ids[12:].tolist())
    assert one.identity != two.identity
    assert not unfitted.is_fitted, "a copy is fitted"
    with pytest.raises(InputError, match="fitted on 12 stimuli, other ones"):
        encode(stimuli, one.encoder, fit_on=stimuli.ids)
    assert encode(stimuli, one.encoder).identity == one.identity
    assert encode(stimuli, "gabor", fit_on=stimuli.ids[:3]).fitted_on is None


def test_bad_arguments(stimuli: StimulusSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stimuli"):
        encode(stimuli.select([]), "gabor")
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        encode(stimuli, "gabor", batch_size=0)
    with pytest.raises(InputError, match="unknown device 'abacus'"):
        encode(stimuli, "gabor", device="abacus")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the target cache"):
        encode(stimuli, "gabor", cache=tmp_path / "file")


def test_an_encoder_that_gives_nan_is_stopped(stimuli: StimulusSet) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match="gave NaN or infinite"):
        encode(stimuli, CountingEncoder(CountingConfig(scale=float("inf"))), cache=False)


def test_a_disk_without_room_is_said(stimuli: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(InputError, match="GiB are free"):
        encode(stimuli, CountingEncoder(), cache=tmp_path / "c")
    assert list((tmp_path / "c").glob("*/float32/*")) == []


def test_batches_of_any_size_give_the_same(stimuli: StimulusSet) -> None:
    whole = encode(stimuli, "gabor", cache=False, batch_size=24)
    for size in (1, 7, 100):
        part = encode(stimuli, "gabor", cache=False, batch_size=size)
        np.testing.assert_allclose(part.of(stimuli.ids), whole.of(stimuli.ids), atol=1e-5)


def test_clips_are_encoded_by_their_middle_frame() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3)).astype(np.uint8)
    clips = StimulusSet(["a", "b", "c"], pixels=frames, fps=8.0)
    stills = StimulusSet(["a", "b", "c"], pixels=frames[:, 2])
    np.testing.assert_array_equal(encode(clips, "pixels").of(["b", "c"]), encode(stills, "pixels").of(["b", "c"]))


def test_contract_classes_stay_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Encoder()  # type: ignore[abstract]


class WideEncoder(PixelEncoder):
    """Half a megabyte a stimulus."""

    name: ClassVar[str] = "wide"
    batch_size = 16

    def encode_pixels(self, frames: np.ndarray) -> EncodedBatch:
        pooled = frames.reshape(len(frames), -1)[:, :4].astype(np.float32)
        return EncodedBatch(tokens=np.broadcast_to(pooled[:, :1, None], (len(frames), 512, 512)), pooled=pooled)


def test_large_targets_do_not_fill_memory(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("resident memory is read from /proc, which this system lacks")

    def resident() -> float:
        """Present resident memory in MiB, pages of mapped files included."""
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    many = StimulusSet(
        [f"s{i}" for i in range(320)], pixels=np.random.default_rng(0).integers(0, 256, (320, 2, 2, 3)).astype(np.uint8)
    )
    encode(many.select(many.ids[:16]), WideEncoder(), cache=tmp_path / "other")
    before = resident()
    targets = encode(many, WideEncoder(), cache=tmp_path / "c")
    assert sum(file.stat().st_size for file in (tmp_path / "c").rglob("tokens.npy")) > 160 * 2**20
    for source in (targets, encode(many.select(many.ids[::-1]), WideEncoder(), cache=tmp_path / "c")):
        for start in range(0, 320, 16):
            values = source.of(many.ids[start : start + 16], "tokens")
            assert (values[:, 3, 5] == source.of(many.ids[start : start + 16])[:, 0]).all()
            assert resident() - before < 80


def test_large_stores_are_checked_by_samples(
    stimuli: StimulusSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from phosphene.encoders import arrays

    monkeypatch.setattr(arrays, "_CHECK_WHOLE_BYTES", 0)
    monkeypatch.setattr(arrays, "_CHECK_ROWS", 3)
    encoder = CountingEncoder()
    targets = encode(stimuli, encoder)
    files = Path(os.environ["PHOSPHENE_CACHE"]).rglob("tokens.npy")
    raw = np.load(next(files), mmap_mode="r+")
    raw[5] += 1
    raw.flush()
    encode(stimuli, encoder)
    assert "damaged" not in caplog.text, "row 5 is not among the first, middle and last"
    raw[23] += 1
    raw.flush()
    encode(stimuli, encoder)
    assert "damaged" in caplog.text
    assert targets.identity == encoder.identity


def test_a_bar_on_a_terminal_and_silence_elsewhere(
    stimuli: StimulusSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(stimuli, CountingEncoder(), cache=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    encode(stimuli, CountingEncoder(), cache=False, progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    encode(stimuli, CountingEncoder(), cache=False)
    captured = capsys.readouterr()
    assert "encoding with counting" in captured.err
    assert captured.out == ""


def test_a_disk_that_fills_up_is_said(stimuli: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match="disk is full"):
        encode(stimuli, CountingEncoder(), cache=tmp_path / "c")
    monkeypatch.undo()
    _check(encode(stimuli, CountingEncoder(), cache=tmp_path / "c"), stimuli)


def test_a_gpu_that_is_not_there_is_said(stimuli: StimulusSet, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'cuda:0' was asked for and this torch sees no CUDA GPU"):
        encode(stimuli, "gabor", device="cuda:0")


@pytest.mark.parametrize("name", ["gabor", "pixels"])
def test_a_gpu_gives_the_same(name: str, stimuli: StimulusSet) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here: encoders are compared between devices only where there is one")
    here, there = (encode(stimuli, name, cache=False, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(here.of(stimuli.ids), there.of(stimuli.ids), atol=1e-3)
