"""`report`: a study, a decoder and its scorecard become one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phosphene.errors import InputError
from phosphene.reporting import account, brain, gallery, story
from phosphene.reporting.alignment import alignment_bars
from phosphene.reporting.origins import importance_maps
from phosphene.reporting.page import Page
from phosphene.reporting.render import write

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.encoders import Targets
    from phosphene.evaluation import Scorecard
    from phosphene.recordings import Study

__all__ = ["compose", "report"]


def report(
    decoder: Decoder | Mapping[str, Decoder],
    study: Study,
    targets: Targets | Mapping[str, Targets] | None,
    scorecard: Scorecard,
    path: str | Path,
    *,
    title: str | None = None,
    command: str | None = None,
    importance: bool | Mapping[str, np.ndarray] = True,
    max_examples: int = 3,
) -> Path:
    """Write one self-contained HTML page: no server, no network, nothing beside it.

    Parameters
    ----------
    decoder : Decoder, or mapping of split name to Decoder
        What was evaluated: one decoder, or one a fold.
    study : Study
        What it was evaluated on.
    targets : Targets, mapping of split name to Targets, or None
        Targets of the study's stimuli; left out, the decoder's own encoder makes those that importance needs.
    scorecard : Scorecard
        What `phosphene.evaluate` gave.
    path : str or Path
        The HTML file, replaced atomically.
    title, command : str, optional
        Name of the page, and the command that made it, printed as it stands.
    importance : bool or mapping of str to (V,) array
        Whether the decoder's importance is drawn on the brain; or the maps themselves, one a person.
    max_examples : int
        Best, median and worst cases shown, each at most so many for a person.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        When scorecard and study do not belong together.

    Examples
    --------
    >>> report(decoder, study, targets, scorecard, "report.html")        # doctest: +SKIP
    PosixPath('report.html')
    """
    page = compose(
        decoder,
        study,
        targets,
        scorecard,
        title=title,
        command=command,
        importance=importance,
        max_examples=max_examples,
    )
    return write(page, path)


def compose(
    decoder: Decoder | Mapping[str, Decoder],
    study: Study,
    targets: Targets | Mapping[str, Targets] | None,
    scorecard: Scorecard,
    *,
    title: str | None = None,
    command: str | None = None,
    importance: bool | Mapping[str, np.ndarray] = True,
    max_examples: int = 3,
) -> Page:
    """The page that `report` writes, as plain values; parameters as there."""
    if max_examples < 1:
        raise InputError(f"max_examples must be at least 1, found {max_examples}")
    decoders = dict(decoder) if isinstance(decoder, Mapping) else {study.current_split: decoder}
    _check(decoders, study, scorecard)
    first = next(iter(decoders.values()))
    what = account.noun(study)
    told = story.tell(scorecard, what, account.repeats(scorecard), account.is_virtual(study))
    people = account.recorded(study, scorecard)
    brains, brain_note, brain_absent = importance_maps(decoders, study, targets, scorecard, importance)
    lines = account.curves(first.provenance)
    alignment, alignment_note = alignment_bars(decoders, study, scorecard)
    return Page(
        title=title or f"{scorecard.method} on {study.name}",
        headline=told.headline,
        standfirst=told.standfirst,
        method=scorecard.method,
        people=told.people,
        directions=told.directions,
        hero=told.hero,
        charts=told.charts,
        rows=told.rows,
        facts=account.facts(study, scorecard, people),
        recorded=people,
        recorded_note=_recorded_note(study),
        cases=gallery.show(scorecard, study.stimuli, told.people, max_examples),
        cases_note=_cases_note(study, scorecard),
        cases_absent="The scorecard holds no ranks of single stimuli, so no case can be shown.",
        curves=lines,
        curves_note=_curves_note(decoders, bool(lines)),
        curves_absent=_curves_absent(first),
        brains=brains,
        brain_note=brain_note,
        brain_absent=brain_absent,
        brain_ramp=brain.RAMP,
        alignment=alignment,
        alignment_note=alignment_note,
        audits=account.audits(scorecard),
        command=command or "",
        versions=account.versions(scorecard),
        protocol=account.protocol(scorecard),
        sources=account.sources(study, first.provenance),
        created=account.today(),
    )


def _check(decoders: Mapping[str, Decoder], study: Study, scorecard: Scorecard) -> None:
    if not decoders:
        raise InputError("there is no decoder to report on: the mapping of split names to decoders is empty")
    known = scorecard.protocol.get("study", {})
    if known and known.get("digest") != study.digest:
        raise InputError(
            f"the scorecard was measured on study {known.get('name')!r} (digest {str(known.get('digest'))[:12]}), "
            f"this is {study.name!r} (digest {study.digest[:12]}): evaluate again, or give the study it belongs to"
        )


def _recorded_note(study: Study) -> str:
    if account.is_virtual(study):
        return (
            "A virtual study: the people are simulated, and every response follows from the stimulus and known noise."
        )
    return study.citation


def _cases_note(study: Study, scorecard: Scorecard) -> str:
    words = (
        "Best, median and worst test stimuli by the rank of the right one, chosen by rule: nothing was picked by hand."
    )
    if study.stimuli.fps is not None and study.stimuli.has_pixels:
        words += " Clips are shown by their middle frame."
    if not study.stimuli.has_pixels:
        words += " The study holds no pixels, so captions stand for the stimuli."
    return words


def _curves_note(decoders: Mapping[str, Decoder], drawn: bool) -> str:
    if not drawn or len(decoders) == 1:
        return ""
    ends = [f"{split} {d.provenance['best_epoch']}" for split, d in decoders.items() if d.provenance.get("best_epoch")]
    words = f"One of {len(decoders)} folds is drawn: {next(iter(decoders))}."
    return words + (f" Best epoch by fold: {', '.join(ends)}." if ends else "")


def _curves_absent(decoder: Decoder) -> str:
    if decoder.closed_form:
        return f"{decoder.name} is solved in one step: there is no curve to draw."
    return "The decoder carries no record of its training."
