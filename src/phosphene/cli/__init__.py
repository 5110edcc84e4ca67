"""The front door: the same verbs as in Python, on the command line."""

from __future__ import annotations

import sys

try:
    from phosphene.cli.app import app, main
except KeyboardInterrupt:  # Ctrl-C while the commands are still being imported
    sys.stderr.write("interrupted\n")
    sys.exit(130)

__all__ = ["app", "main"]
