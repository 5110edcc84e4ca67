"""`phosphene demo`: from nothing to a report, on virtual brains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phosphene.cli.options import Json, Seed, progress_wanted

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of everything the demo makes.", metavar="DIR")] = Path(
        "demo"
    ),
    decoder: Annotated[str, typer.Option("--decoder", help="Which decoder is shown.")] = "lite-mind",
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Decode virtual brains from start to end: simulate, encode, fit, evaluate, report."""
    import torch

    import phosphene as ph
    from phosphene import virtual

    torch.set_num_threads(1)  # tensors this small are slower on two threads than on one

    progress = progress_wanted()
    path = out / "study.h5"
    typer.echo("1/5  two virtual people look at procedural scenes")
    virtual.write_study(path, "demo", seed, progress=progress)
    with ph.Study.open(path) as study:
        typer.echo("2/5  the scenes become targets: embeddings of the pocket encoder, z-scored over training scenes")
        train = study.split("train").stimulus_ids
        targets = ph.encode(study.stimuli, "z:pocket", fit_on=train, cache=out / "cache", progress=progress)
        typer.echo(f"3/5  {decoder} learns to predict them from the responses")
        fitted = ph.fit(decoder, study, targets, kind="tokens", seed=seed, out=out / "run", progress=progress)
        typer.echo("4/5  scored on scenes nobody has trained on, beside simple rivals")
        card = ph.evaluate(fitted, study, targets, seed=seed, progress=progress)
        card.save(json or out / "scorecard.json")
        typer.echo(card.table())
        typer.echo("5/5  the report")
        title = "Virtual brains, decoded"
        ph.report(fitted, study, targets, card, out / "report.html", title=title, command="phosphene demo")
    typer.echo((out / "report.html").resolve())
