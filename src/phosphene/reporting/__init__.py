"""The report: one HTML file that holds everything it shows."""

from __future__ import annotations

from phosphene.reporting.page import Page
from phosphene.reporting.render import render, write

__all__ = ["Page", "render", "write"]
