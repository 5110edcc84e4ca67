"""From a `Page` to one HTML file that needs nothing else."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from phosphene.files import write_text
from phosphene.reporting import figures
from phosphene.reporting.page import ALL, GROUPS, Page

__all__ = ["render", "write", "write_page"]


def render(page: Page) -> str:
    """Lay out a page as self-contained HTML: style, script and pictures are inside.

    Every value is escaped: captions and names may hold any characters.

    Examples
    --------
    >>> html = render(Page(title="empty", headline="Nothing yet.", standfirst="", method="ridge", people=("sub-01",),
    ...                    directions=(("brain_to_image", "brain → image"),), hero=()))
    >>> html.startswith("<!doctype html>")
    True
    """
    return _environment().get_template("report.html.jinja").render(page=page, ALL=ALL, GROUPS=GROUPS)


def write(page: Page, path: str | Path) -> Path:
    """Render a page into a file, atomically; returns the path."""
    path = Path(path)
    write_text(path, render(page))
    return path


def write_page(path: str | Path, template: str, **content: Any) -> Path:
    """Lay out another template with plain values, and write it, atomically; returns the path."""
    path = Path(path)
    write_text(path, _environment().get_template(template).render(**content))
    return path


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=figures.number, percentage=figures.percentage, p_value=figures.p_value, person=_person
    )
    environment.globals.update(
        curve_svg=figures.curve_svg,
        share=figures.share,
        spoken=figures.spoken,
        # both are our own files, not data: they go in as they stand
        style=Markup(_asset("style.css")),
        script=Markup(_asset("script.js")),
    )
    return environment


def _asset(name: str) -> str:
    return (resources.files("phosphene.reporting") / "templates" / name).read_text(encoding="utf-8")


def _person(name: str) -> str:
    """The name of a person as the page prints it."""
    return "all people" if name == ALL else name
