"""The command that pretrains encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    split: Annotated[
        str | None, typer.Option("--split", help="Split of a study, of which the training part is used.")
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
    reader = _Reader(images, labels, prompt, split, run_settings(preset, settings, start)[0].model.image_size)
    if path is None and (given := reader.given):
        raise InputError(f"{', '.join(given)} go with pictures to train on: give their PATH")
    with reader.opened(path) as stimuli, reader.opened(held_out) as probes:
        model = run(
            preset,
            stimuli,
            out=out,
            held_out=probes,
            start=start,
            classes=labels,
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


@dataclass(frozen=True)
class _Reader:
    """How a path to pictures is read."""

    images: Path | None
    labels: str | None
    prompts: list[str] | None
    split: str | None
    size: int

    @property
    def given(self) -> list[str]:
        """Options that have a meaning for pictures only."""
        options = {"--images": self.images, "--labels": self.labels, "--prompt": self.prompts, "--split": self.split}
        return [name for name, value in options.items() if value]

    @contextmanager
    def opened(self, path: Path | None) -> Iterator[StimulusSet | None]:
        """Pictures with captions; None for no path."""
        from phosphene.recordings import Study
        from phosphene.stimuli import PROMPTS, labelled

        if self.prompts and not self.labels:
            raise InputError("--prompt goes with --labels COLUMN")
        if path is None:
            yield None
            return
        if path.suffix == ".h5":
            with Study.open(path) as study:
                view = (study.using(self.split) if self.split else study).split("train")
                stimuli = study.stimuli.select(view.stimulus_ids)
                yield labelled(stimuli, self.labels, self.prompts or PROMPTS) if self.labels else stimuli
            return
        if self.split:
            raise InputError(f"--split goes with a study (.h5), found {path}")
        stimuli = self._files(path)
        yield labelled(stimuli, self.labels, self.prompts or PROMPTS) if self.labels else stimuli

    def _files(self, path: Path) -> StimulusSet:
        from phosphene.stimuli import read_class_folders, read_coco, read_folder

        if path.suffix == ".json":
            return read_coco(path, self.images or path.parent, self.size)
        if self.images:
            raise InputError(f"--images goes with a COCO .json, found {path}")
        if self.labels:
            return read_class_folders(path, self.size, column=self.labels)
        return read_folder(path, self.size)


def _lines(scores: list[dict[str, Any]]) -> Iterator[str]:
    """Scores of the spatial embedding, one a line."""
    for score in scores:
        if score["score"] == "spatial":
            what = f"{score['probe']}, {score['part']}, {score['task']}"
            edges = f"{100 * score['low']:.1f} to {100 * score['high']:.1f}"
            yield f"{what}: {100 * score['value']:.1f} % ({edges}; chance {100 * score['chance']:.2g} %)"
