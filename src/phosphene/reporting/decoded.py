"""`report_decoded`: what `decode` found, as one HTML page to look through."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phosphene.reporting import account
from phosphene.reporting.page import Candidate, Fact
from phosphene.reporting.pictures import album
from phosphene.reporting.render import write_page

if TYPE_CHECKING:
    from phosphene.rendering import Decoded
    from phosphene.stimuli import StimulusSet

__all__ = ["report_decoded"]

MOST = 100
"""Responses shown; the tables beside the page hold all of them."""


@dataclass(frozen=True)
class Answer:
    """One response with its matches."""

    person: str
    response: str
    matches: tuple[Candidate, ...]


def report_decoded(
    decoded: Decoded,
    path: str | Path,
    *,
    stimuli: StimulusSet | None = None,
    title: str | None = None,
    command: str | None = None,
) -> Path:
    """Write one self-contained HTML page with the matches of every response.

    Parameters
    ----------
    decoded : Decoded
        What `phosphene.rendering.decode` gave.
    path : str or Path
        The HTML file, replaced atomically.
    stimuli : StimulusSet, optional
        Pictures of the gallery; without them matches stand as captions or names.
    title, command : str, optional
        Name of the page, and the command that made it, printed as it stands.

    Examples
    --------
    >>> report_decoded(found, "decoded.html")                              # doctest: +SKIP
    PosixPath('decoded.html')
    """
    responses = decoded.to_dict()["responses"]
    shown = responses[:MOST]
    uses = Counter(match["item"] for response in shown for match in response["matches"])
    pictures = {}
    if stimuli is not None and stimuli.has_pixels:
        words = dict(zip(decoded.gallery.ids.tolist(), decoded.gallery.captions, strict=True))
        alts = {name: (words[name] or (f"gallery item {name}",))[0] for name in uses}
        pictures = album(list(uses), lambda names: stimuli.frames(stimuli.rows(list(names))), alts, uses)
    answers = [
        Answer(
            response["subject"],
            response["response"],
            tuple(
                Candidate(
                    match["item"],
                    (match["captions"] or [""])[0],
                    match["similarity"],
                    False,
                    pictures.get(match["item"]),
                )
                for match in response["matches"]
            ),
        )
        for response in shown
    ]
    facts = decoded.facts
    return write_page(
        path,
        "decoded.html.jinja",
        title=title or f"{facts['decoder']}: what was found",
        created=account.today(),
        facts=[
            Fact("Responses", f"{len(responses):,}", "averages" if facts["averaged"] else "single trials"),
            Fact("People", str(len({response["subject"] for response in responses}))),
            Fact("Gallery", f"{facts['gallery']['items']:,}", f"items, {facts['gallery']['search']} search"),
            Fact("Decoded to", str(facts["encoder"] or "?"), facts["target"]["kind"]),
        ],
        answers=answers,
        total=len(responses),
        command=command,
        software=facts["software"],
    )
