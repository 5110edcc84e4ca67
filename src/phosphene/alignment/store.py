"""Aligners on disk: ``config.json`` with a checksum of every array, ``maps.safetensors``, ``template.tsv``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from phosphene._version import __version__
from phosphene.alignment.base import Aligner, PersonMap, Template
from phosphene.alignment.factored import Factored, parts_of
from phosphene.errors import InputError
from phosphene.files import FolderFormat, check_keys, read_json, write_json
from phosphene.table import Table

__all__ = ["FOLDER", "load_aligner", "save_aligner"]

FORMAT = "phosphene-aligner"
_CONFIG, _MAPS, _TEMPLATE = "config.json", "maps.safetensors", "template.tsv"
FOLDER = FolderFormat("an aligner", FORMAT, (_CONFIG, _MAPS, _TEMPLATE, "isc.json"))
_KEYS = (
    *("format", "version", "software", "aligner", "settings", "template", "people"),
    *("fitted_on", "has_pictures", "provenance", "state", "sha256"),
)
_OF_TEMPLATE, _OF_PERSON = ("name", "size", "n_vertices"), ("subject", "voxels")


def save_aligner(aligner: Aligner, path: str | Path) -> Path:
    """Write a fitted aligner as a folder, atomically."""
    path = Path(path)
    template = aligner.template
    tensors, state = aligner._state()
    tensors = {f"state/{name}": array for name, array in tensors.items()}
    people = []
    for number, (subject, person) in enumerate(aligner.people.items()):
        people.append({"subject": subject, "voxels": person.n_voxels})
        tensors |= {f"{number}/{name}": array for name, array in _arrays(person).items()}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "software": f"phosphene {__version__}",
        "aligner": aligner.name,
        "settings": aligner.config.model_dump(mode="json"),
        "template": {"name": template.name, "size": template.size, "n_vertices": template.n_vertices},
        "people": people,
        "fitted_on": aligner.content,
        "has_pictures": aligner.has_pictures,
        "provenance": aligner.provenance,
        "state": state,
        "sha256": {name: _sha256(array) for name, array in tensors.items()},
    }
    with FOLDER.written(path) as temporary:
        template.voxels.write_tsv(temporary / _TEMPLATE)
        config["sha256"][_TEMPLATE] = _file_sha256(temporary / _TEMPLATE)
        save_file(tensors, temporary / _MAPS)
        write_json(temporary / _CONFIG, config)
    return path


def load_aligner(path: str | Path) -> Aligner:
    """Read an aligner folder.

    Raises
    ------
    InputError
        When a file is missing or damaged, `config.json` lacks something or has a key that nobody reads, an array is
        not the one that was written, or the template has another number of places than the maps.
    """
    from phosphene.alignment.registry import aligner_class

    path = Path(path)
    config = read_json(path / _CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path / _CONFIG} is not the config of a phosphene aligner")
    what = f"{path / _CONFIG} of the aligner"
    check_keys(what, config, _KEYS)
    check_keys(what, config["template"], _OF_TEMPLATE, "template.")
    for number, entry in enumerate(config["people"]):
        check_keys(what, entry, _OF_PERSON, f"people.{number}.")
    kind = aligner_class(config["aligner"])
    aligner = kind(kind.Config.build(config["settings"]))
    voxels = Table.read_tsv(path / _TEMPLATE)
    facts = config["template"]
    if len(voxels) != facts["size"]:
        raise InputError(f"{path / _TEMPLATE} has {len(voxels)} places, the maps go onto {facts['size']}")
    tensors = _checked_tensors(path, config["sha256"])
    counts = None if facts["n_vertices"] is None else (int(facts["n_vertices"][0]), int(facts["n_vertices"][1]))
    people = {entry["subject"]: _person(path, tensors, n, entry) for n, entry in enumerate(config["people"])}
    aligner._set(Template(facts["name"], voxels, counts), people)
    aligner.content = dict(config["fitted_on"])
    aligner.has_pictures = bool(config["has_pictures"])
    aligner.provenance = dict(config["provenance"])
    state = {name[len("state/") :]: array for name, array in tensors.items() if name.startswith("state/")}
    try:
        aligner._restore(state, config["state"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path / _CONFIG} of the aligner is damaged: state, {error}") from error
    return aligner


def _arrays(person: PersonMap) -> dict[str, np.ndarray]:
    plain = {"mean": person.mean, "offset": person.offset, "covered": person.covered.astype(np.uint8)}
    return {**plain, **parts_of(person.matrix)}


def _person(path: Path, tensors: Mapping[str, np.ndarray], number: int, entry: Mapping[str, Any]) -> PersonMap:
    try:
        part = {name.split("/", 1)[1]: a for name, a in tensors.items() if name.startswith(f"{number}/")}
        thin: Any = None
        if "data" in part:
            shape = (entry["voxels"], len(part["offset"]))
            thin = sparse.csr_array((part["data"], part["indices"], part["indptr"]), shape=shape)
        if "left" in part:
            matrix: Any = Factored(part["left"], part["right"], thin)
        else:
            matrix = part["matrix"] if thin is None else thin
        return PersonMap(matrix, part["mean"], part["offset"], part["covered"].astype(bool))
    except (KeyError, ValueError) as error:
        raise InputError(f"{path / _MAPS} does not fit its config.json: map of {entry['subject']}, {error}") from error


def _checked_tensors(path: Path, expected: Mapping[str, str]) -> dict[str, np.ndarray]:
    try:
        tensors: dict[str, np.ndarray] = load_file(path / _MAPS)
    except FileNotFoundError as error:
        raise InputError(f"{path / _MAPS} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path / _MAPS} is not a readable safetensors file ({error})") from error
    found = {name: _sha256(array) for name, array in tensors.items()}
    found[_TEMPLATE] = _file_sha256(path / _TEMPLATE)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(f"{path}: {name!r} is not what was written (its SHA-256 differs from that in {_CONFIG})")
    return tensors


def _sha256(array: np.ndarray) -> str:
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
