"""Commands about decoders: fit, evaluate, decode, report, compare."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.options import (
    Config,
    Json,
    Seed,
    Set,
    Splits,
    StudyFile,
    Subjects,
    chosen_splits,
    decoder_settings,
    open_runs,
    people_of_runs,
    progress_wanted,
)

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.decoders import Decoder
    from phosphene.encoders import Targets
    from phosphene.evaluation import Scorecard
    from phosphene.recordings import Study

__all__ = [
    "Role",
    "Run",
    "aligner_named",
    "compare",
    "decode",
    "evaluate",
    "fit",
    "fitted_one",
    "report",
    "targets_of",
]

Run = Annotated[Path, typer.Argument(help="A run folder (or folder of folds) written by fit.", metavar="RUN")]


def fit(
    decoder: Annotated[str, typer.Argument(help="ridge, lite-mind, mindeye-mlp ...", metavar="DECODER")],
    study: StudyFile,
    targets: Annotated[str, typer.Option("--targets", help="An encoder by name, or a folder written by encode.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder; an unfinished run in it is resumed.", metavar="DIR")],
    kind: Annotated[str | None, typer.Option("--kind", help="tokens or pooled.")] = None,
    split: Splits = None,
    preset: Annotated[str | None, typer.Option("--preset", help="A preset of the decoder.")] = None,
    subject: Subjects = None,
    align: Annotated[
        str | None,
        typer.Option(
            "--align", help="Into one space first: a folder written by align, or a method, fitted on the training part."
        ),
    ] = None,
    seed: Seed = 0,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Fit a decoder to the training part of a study; with several splits, one decoder for each."""
    from phosphene.recordings import Study
    from phosphene.training import fit as run

    settings, training = decoder_settings(config, assignments)
    with Study.open(study) as opened:
        names = chosen_splits(opened, split)
        for name in names:
            part = opened.using(name)
            folder = out / name if len(names) > 1 else out
            fitted = run(
                decoder,
                part,
                targets_of(targets, part),
                preset=preset,
                subjects=subject,
                seed=seed,
                out=folder,
                kind=kind,
                aligner=None if align is None else aligner_named(align, part, subject),
                progress=progress_wanted(),
                training=training,
                **settings,
            )
            typer.echo(f"{folder / 'decoder'}: {fitted.name} for {len(fitted.subjects)} people, split {name}")


def aligner_given(word: str) -> Aligner | str:
    """An aligner from a folder, or the name of a method."""
    from phosphene.alignment import Aligner

    return Aligner.load(word) if (Path(word) / "config.json").exists() else word


def aligner_named(word: str, study: Study, subjects: list[str] | None) -> Aligner:
    """An aligner from a folder, or fitted now."""
    from phosphene.alignment import make_aligner

    found, view = aligner_given(word), study.split("train")
    if isinstance(found, str):
        return make_aligner(found).fit(view if subjects is None else view.subset(subjects))
    return found


def targets_of(name: str, study: Study) -> Targets:
    """Targets from a folder, or encoded now."""
    from phosphene.encoders import targets_named

    return targets_named(name, study, progress=progress_wanted())


def _fitted(run: Path, pattern: str | None) -> dict[str, Decoder]:
    import fnmatch

    from phosphene.errors import unknown

    runs = {name: decoder for name, (decoder, _) in open_runs(run).items()}
    wanted = fnmatch.filter(runs, pattern) if pattern else list(runs)
    if not wanted:
        raise unknown(f"split of {run}:", pattern, runs)
    return {name: runs[name] for name in wanted}


def fitted_one(run: Path, pattern: str | None) -> tuple[Decoder, str]:
    """The one decoder of a run, and the name of the split it was fitted on; several are an error."""
    from phosphene.errors import InputError

    decoders = _fitted(run, pattern)
    if len(decoders) > 1:
        raise InputError(f"{run} holds {len(decoders)} decoders; choose one with --split: {', '.join(decoders)}")
    ((name, decoder),) = decoders.items()
    return decoder, name


def _evaluated(
    decoders: dict[str, Decoder],
    study: Study,
    role: str,
    rivals: Mapping[str, Decoder | dict[str, Decoder] | None],
    repeats: int | None,
    seed: int,
    csls: bool = False,
    subjects: list[str] | None = None,
    protocols: str | None = None,
    unit: str | None = None,
) -> Scorecard:
    from phosphene.evaluation import evaluate as run

    single = next(iter(decoders.values())) if len(decoders) == 1 else None
    name = next(iter(decoders))
    if single is not None and name in study.split_names:
        study = study.using(name)
    return run(
        decoders if single is None else single,
        study,
        role=role,
        subjects=subjects,
        protocols=[word for word in protocols.split(",") if word] if protocols else None,
        unit=unit,
        rivals=rivals,
        repeats=repeats,
        seed=seed,
        csls=csls,
        progress=progress_wanted(),
    )


def _rivals(words: str) -> dict[str, Decoder | dict[str, Decoder] | None]:
    """Rivals that are fitted now, by name, and those that were fitted before, by run folder."""
    from phosphene.evaluation.rivals import RIVALS

    chosen: dict[str, Decoder | dict[str, Decoder] | None] = {}
    for word in words.split(","):
        if word in RIVALS or not Path(word).is_dir():
            chosen |= {word: None} if word and word != "none" else {}
            continue
        of_people = people_of_runs(Path(word))
        fitted = of_people or _fitted(Path(word), None)
        first = next(iter(fitted.values()))
        if of_people:
            chosen[f"{first.name}, one a person"] = of_people
            continue
        name = f"{first.name} ({word})" if first.name in RIVALS or first.name in chosen else first.name
        chosen[name] = fitted if len(fitted) > 1 else first
    return chosen


Role = Annotated[
    str, typer.Option("--role", help="Part of the split that is scored; 'all' for a study without splits.")
]
Rivals = Annotated[
    str,
    typer.Option(
        "--rivals",
        help="Comma-separated: mean, nearest, ridge, run folders of others (also of a run a person); or none.",
    ),
]
Repeats = Annotated[int | None, typer.Option("--repeats", help="Average so many repeats of a stimulus; default: all.")]
Protocols = Annotated[
    str | None,
    typer.Option(
        "--protocols",
        help="Comma-separated: retrieval, retrieval-300x30, two-way-cosine, classification:<column> ...; default: all "
        "that fit the gallery.",
    ),
]
Unit = Annotated[
    str | None,
    typer.Option("--unit", help="Label column that is resampled as blocks; default: the study's.", metavar="COLUMN"),
]
Csls = Annotated[bool, typer.Option("--csls", help="Add hubness-corrected scores, flagged transductive.")]


def evaluate(
    run: Run,
    study: StudyFile,
    split: Splits = None,
    role: Role = "test",
    rivals: Rivals = "mean,nearest,ridge",
    repeats: Repeats = None,
    csls: Csls = False,
    protocols: Protocols = None,
    unit: Unit = None,
    subject: Subjects = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Score a fitted decoder on held-out stimuli: both directions, chance, intervals, null and rivals."""
    from phosphene.recordings import Study

    with Study.open(study) as opened:
        decoders = _fitted(run, split)
        beside = _rivals(rivals)
        card = _evaluated(decoders, opened, role, beside, repeats, seed, csls, subject, protocols, unit)
        typer.echo(card.table())
        if json is not None:
            card.save(json)
        _labels(decoders, opened, role, beside, repeats, seed, subject, unit, json)


def _labels(
    decoders: dict[str, Decoder],
    study: Study,
    role: str,
    rivals: Mapping[str, Decoder | dict[str, Decoder] | None],
    repeats: int | None,
    seed: int,
    subjects: list[str] | None,
    unit: str | None,
    json: Path | None,
) -> None:
    """Score the classes of decoders with a head for them; ``<json>_labels.json`` stands beside the other scores.

    Rivals that say the same classes stand beside them, in pairs.
    """
    from phosphene.evaluation import evaluate_labels

    for split, decoder in decoders.items():
        if not (known := _classes(decoder)):
            continue
        part = study.using(split) if split in study.split_names else study
        called = {name: f"{name} (rival)" if name == decoder.name else name for name in rivals}  # as in `evaluate`
        found = {called[name]: _of_split(one, split) for name, one in rivals.items()}
        beside = {name: one for name, one in found.items() if one is not None and _classes(one) == known}
        if others := [name for name, one in found.items() if one is not None and _classes(one) not in (known, ())]:
            typer.echo(f"{', '.join(others)}: other classes than {decoder.name}, not compared on labels")
        words: dict[str, Any] = {"role": role, "subjects": subjects, "repeats": repeats, "seed": seed, "unit": unit}
        card = evaluate_labels(decoder, part, rivals=beside, **words)
        typer.echo(card.table())
        if json is not None:
            suffix = f"_labels_{split}" if len(decoders) > 1 else "_labels"
            card.save(json.with_name(f"{json.stem}{suffix}.json"))


def _of_split(rival: Decoder | dict[str, Decoder] | None, split: str) -> Decoder | dict[str, Decoder] | None:
    """What of a rival is for one split: its decoder, or those of single people, which are all for one."""
    if not isinstance(rival, dict) or all(list(each.subjects) == [name] for name, each in rival.items()):
        return rival
    return rival.get(split)


def _classes(decoder: Decoder | dict[str, Decoder]) -> tuple[tuple[str, ...], ...]:
    """Label columns and classes of a decoder (of the first of several) with a head for them; nothing for others."""
    from phosphene.decoders import ClassesConfig

    config = (next(iter(decoder.values())) if isinstance(decoder, dict) else decoder).config
    return (config.class_columns, config.classes) if isinstance(config, ClassesConfig) and config.classes else ()


def report(
    run: Run,
    study: StudyFile,
    out: Annotated[Path, typer.Option("--out", help="The HTML file.", metavar="FILE")] = Path("report.html"),
    scores: Annotated[
        Path | None, typer.Option("--scores", help="A scorecard of evaluate --json; else scored now.")
    ] = None,
    split: Splits = None,
    role: Role = "test",
    rivals: Rivals = "mean,nearest,ridge",
    subject: Subjects = None,
    title: Annotated[str | None, typer.Option("--title")] = None,
    seed: Seed = 0,
) -> None:
    """Write one self-contained HTML page about a fitted decoder."""
    from phosphene.errors import InputError
    from phosphene.evaluation import Scorecard
    from phosphene.recordings import Study
    from phosphene.reporting import report as write

    if scores is not None and subject:
        raise InputError("--subject says who is scored now, found --scores, which says who was: name them to evaluate")
    decoders = _fitted(run, split)
    with Study.open(study) as opened:
        card = (
            Scorecard.load(scores)
            if scores
            else _evaluated(decoders, opened, role, _rivals(rivals), None, seed, subjects=subject)
        )
        single = next(iter(decoders.values())) if len(decoders) == 1 else None
        path = write(single or decoders, opened, None, card, out, title=title, command=_command())
    typer.echo(path)


def _command() -> str:
    """The command as it was typed."""
    return shlex.join(["phosphene", *sys.argv[1:]])


def compare(
    scorecards: Annotated[list[Path], typer.Argument(help="Two or more scorecards (JSON).", metavar="SCORECARD...")],
    json: Json = None,
) -> None:
    """Set scorecards side by side; paired where the protocol is the same, refused where it is not."""
    from phosphene.evaluation import Scorecard
    from phosphene.evaluation import compare as run
    from phosphene.files import write_json

    found = run({str(path): Scorecard.load(path) for path in scorecards})
    typer.echo(found.table())
    if json is not None:
        write_json(json, found.to_dict())


def decode(
    decoder: Run,
    recording: Annotated[
        Path, typer.Argument(help="Responses (.npy: trials x voxels) or a study file.", metavar="RECORDING")
    ],
    gallery: Annotated[Path, typer.Option("--gallery", help="Folder of pictures, or a study file.", metavar="PATH")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.", metavar="DIR")],
    subject: Annotated[str | None, typer.Option("--subject", help="Whose responses these are.")] = None,
    top: Annotated[int, typer.Option("--top", help="Items listed a trial.")] = 5,
    average: Annotated[bool, typer.Option("--average", help="Average the trials of a stimulus first.")] = False,
    zscore: Annotated[
        bool, typer.Option("--zscore", help="Of an array: z-score voxels over its trials (one session) first.")
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=1,
            help="Crop and resize gallery pictures to squares of this side; default: only where they differ in size.",
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also write OUT/report.html: every response with its matches.")
    ] = False,
    split: Splits = None,
) -> None:
    """Decode responses to unknown stimuli: predicted embeddings, and the best matches of a gallery."""
    import numpy as np

    from phosphene.errors import InputError
    from phosphene.recordings import Study
    from phosphene.rendering import Gallery
    from phosphene.rendering import decode as run
    from phosphene.rendering.decoding import FOLDER

    FOLDER.check(out)
    fitted, _ = fitted_one(decoder, split)
    if fitted.encoder is None:
        raise InputError(f"{decoder} was saved without its encoder; a gallery cannot be encoded like its targets")
    wanted = progress_wanted()
    items = Gallery.from_path(gallery, fitted.encoder, fitted.target_kind, progress=wanted, image_size=image_size)
    if recording.suffix == ".npy":
        try:
            responses = np.load(recording, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{recording} is not a readable array of numbers: {error}") from error
        found = run(fitted, responses, items, subject=subject, top=top, average=average, zscore=zscore, out_dir=out)
    else:
        with Study.open(recording) as study:
            found = run(fitted, study, items, subject=subject, top=top, average=average, out_dir=out)
    typer.echo(out)
    if report:
        from phosphene.rendering import gallery_stimuli
        from phosphene.reporting import report_decoded

        with gallery_stimuli(gallery, image_size) as stimuli:
            typer.echo(report_decoded(found, out / "report.html", stimuli=stimuli, command=_command()))
