"""Command `adapt`: a new person for a decoder of other people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.decoding import aligner_named
from phosphene.cli.options import Config, Json, Seed, Set, Split, StudyFile, progress_wanted, settings_in
from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.encoders import Targets
    from phosphene.recordings import Study

__all__ = ["adapt", "person_named"]


def adapt(
    decoder: Annotated[
        Path, typer.Argument(help="A decoder of other people, or the run folder it lies in.", metavar="DECODER")
    ],
    study: StudyFile,
    subject: Annotated[str, typer.Option("--subject", help="The new person: sub-09, or just 9.", metavar="NAME")],
    sessions: Annotated[
        float | None, typer.Option("--sessions", help="Use the first so many sessions only; default: all.")
    ] = None,
    arm: Annotated[
        str, typer.Option("--arm", help="both, lora, skip-lora, ridge-only, full or from-scratch.", metavar="NAME")
    ] = "both",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Run folder with a decoder of everybody; default: the person is added to DECODER, in people/NAME. An "
            "unfinished run is resumed.",
            metavar="DIR",
        ),
    ] = None,
    targets: Annotated[
        Path | None, typer.Option("--targets", help="A folder written by encode; default: encoded now.", metavar="DIR")
    ] = None,
    split: Split = None,
    preset: Annotated[str | None, typer.Option("--preset", help="A preset of the decoder.")] = None,
    align: Annotated[
        str | None,
        typer.Option(
            "--align",
            help="Start where the decoder's people in STUDY, brought to the new one, say: a folder written by align, "
            "or a method, fitted to them.",
            metavar="NAME|DIR",
        ),
    ] = None,
    seed: Seed = 0,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Adapt a decoder to a new person from little data; what it says of the others stays as it is."""
    from phosphene.files import read_json, write_json
    from phosphene.recordings import Study
    from phosphene.training import adapt as run
    from phosphene.training.adapt import parameter_table
    from phosphene.training.arms import WHOLE_ARMS

    folder = _decoder_folder(decoder)
    training, adapter = _settings(config, assignments)
    with Study.open(study) as opened:
        if split is not None:
            opened = opened.using(split)
        name = person_named(subject, opened.subjects)
        if read_json(folder / "config.json").get("decoder") == "wills-aligner":
            if arm != "both" or adapter or preset is not None or align is not None:
                raise InputError(
                    "a wills-aligner has no arms, no adapter settings, no presets of adaptation and no aligner beside "
                    "its own: a new person gets gates over its experts; only settings of training are taken (--set "
                    "training.KEY=)"
                )
            _add_to_wills_aligner(folder, opened, name, sessions, out, targets, seed, training, json)
            return
        adapted = run(
            folder,
            opened,
            _targets(targets, folder, opened, name, sessions, whole=align is not None),
            name,
            sessions=sessions,
            arm=arm,
            out=out,
            seed=seed,
            preset=preset,
            aligner=None if align is None else _lending(align, folder, opened),
            progress=progress_wanted(),
            training=training,
            **adapter,
        )
    alone = arm in WHOLE_ARMS
    facts = adapted.provenance if alone else adapted.apart[name]
    place = folder / "people" / name / "adapter" if out is None else out / "decoder"
    typer.echo(_told(adapted.name, name, facts))
    typer.echo(parameter_table(facts))
    others = "of this person alone" if alone else f"with {', '.join(each for each in adapted.subjects if each != name)}"
    typer.echo(f"{place}: {name} {others}")
    if json is not None:
        kept = {key: value for key, value in facts.items() if key not in ("training_content", "curves")}
        write_json(json, {**kept, "place": str(place), "subjects": list(adapted.subjects)})


def _lending(name: str, folder: Path, study: Study) -> Aligner:
    """An aligner of the decoder's people who are in the study; the new person comes in from the asked sessions."""
    from phosphene.files import read_json

    people = [each for each in read_json(folder / "config.json").get("subjects", {}) if each in study.subjects]
    if not people:
        raise InputError(
            f"--align: nobody of {folder} is in study {study.name!r}, so nobody's responses can be aligned"
        )
    return aligner_named(name, study, people)


def _add_to_wills_aligner(
    folder: Path,
    study: Study,
    name: str,
    sessions: float | None,
    out: Path | None,
    targets: Path | None,
    seed: int,
    training: dict[str, Any],
    json: Path | None,
) -> None:
    """A person for the experts of a wills-aligner, which has no arms: what is trained is the person's own."""
    from phosphene.decoders import Decoder
    from phosphene.files import write_json
    from phosphene.training.newcomer import add_subject

    if out is None:
        raise InputError("a wills-aligner with a new person is written as a whole: name a run folder (--out)")
    adapted = add_subject(
        Decoder.load(folder),
        study,
        _targets(targets, folder, study, name, sessions),
        name,
        sessions=sessions,
        out=out,
        seed=seed,
        progress=progress_wanted(),
        training=training,
    )
    facts = adapted.provenance["newcomers"][name]
    typer.echo(
        f"{adapted.name}: {name} from {facts['n_trials']} trials, {facts['trained']:,} parameters of their own trained "
        f"in {facts['seconds']:.1f} s"
    )
    typer.echo(f"{out / 'decoder'}: {name} with {', '.join(each for each in adapted.subjects if each != name)}")
    if json is not None:
        kept = {key: value for key, value in facts.items() if key != "curves"}
        write_json(json, {**kept, "place": str(out / "decoder"), "subjects": list(adapted.subjects)})


def person_named(word: str, subjects: Sequence[str]) -> str:
    """The person meant by a name, or by the number at the end of one.

    Examples
    --------
    >>> person_named("9", ["sub-01", "sub-09"]), person_named("subj09", ["sub-09"])
    ('sub-09', 'sub-09')
    """
    if word in subjects:
        return word
    number = re.fullmatch(r"(?:sub(?:j(?:ect)?)?)?[-_ ]?0*(\d+)", word.strip(), flags=re.IGNORECASE)
    same = [name for name in subjects if number and re.search(rf"(?<!\d)0*{number.group(1)}$", name)]
    if len(same) != 1:
        raise unknown("subject", word, subjects)
    return same[0]


def _decoder_folder(path: Path) -> Path:
    for folder in (path, path / "decoder"):
        if (folder / "model.safetensors").exists():
            return folder
    raise InputError(f"{path} holds no fitted decoder (looked for model.safetensors and decoder/model.safetensors)")


def _settings(config: Path | None, assignments: Sequence[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings in two tables: ``[training]`` (of the adaptation) and ``[adapter]``."""
    settings = settings_in(("training", "adapter"), config, assignments)
    return settings.get("training", {}), settings.get("adapter", {})


def _targets(
    given: Path | None, folder: Path, study: Study, subject: str, sessions: float | None, whole: bool = False
) -> Targets:
    """Targets from a folder, or of what the person (or, as a `whole`, anybody) saw, by the decoder's own encoder."""
    from phosphene.encoders import Encoder, Targets, encode
    from phosphene.training.adapt import scarce_view

    if given is not None:
        return Targets.open(given)
    if not (folder / "encoder").exists():
        raise InputError(f"{folder} was saved without its encoder: give targets with --targets")
    view = study.split("train") if whole else scarce_view(study, subject, sessions)
    return encode(view.stimuli, Encoder.load(folder / "encoder"), progress=progress_wanted())


def _told(decoder: str, name: str, facts: dict[str, Any]) -> str:
    best = facts["validation_best"]
    validated = (
        "nothing set aside for validation, last weights kept"
        if best is None
        else f"best after epoch {facts['best_epoch']}, validation {facts['validation_monitor']} {best:.3f}"
    )
    sessions = f"{len(facts['sessions'])} session{'s' * (len(facts['sessions']) > 1)}"
    return (
        f"{decoder} adapted to {name} ({facts['arm']}) from {facts['n_trials']} trials of {sessions}: closed form "
        f"{facts['start_seconds']:.1f} s, in all {facts['seconds']:.1f} s, {validated}; trained:"
    )
