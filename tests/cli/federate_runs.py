"""What the tests of `phosphene federate` have in common: a network that trains in a blink, and a call that succeeds."""

from __future__ import annotations

from typer.testing import CliRunner

from phosphene.cli import app

DATA = ["--targets", "z:pixels", "--text", "tfidf"]
BRIEF = [*DATA, "--classes", "group", "--set", "model.width=16", "--set", "client.epochs=1"]
NOISE = [f"--privacy={each}" for each in ("update_limit=1", "update_noise=4", "feature_limit=2", "library_noise=4")]
NEEDS = "PRIVACY EXTRA ABSENT: install phosphene[privacy]"


def run(*words: object, command: str = "federate") -> str:
    """What the command says."""
    done = CliRunner().invoke(app, [command, *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output
