"""Stopped at any moment and taken up again, a run ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_study import QUICK, Tiny, tiny_study

from phosphene.errors import InputError
from phosphene.training import TrainingInterrupted, fit
from phosphene.training.log import read_log
from phosphene.training.loop import _Run

SETTINGS = {
    **QUICK,
    "ema": 0.9,
    "mixing_fraction": 0.4,
    "learn_temperature": True,
    "mse_weight": 0.1,
    "checkpoint_steps": 3,
    "log_steps": 5,
}


def run(study, targets, out=None, seed=0, **training):
    return fit("tiny", study, targets, out=out, dropout=0.3, seed=seed, training={**SETTINGS, **training})


def same(one, two):
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The run nobody disturbs, and its log."""
    out = tmp_path_factory.mktemp("whole")
    return run(*tiny, out=out), read_log(out / "log.jsonl")


def test_same_seed_same_weights_with_and_without_folder(tiny, whole):
    assert same(whole[0], run(*tiny))
    assert not same(whole[0], run(*tiny, seed=1))


@pytest.mark.parametrize("steps", [1, 7, 8, 20])
def test_an_exception_after_some_steps_loses_nothing(tiny, whole, tmp_path, monkeypatch, steps):
    taken, step = 0, _Run.step

    def failing(self, batch):
        nonlocal taken
        if taken == steps:
            raise MemoryError("out of memory")
        taken += 1
        return step(self, batch)

    monkeypatch.setattr(_Run, "step", failing)
    with pytest.raises(MemoryError):
        run(*tiny, out=tmp_path)
    monkeypatch.setattr(_Run, "step", step)
    resumed = run(*tiny, out=tmp_path)
    assert same(whole[0], resumed)
    assert read_log(tmp_path / "log.jsonl") == whole[1]
    assert resumed.provenance["curves"] == whole[0].provenance["curves"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_run_that_goes_on(tiny, whole, tmp_path, monkeypatch, number):
    decode = Tiny._decode

    def interrupted(self, responses, subject):
        if self.training and not hasattr(self, "hit"):
            self.hit = True
            os.kill(os.getpid(), number)
        return decode(self, responses, subject)

    monkeypatch.setattr(Tiny, "_decode", interrupted)
    before = signal.getsignal(signal.SIGINT)  # ignored in a job that a shell put into the background
    with pytest.raises(TrainingInterrupted, match="after step 1 of 28; the same call with the run folder"):
        run(*tiny, out=tmp_path)
    with pytest.raises(KeyboardInterrupt, match="nothing was kept"):
        run(*tiny)
    monkeypatch.setattr(Tiny, "_decode", decode)
    assert signal.getsignal(signal.SIGINT) is before
    assert same(whole[0], run(*tiny, out=tmp_path))


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_resume import run
from tiny_study import tiny_study
run(*tiny_study(), out={out!r}, epochs=20, checkpoint_steps=1)
"""


def test_a_killed_process_loses_nothing(tiny, tmp_path):
    script = SCRIPT.format(here=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "killed" / "checkpoints" / "last.safetensors"
    while not last.exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(0.3)  # it saves after every step: the kill falls into a step or into a write
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    resumed = run(*tiny, out=tmp_path / "killed", epochs=20)
    undisturbed = run(*tiny, out=tmp_path / "whole", epochs=20)
    assert same(resumed, undisturbed)
    assert read_log(tmp_path / "killed" / "log.jsonl") == read_log(tmp_path / "whole" / "log.jsonl")


def test_a_finished_run_is_read_back(tiny, tmp_path, monkeypatch):
    first = run(*tiny, out=tmp_path)
    monkeypatch.setattr(_Run, "step", None)
    assert same(first, run(*tiny, out=tmp_path))
    assert not (tmp_path / "checkpoints" / "last.tmp").exists()


@pytest.mark.parametrize("training", [{}, {"patience": 1, "monitor": "top-1"}])
def test_a_run_killed_while_its_decoder_was_written(tiny, tmp_path, monkeypatch, training):
    first = run(*tiny, out=tmp_path, **training)
    shutil.rmtree(tmp_path / "decoder")
    monkeypatch.setattr(_Run, "step", None)  # there is nothing left to train
    assert same(first, run(*tiny, out=tmp_path, **training))


def test_another_run_in_the_folder_is_refused_and_the_difference_named(tiny, tmp_path):
    run(*tiny, out=tmp_path)
    with pytest.raises(InputError, match=r"training\.epochs was 4, is now 5; training\.learning_rate was 0\.01"):
        run(*tiny, out=tmp_path, epochs=5, learning_rate=0.02)
    with pytest.raises(InputError, match="study_digest was"):
        run(*tiny_study(seed=5), out=tmp_path)
    # where it runs and how often it saves may change
    run(*tiny, out=tmp_path, memory_gb=0.0, checkpoint_seconds=1.0)


def test_nothing_but_plain_files(tiny, tmp_path):
    run(*tiny, out=tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".tsv", ".md"}
    assert json.loads((tmp_path / "config.json").read_text())["training"]["epochs"] == 4


def test_a_damaged_checkpoint_is_named(tiny, tmp_path, monkeypatch):
    step = _Run.step

    def failing(self, batch):
        if self.progress.step == 9:
            raise MemoryError
        return step(self, batch)

    monkeypatch.setattr(_Run, "step", failing)
    with pytest.raises(MemoryError):
        run(*tiny, out=tmp_path)
    last = tmp_path / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:200])
    with pytest.raises(InputError, match=r"last\.safetensors is not a readable safetensors checkpoint"):
        run(*tiny, out=tmp_path)
