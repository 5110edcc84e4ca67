"""Where an app's log goes."""

from __future__ import annotations

import logging
import sys

__all__ = ["show_log"]


def show_log() -> None:
    """To the app's standard output: Flower carries the server's to whoever follows the run, a site's stays there."""
    own = logging.getLogger("phosphene")
    if not own.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        own.addHandler(handler)
    own.setLevel(logging.INFO)
