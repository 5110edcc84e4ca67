"""Commands about data: simulate, import, check, encode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phosphene.cli.merging import MergeFlops, MergeGuide, MergeText, MergeTokens, merge_options, merged_plan
from phosphene.cli.options import Config, Json, Seed, Set, StudyFile, given_settings, progress_wanted

__all__ = ["check", "encode", "importers", "simulate", "summary"]

importers = typer.Typer(
    help="Read recordings into a study file.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Source = Annotated[Path, typer.Argument(help="Folder (or file) to read.", metavar="PATH")]
Out = Annotated[Path, typer.Option("--out", help="The study file to write.", metavar="STUDY")]


def simulate(
    out: Out,
    preset: Annotated[str, typer.Option("--preset", help="demo, small, hours or nsd.")] = "small",
    subjects: Annotated[int | None, typer.Option("--subjects", help="Only the first so many people.")] = None,
    sessions: Annotated[int | None, typer.Option("--sessions", help="Only the first so many sessions.")] = None,
    seed: Seed = 0,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Simulate people looking at procedural scenes, with known ground truth."""
    from phosphene import virtual

    described = virtual.make_settings(preset, **given_settings(config, assignments))
    virtual.write_study(out, described, seed, subjects=subjects, sessions=sessions, progress=progress_wanted())
    summary(out, json)


@importers.command("folder")
def import_folder(
    path: Source,
    out: Out,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Crop and resize pictures to N x N.")] = None,
    folds_by: Annotated[
        str | None, typer.Option("--folds-by", help="Add splits by this label column, or by stimulus_id.")
    ] = None,
    folds: Annotated[int | None, typer.Option("--folds", help="How many; default: leave one group out.")] = None,
    stimuli_alone: Annotated[
        bool,
        typer.Option("--stimuli-alone", help="There are no people: pictures and captions of a site without a brain."),
    ] = False,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Read a plain study folder: the layout for your own data (docs/study_folder.md)."""
    from phosphene.recordings.readers.folder import import_folder as read

    made = read(
        path,
        out,
        image_size=image_size,
        folds_column=folds_by,
        folds=folds,
        seed=seed,
        stimuli_alone=stimuli_alone,
    )
    summary(made, json)


def summary(path: Path, json: Path | None) -> None:
    """Say in a few lines what a study file holds."""
    from phosphene.files import write_json
    from phosphene.recordings import Study

    with Study.open(path, stimuli_alone=True) as study:
        people = {name: {"trials": r.n_trials, "voxels": r.n_voxels} for name, r in study.recordings.items()}
        facts = {"study": str(path), "digest": study.digest, "stimuli": len(study.stimuli), "people": people}
    size = path.stat().st_size
    typer.echo(f"{path}: {facts['stimuli']} stimuli, {len(people)} people, {size / 1e6:.1f} MB")
    for name, counts in people.items():
        typer.echo(f"  {name}: {counts['trials']} trials x {counts['voxels']} voxels")
    if json is not None:
        write_json(json, {**facts, "bytes": size})


def check(study: StudyFile, json: Json = None) -> None:
    """Say what is in a study and what looks wrong: voxels, repeats, splits, noise ceiling, checksums."""
    from phosphene.files import write_json
    from phosphene.recordings.check import check_study

    found = check_study(study)
    typer.echo(found.text())
    if json is not None:
        write_json(json, found.to_dict())
    if found.problems:
        raise typer.Exit(2)


def encode(
    study: StudyFile,
    encoder: Annotated[str, typer.Option("--encoder", help="Such as pocket, gabor, hf:FOLDER.", metavar="NAME")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the targets.", metavar="DIR")],
    split: Annotated[str | None, typer.Option("--split", help="Fit on the training part of this split.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda.")] = None,
    merge_flops: MergeFlops = None,
    merge_tokens: MergeTokens = None,
    merge_guide: MergeGuide = None,
    merge_text: MergeText = None,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Encode the stimuli of a study into targets (cached; interrupted encoding goes on where it stopped)."""
    from phosphene.encoders import encode as run
    from phosphene.encoders import make_encoder
    from phosphene.encoders.targets import FOLDER
    from phosphene.files import write_json
    from phosphene.recordings import Study

    FOLDER.check(out)
    settings = given_settings(config, assignments)
    settings = merge_options(encoder, settings, merge_flops, merge_tokens, merge_guide, merge_text)
    with Study.open(study) as opened:
        if split is not None:
            opened = opened.using(split)
        built = make_encoder(encoder, **settings)
        fit_on = opened.split("train").stimulus_ids if built.needs_fit else None
        targets = run(opened.stimuli, built, fit_on=fit_on, device=device, progress=progress_wanted())
    targets.save(out)
    shapes = {kind: targets.shape(kind) for kind in targets.kinds}
    words = ", ".join(f"{kind} {shape}" for kind, shape in shapes.items())
    typer.echo(f"{out}: {len(targets.ids)} stimuli, {words}, encoder {built.label} ({targets.identity})")
    plan = merged_plan(built)
    if plan is not None:
        typer.echo(f"  tokens merged inside the tower: {plan}")
    if json is not None:
        facts = {"encoder": built.label, "identity": targets.identity, "stimuli": len(targets.ids), "shapes": shapes}
        write_json(json, facts | ({} if plan is None else {"merging": plan.to_dict()}))
