"""How long it takes to look up a prediction in a large gallery, and what FAISS misses.

    python benchmarks/gallery_search.py [--items 1000000] [--width 256] [--queries 200]

Items are Gaussian with standard deviations that fall as 1 / sqrt(k), without clusters (which would make it easy); a
query is an item with half as much noise. Exact search over the same items is the reference for time and for recall.
Results go to benchmarks/results/gallery_search.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from phosphene.files import write_json
from phosphene.rendering import Gallery

RESULTS = Path(__file__).parent / "results" / "gallery_search.json"


def items_and_queries(n: int, width: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Items (n, width) with a decaying spectrum and no clusters to help, and noisy copies of some of them."""
    generator = np.random.default_rng(seed)
    scale = (1 + np.arange(width, dtype=np.float32)) ** -0.5
    items = np.empty((n, width), dtype=np.float32)
    for start in range(0, n, 100_000):
        rows = slice(start, min(start + 100_000, n))
        items[rows] = scale * generator.standard_normal((rows.stop - rows.start, width), dtype=np.float32)
    picked = generator.choice(n, queries, replace=False)
    return items, items[picked] + 0.5 * scale * generator.standard_normal((queries, width), dtype=np.float32)


def timed(gallery: Gallery, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows found, and milliseconds of every query looked up alone."""
    rows, times = [], []
    for query in queries:
        start = time.perf_counter()
        rows.append(gallery.search(query[None], top)[1][0])
        times.append(1000 * (time.perf_counter() - start))
    return np.stack(rows), np.array(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--top", type=int, default=5)
    arguments = parser.parse_args()
    items, queries = items_and_queries(arguments.items, arguments.width, arguments.queries)
    ids = np.char.mod("item-%07d", np.arange(arguments.items))
    quick = Gallery(ids, items, search="faiss")
    start = time.perf_counter()
    quick.index  # noqa: B018  built when first looked at
    built = time.perf_counter() - start
    probes = int(quick.index.nprobe)
    exact = Gallery(ids, items, search="exact")
    expected = exact.search(queries, arguments.top)[1]
    _, slow = timed(exact, queries[:10], arguments.top)
    sweep = []
    for count in sorted({max(1, probes // 16), max(1, probes // 4), probes}):
        quick.index.nprobe = count
        found, fast = timed(quick, queries, arguments.top)
        start = time.process_time()
        quick.search(queries, arguments.top)
        cpu = 1000 * (time.process_time() - start) / len(queries)
        pairs = list(zip(found, expected, strict=True))
        sweep.append(
            {
                "probes": count,
                "ms_per_query": {
                    "median": round(float(np.median(fast)), 2),
                    "p90": round(float(np.quantile(fast, 0.9)), 2),
                },
                "cpu_ms_per_query": round(cpu, 2),  # what other work on the machine does not change
                "recall_at_top": round(
                    float(np.mean([len(np.intersect1d(a, b)) / arguments.top for a, b in pairs])), 4
                ),
                "first_found": round(float(np.mean([a[0] == b[0] for a, b in pairs])), 4),
            }
        )
    result = {
        "items": arguments.items,
        "width": arguments.width,
        "top": arguments.top,
        "cells": int(quick.index.nlist),
        "default_probes": probes,
        "build_seconds": round(built, 1),
        "faiss": sweep,
        "exact_ms_per_query": {"median": round(float(np.median(slow)), 1)},
        "queries": len(queries),
        "threads": {"faiss": faiss.omp_get_max_threads(), "torch": torch.get_num_threads(), "cores": os.cpu_count()},
        "load_average_at_the_end": round(os.getloadavg()[0], 1),
        "versions": {"faiss": faiss.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": f"python benchmarks/gallery_search.py --items {arguments.items} --width {arguments.width} "
        f"--queries {arguments.queries}",
    }
    write_json(RESULTS, result)
    for key, value in result.items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
