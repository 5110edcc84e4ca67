"""A decoder as a folder of plain files.

``config.json``, ``model.safetensors``, ``voxels/<subject>.tsv``, ``README.md`` (the model card), the fitted
``encoder/`` of its targets and, where there are some, the ``aligner/`` and ``people/`` who were adapted to.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from phosphene._version import __version__
from phosphene.alignment.store import FOLDER as ALIGNER
from phosphene.encoders.base import FOLDER as ENCODER
from phosphene.errors import InputError
from phosphene.files import FolderFormat, read_json, write_json, write_text
from phosphene.nn.adapter import AdaptedLinear
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.decoders.base import Decoder

__all__ = ["FOLDER", "PERSON", "load_decoder", "save_decoder"]

FORMAT = "phosphene-decoder"
PERSON = FolderFormat("an adapted person", "phosphene-person", ("config.json", "adapter.safetensors", "voxels.tsv"))
_OWN = ("config.json", "model.safetensors", "README.md", "voxels/*.tsv")
_PARTS = (*ENCODER.within("encoder"), *ALIGNER.within("aligner"), *PERSON.within("people/*/adapter"))
FOLDER = FolderFormat("a decoder", FORMAT, (*_OWN, *_PARTS))


def save_decoder(decoder: Decoder, path: Path) -> Path:
    """Write a decoder, as `Decoder.save` does.

    Raises
    ------
    InputError
        When adapters were attached to it, which would be lost, or `path` holds anything but such a decoder.
    """
    _refuse_attached(decoder)
    config = {
        "format": FORMAT,
        "version": 1,
        "software": f"phosphene {__version__}",
        "decoder": decoder.name,
        "settings": decoder.config.model_dump(mode="json"),
        "subjects": {subject: n for subject, n in decoder.subjects.items() if subject not in decoder.apart},
        "target_shape": list(decoder.target_shape),
        "encoder": None if decoder.encoder is None else decoder.encoder.identity,
        "aligner": None if decoder.aligner is None else decoder.aligner.identity,
        "spaces": {subject: space for subject, space in decoder.spaces.items() if subject not in decoder.apart},
        "provenance": decoder.provenance,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder._base_state().items()}
    with FOLDER.written(path) as temporary:
        write_json(temporary / "config.json", config)
        save_file(tensors, temporary / "model.safetensors")
        for subject, table in decoder.voxel_tables.items():
            if subject not in decoder.apart:
                table.write_tsv(temporary / "voxels" / f"{subject}.tsv")
        if decoder.encoder is not None:
            decoder.encoder.save(temporary / "encoder")
        if decoder.aligner is not None:
            decoder.aligner.save(temporary / "aligner")
        decoder._save_people(temporary)
        write_text(temporary / "README.md", _card(decoder))
    return path


def _refuse_attached(decoder: Decoder) -> None:
    """Refuse layers that `phosphene.nn.attach` put there: nothing in the folder says how to make them again."""
    layers = {name: type(each) for name, each in decoder.named_modules() if isinstance(each, AdaptedLinear)}
    if strange := [f"{name} ({kind.__name__})" for name, kind in layers.items() if kind is not AdaptedLinear]:
        raise InputError(
            f"adapters are attached to this {decoder.name} decoder, and its folder cannot hold them: "
            f"{', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''}. Keep them in a file (save_adapter), and "
            "detach them (detach; merge=True leaves their change in the layers) before the decoder is saved"
        )


def load_decoder(path: Path, without: Collection[str]) -> Decoder:
    """Read a decoder folder, as `Decoder.load` does."""
    from phosphene.alignment import Aligner
    from phosphene.decoders.registry import decoder_class
    from phosphene.encoders import Encoder

    config = read_json(path / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path / 'config.json'} is not the config of a phosphene decoder")
    kind = decoder_class(config["decoder"])
    decoder = kind(kind.Config.build(config["settings"]), config["subjects"], config["target_shape"])
    for subject in decoder.subjects:
        table = path / "voxels" / f"{subject}.tsv"
        if table.exists():
            decoder.arrange_voxels(subject, Table.read_tsv(table), config["spaces"].get(subject))
    _load_weights(decoder, path / "model.safetensors")
    wanted = config.get("aligner")
    if wanted is not None or (path / "aligner").exists():
        aligner = Aligner.load(path / "aligner")
        if aligner.identity != wanted:
            raise InputError(
                f"{path / 'aligner'} is not the aligner in front of this decoder "
                f"(found {aligner.identity}, needed {wanted})"
            )
        decoder.align(aligner)
    decoder.provenance = config["provenance"]
    if config["encoder"] is not None:
        decoder.encoder = Encoder.load(path / "encoder")
        if decoder.encoder.identity != config["encoder"]:
            raise InputError(
                f"{path / 'encoder'} is not the encoder this decoder was fitted to "
                f"(found {decoder.encoder.identity}, needed {config['encoder']})"
            )
    decoder._load_people(path, without)
    return decoder.eval()


def _load_weights(decoder: Decoder, path: Path) -> None:
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}); weights in any other form are not loaded"
        ) from error
    decoder._make_room(tensors)
    own = decoder.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        fault = "missing" if name in own else "not expected"
        raise InputError(f"{path} does not fit its config.json: tensor {name!r} is {fault}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, the config says {tuple(own[name].shape)}"
            )
    decoder.load_state_dict(tensors)


def _card(decoder: Decoder) -> str:
    facts = "\n".join(
        f"| {key} | {value} |" for key, value in decoder.provenance.items() if not isinstance(value, (dict, list))
    )
    people = ", ".join(f"{subject} ({n} voxels)" for subject, n in decoder.subjects.items())
    n_values = sum(tensor.numel() for tensor in decoder.state_dict().values())
    of_encoder = "" if decoder.encoder is None else f" of the encoder {decoder.encoder.label}"
    return (
        f"---\nlibrary_name: phosphene\ntags: [brain-decoding, fMRI, {decoder.name}]\n---\n\n# {decoder.name}\n\n"
        f"Decodes responses of {people} to {decoder.target_kind} targets of shape {decoder.target_shape}"
        f"{of_encoder}; {n_values:,} stored values.\n\n"
        f"Load it with `phosphene.Decoder.load(folder)`.\n\n| fitted | |\n|---|---|\n{facts}\n"
    )
