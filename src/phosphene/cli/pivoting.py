"""Command `pivot`: from brain to text by the image, beside training straight to the text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.decoding import Role, Run, fitted_one
from phosphene.cli.options import (
    Config,
    Json,
    Seed,
    Set,
    Split,
    StudyFile,
    Subjects,
    TextTargets,
    progress_wanted,
    settings_in,
)
from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    import numpy as np

    from phosphene.decoders import Decoder
    from phosphene.encoders import Targets
    from phosphene.recordings import Study
    from phosphene.training import Pivot

__all__ = ["pivot"]

_TABLES = ("pivot", "direct")


def pivot(
    run: Run,
    study: StudyFile,
    text: TextTargets,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of pivot, direct decoder and figures (text.json).", metavar="DIR")
    ],
    targets: Annotated[
        Path | None,
        typer.Option("--targets", help="The decoder's image targets, by encode; default: encoded now.", metavar="DIR"),
    ] = None,
    fitted: Annotated[
        Path | None, typer.Option("--pivot", help="A pivot fitted before, OUT/pivot of another call.", metavar="DIR")
    ] = None,
    direct: Annotated[
        str,
        typer.Option(
            "--direct",
            help="The alternative without images: fit (the same decoder, trained straight to the text of the same "
            "captions; resumes), the run folder of one trained before, or none.",
            metavar="fit|DIR|none",
        ),
    ] = "fit",
    captions: Annotated[
        int | None, typer.Option("--captions", help="Only so many captioned training stimuli; default: all.", min=3)
    ] = None,
    split: Split = None,
    role: Role = "test",
    subject: Subjects = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", help="Resamples of captions for the intervals.", min=0)
    ] = 1000,
    seed: Seed = 0,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Retrieve captions from responses and back through a decoder of images, and say what training straight gives.

    A projector from the decoder's image embeddings to text is fitted on pictures and captions of the training part,
    without responses, and applied to what is decoded.
    """
    from phosphene.evaluation import compare_text, text_retrieval
    from phosphene.files import write_json
    from phosphene.recordings import Study
    from phosphene.training import Pivot, fit_alike
    from phosphene.training.pivot import FOLDER

    if fitted is None:
        FOLDER.check(out / "pivot")
    settings = _settings(config, assignments, fitted, captions, direct)
    decoder, of_split = fitted_one(run, split)
    other = _other(direct, split, decoder)
    made = None if fitted is None else Pivot.load(fitted)
    with Study.open(study) as opened:
        opened = opened.using(of_split) if of_split in opened.split_names else opened
        pairs = _pairs(decoder, opened, made, captions, seed)
        texts = _texts(text, opened, pairs, role)
        if made is None:
            made = _fit(decoder, opened, texts, pairs, targets, seed, settings.get("pivot", {}))
            made.save(out / "pivot")
        words: dict[str, Any] = {"role": role, "subjects": subject, "n_boot": bootstrap, "seed": seed}
        cards = [text_retrieval(decoder, opened, texts, made, name="by the image", **words)]
        if direct == "fit":
            of_direct = {"out": out / "direct", "training": settings.get("direct", {}), "progress": progress_wanted()}
            other = fit_alike(decoder, opened, texts, stimuli=pairs, **of_direct)
        if other is not None:
            cards.append(text_retrieval(other, opened, texts, name="straight to text", **words))
    facts: dict[str, Any] = {"captioned_stimuli": len(pairs), "cards": [card.to_dict() for card in cards]}
    typer.echo(f"{out}: {len(pairs)} training stimuli with captions")
    for card in cards:
        typer.echo(card.table())
    if len(cards) == 2:
        compared = compare_text(*cards, n_boot=bootstrap, seed=seed)
        facts["comparison"] = compared.to_dict()
        typer.echo(compared.table())
    for path in (out / "text.json", *([] if json is None else [json])):
        write_json(path, facts)


def _settings(
    config: Path | None, assignments: list[str] | None, fitted: Path | None, captions: int | None, direct: str
) -> dict[str, Any]:
    """Settings in two tables: ``[pivot]``, and ``[direct]``, the training of the alternative."""
    settings = settings_in(_TABLES, config, assignments)
    if fitted is not None and (captions is not None or settings.get("pivot")):
        raise InputError("--captions and settings of the pivot are for one that is fitted now, found --pivot")
    if direct != "fit" and settings.get("direct"):
        raise InputError(f"settings of direct training are for --direct fit, found --direct {direct}")
    return settings


def _pairs(decoder: Decoder, study: Study, made: Pivot | None, captions: int | None, seed: int) -> np.ndarray:
    """Stimuli whose captions are used: those of a pivot fitted before, else of what the decoder's people saw."""
    import numpy as np

    from phosphene.training.alike import captioned

    if made is None:
        return captioned(decoder, study, captions, seed)
    known = np.array(list(made.provenance["training_content"]), dtype=str)
    return known[np.isin(known, captioned(decoder, study))]


def _texts(name: str, study: Study, pairs: np.ndarray, role: str) -> Targets:
    """Caption embeddings from a folder, or encoded now, by an encoder that has learnt from the used captions alone."""
    import numpy as np

    from phosphene.encoders import Targets, encode, make_encoder

    if (Path(name) / "targets.json").exists():
        return Targets.open(name)
    encoder, scored = make_encoder(name), study.split(role).stimulus_ids
    stimuli = study.stimuli.select(np.union1d(pairs, scored))
    return encode(stimuli, encoder, fit_on=pairs if encoder.needs_fit else None, progress=progress_wanted())


def _fit(
    decoder: Decoder,
    study: Study,
    texts: Targets,
    pairs: np.ndarray,
    targets: Path | None,
    seed: int,
    settings: dict[str, Any],
) -> Pivot:
    from phosphene.encoders import Targets, encode
    from phosphene.training import fit_pivot

    if targets is not None:
        images = Targets.open(targets)
    elif decoder.encoder is None:
        raise InputError("the decoder was saved without its encoder: give its image targets with --targets")
    else:
        images = encode(study.stimuli.select(pairs), decoder.encoder, progress=progress_wanted())
    kind, progress = decoder.target_kind, progress_wanted()
    return fit_pivot(study, images, texts, ids=pairs, kind=kind, seed=seed, progress=progress, **settings)


def _other(direct: str, split: str | None, decoder: Decoder) -> Decoder | None:
    """The decoder to stand beside, where it was trained before; one that is trained now must be possible."""
    from phosphene.training.alike import check_alike

    if direct == "fit":
        check_alike(decoder)
    if direct in ("fit", "none"):
        return None
    if not Path(direct).is_dir():
        raise unknown("--direct", direct, ["fit", "none", "a run folder"])
    return fitted_one(Path(direct), split)[0]
