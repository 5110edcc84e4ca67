"""Commands that import published data sets and common derivatives: `phosphene import nsd`, `god` ..."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from phosphene.cli.data import Out, Source, importers, summary
from phosphene.cli.options import Json, Seed, progress_wanted

__all__ = ["importers", "parse_sessions"]

Size = Annotated[int | None, typer.Option("--image-size", help="Crop and resize pictures to N x N.")]
FoldsBy = Annotated[str | None, typer.Option("--folds-by", help="Add splits by this label column, or by stimulus_id.")]
Folds = Annotated[int | None, typer.Option("--folds", help="How many; default: leave one group out.")]
People = Annotated[
    list[str] | None,
    typer.Option("--subject", help="Only this person, as 1 or subj01; may be repeated.", metavar="NAME"),
]
Pictures = Annotated[bool, typer.Option("--pictures/--no-pictures", help="Put the pictures into the study.")]


def parse_sessions(text: str | None) -> int | list[int] | None:
    """Sessions from ``"37"`` (the first 37), ``"1-3,7"`` or nothing (all).

    Examples
    --------
    >>> parse_sessions("37"), parse_sessions("1-3,7"), parse_sessions("5,")
    (37, [1, 2, 3, 7], [5])
    """
    if text is None:
        return None
    if text.isdigit():
        return int(text)
    chosen: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise typer.BadParameter(f"sessions are given as 37 (the first 37) or 1-3,7; found {text!r}")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    return chosen


@importers.command("nsd")
def import_nsd(
    path: Source,
    out: Out,
    subject: People = None,
    sessions: Annotated[
        str | None, typer.Option("--sessions", help="The first N, or a list such as 1-3,7; default: all.")
    ] = None,
    space: Annotated[
        str, typer.Option("--space", help="func1pt8mm, fsaverage, fsaverage6 or fsaverage5.")
    ] = "func1pt8mm",
    mask: Annotated[
        str, typer.Option("--mask", help="An atlas, a label (V1v, streams:ventral) or whole.")
    ] = "nsdgeneral",
    betas: Annotated[
        str, typer.Option("--betas", help="Version of the betas: the name of their folder.")
    ] = "betas_fithrf_GLMdenoise_RR",
    pictures: Pictures = True,
    image_size: Size = None,
    captions: Annotated[
        list[Path] | None, typer.Option("--captions", help="COCO caption file; may be repeated.", metavar="JSON")
    ] = None,
    freesurfer: Annotated[
        Path | None, typer.Option("--freesurfer", help="Folder with fsaverage, for fsaverage6 and 5.", metavar="DIR")
    ] = None,
    json: Json = None,
) -> None:
    """Read the Natural Scenes Dataset as it is released (docs/readers.md)."""
    from phosphene.recordings.readers.nsd import import_nsd as read

    written = read(
        path,
        out,
        subjects=subject or None,
        sessions=parse_sessions(sessions),
        space=space,
        mask=mask,
        betas=betas,
        pictures=pictures,
        image_size=image_size,
        captions=captions or (),
        freesurfer=freesurfer,
        progress=progress_wanted(),
    )
    summary(written, json)


@importers.command("mindeye2")
def import_mindeye2(
    path: Source,
    out: Out,
    subject: People = None,
    sessions: Annotated[
        int | None, typer.Option("--sessions", help="Training trials of the first N sessions; default: all.")
    ] = None,
    test: Annotated[str, typer.Option("--test", help="new_test (1,000 images) or test (982).")] = "new_test",
    pictures: Pictures = True,
    json: Json = None,
) -> None:
    """Read NSD as MindEye2 released it, z-scored (docs/readers.md)."""
    from phosphene.recordings.readers.mindeye2 import import_mindeye2 as read

    summary(
        read(
            path,
            out,
            subjects=subject or None,
            sessions=sessions,
            test=test,
            pictures=pictures,
            progress=progress_wanted(),
        ),
        json,
    )


@importers.command("god")
def import_god(
    path: Source,
    out: Out,
    subject: Annotated[
        list[int] | None, typer.Option("--subject", help="Only this person, 1 to 5; may be repeated.", metavar="N")
    ] = None,
    roi: Annotated[str, typer.Option("--roi", help="Voxels of this region, such as VC, V1, FFA; or all.")] = "VC",
    imagery: Annotated[bool, typer.Option("--imagery", help="Imagery trials too, in the role 'imagery'.")] = False,
    images: Annotated[Path | None, typer.Option("--images", help="Folder of the pictures.", metavar="DIR")] = None,
    image_size: Size = None,
    json: Json = None,
) -> None:
    """Read Generic Object Decoding, bdpy HDF5 (docs/readers.md)."""
    from phosphene.recordings.readers.god import import_god as read

    summary(
        read(path, out, subjects=subject or None, roi=roi, imagery=imagery, images=images, image_size=image_size), json
    )


@importers.command("glmsingle")
def import_glmsingle(
    path: Source,
    out: Out,
    model: Annotated[
        str, typer.Option("--model", help="Which model: the name of its file.")
    ] = "TYPED_FITHRF_GLMDENOISE_RR",
    image_size: Size = None,
    folds_by: FoldsBy = None,
    folds: Folds = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Read GLMsingle outputs with tables of trials (docs/readers.md)."""
    from phosphene.recordings.readers.glmsingle import import_glmsingle as read

    summary(read(path, out, model=model, image_size=image_size, folds_column=folds_by, folds=folds, seed=seed), json)


@importers.command("fmriprep")
def import_fmriprep(
    path: Source,
    out: Out,
    space: Annotated[str | None, typer.Option("--space", help="Which space- entity, where there are several.")] = None,
    desc: Annotated[str | None, typer.Option("--desc", help="Which desc- entity, where there are several.")] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="Where the trial tables are, if not beside the betas.")
    ] = None,
    image_size: Size = None,
    folds_by: FoldsBy = None,
    folds: Folds = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Read betas named as fMRIPrep names its derivatives, NIfTI or GIFTI (docs/readers.md)."""
    from phosphene.recordings.readers.fmriprep import import_fmriprep as read

    summary(
        read(
            path,
            out,
            space=space,
            desc=desc,
            events=events,
            image_size=image_size,
            folds_column=folds_by,
            folds=folds,
            seed=seed,
        ),
        json,
    )
