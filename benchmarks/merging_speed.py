"""How much faster token merging makes a vision tower: CPU-time ratios on one thread, images a second on a GPU.

Run: ``OMP_NUM_THREADS=1 python benchmarks/merging_speed.py`` (about 3 CPU minutes; ``--quick`` for small towers in
seconds). Towers have random weights, as speed does not depend on them: `pocket` of its preset; CLIP towers of the
shapes ViT-B/16 and L/14, whole, and 4 of the 48 blocks of bigG/14, which merge twelve times as much each, so that
tokens fall as over all 48. Ratios: time of the tower without merging (for CLIP transformers' own forward pass on fused
attention) over the time with it, in one process, all in turn in every round, each by its fastest round. Processor time
does not count what else runs on the machine. Where there is a GPU its figures are added (`--parts` chooses), wall
time, bfloat16, eager and compiled, bigG/14 whole; a part that is not run keeps its former figures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nsd_size import machine
from torch import Tensor, nn

from phosphene.encoders.merging import MergeSettings
from phosphene.encoders.merging.hosts import tower_shape, with_merging
from phosphene.encoders.merging.plan import MergePlan
from phosphene.encoders.mlip import MLIP, MLIPConfig
from phosphene.encoders.mlip.image import tower_shape as mlip_shape
from phosphene.files import read_json, write_json
from phosphene.settings import load_preset

RESULTS = Path(__file__).parent / "results" / "merging_speed.json"
OF_PREDICTED = 0.9
FULL = "not merged"
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to merge, and how many times faster it has to be."""

    name: str
    merge: dict[str, Any]
    bar: float | None = None


def variants(rates: list[tuple[dict[str, Any], float | None]], guided: dict[str, Any] | None) -> list[Variant]:
    """Each rate with and without counting sizes in attention, and one rate with each guide."""
    found = []
    for merge, bar in rates:
        how = f"{merge.get('schedule', 'decreasing')}, " + ", ".join(f"{k} = {merge[k]}" for k in merge if k in RATES)
        found.append(Variant(how, merge, bar))
        found.append(Variant(f"{how}, sizes not counted", {**merge, "proportional": False}))
        if merge == guided:
            found += [Variant(f"{how}, guide {guide}", {**merge, "guide": guide}) for guide in GUIDES]
    return found


RATES, GUIDES = ("r", "tokens", "flops"), ("spatial", "frequency", "both")


def constant(r: int) -> dict[str, Any]:
    """Settings that merge r tokens in every block."""
    return {"r": r, "schedule": "constant"}


@dataclass(frozen=True)
class Tower:
    """A tower to be timed.

    Attributes
    ----------
    name : str
    sizes : dict
        Of the configuration of transformers' CLIP, or of MLIP.
    batch, gpu_batch : int
        Pictures at once; 0 leaves the tower out on a GPU.
    blocks : int, optional
        Of a whole CLIP tower: timed on the CPU are the ones of `sizes`, on a GPU all.
    """

    name: str
    sizes: dict[str, Any]
    batch: int
    variants: list[Variant]
    gpu_batch: int = 256
    blocks: int | None = None
    gpu_variants: list[Variant] = field(default_factory=list)


def clip(width: int, mlp: int, blocks: int, heads: int, patch: int, side: int = 224) -> dict[str, Any]:
    """Sizes of a CLIP vision tower."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": side,
    }


def towers(quick: bool) -> list[Tower]:
    """The towers of the table, or small ones that take the same ways."""
    if quick:
        small = variants([(constant(4), None)], constant(4))
        pocket = {"width": 32, "text_width": 32, "embed": 16}
        return [
            Tower("pocket, small", pocket, 2, variants([({"tokens": 0.5}, None)], None), 4),
            Tower("CLIP, small", clip(32, 64, 4, 4, 8, 64), 2, small, 4, 6),
        ]
    base = [(constant(8), 1.30), (constant(13), 1.55), (constant(16), 1.75)]
    pocket_rates: list[tuple[dict[str, Any], float | None]] = [({"tokens": 0.5}, None), ({"tokens": 0.25}, None)]
    few, big = variants([({"r": 48}, None)], None), variants([({"r": 4}, None)], None)
    return [
        Tower(
            "pocket",
            load_preset("encoders", "mlip", "pocket")["model"],
            32,
            variants(pocket_rates, {"tokens": 0.5}),
            1024,
        ),
        Tower("ViT-B/16", clip(768, 3072, 12, 12, 16), 4, variants(base, constant(13)), 256),
        Tower("ViT-L/14", clip(1024, 4096, 24, 16, 14), 2, variants([({"r": 8}, 1.8)], None), 128),
        Tower("bigG/14", clip(1664, 8192, 4, 16, 14), 4, few, 64, 48, big),
        Tower("bigG/14, one picture", clip(1664, 8192, 4, 16, 14), 1, few, 0, 48),
    ]


# -- a tower as functions -----------------------------------------------------------------------------------------


def calls(tower: Tower, device: str, dtype: torch.dtype) -> tuple[dict[str, Call], dict[str, MergePlan], int]:
    """What is timed, by name, each from pixels to pooled embeddings; the plans of merging; pixels a side."""
    torch.manual_seed(0)
    gpu = device == "cuda"
    chosen = tower.gpu_variants if gpu and tower.gpu_variants else tower.variants
    if "hidden_size" not in tower.sizes:
        return _mlip_calls(tower.sizes, chosen, device, dtype)
    from transformers import CLIPVisionConfig, CLIPVisionModel

    blocks = tower.blocks if gpu and tower.blocks else tower.sizes["num_hidden_layers"]
    config = CLIPVisionConfig(**{**tower.sizes, "num_hidden_layers": blocks}, attn_implementation="sdpa")
    with torch.device(device):
        network: Any = CLIPVisionModel(config).to(dtype).eval()
    found: dict[str, Call] = {FULL: lambda pixels: network(pixels).pooler_output}
    plans = {}
    for variant in chosen:
        settings = MergeSettings(**variant.merge)
        merged = with_merging(network, settings)
        found[variant.name] = lambda pixels, merged=merged: merged(pixels).pooled
        plans[variant.name] = tower_shape(config).plan(settings)
    return found, plans, config.image_size


def _mlip_calls(
    sizes: dict[str, Any], chosen: list[Variant], device: str, dtype: torch.dtype
) -> tuple[dict[str, Call], dict[str, MergePlan], int]:
    config = MLIPConfig(**sizes)
    weights = MLIP(config).state_dict()

    def call(merge: MergeSettings | None) -> Call:
        model: nn.Module = MLIP(config.model_copy(update={"merge": merge}))
        model.load_state_dict(weights)
        network: Any = model.to(device).eval()

        def embed(pixels: Tensor) -> Tensor:
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):  # transforms stay in float32
                embedded: Tensor = network.encode_image(pixels.float(), tokens=False).spatial
            return embedded

        return embed

    settings = {variant.name: MergeSettings(**variant.merge) for variant in chosen}
    found = {FULL: call(None), **{name: call(merge) for name, merge in settings.items()}}
    return found, {name: mlip_shape(config).plan(merge) for name, merge in settings.items()}, config.image_size


# -- processor time -----------------------------------------------------------------------------------------------


def cpu_rows(tower: Tower, rounds: int) -> list[dict[str, Any]]:
    """Seconds of processor time, ratios to the tower without merging, and what operations predict."""
    found, plans, side = calls(tower, "cpu", torch.float32)
    pixels = torch.randn(tower.batch, 3, side, side)
    times: dict[str, list[float]] = {name: [] for name in found}
    with torch.inference_mode():
        for call in found.values():
            call(pixels[:1])  # warms up
        for _ in range(rounds):
            for name, call in found.items():
                start = time.process_time()
                call(pixels)
                times[name].append(time.process_time() - start)
    full = times[FULL]
    rows: list[dict[str, Any]] = [{"variant": FULL, "seconds": round(min(full), 4)}]
    bars = {variant.name: variant.bar for variant in tower.variants}
    for name, plan in plans.items():
        ratio, predicted = min(full) / min(times[name]), 1 / plan.flops
        by_round = [one / other for one, other in zip(full, times[name], strict=True)]
        rows.append(
            {
                "variant": name,
                "tokens": [plan.tokens, plan.remaining],
                "seconds": round(min(times[name]), 4),
                "times_faster": round(ratio, 3),
                "median_over_rounds": round(statistics.median(by_round), 3),
                "predicted": round(predicted, 3),
                "of_predicted": round(ratio / predicted, 3),
                "bar": bars[name],
            }
        )
    return rows


def cpu_part(chosen: list[Tower], rounds: int, former: dict[str, Any]) -> dict[str, Any]:
    """Towers on one thread; those that are not chosen keep their former figures."""
    torch.set_num_threads(1)
    result: dict[str, Any] = dict(former.get("towers", {}))
    hardware = machine()
    del hardware["load_at_start"]
    for tower in chosen:
        load, begun = os.getloadavg()[0], time.process_time()
        rows = cpu_rows(tower, rounds)
        blocks = tower.sizes.get("num_hidden_layers")
        result[tower.name] = {
            "batch": tower.batch,
            "blocks": blocks,
            "of_blocks": tower.blocks or blocks,
            "rounds": rounds,
            "load_of_the_machine": [round(load, 1), round(os.getloadavg()[0], 1)],
            "cpu_seconds": round(time.process_time() - begun, 1),
            "rows": rows,
        }
        print(*cpu_table(tower.name, result[tower.name]), sep="\n", flush=True)
    return {"machine": hardware, "threads": 1, "towers": result, "met": verdicts(result)}


def verdicts(result: dict[str, Any]) -> dict[str, bool]:
    """Which bars were met."""
    met = {}
    for name, one in result.items():
        for row in one["rows"][1:]:
            if row["bar"] is not None:
                met[f"{name}, {row['variant']}: {row['bar']:.2f}x"] = row["times_faster"] >= row["bar"]
            met[f"{name}, {row['variant']}: {OF_PREDICTED} of predicted"] = row["of_predicted"] >= OF_PREDICTED
    return met


def cpu_table(name: str, one: dict[str, Any]) -> list[str]:
    """Markdown of one tower."""
    part = "" if one["blocks"] == one["of_blocks"] else f", {one['blocks']} of {one['of_blocks']} blocks"
    lines = [
        f"\n{name}{part}, batch {one['batch']}: {one['rows'][0]['seconds']:.3f} s not merged\n",
        "| merging | tokens | faster | bar | operations predict | share of that |",
        "|---|---|---|---|---|---|",
    ]
    for row in one["rows"][1:]:
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}x"
        lines.append(
            f"| {row['variant']} | {row['tokens'][0]} -> {row['tokens'][1]} | {row['times_faster']:.2f}x | {bar} | "
            f"{row['predicted']:.2f}x | {row['of_predicted']:.2f} |"
        )
    return lines


# -- a GPU --------------------------------------------------------------------------------------------------------


def images_a_second(call: Call, pixels: Tensor, rounds: int, seconds: float = 0.5) -> float:
    """By the fastest of several stretches of calls on the clock."""
    call(pixels)
    torch.cuda.synchronize()
    start = time.perf_counter()
    call(pixels)
    torch.cuda.synchronize()
    times = max(1, round(seconds / (time.perf_counter() - start)))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            call(pixels)
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / times)
    return len(pixels) / best


def gpu_part(chosen: list[Tower], rounds: int, former: dict[str, Any]) -> dict[str, Any]:
    """Towers in bfloat16, eager and compiled; those that are not chosen keep their former figures."""
    result: dict[str, Any] = dict(former.get("towers", {}))
    for tower in (one for one in chosen if one.gpu_batch):
        found, plans, side = calls(tower, "cuda", torch.bfloat16)
        pixels = torch.randn(tower.gpu_batch, 3, side, side, device="cuda", dtype=torch.bfloat16)
        rows = []
        with torch.inference_mode():
            for name, call in found.items():
                torch.compiler.reset()
                eager = images_a_second(call, pixels, rounds)
                compiled = images_a_second(torch.compile(call, fullgraph=name != FULL), pixels, rounds)
                plan = plans.get(name)
                rows.append(
                    {
                        "variant": name,
                        "tokens": None if plan is None else [plan.tokens, plan.remaining],
                        "predicted": None if plan is None else round(1 / plan.flops, 3),
                        "eager": round(eager, 1),
                        "compiled": round(compiled, 1),
                    }
                )
        result[tower.name] = {"batch": tower.gpu_batch, "rows": rows}
        print(*gpu_table(tower.name, result[tower.name]), sep="\n", flush=True)
        del found
        torch.cuda.empty_cache()
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "precision": "bfloat16"}
    return {**facts, "rounds": rounds, "towers": result}


def gpu_table(name: str, one: dict[str, Any]) -> list[str]:
    """Markdown of one tower."""
    full = one["rows"][0]
    lines = [
        f"\n{name}, batch {one['batch']}, images a second\n",
        "| merging | tokens | eager | | compiled | | operations predict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in one["rows"]:
        tokens = "" if row["tokens"] is None else f"{row['tokens'][0]} -> {row['tokens'][1]}"
        faster = [f"{row[how]:,.0f} | {row[how] / full[how]:.2f}x" for how in ("eager", "compiled")]
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.2f}x"
        lines.append(f"| {row['variant']} | {tokens} | {' | '.join(faster)} | {predicted} |")
    return lines


def main() -> int:
    """Measure, print and write the figures; the exit status is 1 where a bar of the CPU part is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--parts", nargs="+", choices=["cpu", "gpu"], help="default: cpu, and gpu where there is one")
    parser.add_argument("--towers", nargs="+", metavar="NAME", help="some only; the others keep their former figures")
    parser.add_argument("--quick", action="store_true", help="small towers, to see that everything runs")
    parser.add_argument("--json", type=Path, help=f"default: {RESULTS.name} beside the other results; quick: none")
    options = parser.parse_args()
    parts = options.parts or ["cpu", *(["gpu"] if torch.cuda.is_available() else [])]
    path = options.json or (None if options.quick else RESULTS)
    result: dict[str, Any] = read_json(path) if path is not None and path.exists() else {}
    result["benchmark"] = "merging_speed"
    known = {tower.name: tower for tower in towers(options.quick)}
    names = options.towers or list(known)
    if wrong := [name for name in names if name not in known]:
        parser.error(f"--towers has {', '.join(wrong)}; there are {', '.join(known)}")
    for part in parts:
        measure = cpu_part if part == "cpu" else gpu_part
        result[part] = measure([known[name] for name in names], options.rounds, result.get(part, {}))
        if path is not None:
            write_json(path, result)
    met = result["cpu"]["met"] if "cpu" in parts and not options.quick else {}
    print("\n".join(f"{'met   ' if good else 'MISSED'} {name}" for name, good in met.items()))
    return int(not all(met.values()))


if __name__ == "__main__":
    sys.exit(main())
