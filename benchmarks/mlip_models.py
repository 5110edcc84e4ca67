"""The models that the MLIP benchmarks compare: an MLIP, the equally large CLIP, the same tower without training."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phosphene.encoders.mlip import MLIP, MLIPConfig, load_model, save_model
from phosphene.encoders.mlip.encoder import find_mlip
from phosphene.encoders.mlip.store import read_config
from phosphene.errors import InputError
from phosphene.settings import merge
from phosphene.training.pretraining import pretrain
from phosphene.training.pretraining.settings import pretrain_settings

__all__ = ["Pair", "add_options", "describe", "pairs", "plain_clip", "recipe", "untrained"]

log = logging.getLogger("mlip_models")

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Pair:
    """Folders of an MLIP and of the CLIP it is held against, where there is one."""

    mlip: Path
    clip: Path | None

    def folders(self) -> dict[str, Path]:
        """Those that are there, by name."""
        return {"mlip": self.mlip} | ({} if self.clip is None else {"clip": self.clip})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which models are compared."""
    parser.add_argument("--mlip", nargs="+", default=["pocket"], help="MLIP models, by name or folder; one a seed")
    parser.add_argument("--clip", nargs="+", default=[], help="CLIP models of the same size, or 'train' (takes long)")
    parser.add_argument("--pretrain", type=int, help="train both here instead, for so many steps of --preset")
    parser.add_argument("--preset", default="pocket-cpu", help="of --pretrain")
    parser.add_argument("--pretrain-seeds", type=int, nargs="+", default=[1000], help="of --pretrain; a pair each")


def plain_clip(tables: Tables) -> Tables:
    """The settings of an MLIP turned into those of a CLIP: as many blocks, all of attention, and the CLIP loss alone.

    Data, steps, batches, learning rate and the text tower stay what they are.
    """
    model = tables["model"]
    blocks = {"spectral_blocks": 0, "spatial_blocks": model["spatial_blocks"] + model["spectral_blocks"]}
    heads = {"frequency_head": False, "token_heads": False, "arrangement": "sequential"}
    others = ("frequency_weight", "spatial_token_weight", "frequency_token_weight")
    return merge(tables, {"model": blocks | heads, "objective": {"spatial_weight": 1.0} | dict.fromkeys(others, 0.0)})


def recipe(folder: Path) -> tuple[Tables, int]:
    """Settings and seed that a model was trained with, from its own record."""
    facts = read_config(folder)["facts"]
    if "settings" not in facts or "seed" not in facts:
        raise SystemExit(f"{folder.name} does not say how it was trained: give the CLIP as a folder, or --pretrain N")
    return facts["settings"], facts["seed"]


def pairs(options: argparse.Namespace, work: Path) -> list[Pair]:
    """The pairs that the options ask for; models that are to be trained are, or go on from their checkpoints."""
    if options.pretrain is not None:
        return [_trained(options.preset, options.pretrain, seed, work) for seed in options.pretrain_seeds]
    folders = [_found(name) for name in options.mlip]
    if options.clip == ["train"]:
        return [Pair(folder, _twin(folder, work)) for folder in folders]
    if options.clip and len(options.clip) != len(folders):
        raise SystemExit(f"--mlip names {len(folders)} models, --clip {len(options.clip)}: they are compared in pairs")
    if not options.clip:
        log.warning("no --clip: MLIP is compared with everything but a CLIP of its size (--clip FOLDER or train)")
        return [Pair(folder, None) for folder in folders]
    return [Pair(folder, _found(name)) for folder, name in zip(folders, options.clip, strict=True)]


def describe(folder: Path) -> dict[str, Any]:
    """What a model is, without its folder: hash of the weights, sizes, training."""
    content = read_config(folder)
    model, facts = load_model(folder)[0], content["facts"]
    tower = [*model.image.parameters(), *model.spatial_projection.parameters()]
    return {
        "weights": content["weights"],
        "parameters": sum(one.numel() for one in model.parameters()),
        "image_tower_parameters": sum(one.numel() for one in tower),
        "blocks": [model.config.spectral_blocks, model.config.spatial_blocks],
        **{key: facts.get(key) for key in ("preset", "seed", "steps", "pairs_seen", "hardware")},
    }


def untrained(folder: Path, out: Path, seed: int) -> Path:
    """The model of a folder with random weights and the same tokenizer, as a folder."""
    target = out / f"untrained-{read_config(folder)['weights'][:12]}-{seed}"
    if not (target / "config.json").is_file():
        tokenizer = load_model(folder)[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = MLIP(MLIPConfig.build(read_config(folder)["model"]))
        facts = {key: value for key, value in read_config(folder)["facts"].items() if key == "settings"}
        save_model(target, model, tokenizer, facts={**facts, "seed": seed, "steps": 0})
    return target


def _found(name: str) -> Path:
    try:
        folder = find_mlip(name)
        read_config(folder)
    except InputError as error:
        raise SystemExit(
            f"{error}\nName a model with --mlip FOLDER, or train a pair here with --pretrain STEPS"
        ) from None
    return folder


def _twin(folder: Path, work: Path) -> Path:
    """A CLIP trained as the MLIP of a folder was: same data, same steps, same seed."""
    tables, seed = recipe(folder)
    took = read_config(folder)["facts"].get("seconds", 0.0)
    log.info("training the CLIP of %s's size; the MLIP took %.0f minutes of its machine", folder.name, took / 60)
    out = work / f"clip-{read_config(folder)['weights'][:12]}"
    return pretrain(None, out=out, seed=seed, settings=plain_clip(tables))


def _trained(preset: str, steps: int, seed: int, work: Path) -> Pair:
    whole = pretrain_settings(preset)
    simple = round(whole.data.simple_batches * steps / whole.training.steps)  # as large a share of the shorter run
    fewer = {"training": {"steps": steps, "probe_steps": 0}, "data": {"simple_batches": simple}}
    tables = pretrain_settings(preset, fewer).model_dump(mode="json")
    made: Sequence[tuple[str, Tables]] = [("mlip", tables), ("clip", plain_clip(tables))]
    folders = [
        pretrain(None, out=work / f"{name}-{preset}-{steps}-{seed}", seed=seed, settings=settings)
        for name, settings in made
    ]
    return Pair(*folders)
