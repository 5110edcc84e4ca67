"""How much alike people respond before and after alignment, for decoders with an aligner in front."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from phosphene.errors import PhospheneError
from phosphene.reporting.figures import percentage
from phosphene.reporting.page import AlignmentBar

if TYPE_CHECKING:
    from phosphene.alignment import IscReport
    from phosphene.decoders import Decoder
    from phosphene.evaluation import Scorecard
    from phosphene.recordings import Study

__all__ = ["alignment_bars"]

log = logging.getLogger(__name__)

_RESAMPLES = 200


def alignment_bars(
    decoders: Mapping[str, Decoder], study: Study, scorecard: Scorecard
) -> tuple[tuple[AlignmentBar, ...], str]:
    """Inter-subject correlation by region on the scored stimuli, and what it says in words; of the first fold.

    Returns
    -------
    bars : tuple of AlignmentBar
        Empty for decoders without an aligner, and where it cannot be measured: the words then say why.
    words : str
    """
    from phosphene.alignment import inter_subject_correlation, unaligned

    split, decoder = next(iter(decoders.items()))
    aligner = decoder.aligner
    if aligner is None:
        return (), ""
    here = study.using(split) if split in study.split_names else study
    people = [person for person in scorecard.protocol.get("subjects", study.subjects) if person in aligner.people]
    try:
        view = here.split(str(scorecard.protocol.get("role", "test"))).subset(people)
        before = inter_subject_correlation(unaligned(view), view, n_boot=_RESAMPLES)
        after = inter_subject_correlation(aligner, view, n_boot=_RESAMPLES)
    except PhospheneError as error:
        log.warning("alignment is not drawn: %s", error)
        return (), f"Alignment between people ({aligner.name}) could not be measured: {error}."
    return _bars(before, after), (
        f"Correlation of each person's responses with the mean of the others', over {after.n_stimuli} scored stimuli "
        f"that all of {', '.join(people)} saw; before ({before.template}) and after the {aligner.name} aligner "
        f"({after.template}). Whiskers: 95\u00a0% over stimuli. Told apart by the others' patterns (chance 50\u00a0%): "
        f"{percentage(before.identification)} before, {percentage(after.identification)} after."
    )


def _bars(before: IscReport, after: IscReport) -> tuple[AlignmentBar, ...]:
    old = {row.roi: row for row in before.rows}
    bars = []
    for row in after.rows:
        if row.value is None:
            continue
        was = old.get(row.roi)
        bars.append(
            AlignmentBar(
                region="all places" if row.roi == "all" else row.roi,
                places=row.n_places,
                before=None if was is None else was.value,
                after=row.value,
                interval=row.interval,
                reachable=row.normalised,
            )
        )
    return tuple(bars)
