"""Time and size of virtual studies: the speed the project promises, and the `nsd` preset by one or more sessions.

python benchmarks/virtual_study.py speed                      # 4 people x 2,000 voxels x 2,000 stimuli x 3
python benchmarks/virtual_study.py nsd --subjects 1 --sessions 2 --json nsd.json
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from phosphene.recordings import Study
from phosphene.virtual import make_settings, simulate, write_study


def speed(seed: int) -> dict[str, Any]:
    """The promise: under a minute on two cores."""
    settings = make_settings(
        None,
        subjects=4,
        sessions=8,
        repeats=3,
        person={"voxels": 2000},
        stimuli={"test": 200, "common": 1800, "own": 0},
    )
    wall, cpu = time.perf_counter(), time.process_time()
    study = simulate(settings, seed).study
    facts = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    person = study.recordings["sub-01"]
    return {
        "study": f"{len(study.subjects)} people, {person.n_voxels} voxels, {len(study.stimuli)} stimuli, 3 repeats",
        "trials_a_person": person.n_trials,
        **facts,
    }


def nsd(seed: int, subjects: int, sessions: int) -> dict[str, Any]:
    """Stream the first part of the `nsd` preset and scale time and size up to the whole."""
    whole = make_settings("nsd")
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        path = write_study(Path(folder) / "study.h5", "nsd", seed, subjects=subjects, sessions=sessions)
        taken = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        size = path.stat().st_size
        with Study.open(path) as study:
            values = sum(r.n_trials * r.n_voxels for r in study.recordings.values())
            stimuli = len(study.stimuli)
    people = [whole.of(name) for name in whole.names]
    all_values = sum(p.voxels * (p.sessions or 0) * (whole.trials or 0) for p in people)
    all_stimuli = whole.stimuli.test + whole.subjects * whole.stimuli.own
    return {
        "part": f"{subjects} people, {sessions} sessions, {stimuli} stimuli",
        **taken,
        "gigabytes": size / 1e9,
        "share_of_responses": values / all_values,
        "whole_gigabytes_of_responses": all_values * 4 / 1e9,
        "whole_gigabytes_of_pictures_at_most": all_stimuli * whole.stimuli.size**2 * 3 / 1e9,
        "whole_minutes_by_extrapolation": taken["wall_s"] / 60 * all_values / values,
        "whole_processor_minutes_by_extrapolation": taken["cpu_s"] / 60 * all_values / values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "nsd"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subjects", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures = speed(asked.seed) if asked.what == "speed" else nsd(asked.seed, asked.subjects, asked.sessions)
    figures |= {
        "peak_memory_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "threads": torch.get_num_threads(),
        "seed": asked.seed,
    }
    print(json.dumps(figures, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
