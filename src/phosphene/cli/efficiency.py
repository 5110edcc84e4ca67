"""`phosphene efficiency`: curves over the data of a new person, and over the people trained on before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phosphene.cli.adapting import person_named
from phosphene.cli.decoding import aligner_given, targets_of
from phosphene.cli.options import (
    Config,
    Json,
    Set,
    Split,
    StudyFile,
    numbers_of,
    progress_wanted,
    settings_in,
    words_of,
)

__all__ = ["efficiency"]

_TABLES = ("decoder", "training", "adapting", "adapter")


def efficiency(
    study: StudyFile,
    subject: Annotated[str, typer.Option("--subject", help="The new person.", metavar="NAME")],
    targets: Annotated[str, typer.Option("--targets", help="An encoder by name, or a folder written by encode.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of all runs; what is in it is not done again.")],
    decoder: Annotated[str, typer.Option("--decoder", help="A decoder with arms of adaptation.")] = "mindtuner",
    preset: Annotated[str | None, typer.Option("--preset", help="A preset of the decoder.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="tokens or pooled.")] = None,
    sessions: Annotated[
        str, typer.Option("--sessions", help="Of the new person; 0.5 is half of the first session.")
    ] = "0.1667,0.5,1,2,10,40",
    people: Annotated[str, typer.Option("--people", help="How many people are trained on before.")] = "1,3,7",
    arms: Annotated[str, typer.Option("--arms", help="What is trained of the new person: see adapt --help.")] = (
        "both,from-scratch"
    ),
    seeds: Annotated[str, typer.Option("--seeds", help="One or several, between commas.")] = "0",
    align: Annotated[
        str | None,
        typer.Option(
            "--align",
            help="Arms with adapters start where the people trained on before, brought to the new one, say: a folder "
            "written by align, or a method, fitted to just them.",
            metavar="NAME|DIR",
        ),
    ] = None,
    split: Split = None,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Score a new person's decoder by the sessions it had, and by the people it was trained on before."""
    from phosphene.evaluation.efficiency import efficiency as run
    from phosphene.files import write_json
    from phosphene.recordings import Study

    settings = settings_in(_TABLES, config, assignments)
    with Study.open(study) as opened:
        if split is not None:
            opened = opened.using(split)
        found = run(
            opened,
            targets_of(targets, opened),
            person_named(subject, opened.subjects),
            out,
            decoder=decoder,
            preset=preset,
            kind=kind,
            sessions=numbers_of("--sessions", sessions, float),
            people=numbers_of("--people", people, int),
            arms=words_of(arms),
            seeds=numbers_of("--seeds", seeds, int),
            training=settings.get("training"),
            adapting=settings.get("adapting"),
            adapter=settings.get("adapter"),
            aligner=None if align is None else aligner_given(align),
            report=typer.echo,
            progress=progress_wanted(),
            **settings.get("decoder", {}),
        )
    typer.echo(found.table())
    typer.echo(out / "efficiency.png")
    if json is not None:
        write_json(json, found.to_dict())
