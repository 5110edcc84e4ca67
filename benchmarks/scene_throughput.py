"""How many procedural scenes one core renders a second.

Run: ``OMP_NUM_THREADS=1 python benchmarks/scene_throughput.py``. One thread; a round draws new scene graphs and
renders them. Rates are per second of processor time of this process (one core's worth, whatever else the machine
does) and per second on the clock; the median and the slowest round are given.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from phosphene.files import write_json
from phosphene.stimuli import scenes

RESULTS = Path(__file__).parent / "results" / "scene_throughput.json"
WANTED = 500.0


def rounds(n: int, size: int, repeats: int) -> dict[str, float]:
    """Rates of graphs, pictures and captions over `repeats` rounds of `n` scenes each."""
    scenes.render(scenes.sample_graphs(64, seed=99), size=size)
    spent: dict[str, list[float]] = {"graphs": [], "render": [], "clock": [], "captions": []}
    for repeat in range(repeats):
        marks = [time.process_time()]
        graphs = scenes.sample_graphs(n, seed=1, start=repeat * n)
        marks.append(time.process_time())
        clock = time.perf_counter()
        scenes.render(graphs, size=size)
        spent["clock"].append(time.perf_counter() - clock)
        marks.append(time.process_time())
        scenes.captions(graphs)
        marks.append(time.process_time())
        for name, seconds in zip(("graphs", "render", "captions"), np.diff(marks), strict=True):
            spent[name].append(float(seconds))
    both = np.array(spent["graphs"]) + np.array(spent["render"])
    return {
        "scenes_per_cpu_second": round(n / float(np.median(both)), 1),
        "scenes_per_cpu_second_slowest_round": round(n / float(np.max(both)), 1),
        "scenes_per_clock_second": round(n / float(np.median(spent["clock"])), 1),
        "graphs_per_cpu_second": round(n / float(np.median(spent["graphs"])), 1),
        "captioned_scenes_per_cpu_second": round(n / float(np.median(spent["captions"])), 1),
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1024, help="scenes a round")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = scenes.count_graphs()
    sizes = {str(size): rounds(options.scenes * 64**2 // size**2, size, options.repeats) for size in options.sizes}
    result = {
        "protocol": "one thread; a round draws graphs and renders; rates by processor time, median over rounds",
        "scenes_a_round_at_64": options.scenes,
        "repeats": options.repeats,
        "by_size": sizes,
        "wanted_scenes_per_second_a_core_at_64": WANTED,
        "distinct_discrete_graphs": {str(number): count for number, count in counts.items()},
        "distinct_discrete_graphs_total": sum(counts.values()),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load_average_at_end": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    write_json(options.json, result)
    for size, figures in sizes.items():
        print(f"{size} x {size}: " + ", ".join(f"{name} {value:,.0f}" for name, value in figures.items()))
    if "64" in sizes and sizes["64"]["scenes_per_cpu_second"] < WANTED:
        raise SystemExit(f"below the wanted {WANTED:.0f} scenes a second")


if __name__ == "__main__":
    main()
