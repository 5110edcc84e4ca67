"""Two processes give what one process with the same global batch gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_study import QUICK, tiny_study

from phosphene.training import TrainingInterrupted, fit
from phosphene.training.checkpoint import load_checkpoint
from phosphene.training.gather import gather
from phosphene.training.launch import started_processes
from phosphene.training.log import read_log
from phosphene.training.loop import _Run

SETTINGS = {
    **QUICK,
    # 15 samples a person: the processes get shares of unequal size
    "batch_size": 30,
    "mixing_fraction": 0.5,
    "contrastive": "softclip",
    "mse_weight": 0.3,
    "cosine_weight": 0.1,
    "learn_temperature": True,
    "ema": 0.9,
    "log_steps": 1,
}
SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_distributed import run, run_interrupted
run({out!r})
run_interrupted({out!r} + "-interrupted")
"""


def run(out):
    return fit("tiny", *tiny_study(), out=out, training=SETTINGS)


def run_interrupted(out):
    """The same, but the second of two processes is asked to stop in the first epoch; then it goes on."""
    step = _Run.step

    def interrupted(self, batch):
        value = step(self, batch)
        if self.fabric.global_rank == 1 and self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return value

    _Run.step = interrupted
    with pytest.raises(TrainingInterrupted, match="after step 3 of "):
        run(out)
    assert load_checkpoint(Path(out) / "checkpoints" / "last.safetensors")[1]["step"] == 3
    _Run.step = step
    run(out)


def figures(path):
    return [
        {key: value for key, value in line.items() if isinstance(value, float)}
        for line in read_log(path / "log.jsonl")
        if line["event"] == "step"
    ]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Run folders of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    script = two / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent), out=str(two / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    run(one / "run")
    return one / "run", two / "run"


def test_two_processes_have_the_loss_and_gradient_of_one(pair):
    one, two = map(figures, pair)
    assert len(one) == len(two) > 10
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=2e-3)
    # before rounding has had steps to grow, the two are equal to the last digits
    assert two[0] == pytest.approx(one[0], rel=1e-5)


def test_two_processes_end_with_the_weights_of_one(pair):
    from phosphene.decoders import Decoder

    one, two = (Decoder.load(path / "decoder") for path in pair)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, rtol=5e-3, atol=5e-4)
    assert json.loads((pair[0] / "config.json").read_text()) == json.loads((pair[1] / "config.json").read_text())


def test_a_signal_to_one_process_stops_both_after_the_same_step(pair):
    from phosphene.decoders import Decoder

    resumed = Decoder.load(pair[1].parent / "run-interrupted" / "decoder").state_dict()
    whole = Decoder.load(pair[1] / "decoder").state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_one_process_gathers_nothing():
    rows = torch.randn(3, 2)
    assert gather(rows, (3,)) is rows


def test_processes_are_counted_as_torchrun_and_srun_started_them(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    assert started_processes() == (1, 1)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a batch script, not a step of srun
    assert started_processes() == (1, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    assert started_processes() == (4, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert started_processes() == (2, 3)
