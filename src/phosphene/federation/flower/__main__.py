"""``python -m phosphene.federation.flower``: what the people who run a server or a site type.

``server`` and ``site`` check files and names first, switch off everything that would contact a third party, and then
become Flower's own processes.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from phosphene.encoders import targets_named
from phosphene.errors import InputError, PhospheneError, require
from phosphene.federation.classes import ClusterClasses
from phosphene.federation.flower.certificates import (
    check_reached,
    check_server_files,
    check_site_files,
    make_node_key,
    make_server_files,
)
from phosphene.federation.flower.config import check_privacy
from phosphene.federation.holdings import check_classes, held_words
from phosphene.federation.sites import classes_asked
from phosphene.recordings import Study

__all__ = ["QUIET", "main"]

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Server and sites of a Flower federation.")

Authority = Annotated[Path, typer.Option("--authority", help="The authority's certificate (PEM).")]
Home = Annotated[Path | None, typer.Option("--home", help="Flower's own files; default: $FLWR_HOME or ~/.flwr.")]


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="Where authority.crt, server.crt and server.key are written.")],
    host: Annotated[list[str], typer.Option("--host", help="Name or address of the server; may be repeated.")],
    days: Annotated[int, typer.Option("--days", min=1, help="For which they hold.")] = 30,
) -> None:
    """Make an authority and a server's certificate, for a trial."""
    for name, path in make_server_files(folder, host, days).items():
        typer.echo(f"{name}: {path}")


@app.command()
def key(
    path: Annotated[Path, typer.Argument(help="The site's private key; .pub beside it is for the server.")],
) -> None:
    """Make a site's key."""
    private, public = make_node_key(path)
    typer.echo(f"stays at the site: {private}")
    typer.echo(f"goes to the server: {public}")


@app.command()
def server(
    authority: Authority,
    certificate: Annotated[Path, typer.Option("--certificate", help="The server's certificate (PEM).")],
    key: Annotated[Path, typer.Option("--key", help="Its private key (PEM).")],
    host: Annotated[str, typer.Option("--host", help="Name or address under which it listens and is reached.")],
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    database: Annotated[Path | None, typer.Option("--database", help="Survives a restart; default: memory.")] = None,
    home: Home = None,
) -> None:
    """Check the certificates and become flower-superlink: TLS, registered sites only."""
    check_server_files(authority, certificate, key, host)
    words = ["--ssl-ca-certfile", authority, "--ssl-certfile", certificate, "--ssl-keyfile", key]
    words += ["--enable-supernode-auth", "--host", host, "--port", port]
    _become("flower-superlink", [*words, *(["--database", database] if database else [])], home)


@app.command()
def clusters(
    file: Annotated[Path, typer.Argument(help="Where they are written; every site gets this file.")],
    study: Annotated[Path, typer.Option("--study", help="A study with public stimuli (.h5).")],
    number: Annotated[int, typer.Option("--number", min=2, help="How many.")],
    public: Annotated[str, typer.Option("--public", help="What they are fitted on.", metavar="[SPLIT/]ROLE")],
    targets: Annotated[str, typer.Option("--targets", help="Image encoder or folder: the run's.")],
    split: Annotated[str, typer.Option("--split", help="Whose test part they keep apart from.")] = "",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Fit clusters on public stimuli, as classes for runs without label columns; tells the digest a run is given."""
    with Study.open(study, stimuli_alone=True) as opened:
        used = opened.using(split) if split else opened
        check_classes(used, clusters=number, public=public)
        found, words = classes_asked(used, targets_named(targets, used), clusters=number, public=public, seed=seed)
    assert isinstance(found, ClusterClasses)
    found.save(file)
    typer.echo(f"{file}: {len(found.centres)} {words}")
    typer.echo(f'run config: clusters="{found.digest}"')


@app.command()
def site(
    authority: Authority,
    key: Annotated[Path, typer.Option("--key", help="The site's private key.")],
    superlink: Annotated[str, typer.Option("--superlink", help="The server.", metavar="HOST:PORT")],
    study: Annotated[Path, typer.Option("--study", help="The site's study file (.h5).")],
    keep: Annotated[Path, typer.Option("--keep", help="Folder of what the site keeps to itself.")],
    name: Annotated[str, typer.Option("--name", help="The site's name in the federation.")] = "",
    partition: Annotated[
        str, typer.Option("--partition", help="Instead of a name: one study dealt to N sites.", metavar="K/N")
    ] = "",
    people: Annotated[str, typer.Option("--people", help="With commas; default: all of the training part.")] = "",
    targets: Annotated[str, typer.Option("--targets", help="Image encoder or folder; default: the run's.")] = "",
    text: Annotated[str, typer.Option("--text", help="Text encoder or folder; default: the run's.")] = "",
    holds: Annotated[
        str, typer.Option("--holds", help="Its modalities, such as image,text; default: fmri,image,text.")
    ] = "",
    clusters: Annotated[
        Path | None, typer.Option("--clusters", help="Its file of clusters, for runs whose classes they are.")
    ] = None,
    privacy: Annotated[
        str, typer.Option("--privacy", help="Take part in runs with this privacy alone, such as 'update_limit=4 ...'.")
    ] = "",
    epsilon_limit: Annotated[
        float, typer.Option("--epsilon-limit", min=0, help="Per trial, over all runs in --keep; 0: none.")
    ] = 0.0,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of this machine alone (loopback).")] = 9094,
    home: Home = None,
) -> None:
    """Check key and certificate and become flower-supernode: it opens connections to the server, and accepts none."""
    check_site_files(authority, key)
    address = re.fullmatch(r"\[?([^\]]+)\]?:(\d+)", superlink)
    if address is None:
        raise InputError(f"--superlink takes HOST:PORT, found {superlink!r}")
    check_reached(authority, address[1], int(address[2]))
    if not study.is_file():
        raise InputError(f"{study} is no study file: it does not exist")
    given = {"site": name, "study": str(study.resolve()), "keep": str(keep.resolve())}
    given |= {"people": people, "targets": targets, "text": text, "privacy": privacy}
    given |= {"holds": ",".join(held_words(holds))} if holds else {}
    if clusters is not None:
        ClusterClasses.open(clusters)
        given["clusters"] = str(clusters.resolve())
    given |= {"epsilon-limit": str(epsilon_limit)} if epsilon_limit else {}
    check_privacy(privacy, epsilon_limit, dealt=bool(partition))
    place = re.fullmatch(r"(\d+)/(\d+)", partition)
    if bool(name) == bool(place):
        raise InputError(f"a site has a --name, or a --partition such as 0/2; found {name!r} and {partition!r}")
    words = ["--root-certificates", authority, "--auth-supernode-private-key", key, "--superlink", superlink]
    words += ["--host", "127.0.0.1", "--port", port]
    config = [_pair(key, value) for key, value in given.items() if value]
    config += [f"partition-id={place[1]}", f"num-partitions={place[2]}"] if place else []
    _become("flower-supernode", [*words, "--node-config", " ".join(config)], home)


def _pair(name: str, value: str) -> str:
    if re.search(r"[\"'\\\n]", value):
        raise InputError(f"{name} is {value!r}: quotes, backslashes and line breaks cannot be passed on")
    return f'{name}="{value}"'


def _become(program: str, words: list[object], home: Path | None) -> None:
    """Go on as another program of the same environment: signals and exit status are its own."""
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        raise InputError(f"{program} is not installed beside {sys.executable}: pip install 'phosphene[federated]'")
    own = {} if home is None else {"FLWR_HOME": str(home.resolve())}
    sys.stdout.flush()
    os.execve(found, [found, *map(str, words)], {**os.environ, **QUIET, **own})


def main() -> None:
    """Run; an error of the user's own making becomes one message and exit status 2."""
    try:
        require("flwr", "federated", "a federation between machines")
        app()
    except PhospheneError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
