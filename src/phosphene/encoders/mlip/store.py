"""A model on disk: a folder of config.json, model.safetensors, tokenizer.json and a card."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.mlip.config import MLIPConfig
from phosphene.encoders.mlip.model import MLIP
from phosphene.encoders.mlip.tokenizer import Tokenizer
from phosphene.errors import InputError
from phosphene.files import FolderFormat, digest, read_json, write_json

__all__ = ["load_model", "load_tokenizer", "read_config", "save_model", "untrained"]

_FORMAT = 1
_KIND = "mlip"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "card.md")
FOLDER = FolderFormat("an MLIP model", _FORMAT, _FILES, keys=("model_type", "weights", "tokenizer"))


def save_model(
    path: str | Path,
    model: MLIP,
    tokenizer: Tokenizer,
    card: str | None = None,
    facts: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write a model as a folder, whole or not at all.

    Parameters
    ----------
    path : path
        A new folder.
    model : MLIP
    tokenizer : Tokenizer
    card : str, optional
        Text of ``card.md``: what the model was trained on and how far it goes.
    facts : mapping, optional
        JSON facts kept in ``config.json`` beside the settings: recipe, hardware, scores.
    half : bool
        Store weights as float16: half the size, for shipping. They are read back as float32.
    """
    tensors = {
        name: (tensor.half() if half else tensor.float()).contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    text = tokenizer.to_json()
    content = {
        "format": _FORMAT,
        "model_type": _KIND,
        "model": model.config.model_dump(mode="json"),
        "weights": digest(*(part for name in sorted(tensors) for part in (name, tensors[name].numpy()))),
        "tokenizer": digest(text),
        "facts": dict(facts or {}),
    }
    with FOLDER.written(path) as temporary:
        write_json(temporary / "config.json", content)
        save_file(tensors, temporary / "model.safetensors")
        (temporary / "tokenizer.json").write_text(text, encoding="utf-8")
        if card is not None:
            (temporary / "card.md").write_text(card, encoding="utf-8")


def read_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a model folder, checked; the same object for all calls, not to be changed.

    Raises
    ------
    InputError
        When the folder is not that of an MLIP model of this format.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise InputError(f"{path} holds no MLIP model: no config.json")
    state = (path / "config.json").stat()
    return _parsed(path.absolute(), state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(maxsize=8)  # it holds a line for each picture trained on, and is asked for many times
def _parsed(path: Path, *state: int) -> dict[str, Any]:
    content = read_json(path / "config.json")
    if not isinstance(content, dict) or content.get("model_type") != _KIND:
        raise InputError(f"{path / 'config.json'} is not that of an MLIP model (model_type 'mlip')")
    if content.get("format") != _FORMAT:
        raise InputError(f"{path} has model format {content.get('format')}, this version reads {_FORMAT}")
    missing = {"model", "weights", "tokenizer", "facts"} - set(content)
    if missing:
        raise InputError(f"{path / 'config.json'} is incomplete: missing {', '.join(sorted(missing))}")
    return content


def untrained(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Embeddings of a model that nothing trained, by the names of their weights in the objective.

    Parameters
    ----------
    content : mapping
        As `read_config` gives it. A model that does not tell says it by its settings, unless it began with another
        one, which may have trained them.
    """
    facts = content["facts"]
    objective = facts.get("settings", {}).get("objective")
    if "untrained" in facts or objective is None or facts.get("start") is not None:
        return tuple(facts.get("untrained", ()))
    weights = {key.removesuffix("_weight"): value for key, value in objective.items() if key.endswith("_weight")}
    return MLIPConfig.build(content["model"]).untrained(defaultdict(lambda: 1.0, weights))


def load_model(path: str | Path, merge: MergeSettings | None = None) -> tuple[MLIP, Tokenizer]:
    """Read a model written by `save_model`, in eval mode on the CPU.

    Parameters
    ----------
    path : path
    merge : MergeSettings, optional
        Token merging in place of the model's own.

    Raises
    ------
    InputError
        For a missing, damaged or changed folder.
    """
    path = Path(path)
    content = read_config(path)
    file = path / "model.safetensors"
    try:
        tensors = load_file(file)
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a readable safetensors file ({error}); nothing else is loaded") from error
    if digest(*(part for name in sorted(tensors) for part in (name, tensors[name].numpy()))) != content["weights"]:
        raise InputError(f"{file} does not hold the weights that were saved: it was damaged or changed")
    config = MLIPConfig.build(content["model"])
    model = MLIP(config if merge is None else config.model_copy(update={"merge": merge}))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{file} does not fit the settings in config.json: {error}") from error
    model.frequency_trained = "frequency" not in untrained(content)
    return model.float().eval().requires_grad_(False), load_tokenizer(path)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises
    ------
    InputError
        When it cannot be read, or is not the one that was saved.
    """
    file, expected = Path(path) / "tokenizer.json", read_config(path)["tokenizer"]
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if digest(text) != expected:
        raise InputError(f"{file} is not the tokenizer that was saved: it was damaged or changed")
    return Tokenizer.from_json(text)
