"""Token merging on the command line: the options of `encode`, and `phosphene fidelity`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.options import Config, Json, Set, given_settings, progress_wanted
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.encoders import Encoder
    from phosphene.encoders.merging.plan import MergePlan
    from phosphene.stimuli import StimulusSet

__all__ = ["MergeFlops", "MergeGuide", "MergeText", "MergeTokens", "fidelity", "merge_options", "merged_plan"]

MergeFlops = Annotated[
    float | None,
    typer.Option("--merge-flops", help="Merge tokens down to this share of the tower's FLOPs.", metavar="SHARE"),
]
MergeTokens = Annotated[
    float | None,
    typer.Option("--merge-tokens", help="Merge until this share of the tokens remains.", metavar="SHARE"),
]
MergeGuide = Annotated[
    str | None,
    typer.Option("--merge-guide", help="What merging spares: none, spatial, frequency, both or text.", metavar="GUIDE"),
]
MergeText = Annotated[
    list[str] | None,
    typer.Option("--merge-text", help="A text for --merge-guide text; may be repeated.", metavar="TEXT"),
]


def merge_options(
    name: str,
    settings: Mapping[str, Any],
    flops: float | None = None,
    tokens: float | None = None,
    guide: str | None = None,
    texts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Settings of an encoder with what the ``--merge-*`` options say; unchanged where none is given.

    Raises
    ------
    InputError
        For an encoder that cannot merge tokens, naming those that can; for a guide without a rate; for settings of
        merging without a use.
    """
    from phosphene.encoders.registry import make_encoder, mergeable

    said = {"flops": flops, "tokens": tokens, **_guide(guide, texts)}
    said = {key: value for key, value in said.items() if value is not None}
    whole = dict(settings)
    if said:
        mergeable(make_encoder(name, **settings))
        whole = _with_merge(name, settings, said, texts)
        if not {"flops", "tokens", "r"} & set(_of_merging(whole)):
            raise InputError(
                "--merge-guide and --merge-text say what to spare; say how much to merge with --merge-flops"
            )
    if of_merging := _of_merging(whole):
        make_encoder(name, **whole)  # what is wrong comes before what has no use
        _require_use(of_merging)
    return whole


def _of_merging(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings below ``merge``, also of the encoder inside a standardised one."""
    inner: Any = settings
    while "merge" not in inner and isinstance(inner.get("settings"), Mapping):
        inner = inner["settings"]
    found = inner.get("merge")
    return dict(found) if isinstance(found, Mapping) else {}


def _require_use(given: Mapping[str, Any], **besides: Any) -> None:
    """Refuse settings of merging that the others, and those `besides`, leave without a use."""
    from phosphene.encoders.merging.settings import MergeSettings

    if idle := MergeSettings.build({**given, **besides}).idle(given):
        raise InputError("; ".join(f"merge.{name} has no use: {why}" for name, why in idle.items()))


def merged_plan(encoder: Encoder) -> MergePlan | None:
    """How many tokens an encoder merges away and what that saves; None where it merges none."""
    from phosphene.encoders.registry import mergeable

    try:
        plan = mergeable(encoder).merge_plan()
    except InputError:
        return None
    return plan if plan.active else None


def _guide(guide: str | None, texts: Sequence[str] | None) -> dict[str, str]:
    """The guide; texts alone mean the one by text."""
    chosen = guide or ("text" if texts else None)
    return {} if chosen is None else {"guide": chosen}


def _with_merge(
    name: str, settings: Mapping[str, Any], said: Mapping[str, Any], texts: Sequence[str] | None
) -> dict[str, Any]:
    """Settings with those of merging, below ``settings`` for the encoder inside a standardised one."""
    from phosphene.settings import merge

    wanted: dict[str, Any] = {"merge": dict(said), **({"texts": list(texts)} if texts else {})}
    while name.startswith("z:"):
        name, wanted = name.removeprefix("z:"), {"settings": wanted}
    return merge(settings, wanted)


@contextmanager
def _pictures(source: Path, limit: int) -> Iterator[StimulusSet]:
    """At most `limit` stimuli of a study or a folder, evenly taken, for as long as the study is open."""
    from phosphene.recordings import Study

    if limit < 1:
        raise InputError(f"--limit must be at least 1, found {limit}")
    with Study.open(source) if not source.is_dir() else nullcontext() as study:
        stimuli = _in_folder(source) if study is None else study.stimuli
        yield stimuli.select(stimuli.ids[stimuli.spread(limit)])


def _in_folder(folder: Path) -> StimulusSet:
    """Pictures of a folder, or of the folders in one that has none of its own."""
    from phosphene.stimuli.folder import IMAGE_SUFFIXES, read_folder
    from phosphene.stimuli.labelled import read_class_folders

    inside = list(folder.iterdir())
    if any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in inside) or not any(entry.is_dir() for entry in inside):
        return read_folder(folder, fit=True)
    stimuli = read_class_folders(folder, fit=True)
    classes = len(set(stimuli.labels["category"].tolist()))
    typer.echo(f"{folder}: {len(stimuli)} pictures from {classes} folders, each picture by itself")
    return stimuli


def fidelity(
    encoder: Annotated[str, typer.Argument(help="Such as hf:FOLDER, mlip:FOLDER, pocket.", metavar="ENCODER")],
    source: Annotated[
        Path, typer.Argument(help="A folder of pictures or of folders of them, or a study (.h5).", metavar="PATH")
    ],
    rates: Annotated[
        list[float] | None, typer.Option("--rate", help="A share to try; may be repeated.", metavar="SHARE")
    ] = None,
    by: Annotated[str, typer.Option("--by", help="What the rates are shares of: flops or tokens.")] = "flops",
    cosine: Annotated[
        float | None, typer.Option("--cosine", help="Choose the cheapest rate that keeps this mean cosine.")
    ] = None,
    guide: MergeGuide = None,
    texts: MergeText = None,
    limit: Annotated[int, typer.Option("--limit", help="Use at most so many pictures, evenly taken.")] = 512,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures at once.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs; the fastest counts.")] = 5,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda.")] = None,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Say on your own pictures what token merging costs (likeness to the full embedding) and saves (time)."""
    from phosphene.encoders.merging.fidelity import fidelity as run
    from phosphene.encoders.registry import make_encoder, mergeable
    from phosphene.files import write_json

    settings = given_settings(config, assignments)
    mergeable(make_encoder(encoder, **settings))
    if _guide(guide, texts):
        settings = _with_merge(encoder, settings, _guide(guide, texts), texts)
    built, of_merging = make_encoder(encoder, **settings), _of_merging(settings)
    if own := sorted({"flops", "tokens", "r", "restore"} & set(of_merging)):
        raise InputError(f"merge.{', merge.'.join(own)}: the report tries rates of its own (--rate), on the full grid")
    _require_use(of_merging, r=1)
    with _pictures(source, limit) as stimuli:
        report = run(
            stimuli,
            built,
            rates or None,
            by=by,  # type: ignore[arg-type]
            cosine=cosine,
            device=device,
            batch_size=batch_size,
            repeats=repeats,
            progress=progress_wanted(),
        )
    typer.echo(report.text())
    if json is not None:
        write_json(json, report.to_dict())
