"""The front door: the same verbs as in Python, on the command line."""

from __future__ import annotations

from phosphene.cli.app import app, main

__all__ = ["app", "main"]
