"""Effective rank of predicted tokens after training, beside the true tokens and the published layout.

Run: ``OMP_NUM_THREADS=2 python benchmarks/token_rank.py``. A made-up study at NSD subject 1's voxel count with fewer
tokens (65 x 768, what a laptop trains on in minutes): a stimulus is a vector of independent factors; its tokens are
maps of them with a slowly falling spectrum, each token mixing a few maps; voxels are noisy mixtures of the factors.
Both networks (lite-mind with the shape of its preset nsd) get the same batches, steps and loss, symmetric InfoNCE and
a squared error. The rank is the participation ratio of the centred tokens of held-out stimuli, tokens being the rows;
beside it the number of singular values above a millionth of the largest.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lite_mind_published import PublishedLiteMind
from nsd_size import OURS, PUBLISHED, SUBJECT, VOXELS, machine, tokens_of
from torch import Tensor, nn

from phosphene.decoders import make_decoder
from phosphene.evaluation.audits import participation_ratio
from phosphene.files import write_json
from phosphene.nn.cost import count_parameters
from phosphene.training.losses import infonce, mse
from phosphene.training.validation import retrieval

RESULTS = Path(__file__).parent / "results" / "token_rank.json"
SHAPE, FACTORS, DICTIONARY, MAPS = (65, 768), 60, 200, 6
WANTED = 34


def study(n: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Responses ``(n, V)`` and tokens ``(n, tokens, width)``; maps depend on `seed` alone."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(MAPS, FACTORS * DICTIONARY)).astype(np.float32) / FACTORS**0.5
    maps = (rng.normal(size=(SHAPE[0], MAPS)).astype(np.float32) / MAPS**0.5 @ maps).reshape(-1, FACTORS, DICTIONARY)
    scale = np.arange(1, DICTIONARY + 1, dtype=np.float32) ** -0.25
    atoms = np.linalg.qr(rng.normal(size=(SHAPE[1], DICTIONARY)))[0].T.astype(np.float32)
    tuning = rng.normal(size=(FACTORS, VOXELS)).astype(np.float32) / FACTORS**0.5
    means = rng.normal(size=SHAPE).astype(np.float32)
    factors = rng.normal(size=(n, FACTORS)).astype(np.float32)
    responses = factors @ tuning
    responses += noise * rng.standard_normal(responses.shape, dtype=np.float32)
    tokens = np.stack([(factors @ one * scale) @ atoms for one in maps], axis=1) + means
    return torch.from_numpy(responses), torch.from_numpy(tokens)


def build(name: str) -> nn.Module:
    """The network for the study's shape."""
    torch.manual_seed(0)
    if name == PUBLISHED:
        return PublishedLiteMind(VOXELS, SHAPE)
    return make_decoder(OURS, "nsd", subjects={SUBJECT: VOXELS}, target_shape=SHAPE)


def train(network: nn.Module, responses: Tensor, tokens: Tensor, steps: int, batch: int, rate: float) -> None:
    """AdamW with warm-up and cosine, InfoNCE in both directions and a light squared error."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    variance = tokens.var(dim=0).mean()
    network.train()
    for _ in range(steps):
        rows = torch.randperm(len(responses), generator=generator)[:batch]
        predicted = tokens_of(network, responses[rows]).flatten(1)
        wanted = tokens[rows].flatten(1)
        loss = infonce(predicted, wanted, torch.arange(batch), 0.05) + mse(predicted, wanted, variance)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()


def ranks(tokens: Tensor) -> dict[str, Any]:
    """Participation ratio and numerical rank of tokens as rows."""
    rows = tokens.reshape(-1, tokens.shape[-1]).double()
    values = torch.linalg.eigvalsh(torch.cov(rows.T)).clamp_min(0).sqrt()
    return {
        "participation_ratio": round(participation_ratio(rows.numpy()), 1),
        "numerical_rank": int((values > 1e-6 * values[-1]).sum()),
    }


def main() -> None:
    """Train both networks, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--train", type=int, default=1000, help="training stimuli, one trial each")
    parser.add_argument("--noise", type=float, default=1.0, help="deviation of the noise, in that of the signal")
    parser.add_argument("--without-published", action="store_true", help="train lite-mind only")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    responses, tokens = study(options.train + 200, options.noise, seed=0)
    test = slice(options.train, None)
    result: dict[str, Any] = {"true": ranks(tokens[test])}
    for name in (OURS,) if options.without_published else (OURS, PUBLISHED):
        network, start = build(name), time.perf_counter()
        train(network, responses[: options.train], tokens[: options.train], options.steps, options.batch, options.rate)
        with torch.no_grad():
            predicted = tokens_of(network, responses[test])
        scores = retrieval(predicted.flatten(1), tokens[test].flatten(1))
        result[name] = {
            **ranks(predicted),
            "parameters": count_parameters(network).total,
            "top_1_of_200": round(scores["top-1"], 3),
            "two_way": round(scores["two-way"], 4),
            "seconds": round(time.perf_counter() - start, 1),
        }
        print(name, result[name], flush=True)
    ratio = result[OURS]["participation_ratio"] / result["true"]["participation_ratio"]
    met = {
        "at_least_half_of_the_true": ratio >= 0.5,
        f"above_{WANTED}": result[OURS]["participation_ratio"] > WANTED,
    }
    print("true", result["true"], met)
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    write_json(
        options.json,
        {
            "benchmark": "token_rank",
            "voxels": VOXELS,
            "target_shape": list(SHAPE),
            "settings": settings,
            "machine": machine(),
            "results": result,
            "of_true": round(ratio, 3),
            "met": met,
        },
    )


if __name__ == "__main__":
    main()
