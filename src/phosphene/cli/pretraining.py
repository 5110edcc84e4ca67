"""The command that pretrains encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phosphene.cli.options import Config, Json, Seed, Set, given_settings, progress_wanted
from phosphene.errors import InputError

if TYPE_CHECKING:
    from phosphene.stimuli import StimulusSet

__all__ = ["pretrain"]


def pretrain(
    out: Annotated[Path, typer.Option("--out", help="Run folder; an unfinished run in it is resumed.", metavar="DIR")],
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of pictures with captions.tsv, a COCO captions .json, a study (.h5), or with --labels a "
            "folder or zip of folders named after classes; default: procedural scenes.",
            metavar="[PATH]",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="pocket, pocket-cpu, vit-b-32, vit-b-16; with --from: fine-tune.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this model: pocket, or a model folder.", metavar="MODEL")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the pictures of a COCO .json.", metavar="DIR")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Write captions from this label column.", metavar="COLUMN")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="With --labels: a caption with {} for the label; may be repeated."),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", help="Pictures for the probes, given like PATH; default: a share of PATH."),
    ] = None,
    held_out_images: Annotated[
        Path | None,
        typer.Option("--held-out-images", help="As --images, for a COCO .json given as --held-out.", metavar="DIR"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split of a study, of which the training part is used.")
    ] = None,
    held_out_split: Annotated[
        str | None, typer.Option("--held-out-split", help="As --split, for a study given as --held-out.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Take this tokenizer.json; default: trained on the captions.", metavar="FILE"),
    ] = None,
    seed: Seed = 0,
    config: Config = None,
    assignments: Set = None,
    json: Json = None,
) -> None:
    """Pretrain an MLIP encoder, or fine-tune one, on procedural scenes or on your own pictures with captions."""
    from phosphene.files import read_json, write_json
    from phosphene.training.pretraining import pretrain as run
    from phosphene.training.pretraining import run_settings

    if preset is None and start is None and config is None:
        raise InputError("what is to be trained? Give --preset, --from or --config")
    settings = given_settings(config, assignments)
    size = run_settings(preset, settings, start)[0].model.image_size
    words = {"--labels": labels, "--prompt": prompt}
    _require_pictures(path, "pictures to train on: give their PATH", {"--images": images, "--split": split, **words})
    own = {"--held-out-images": held_out_images, "--held-out-split": held_out_split}
    _require_pictures(held_out, "held-out pictures: give --held-out", own)
    sources = (_Source(path, images, split), _Source(held_out, held_out_images, held_out_split, "--held-out-"))
    with _opened(sources, labels, prompt, size) as (stimuli, probes):
        model = run(
            preset,
            stimuli,
            out=out,
            held_out=probes,
            start=start,
            classes=labels,
            tokenizer=tokenizer,
            seed=seed,
            progress=progress_wanted(),
            settings=settings,
        )
    card = read_json(out / "scorecard.json")
    for line in _lines(card["scores"]):
        typer.echo(line)
    typer.echo(f"{model}: an encoder, --targets mlip:{model}")
    if json is not None:
        write_json(json, card)


def _require_pictures(path: Path | None, what: str, options: Mapping[str, Any]) -> None:
    """Refuse options that describe pictures where there are none."""
    given = [name for name, value in options.items() if value]
    if path is None and given:
        raise InputError(f"{', '.join(given)} go with {what}")


@dataclass(frozen=True)
class _Source:
    """A path to pictures and what else its kind needs."""

    path: Path | None
    images: Path | None
    split: str | None
    option: str = "--"
    """How the options that describe this source begin."""

    @contextmanager
    def opened(self, labels: str | None, prompts: list[str] | None, side: int | None) -> Iterator[StimulusSet | None]:
        """Pictures with captions; None for no path. Files are cropped to squares of `side`, or left as they are."""
        from phosphene.recordings import Study
        from phosphene.stimuli import PROMPTS, labelled

        if prompts and not labels:
            raise InputError("--prompt goes with --labels COLUMN")
        if self.path is None:
            yield None
            return
        if self.images and self.path.suffix != ".json":
            raise InputError(f"{self.option}images goes with a COCO .json, found {self.path}")
        if self.path.suffix == ".h5":
            with Study.open(self.path) as study:
                view = (study.using(self.split) if self.split else study).split("train")
                stimuli = study.stimuli.select(view.stimulus_ids)
                yield labelled(stimuli, labels, prompts or PROMPTS) if labels else stimuli
            return
        if self.split:
            raise InputError(f"{self.option}split goes with a study (.h5), found {self.path}")
        stimuli = self._files(self.path, labels, side)
        yield labelled(stimuli, labels, prompts or PROMPTS) if labels else stimuli

    def differs(self, labels: str | None) -> bool:
        """Whether these are files that differ in size."""
        if self.path is None or self.path.suffix == ".h5":
            return False
        try:
            self._files(self.path, labels, None)
        except InputError:  # they differ in size; any other fault is found again when they are opened
            return True
        return False

    def _files(self, path: Path, labels: str | None, side: int | None) -> StimulusSet:
        from phosphene.stimuli import read_class_folders, read_coco, read_folder

        if path.suffix == ".json":
            return read_coco(path, self.images or path.parent, side)
        if labels:
            return read_class_folders(path, side, column=labels)
        return read_folder(path, side)


@contextmanager
def _opened(
    sources: Sequence[_Source], labels: str | None, prompts: list[str] | None, size: int
) -> Iterator[list[StimulusSet | None]]:
    """Pictures of every source as they are, to be resized as encoders do it, or all as squares of `size`.

    They are cropped where files of any source differ in size: the same file must have the same pixels in all of them,
    by which it is known.
    """
    side = size if any(source.differs(labels) for source in sources) else None
    with ExitStack() as stack:
        yield [stack.enter_context(source.opened(labels, prompts, side)) for source in sources]


def _lines(scores: list[dict[str, Any]]) -> Iterator[str]:
    """Scores of the spatial embedding, one a line."""
    for score in scores:
        if score["score"] == "spatial":
            what = f"{score['probe']}, {score['part']}, {score['task']}"
            edges = f"{100 * score['low']:.1f} to {100 * score['high']:.1f}"
            yield f"{what}: {100 * score['value']:.1f} % ({edges}; chance {100 * score['chance']:.2g} %)"
