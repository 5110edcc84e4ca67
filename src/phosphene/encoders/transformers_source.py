"""Where transformers models come from: a local folder or the local hub cache; never the network, never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phosphene.encoders.pretrained import PretrainedEncoder
from phosphene.errors import InputError, require
from phosphene.files import digest, read_json

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersEncoder", "find_model", "load_network", "model_facts", "tower_config", "transformers"]

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
# keys of config.json that name a place or a version and change nothing that comes out
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")


def transformers(purpose: str) -> Any:
    """The transformers package, or an error that says how to install it."""
    return require("transformers", "clip", purpose)


def find_model(source: str) -> Path:
    """Folder of a model given by hub name or local folder.

    A relative name is looked for in the working folder, in the folder named by ``PHOSPHENE_MODELS``, and in the local
    hub cache. Nothing is downloaded.

    Raises
    ------
    InputError
        When it is nowhere, saying how to get it.
    """
    places = [Path(source).expanduser()]
    if os.environ.get("PHOSPHENE_MODELS"):
        places.append(Path(os.environ["PHOSPHENE_MODELS"]) / source)
    for place in places:
        if (place / "config.json").is_file():
            return place
        if place.is_dir():
            raise InputError(f"{place} is a folder without config.json, so not one of a transformers model")
    cached = _in_hub_cache(source)
    if cached is not None:
        return cached
    raise InputError(
        f"model {source!r} is neither a local folder, nor in the folder PHOSPHENE_MODELS, nor in the local hub cache, "
        f"and phosphene downloads nothing by itself. Get it once with 'hf download {source}' (from huggingface_hub), "
        "or copy its folder (config.json, model.safetensors, preprocessor or tokenizer files) here and name the folder"
    )


def _in_hub_cache(source: str) -> Path | None:
    hub = require("huggingface_hub", "clip", "looking into the local hub cache")
    try:
        return Path(hub.snapshot_download(source, local_files_only=True))
    except (OSError, ValueError):  # not cached; not a hub name at all
        return None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises
    ------
    InputError
        When the weights are missing, or there only as a pickle.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file() or Path(name).name != name]
        if missing:
            raise InputError(f"{folder} lacks weight files named by its index: {', '.join(missing)}")
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder} holds its weights only as {', '.join(pickles)}: a pickle can run any code when it is opened, so "
            "phosphene reads model.safetensors only. Get a safetensors version of the model, or convert it where you "
            "trust it: model.save_pretrained(folder)"
        )
    raise InputError(f"{folder} holds no weights (model.safetensors)")


def _file_hash(path: Path) -> str:
    stat = path.stat()
    return _hash_at(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_at(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def model_facts(folder: Path, extra_files: tuple[str, ...] = ()) -> dict[str, Any]:
    """What of a model folder decides what comes out: weights, architecture, and files such as a tokenizer's."""
    architecture = _strip(read_json(folder / "config.json"))
    return {
        "weights": digest(*(_file_hash(path) for path in weight_files(folder))),
        "architecture": digest(json.dumps(architecture, sort_keys=True)),
        "files": {name: _file_hash(folder / name) for name in extra_files if (folder / name).is_file()},
    }


def _strip(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _strip(value) for key, value in config.items() if key not in _VOLATILE}
    return config


def tower_config(folder: Path, part: str, purpose: str) -> tuple[str, Any]:
    """Kind of model and the configuration of one tower, defaults filled in.

    Parameters
    ----------
    folder : Path
    part : {"vision_config", "text_config"}
        The tower, where the model has two.
    purpose : str
        What needs transformers, for the error if it is missing.
    """
    library = transformers(purpose)
    kind = str(read_json(folder / "config.json").get("model_type"))
    try:
        config = library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / 'config.json'} is not that of a model that transformers knows: {error}") from error
    tower = getattr(config, part, config)
    if kind == "clip":
        # the towers of a CLIP carry a projection width of their own, which is not always the true one
        tower.projection_dim = config.projection_dim
    return kind, tower


def load_network(kind: Any, folder: Path, config: Any) -> torch.nn.Module:
    """Build a transformers model from a folder's safetensors, float32, for inference.

    Raises
    ------
    InputError
        When weights are unreadable, or the file lacks some that the architecture has (they would be random).
    """
    from safetensors import SafetensorError

    weight_files(folder)
    try:
        with _quiet():
            network, info = kind.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"the weights in {folder} cannot be read as {kind.__name__}: {error}") from error
    missing = [name for name in info["missing_keys"] if not name.endswith("position_ids")]
    if missing or info.get("mismatched_keys"):
        names = ", ".join([*missing, *(str(key) for key in info.get("mismatched_keys") or ())][:3])
        raise InputError(f"the weights in {folder} do not fill {kind.__name__}; missing or misshapen: {names}")
    module: torch.nn.Module = network.float().eval().requires_grad_(False)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """No notices while loading: weights of the other tower are left out on purpose, and what is missing is an error."""
    import transformers.utils.logging as notices

    level, bars = notices.get_verbosity(), notices.is_progress_bar_enabled()
    notices.set_verbosity_error()
    notices.disable_progress_bar()
    try:
        yield
    finally:
        notices.set_verbosity(level)
        if bars:
            notices.enable_progress_bar()


class TransformersEncoder(PretrainedEncoder):
    """An encoder over a transformers model: by hub name (local cache), working folder or ``PHOSPHENE_MODELS``."""

    def _find(self) -> Path:
        return find_model(self.source)
