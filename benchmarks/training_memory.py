"""Memory while training from a store larger than wanted in memory, against the same loop on random tensors.

    python benchmarks/training_memory.py [--trials 30000] [--voxels 15724] [--steps 40] [--batch 128] [--folder DIR]

A study file of random responses (30,000 x 15,724 float32: 1.9 GB) and a target cache of CLIP ViT-L/14 size
(10,000 stimuli x 257 x 768 float16, 3.9 GB, mostly holes in the file) are made in a temporary folder and deleted
afterwards. Two fresh processes then train the same network for the same number of steps with `fit`'s own loop: one
on what `fit` reads, the other on tensors drawn at random. Their peak resident memory (file-backed pages included) is
compared; the aim is less than 1 GB between them. Figures go to ``benchmarks/results/training_memory.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from phosphene.files import write_json

_RESULT = Path(__file__).parent / "results" / "training_memory.json"
_TOKENS = (257, 768)
_LIMIT_GB = 1.0


def make_data(folder: Path, trials: int, voxels: int, stimuli: int) -> None:
    """Write ``study.h5`` and ``tokens.npy``."""
    from phosphene.recordings.store import StudyWriter
    from phosphene.stimuli import StimulusSet
    from phosphene.table import Table

    rng = np.random.default_rng(0)
    ids = [f"s{i}" for i in range(stimuli)]
    table = Table({"stimulus_id": [ids[i % stimuli] for i in range(trials)], "session": np.arange(trials) // 750})
    with StudyWriter(folder / "study.h5", name="random", scaling="session") as writer:
        writer.stimuli(StimulusSet(ids))
        person = writer.recording("sub-01", table, Table({axis: np.arange(voxels) for axis in "ijk"}))
        for start in range(0, trials, 500):
            person.append(rng.standard_normal((min(500, trials - start), voxels), dtype=np.float32))
        writer.splits({"default": {"train": ids[: stimuli * 9 // 10], "test": ids[stimuli * 9 // 10 :]}})
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.float16, (stimuli, *_TOKENS))
    for row in range(stimuli):  # one token is written, the others stay holes that read as zero
        tokens[row, 0] = rng.standard_normal(_TOKENS[1])
    tokens.flush()


def network(voxels: int) -> Any:
    """A decoder of 17 million parameters at this size; what it computes does not matter here."""
    from torch import nn

    from phosphene.decoders import DECODERS, Decoder

    class Plain(Decoder):
        name: ClassVar[str] = "plain"

        def __init__(self, config: Any, subjects: Any, target_shape: Any) -> None:
            super().__init__(config, subjects, target_shape)
            self.layers = nn.Sequential(nn.Linear(voxels, 64), nn.GELU(), nn.Linear(64, self.n_outputs))

        def _add_input(self, subject: str, n_voxels: int) -> None:
            raise RuntimeError("one person only")

        def _decode(self, responses: Any, subject: str | None) -> Any:
            return self.layers(responses)

    DECODERS["plain"] = Plain
    return Plain


class Enough(Exception):
    """The wanted number of steps was made."""


def train(folder: Path, source: str, steps: int, batch: int) -> dict[str, float]:
    """Train in this process; returns its peak memory in GB and the seconds a step took."""
    import torch

    from phosphene.encoders import Targets, make_encoder
    from phosphene.recordings import Study
    from phosphene.training import fit
    from phosphene.training.data import StepBatch, StepLoader
    from phosphene.training.loop import _Run

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    study = Study.open(folder / "study.h5")
    network(study.recordings["sub-01"].n_voxels)
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    targets = Targets(study.stimuli.ids, tokens, np.zeros((len(tokens), 1), np.float32), make_encoder("gabor"))
    times: list[float] = []
    step = _Run.step

    def counted(self: Any, made: Any) -> float:
        if len(times) > steps:
            raise Enough
        times.append(time.perf_counter())
        return step(self, made)

    _Run.step = counted  # type: ignore[method-assign]
    training = {"batch_size": batch, "epochs": 1, "precision": "32-true", "accelerator": "cpu", "mixing_fraction": 1.0}
    if source == "random":

        def random_batches(self: Any, first: int, last: int) -> Any:
            width = int(np.prod(_TOKENS))
            for _ in range(first, last):
                responses = torch.randn(batch, study.recordings["sub-01"].n_voxels)
                stored = torch.randn(batch, width, dtype=torch.float16)
                own = torch.arange(batch)
                yield StepBatch([("sub-01", responses)], stored, own, own.flip(0), torch.rand(batch), (batch,))

        StepLoader.walk = random_batches  # type: ignore[method-assign]
        # the same call must then not read anything on its way there either
        study = small_copy(study)
        training |= {"epochs": 100_000, "validation_fraction": 0.0}
    with suppress(Enough):
        fit("plain", study, targets, kind="tokens", progress=False, training=training)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_gb": peak / 1e9, "seconds_per_step": float(np.median(np.diff(times)))}


def small_copy(study: Any) -> Any:
    """A study of the same voxels with as many trials as are needed to get to the loop."""
    from phosphene.recordings import Recording, Study

    whole = study.recordings["sub-01"]
    shown = study.roles()["train"][:4]
    rows = np.flatnonzero(np.isin(whole.trials["stimulus_id"], shown))
    responses = np.random.default_rng(0).standard_normal((len(rows), whole.n_voxels)).astype(np.float32)
    person = Recording("sub-01", responses, whole.trials.take(rows), whole.voxels)
    return Study(study.stimuli, [person], {"default": {"train": shown}}, scaling="none")


def main() -> int:
    """Make the data, train twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30_000)
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--stimuli", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="Where to make the data (default: the temporary folder).")
    parser.add_argument("--source", choices=["study", "random"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.source:
        print(json.dumps(train(options.folder, options.source, options.steps, options.batch)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        started = time.perf_counter()
        make_data(Path(name), options.trials, options.voxels, options.stimuli)
        print(f"data made in {time.perf_counter() - started:.0f} s")
        found = {}
        for source in ("random", "study"):
            command = [sys.executable, __file__, "--source", source, "--folder", name]
            command += ["--steps", str(options.steps), "--batch", str(options.batch)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            found[source] = json.loads(done.stdout.splitlines()[-1])
            print(source, found[source])
    added = found["study"]["peak_gb"] - found["random"]["peak_gb"]
    size = {name: getattr(options, name) for name in ("trials", "voxels", "stimuli", "steps", "batch")}
    machine = {"cpus": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
    write_json(_RESULT, {"size": size, **found, "added_gb": added, "limit_gb": _LIMIT_GB, "machine": machine})
    print(f"the data path adds {added:.2f} GB (limit {_LIMIT_GB:g} GB)")
    return 0 if added < _LIMIT_GB else 1


if __name__ == "__main__":
    sys.exit(main())
