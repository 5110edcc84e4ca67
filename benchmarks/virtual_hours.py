"""NSD-like trial counts: one virtual person, 40 sessions of 750 trials (preset `hours`), each decoder with its preset.

    OMP_NUM_THREADS=1 python benchmarks/virtual_hours.py [--seeds 1] [--encoder NAME] [--work FOLDER] [--out JSON]

9,000 training scenes three times, 1,000 test scenes averaged over three repeats; targets `z:pocket`, pooled.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

import phosphene as ph
from phosphene.files import write_json
from phosphene.nn.cost import count_parameters

HERE = Path(__file__).parent
DECODERS = ("ridge", "lite-mind", "mindeye-mlp")


def run(seed: int, name: str, work: Path, encoder: str) -> dict[str, Any]:
    """Fit and score one decoder on one study; kept, so that a run that was stopped goes on."""
    label = f"{seed}-{name}-{encoder.replace(':', '-')}"
    kept = work / f"seed-{label}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    path = work / f"study-{seed}.h5"
    if not path.exists():
        ph.virtual.write_study(path, "hours", seed, subjects=1, progress=False)
    with ph.Study.open(path) as study:
        train = study.split("train").stimulus_ids
        targets = ph.encode(study.stimuli, encoder, fit_on=train, cache=work / "targets", progress=False)
        start = time.perf_counter()
        decoder = ph.fit(name, study, targets, progress=False, seed=seed, out=work / f"run-{label}")
        seconds = time.perf_counter() - start
        card = ph.evaluate(decoder, study, targets, rivals=(), progress=False)
    found: dict[str, Any] = {"seconds": round(seconds), "parameters": count_parameters(decoder).trainable}
    for direction in ("brain_to_image", "image_to_brain"):
        for metric in ("top-1", "two-way"):
            kind = {"metric": metric, "direction": direction, "similarity": "cosine", "subject": "mean"}
            for score in card.find(**kind):
                key = f"{metric} {direction}" + (f" of {score.pool['size']}" if metric == "top-1" else "")
                found[key] = {"value": score.value, "interval": score.interval, "chance": score.chance}
    write_json(kept, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--encoder", default="z:pocket")
    parser.add_argument("--work", type=Path, default=Path("runs/virtual_hours"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "virtual_hours.json")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for seed in arguments.seeds:
        for name in DECODERS:
            found = results.setdefault(f"seed {seed}", {})[name] = run(seed, name, arguments.work, arguments.encoder)
            words = "  ".join(
                f"{key} {score['value']:.3f} [{score['interval'][0]:.3f}, {score['interval'][1]:.3f}]"
                for key, score in found.items()
                if isinstance(score, dict)
            )
            print(
                f"seed {seed} {name:12} {words}  {found['parameters']:,} parameters, {found['seconds']} s", flush=True
            )
    facts = {
        "command": shlex.join(
            [
                "python",
                "benchmarks/virtual_hours.py",
                "--seeds",
                *map(str, arguments.seeds),
                "--encoder",
                arguments.encoder,
            ]
        ),
        "encoder": arguments.encoder,
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, CPU",
        "versions": {"phosphene": ph.__version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }
    write_json(arguments.out, {**facts, "results": results})


if __name__ == "__main__":
    main()
