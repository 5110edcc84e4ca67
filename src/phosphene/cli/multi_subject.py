"""Command `multi-subject`: one model of many people beside its rivals, on a study of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phosphene.cli.decoding import aligner_given, targets_of
from phosphene.cli.options import (
    Config,
    Json,
    Set,
    Split,
    StudyFile,
    Subjects,
    numbers_of,
    progress_wanted,
    settings_in,
    words_of,
)

__all__ = ["multi_subject"]

_TABLES = ("decoder", "training", "mindtuner")


def multi_subject(
    study: StudyFile,
    targets: Annotated[str, typer.Option("--targets", help="An encoder by name, or a folder written by encode.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="Runs, scorecards and table; what is finished is not done again.", metavar="DIR"),
    ],
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            help="Names with commas: single, naive, mindbridge, subject-embedding, ridge, lora, fine-tuning, mindtuner "
            "(wills-aligner is always among them). Default: all that the study allows.",
        ),
    ] = None,
    align: Annotated[
        str,
        typer.Option(
            "--align",
            help="How people come into one space: a method, fitted on the training part, or a folder written by align.",
        ),
    ] = "anatomical",
    classes: Annotated[
        list[str] | None,
        typer.Option("--classes", help="Label column for mAP, or a pattern; may be repeated.", metavar="COLUMN"),
    ] = None,
    subject: Subjects = None,
    kind: Annotated[str | None, typer.Option("--kind", help="tokens or pooled.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Of every arm: small, few or nsd.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="One or several, between commas: a training each.")] = "0",
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="Resamples for the intervals.", min=0)] = 1000,
    split: Split = None,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Train one model of many people and its rivals, and say what each difference is worth."""
    from phosphene.evaluation.multi_subject import multi_subject as run
    from phosphene.files import write_json
    from phosphene.recordings import Study

    settings = settings_in(_TABLES, config, assignments)
    numbers = numbers_of("--seeds", seeds, int)
    with Study.open(study) as opened:
        if split is not None:
            opened = opened.using(split)
        found = run(
            opened,
            targets_of(targets, opened),
            out,
            arms=None if arms is None else words_of(arms),
            subjects=subject,
            aligner=aligner_given(align),
            classes=classes or (),
            preset=preset,
            kind=kind,
            seeds=numbers,
            n_boot=bootstrap,
            training=settings.get("training"),
            mindtuner=settings.get("mindtuner"),
            progress=progress_wanted(),
            **settings.get("decoder", {}),
        )
    typer.echo(found.table())
    if json is not None:
        write_json(json, found.to_dict())
    typer.echo(f"{out}: multi_subject.json, multi_subject.txt, scorecards by seed")
