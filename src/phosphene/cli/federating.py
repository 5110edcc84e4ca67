"""Command `federate`: train across sites, in process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.decoding import targets_of
from phosphene.cli.options import Config, Json, Seed, Set, StudyFile, given_settings, progress_wanted
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.federation import Federated, FederationSettings, RoundRecord, SiteState
    from phosphene.recordings import StudyView

__all__ = ["federate"]


def federate(
    study: StudyFile,
    targets: Annotated[
        str, typer.Option("--targets", help="Image encoder, or a folder written by encode.", metavar="NAME|DIR")
    ],
    text: Annotated[
        str, typer.Option("--text", help="Text encoder, or a folder written by encode.", metavar="NAME|DIR")
    ],
    classes: Annotated[
        list[str],
        typer.Option("--classes", help="Label column of the classes, or a pattern; may be repeated.", metavar="COLUMN"),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; an interrupted run is resumed to the same bits.", metavar="DIR")
    ],
    sites: Annotated[int, typer.Option("--sites", help="How many; people are dealt to them in order.")] = 4,
    rounds: Annotated[int, typer.Option("--rounds", help="In all; a run in DIR may be given more.")] = 10,
    missing: Annotated[float, typer.Option("--missing", help="Rate of missing modalities, in [0, 1).")] = 0.0,
    pattern: Annotated[
        str, typer.Option("--pattern", help="What is missing: drawn by instance, or the same for a whole site.")
    ] = "instance",
    preset: Annotated[str, typer.Option("--preset", help="default, modality-dropout or pmcmfl-paper.")] = "default",
    split: Annotated[str | None, typer.Option("--split", help="Split by name; default: the first.")] = None,
    quorum: Annotated[
        int | None,
        typer.Option("--quorum", help="Usable contributions without which a round fails; default: preset's."),
    ] = None,
    participation: Annotated[
        float, typer.Option("--participation", help="Share of the sites drawn for each round.")
    ] = 1.0,
    deadline: Annotated[
        float | None, typer.Option("--deadline", help="Seconds, for delays among the faults (simulated time).")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            help="drop, delay, nan, poison or rubbish, such as drop:site-2:3 or delay:site-1:2-4:90; may be repeated.",
            metavar="KIND:SITE:ROUNDS[:SIZE]",
        ),
    ] = None,
    seed: Seed = 0,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Train PmcmFL across sites, in this process; what each round was made of is printed."""
    from phosphene.federation import Fault, dealt
    from phosphene.federation import federate as run
    from phosphene.recordings import Study

    faults = [Fault.parse(words) for words in fault or []]
    settings = _settings(preset, seed, config, assignments)
    if pattern != "instance" and not missing:
        raise InputError("--pattern has no use: nothing is missing without --missing")
    with Study.open(study) as opened:
        if split is not None:
            opened = opened.using(split)
        places = dealt(opened.split("train").subjects, sites)
        made = _sites(
            opened.split("train"),
            places,
            (targets_of(targets, opened), targets_of(text, opened)),
            classes,
            {"rate": missing, "kind": pattern, "seed": seed},
            settings,
        )
    done = run(
        made,
        settings,
        rounds,
        out=out,
        quorum=quorum,
        participation=participation,
        deadline=deadline,
        faults=faults,
        progress=progress_wanted(),
    )
    _tell(done, places, out, json)


def _settings(preset: str, seed: int, config: Path | None, assignments: list[str] | None) -> FederationSettings:
    from phosphene.federation import FederationSettings

    given = given_settings(config, assignments)
    if "seed" in given:
        raise InputError("the seed is given with --seed")
    for name, table in given.items():
        if not isinstance(table, dict):
            raise InputError(f"settings are --set TABLE.KEY=VALUE, such as model.width=64; found {name} = {table!r}")
    return FederationSettings.preset(preset, seed=seed, **given)


def _sites(
    view: StudyView,
    places: dict[str, list[str]],
    targets: tuple[Targets, Targets],
    columns: list[str],
    lack: dict[str, Any],
    settings: FederationSettings,
) -> dict[str, SiteState]:
    from phosphene.federation import LabelClasses, site_of_study

    classes = LabelClasses.found(view.stimuli.labels, columns)
    return {
        name: site_of_study(
            name, view.subset(people), classes, targets, settings.model.width, {**lack, "sites": list(places)}
        )
        for name, people in places.items()
    }


def _tell(done: Federated, places: dict[str, list[str]], out: Path, json: Path | None) -> None:
    from dataclasses import asdict

    from phosphene.federation import fractions
    from phosphene.files import write_json

    lacking = {name: fractions(site.trials.present.numpy()) for name, site in done.sites.items()}
    for name, people in places.items():
        shares = ", ".join(f"{key} {value:.2f}" for key, value in lacking[name].items() if not key.startswith("only "))
        typer.echo(f"{name}: {', '.join(people)}; {len(done.sites[name].trials)} trials, {shares}")
    for record in done.history:
        typer.echo(_line(record))
    typer.echo(f"{out}: {len(done.history)} rounds, {len(done.shared.agreement.classes)} classes")
    if json is not None:
        rounds = [asdict(record) for record in done.history]
        write_json(json, {"sites": places, "fractions": lacking, "history": rounds})


def _line(record: RoundRecord) -> str:
    losses = [each["loss total"] for each in record.metrics.values() if "loss total" in each]
    words = [f"round {record.round}: {len(record.used)} sites"]
    words += [f"loss {sum(losses) / len(losses):.3f}"] if losses else []
    words += [f"{(sum(record.bytes_up.values()) / 1e6):.2f} MB sent", f"{record.seconds:.1f} s"]
    words += [f"{name} missing ({reason})" for name, reason in record.missing.items()]
    words += [f"{name} refused ({reason})" for name, reason in record.refused.items()]
    words += [f"not drawn: {', '.join(record.idle)}"] if record.idle else []
    words += [f"no prototype of {', '.join(record.without_prototype)}"] if record.without_prototype else []
    return ", ".join(words)
