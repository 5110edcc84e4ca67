"""Two processes pretrain to what one process gives with the same global batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_pairs import coloured, tiny

from phosphene.encoders.mlip import load_model
from phosphene.training import TrainingInterrupted
from phosphene.training.checkpoint import load_checkpoint
from phosphene.training.log import read_log
from phosphene.training.pretraining import pretrain
from phosphene.training.pretraining.loop import _Pretraining

# 11 pictures: shares of unequal size; token heads without a part in the loss; embedded whole, then in chunks
ARMS = {
    "whole": {"training": {"batch_size": 11, "log_steps": 1}, "data": {"sampled": 2}},
    "chunks": {
        "training": {"batch_size": 11, "log_steps": 1, "chunk": 2, "accumulate": 2},
        "objective": {"spatial_token_weight": 0.0, "frequency_token_weight": 0.0, "form": "sigmoid"},
    },
}
SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_pretrain_distributed import run_all, run_interrupted
run_all({out!r})
run_interrupted({out!r})
"""


def run_all(out):
    for name, tables in ARMS.items():
        pretrain(None, coloured(24), out=Path(out) / name, progress=False, settings=tiny(**tables))


def run_interrupted(out):
    """The first arm once more, but the second of two processes is asked to stop after two steps; then it goes on."""
    step, settings = _Pretraining.step, tiny(**ARMS["whole"])

    def interrupted(self, batches):
        value = step(self, batches)
        if self.fabric.global_rank == 1 and self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return value

    _Pretraining.step = interrupted
    try:
        pretrain(None, coloured(24), out=Path(out) / "interrupted", progress=False, settings=settings)
    except TrainingInterrupted as stop:
        kept = load_checkpoint(Path(out) / "interrupted" / "checkpoints" / "last.safetensors")[1]["step"]
        (Path(out) / f"stop-{os.environ['RANK']}.txt").write_text(f"{kept} {stop}")
    _Pretraining.step = step
    pretrain(None, coloured(24), out=Path(out) / "interrupted", progress=False, settings=settings)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of the runs of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    script = two / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent), out=str(two)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    run_all(one)
    return one, two


@pytest.mark.parametrize("arm", ARMS)
def test_two_processes_have_losses_and_weights_of_one(pair, arm):
    one, two = (
        [
            {key: value for key, value in line.items() if isinstance(value, float) and key != "seconds"}
            for line in read_log(folder / arm / "log.jsonl")
        ]
        for folder in pair
    )
    assert len(one) == len(two) == 6
    # before rounding has had steps to grow, the two are equal to the last digits
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=5e-3)
    (alone, words), (together, other_words) = (load_model(folder / arm / "model") for folder in pair)
    assert words.to_json() == other_words.to_json()
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], tensor, rtol=5e-3, atol=2e-3)


def test_the_card_counts_pictures_once(pair):
    facts = [json.loads((folder / "whole" / "scorecard.json").read_text())["model"] for folder in pair]
    assert facts[0]["pairs_seen"] == facts[1]["pairs_seen"] == 6 * 11 * 2
    assert facts[1]["hardware"].startswith("2 x ")


def test_a_signal_to_one_process_stops_both_after_the_same_step(pair):
    two = pair[1]
    for rank in range(2):  # and the checkpoint is there before anybody leaves
        assert (two / f"stop-{rank}.txt").read_text().startswith("2 pretraining stopped after step 2 of 6; the same")
    whole, resumed = (load_model(two / arm / "model")[0].state_dict() for arm in ("whole", "interrupted"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
