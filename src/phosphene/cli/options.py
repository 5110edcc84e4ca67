"""Options that several commands share, and how they become settings."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.recordings import Study

__all__ = [
    "Config",
    "ImageTargets",
    "Json",
    "Seed",
    "Set",
    "Split",
    "Splits",
    "StudyFile",
    "Subjects",
    "TextTargets",
    "chosen_splits",
    "decoder_settings",
    "given_settings",
    "numbers_of",
    "open_runs",
    "people_of_runs",
    "progress_wanted",
    "settings_in",
    "words_of",
]

Number = TypeVar("Number", int, float)

ImageTargets = Annotated[
    str, typer.Option("--targets", help="Image encoder, or a folder written by encode.", metavar="NAME|DIR")
]
TextTargets = Annotated[
    str, typer.Option("--text", help="Text encoder, or a folder written by encode.", metavar="NAME|DIR")
]
StudyFile = Annotated[Path, typer.Argument(help="A study file (.h5).", metavar="STUDY")]
Config = Annotated[Path | None, typer.Option("--config", help="Settings from a .toml or .json file.", metavar="FILE")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, as a.b=c; may be repeated.", metavar="KEY=VALUE")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the same figures as JSON.", metavar="FILE")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Splits = Annotated[
    str | None,
    typer.Option(
        "--split", help="Split (fold) by name or pattern, such as 'fold-*'; default: the first.", metavar="NAME"
    ),
]
Split = Annotated[str | None, typer.Option("--split", help="Split by name; default: the first.")]
Subjects = Annotated[
    list[str] | None, typer.Option("--subject", help="Only this person; may be repeated.", metavar="NAME")
]


def progress_wanted() -> bool:
    """Progress bars go to terminals only."""
    import sys

    return sys.stderr.isatty()


def words_of(text: str) -> list[str]:
    """Words with commas between them; a word that is said twice counts once."""
    found = [each.strip() for each in text.split(",") if each.strip()]
    if not found:
        raise InputError(f"a list with commas is needed, found {text!r}")
    return list(dict.fromkeys(found))


def numbers_of(option: str, text: str, kind: type[Number]) -> list[Number]:
    """Numbers with commas between them."""
    try:
        return [kind(each) for each in words_of(text)]
    except ValueError as error:
        raise InputError(f"{option} takes numbers with commas between them, found {text!r}") from error


def given_settings(config: Path | None, assignments: Sequence[str] | None) -> dict[str, Any]:
    """What ``--config`` and ``--set`` say; the latter wins."""
    from phosphene.settings import merge, parse_assignments, read_config

    return merge(read_config(config) if config else {}, parse_assignments(assignments or []))


def settings_in(
    tables: Sequence[str], config: Path | None, assignments: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """What ``--config`` and ``--set`` say in these tables; another one is refused by name."""
    settings = given_settings(config, assignments)
    for table in settings:
        if table not in tables:
            raise unknown("table of settings", table, tables)
    return settings


def decoder_settings(config: Path | None, assignments: Sequence[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings in the two tables a preset has: ``[decoder]`` and ``[training]``."""
    settings = settings_in(("decoder", "training"), config, assignments)
    return settings.get("decoder", {}), settings.get("training", {})


def chosen_splits(study: Study, pattern: str | None) -> list[str]:
    """Names of the splits a pattern picks; without one, the current split."""
    if not study.split_names:
        raise InputError(f"study {study.name!r} has no splits; import it with splits.tsv or --folds-by")
    if pattern is None:
        return [study.current_split]
    names = fnmatch.filter(study.split_names, pattern)
    if not names:
        raise unknown("split", pattern, study.split_names)
    return names


def open_runs(path: Path) -> dict[str, tuple[Decoder, Path]]:
    """Decoders under a path, by split: a decoder folder, a run folder, or a folder of runs (one a fold).

    Raises
    ------
    InputError
        For a path without a decoder, or with two of one split, of which either could be meant.
    """
    from phosphene.decoders import Decoder

    for folder in (path, path / "decoder"):
        if (folder / "config.json").exists() and (folder / "model.safetensors").exists():
            decoder = Decoder.load(folder)
            return {str(decoder.provenance.get("split", "default")): (decoder, folder)}
    if not path.is_dir():
        raise InputError(f"{path} does not exist")
    runs: dict[str, tuple[Decoder, Path]] = {}
    for entry in sorted(path.iterdir()):
        folder = entry / "decoder"
        if (folder / "model.safetensors").exists():
            decoder = Decoder.load(folder)
            split = str(decoder.provenance.get("split", entry.name))
            if split in runs:
                raise InputError(
                    f"{path} holds two decoders of split {split!r}: {runs[split][1].parent.name} and {entry.name}; "
                    "name one of them"
                )
            runs[split] = (decoder, folder)
    if not runs:
        raise InputError(f"{path} holds no fitted decoder (looked for decoder/model.safetensors, also one level below)")
    return runs


def people_of_runs(path: Path) -> dict[str, Decoder] | None:
    """Decoders of single people by their names, where a folder holds one run a person on one split; else None."""
    from phosphene.decoders import Decoder
    from phosphene.files import read_json

    folders = [entry / "decoder" for entry in sorted(path.iterdir()) if (entry / "decoder" / "config.json").exists()]
    facts = [read_json(folder / "config.json") for folder in folders]
    people = [tuple(each["subjects"]) for each in facts]
    splits = {str(each.get("provenance", {}).get("split")) for each in facts}
    if len(folders) < 2 or len(splits) > 1 or {len(each) for each in people} != {1} or len(set(people)) < len(people):
        return None
    return {name: Decoder.load(folder) for (name,), folder in zip(people, folders, strict=True)}
