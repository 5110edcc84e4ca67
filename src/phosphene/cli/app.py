"""The application: commands, and one clear message instead of a traceback.

Exit status: 0 only when the work was done; 2 for wrong arguments or input; 130 when interrupted.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from phosphene._version import __version__
from phosphene.cli import (
    adapting,
    alignment,
    data,
    decoding,
    demo,
    doctor,
    efficiency,
    federated_matrix,
    federating,
    importing,
    merging,
    multi_subject,
    pivoting,
    pretraining,
)
from phosphene.errors import PhospheneError

__all__ = ["app", "main"]

app = typer.Typer(
    name="phosphene",
    help="Decode what a person saw from recordings of their brain, and say how far to believe it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(data.simulate)
app.add_typer(importing.importers, name="import")
app.command()(data.check)
app.command()(data.encode)
app.command()(merging.fidelity)
app.command()(alignment.align)
app.command()(pretraining.pretrain)
app.command()(decoding.fit)
app.command()(adapting.adapt)
app.command()(efficiency.efficiency)
app.command()(pivoting.pivot)
app.command()(multi_subject.multi_subject)
app.command()(federating.federate)
app.command()(federated_matrix.federate_matrix)
app.command()(decoding.evaluate)
app.command()(decoding.decode)
app.command()(decoding.report)
app.command()(decoding.compare)
app.command()(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and results.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False)
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("phosphene").setLevel(level)


def main() -> None:
    """Run the command line; every error of the user's own making becomes one message and exit status 2."""
    debug = "--debug" in sys.argv
    if debug:  # allowed anywhere on the line
        sys.argv = [sys.argv[0], "--debug", *(word for word in sys.argv[1:] if word != "--debug")]
    try:
        app()
    except PhospheneError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:
            typer.echo(_interruption(stop) or "interrupted: nothing was left half-written", err=True)
        raise


def _interruption(stop: BaseException | None) -> str:
    """What the interruption had to say, behind the exit that typer makes of it; "" for a plain Ctrl-C."""
    while stop is not None and not isinstance(stop, KeyboardInterrupt):
        stop = stop.__cause__ or stop.__context__
    return "" if stop is None else str(stop)
