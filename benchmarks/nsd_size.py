"""What decoders of NSD subject 1 cost: 15,724 voxels to 257 x 768 tokens; parameters, multiply-adds, CPU latency.

Run: ``OMP_NUM_THREADS=1 python benchmarks/nsd_size.py``. Networks: lite-mind and mindeye-mlp (preset nsd), and
lite-mind-published, the released layout rebuilt in `lite_mind_published`. Multiply-adds are counted by the formula of
`phosphene.nn.cost.MultiplyAdds`. For latency the networks take turns in every round, so that a slow moment of the
machine falls on all of them; a ratio is the median over rounds of the two times of the same round.
mindeye-mlp alone takes 3.8 GB; ``--without-mindeye`` leaves its latency out.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lite_mind_published import PUBLISHED_PARAMETERS, PublishedLiteMind
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from phosphene import __version__
from phosphene.decoders import make_decoder
from phosphene.files import write_json
from phosphene.nn.cost import MultiplyAdds, count_parameters, with_gradient

RESULTS = Path(__file__).parent / "results" / "nsd_size.json"
VOXELS, SHAPE, SUBJECT = 15_724, (257, 768), "sub-01"
LIMITS = {"parameters": 12_300_000, "multiply_adds": 0.25e9, "times_faster_than_published": 2.0}
OURS, RIVAL, PUBLISHED = "lite-mind", "mindeye-mlp", "lite-mind-published"


def build(name: str) -> nn.Module:
    """One of the three networks, untrained, in eval mode."""
    torch.manual_seed(0)
    if name == PUBLISHED:
        return PublishedLiteMind(VOXELS, SHAPE).eval()
    return make_decoder(name, "nsd", subjects={SUBJECT: VOXELS}, target_shape=SHAPE).eval()


def tokens_of(network: nn.Module, responses: Tensor) -> Tensor:
    """Predicted tokens ``(batch, 257, 768)``; for decoders with all their checks."""
    if isinstance(network, PublishedLiteMind):
        return network(responses)
    return network(responses, SUBJECT).tokens


def size(name: str) -> dict[str, Any]:
    """Parameters and multiply-adds; the large rival is counted without being allocated."""
    with torch.device("meta" if name == RIVAL else "cpu"):
        network = build(name)
        responses = torch.zeros(1, VOXELS)
    with torch.no_grad(), MultiplyAdds() as count:
        # values on the meta device cannot be checked for NaN, so the check is stepped over there
        _ = network._decode(responses, SUBJECT) if name == RIVAL else tokens_of(network, responses)
    counts = count_parameters(network)
    return {
        "parameters": counts.total,
        "trainable": counts.trainable,
        "with_gradient": None if name == RIVAL else gradients(network),
        "multiply_adds": round(count.total),
        "by_operation": {operation: round(amount) for operation, amount in sorted(count.by_operation.items())},
    }


def gradients(network: nn.Module, batch: int = 8) -> int:
    """Parameter values with a non-zero gradient over two optimiser steps of a contrastive loss (dropout as trained)."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(1)

    def loss() -> Tensor:
        responses = torch.randn(batch, VOXELS, generator=generator)
        wanted = nn.functional.normalize(torch.randn(batch, SHAPE[0] * SHAPE[1], generator=generator), dim=1)
        predicted = nn.functional.normalize(tokens_of(network, responses).flatten(1), dim=1)
        return nn.functional.cross_entropy(predicted @ wanted.T / 0.05, torch.arange(batch))

    def second() -> Tensor:
        optimizer.step()
        return loss()

    reached = with_gradient(network, [loss, second])
    network.eval()
    return reached


def latencies(names: list[str], batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a call on the clock, network by network in every round."""
    networks = {name: build(name) for name in names}
    responses = torch.randn(batch, VOXELS, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for network in networks.values():
            tokens_of(network, responses[:1])  # warms up
        for _ in range(rounds):
            for name, network in networks.items():
                times[name].append(_clock(lambda network=network: tokens_of(network, responses)))
    return times


def _clock(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def summary(times: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """Milliseconds a sample (median, fastest), and how many times faster lite-mind is than the others."""
    result: dict[str, Any] = {
        name: {
            "median_ms_a_sample": round(statistics.median(spent) / batch * 1e3, 3),
            "fastest_ms_a_sample": round(min(spent) / batch * 1e3, 3),
        }
        for name, spent in times.items()
    }
    for name in times:
        if name != OURS:
            ratios = sorted(other / ours for other, ours in zip(times[name], times[OURS], strict=True))
            result[name]["lite_mind_times_faster"] = round(statistics.median(ratios), 2)
            result[name]["lite_mind_times_faster_range"] = [round(ratios[0], 2), round(ratios[-1], 2)]
    return result


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "phosphene": __version__,
    }


def show(sizes: dict[str, Any], speeds: dict[str, Any]) -> None:
    """Print both tables."""
    table = Table(title=f"{VOXELS:,} voxels to {SHAPE[0]} x {SHAPE[1]} tokens")
    for column in ("network", "parameters", "with gradient", "multiply-adds"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, one in sizes.items():
        reached = "-" if one["with_gradient"] is None else f"{one['with_gradient']:,}"
        table.add_row(name, f"{one['parameters']:,}", reached, f"{one['multiply_adds'] / 1e9:.3f} G")
    Console().print(table)
    table = Table(title="CPU latency, ms a sample (median of rounds)")
    for column in ("batch", "threads", "network", "median", "fastest", "lite-mind is faster by"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for setting, result in speeds.items():
        batch, threads = setting.split(", ")
        for name, one in result.items():
            faster = one.get("lite_mind_times_faster")
            row = (name, f"{one['median_ms_a_sample']:.2f}", f"{one['fastest_ms_a_sample']:.2f}")
            table.add_row(batch.split()[1], threads.split()[0], *row, "" if faster is None else f"{faster:.2f}x")
    Console().print(table)


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, nargs=2, default=[15, 5], help="rounds at batch 1 and at batch 300")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--without-mindeye", action="store_true", help="leave the latency of mindeye-mlp out")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    hardware = machine()
    sizes = {name: size(name) for name in (OURS, PUBLISHED, RIVAL)}
    if sizes[PUBLISHED]["parameters"] != PUBLISHED_PARAMETERS:
        raise SystemExit(f"the rebuilt layout has {sizes[PUBLISHED]['parameters']:,} parameters")
    names = [OURS, PUBLISHED] if options.without_mindeye else [OURS, PUBLISHED, RIVAL]
    speeds = {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch, rounds in zip((1, 300), options.rounds, strict=True):
            speeds[f"batch {batch}, {threads} thread{'s' * (threads > 1)}"] = summary(
                latencies(names, batch, rounds), batch
            )
    ratios = [one[PUBLISHED]["lite_mind_times_faster"] for one in speeds.values()]
    ours = sizes[OURS]
    met = {
        "parameters": ours["parameters"] <= LIMITS["parameters"],
        "every_parameter_gets_gradient": ours["with_gradient"] == ours["parameters"],
        "multiply_adds": ours["multiply_adds"] <= LIMITS["multiply_adds"],
        "times_faster_than_published": min(ratios) >= LIMITS["times_faster_than_published"],
    }
    show(sizes, speeds)
    protocol = "eval mode, float32, no gradients; networks take turns; medians over rounds, after one warm-up call"
    write_json(
        options.json,
        {
            "benchmark": "nsd_size",
            "voxels": VOXELS,
            "target_shape": list(SHAPE),
            "machine": hardware,
            "protocol": protocol,
            "rounds": dict(zip(("batch 1", "batch 300"), options.rounds, strict=True)),
            "sizes": sizes,
            "latency": speeds,
            "limits": LIMITS,
            "met": met,
        },
    )
    Console().print("\n".join(f"{'met ' if good else 'MISSED'} {name}" for name, good in met.items()))


if __name__ == "__main__":
    main()
