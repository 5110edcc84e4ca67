"""Command `align`: bring people into one space, and say how much more alike they respond there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.options import Config, Json, Seed, Set, Split, StudyFile, Subjects, given_settings
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.alignment import Aligner, IscReport
    from phosphene.alignment.isc import IscRow

__all__ = ["align"]

ISC_FILE = "isc.json"


def align(
    study: StudyFile,
    method: Annotated[
        str, typer.Option("--method", help="anatomical, ridge, procrustes, srm, hybrid or pooled.", metavar="NAME")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the aligner.", metavar="DIR")],
    split: Split = None,
    role: Annotated[str, typer.Option("--role", help="Fit on this part of the split: train, validation, align.")] = (
        "train"
    ),
    measure: Annotated[str, typer.Option("--measure", help="Measure on this part, or: none.")] = "test",
    subjects: Subjects = None,
    bootstrap: Annotated[
        int | None, typer.Option("--bootstrap", help="Resamples of stimuli for the intervals; default 500.", min=0)
    ] = None,
    seed: Seed = 0,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Align people; print inter-subject correlation by region before and after, on stimuli that were not used."""
    from phosphene.alignment import inter_subject_correlation, make_aligner, unaligned
    from phosphene.alignment.isc import measurable
    from phosphene.alignment.store import FOLDER
    from phosphene.files import write_json
    from phosphene.recordings import Study

    if measure == "none" and (bootstrap is not None or seed):
        raise InputError("--bootstrap and --seed are of the measurement, which --measure none leaves out")
    FOLDER.check(out)
    aligner = make_aligner(method, **given_settings(config, assignments))
    with Study.open(study) as opened:
        if split is not None:
            opened = opened.using(split)
        fitted, measured = opened.split(role), None if measure == "none" else opened.split(measure)
        if subjects:
            fitted, measured = fitted.subset(subjects), None if measured is None else measured.subset(subjects)
        if measured is not None:
            try:
                measurable(measured)
            except InputError as error:
                raise InputError(
                    f"{error}. To align without measuring: --measure none; to measure on other stimuli: --measure with "
                    "another part of the split"
                ) from error
        aligner.fit(fitted)
        before = after = None
        if measured is not None:
            words: dict[str, Any] = {"n_boot": 500 if bootstrap is None else bootstrap, "seed": seed}
            before = inter_subject_correlation(unaligned(measured), measured, label="before", **words)
            after = inter_subject_correlation(aligner, measured, label="after", **words)
    facts = _facts(aligner, before, after)
    aligner.save(out)
    write_json(out / ISC_FILE, facts)
    if json is not None:
        write_json(json, facts)
    typer.echo(f"{out}: {aligner}")
    if before is not None and after is not None:
        typer.echo(_table(before, after))


def _facts(aligner: Aligner, before: IscReport | None, after: IscReport | None) -> dict[str, Any]:
    return {
        "aligner": aligner.name,
        "settings": aligner.config.model_dump(mode="json"),
        "template": {"name": aligner.template.name, "size": aligner.template.size},
        "people": {
            subject: {"voxels": person.n_voxels, "covered": float(person.covered.mean())}
            for subject, person in aligner.people.items()
        },
        "fitted_on": len(aligner.fitted_on),
        **aligner.provenance,
        "before": None if before is None else before.to_dict(),
        "after": None if after is None else after.to_dict(),
    }


def _table(before: IscReport, after: IscReport) -> str:
    """One line a region; what a template lacks is a dash."""
    known = {row.roi: row for row in before.rows}
    level = f"{100 * after.level:g} %"
    lines = [
        f"inter-subject correlation on {after.n_stimuli} {after.role} stimuli of split {after.split!r}, "
        f"{len(after.subjects)} people, {level} intervals over stimuli; share of what noise leaves in brackets",
        f"  {'region':<12} {'places':>7}   {f'before ({before.template})':<32} after ({after.template})",
    ]
    told = (
        f"  told apart by the others' patterns, of pairs of stimuli (chance 0.5): {before.identification:.3f} before, "
    )
    rows = [row.roi for row in after.rows] + [roi for roi in known if all(roi != row.roi for row in after.rows)]
    now = {row.roi: row for row in after.rows}
    for roi in rows:
        places = now[roi].n_places if roi in now else "-"
        lines.append(f"  {roi:<12} {places:>7}   {_words(known.get(roi)):<32} {_words(now.get(roi))}")
    return "\n".join([*lines, f"{told}{after.identification:.3f} after"])


def _words(row: IscRow | None) -> str:
    if row is None or row.value is None:
        return "-"
    interval = "" if row.interval is None else f" {row.interval[0]:.3f} to {row.interval[1]:.3f}"
    share = "" if row.normalised is None else f" ({row.normalised:.2f})"
    return f"{row.value:.3f}{interval}{share}"
