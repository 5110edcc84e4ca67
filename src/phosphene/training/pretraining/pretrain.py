"""`pretrain`: from pairs of picture and caption to a model folder with card, curve and scores."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from phosphene.encoders.images import at_size
from phosphene.encoders.mlip import MLIP, Tokenizer, load_model, save_model
from phosphene.encoders.mlip.encoder import find_mlip, run_name
from phosphene.encoders.mlip.seen import SeenPictures
from phosphene.encoders.mlip.similarity import SCORES
from phosphene.encoders.mlip.store import load_tokenizer, read_config
from phosphene.encoders.mlip.store import untrained as untrained_before
from phosphene.errors import InputError
from phosphene.files import digest, write_json, write_text
from phosphene.stimuli import StimulusSet, check_captions, check_pictures_apart, picture_hashes
from phosphene.training.interrupt import Interruptible
from phosphene.training.launch import launch
from phosphene.training.pretraining.batches import PairLoader, PairSource, check_lengths
from phosphene.training.pretraining.card import hardware, model_card, read_curve, write_curve
from phosphene.training.pretraining.loop import PairProgress, train_pairs
from phosphene.training.pretraining.objective import MLIPObjective
from phosphene.training.pretraining.probes import Probe, Score, held_out_probes, scene_probes
from phosphene.training.pretraining.settings import FINE_TUNING, DataSettings, PairSteps, PretrainSettings, run_settings
from phosphene.training.pretraining.sources import ScenePairs, StimulusPairs
from phosphene.training.progress import progress_bar
from phosphene.training.run_folder import RunFolder
from phosphene.training.runner import TrainingInterrupted
from phosphene.training.sampling import check_seed, split_validation

__all__ = ["pretrain"]

log = logging.getLogger(__name__)

_TOKENIZER = "tokenizer.json"


def pretrain(
    preset: str | None,
    stimuli: StimulusSet | None = None,
    *,
    out: str | Path,
    held_out: StimulusSet | None = None,
    start: str | Path | None = None,
    classes: str | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Pretrain an MLIP model, or fine-tune one, on procedural scenes or on pictures with captions.

    Parameters
    ----------
    preset : str, optional
        In ``presets/encoders/mlip``. None takes the defaults, or ``"fine-tune"`` where there is a model to start from.
    stimuli : StimulusSet, optional
        Pictures with captions. Without it: procedural scenes, rendered while training goes on.
    out : path
        Run folder: settings, log, checkpoint, and at the end ``model/`` with its card, ``scorecard.json`` and the
        curve. An unfinished run with the same settings goes on from its checkpoint, to the same bits; of a finished
        one nothing is done again.
    held_out : StimulusSet, optional
        Pictures with captions for the probes. Default: a share of `stimuli` (``data.held_out``), equal pictures
        together, of those that the model to start from does not know.
    start : str or path, optional
        A model to start from, by name (``"pocket"``) or folder; sizes of the model and vocabulary are its own.
    classes : str, optional
        Label column from which the captions were made: probes are then zero-shot classification instead of retrieval.
    tokenizer : path, optional
        A tokenizer to take, as the ``tokenizer.json`` of a model. Default: one is trained on the captions.
    seed : int
        Decides everything random: first weights, scenes, order, captions.
    progress : bool
        Show a progress bar, on terminals.
    settings : mapping, optional
        Tables ``model``, ``objective``, ``training``, ``data`` over those of the preset.

    Returns
    -------
    Path
        The model folder, ``out / "model"``: an encoder ``mlip:FOLDER``.

    Raises
    ------
    InputError
        For wrong settings, pictures without captions, captions that are too long, a run folder of another run.
    LeakageError
        When a held-out picture is also trained on, here or by the model to start from, under whatever name and
        captions.
    TrainingError
        When the loss or a gradient is not finite; the last good weights have been saved. With the same run folder
        ``learning_rate``, ``gradient_clip`` and ``precision`` may then be others.
    TrainingInterrupted
        After Ctrl-C or SIGTERM; the same call goes on.
    """
    check_seed(seed)
    chosen, model_start = run_settings(preset, settings, start)
    given = None if tokenizer is None else _given_tokenizer(Path(tokenizer), chosen, start)
    preset = preset or (None if start is None else FINE_TUNING)
    begun = None if start is None else find_mlip(str(start))
    seen = SeenPictures() if begun is None else SeenPictures.of_model(begun)
    known = given if begun is None else load_tokenizer(begun)
    # now: another model may lie there when the training ends
    before = [] if begun is None else _before(begun, run_name(str(start)))
    pairs = _pairs(chosen, stimuli, held_out, classes, seed, seen, known)
    run = RunFolder(
        Path(out),
        {
            "preset": preset,
            "seed": seed,
            "start": model_start,
            "pairs": pairs.source.identity,
            "probes": pairs.probed,
            "tokenizer": None if tokenizer is None else digest(Path(tokenizer).read_bytes()),
            **chosen.model_dump(mode="json"),
        },
        result="model",
    )
    if run.finished:
        log.info("%s holds this run, finished", run.path)
        return run.result
    if start is None and not run.known and (run.path / _TOKENIZER).exists():
        raise InputError(
            f"{run.path} holds a {_TOKENIZER} and no run: name it as the tokenizer to take, from another folder, or "
            "remove it"
        )
    fabric = launch(chosen.training, unused=True)
    fabric.barrier()  # every process has looked into the run folder before the first one writes there
    leads = fabric.global_rank == 0
    model, words = _model(chosen, begun, given, pairs.source, run, fabric, seed)
    untrained = _untrained(chosen, begun)
    model.frequency_trained = "frequency" not in untrained
    check_lengths(pairs.source.corpus(), words, chosen.model.text_context, cut=chosen.data.long_captions == "cut")
    loader = PairLoader(
        pairs.source,
        words,
        chosen.model.text_context,
        rank=fabric.global_rank,
        processes=fabric.world_size,
        device=fabric.device,
    )
    if leads:  # not before: settings that cannot be trained with leave the folder free for others
        run.begin()
        if unused := chosen.unused(settings or {}, scenes=stimuli is None):
            log.warning("without a use: %s", ", ".join(f"{name} ({why})" for name, why in unused.items()))
        if pairs.source.batch_size < chosen.training.batch_size:
            log.warning("%s", _smaller_batches(chosen.training, pairs.source.batch_size))
        if untrained:
            log.warning(
                "no part of the objective trains these embeddings, which stay random: %s (model.frequency_head and "
                "model.token_heads = false leave them out)",
                ", ".join(untrained),
            )
        if start is None and not (run.path / _TOKENIZER).exists():
            write_text(run.path / _TOKENIZER, words.to_json())

    if isinstance(pairs.source, ScenePairs) and chosen.data.pool:
        _render_pool(pairs.source, chosen.data.pool, fabric, progress and leads)

    def probe() -> dict[str, float]:
        return _by_name(pairs.probe(model, words))

    objective = MLIPObjective(chosen.objective)
    with progress_bar("pretrain", chosen.training.steps, progress and leads) as report:
        done = train_pairs(
            fabric,
            model,
            objective,
            loader,
            chosen.training,
            seed=seed,
            folder=run.checkpoints,
            probe=probe,
            report=report,
        )
    if leads:
        facts = _facts(chosen, pairs, model, done, fabric)
        facts |= {"preset": preset, "seed": seed, "start": model_start, "untrained": list(untrained)}
        facts |= {} if start is None else {"before": before}
        facts |= {"changes": run.changes} if run.changes else {}
        facts |= {} if given is None else {"tokenizer": "given"}
        facts |= {"temperatures": objective.temperatures(), "biases": objective.biases()}
        if chosen.training.save_precision == "float16":
            _round(model)  # scores are those of the weights that are written
        scores = pairs.probe(model.to(fabric.device), words, chosen.objective)
        _finish(run, chosen, model.to("cpu"), words, scores, facts, pairs.seen)
    fabric.barrier()
    return run.result


@dataclass(frozen=True)
class _Pairs:
    source: PairSource
    probe: Probe
    facts: dict[str, Any]
    """What the card says about the data."""
    seen: SeenPictures
    """Every picture that the model has been trained on in the end, in earlier runs too."""
    probed: str | None = None
    """Digest of the pictures, captions and classes of the probes; None where the settings tell."""


def _pairs(
    settings: PretrainSettings,
    stimuli: StimulusSet | None,
    held_out: StimulusSet | None,
    classes: str | None,
    seed: int,
    seen: SeenPictures,
    words: Tokenizer | None,
) -> _Pairs:
    data, training, size = settings.data, settings.training, settings.model.image_size
    if stimuli is None:
        if held_out is not None or classes is not None:
            raise InputError("held-out pictures and classes go with pictures to train on; scenes have their own probes")
        scenes = ScenePairs(data, training.batch_size, size, seed)
        return _Pairs(scenes, scene_probes(data, training.probe_pictures, size), {"source": "scenes"}, seen)
    check_captions(stimuli)
    if words is not None and data.long_captions == "refuse":  # captions are cheap to look at, pictures are not
        check_lengths(itertools.chain(*stimuli.captions), words, settings.model.text_context, cut=False)
    stimuli = at_size(stimuli, size, training.memory_gb)
    keys = picture_hashes(stimuli)
    if held_out is None:
        aside = _aside(keys, data, seed, seen)
        held_out, held_keys = stimuli.select(stimuli.ids[aside]), keys[aside]
        stimuli, keys = stimuli.select(stimuli.ids[~aside]), keys[~aside]
    else:
        check_captions(held_out)
        held_out = at_size(held_out, size, training.memory_gb)
        held_keys = picture_hashes(held_out)
        check_pictures_apart({"training": stimuli, "held-out": held_out}, {"training": keys, "held-out": held_keys})
        seen.refuse(held_out.ids, held_keys)
    source = StimulusPairs(stimuli, data, training.batch_size, seed, keys)
    probe = Probe([])
    if len(held_out) > 1:
        prompts = None if classes is None else _prompts(classes, stimuli, held_out)
        probe = held_out_probes(held_out, training.probe_pictures, held_keys, prompts, classes or "")
    else:
        log.warning("no pictures are held out: there will be no probes")
    facts = {
        "source": "pictures",
        "training_pictures": len(stimuli),
        "captions": sum(map(len, stimuli.captions)),
        "held_out_pictures": len(held_out),
        "identity": source.identity,
    }
    captions = [text for several in held_out.captions for text in (*several, "")]
    probed = digest(*held_out.ids.tolist(), *held_keys.tolist(), *captions, classes or "")
    return _Pairs(source, probe, facts, seen.with_others(stimuli.ids.tolist(), keys.tolist()), probed)


def _aside(keys: np.ndarray, data: DataSettings, seed: int, seen: SeenPictures) -> np.ndarray:
    """Which pictures are set aside for probes: some of those that the model to start from does not know."""
    if not data.held_out:
        return np.zeros(len(keys), dtype=bool)
    different, new = len(set(keys.tolist())), ~seen.has(keys.tolist())
    words = f"data.held_out = {data.held_out} sets pictures aside for probes"
    if different < 3:
        raise InputError(
            f"{words}, which needs three different ones, found {different}; set it 0, or give held-out pictures"
        )
    unknown = len(set(keys[new].tolist()))
    if unknown < 2:
        raise InputError(
            f"{words}, which needs two that the model to start from was not trained on, found {unknown} among "
            f"{different}; set it 0, or give held-out pictures"
        )
    if unknown < round(data.held_out * different):
        log.warning(
            "%s: only %d of %d are new to the model to start from, and all of them are", words, unknown, different
        )
    return split_validation(keys, data.held_out, seed, new)


def _prompts(column: str, *parts: StimulusSet) -> dict[str, tuple[str, ...]]:
    """Captions of every class that occurs, by its name."""
    found: dict[str, tuple[str, ...]] = {}
    for part in parts:
        for name, captions in zip(part.labels[column].tolist(), part.captions, strict=True):
            found.setdefault(str(name), captions)
    return dict(sorted(found.items()))


def _given_tokenizer(file: Path, settings: PretrainSettings, start: str | Path | None) -> Tokenizer:
    """The tokenizer in a file, which must suit the model."""
    if start is not None:
        raise InputError(f"the model to start from has its own tokenizer: leave {file} away")
    try:
        tokenizer = Tokenizer.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if tokenizer.vocabulary > settings.model.vocabulary:
        raise InputError(
            f"{file} has {tokenizer.vocabulary:,} entries, more than model.vocabulary = {settings.model.vocabulary:,}"
        )
    return tokenizer


def _model(
    settings: PretrainSettings,
    begun: Path | None,
    given: Tokenizer | None,
    source: PairSource,
    run: RunFolder,
    fabric: Fabric,
    seed: int,
) -> tuple[MLIP, Tokenizer]:
    """The model a run starts with, the same in every process, and its tokenizer."""
    if begun is not None:
        model, tokenizer = load_model(begun)
        if settings.model != model.config:
            model = model.with_merge(settings.model.merge)
        return model.requires_grad_(True), tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MLIP(settings.model)
    if given is not None:
        return model, given
    text = ""
    if fabric.global_rank == 0:
        if run.known and (file := run.path / _TOKENIZER).exists():
            text = file.read_text(encoding="utf-8")
        else:
            text = Tokenizer.train(source.corpus(), settings.model.vocabulary).to_json()
    return model, Tokenizer.from_json(fabric.broadcast(text))


def _untrained(settings: PretrainSettings, begun: Path | None) -> tuple[str, ...]:
    """Embeddings that stay random: the objective does not train them, nor did that of a model to start from."""
    if begun is None:
        return settings.untrained
    before = untrained_before(read_config(begun))
    return tuple(name for name in settings.untrained if name in before)


def _smaller_batches(training: PairSteps, pictures: int) -> str:
    """That there are fewer pictures than a batch was to have, and what the number of steps comes to."""
    epochs = training.steps * training.accumulate
    return (
        f"training.batch_size = {training.batch_size} is more than the {pictures} pictures: batches have {pictures}, "
        f"and {training.steps:,} steps are {epochs:,} epochs; training.batch_size and training.steps can be set"
    )


def _render_pool(scenes: ScenePairs, pool: int, fabric: Fabric, progress: bool) -> None:
    """Render the scenes that are shown again and again, unless one of the processes is asked to stop."""
    with progress_bar("render", pool, progress) as report, Interruptible() as interrupt:
        for done in scenes.render_pool(fabric.device):
            report(done, "scenes")
            if interrupt.anywhere(fabric):
                raise TrainingInterrupted(f"stopped after {done:,} of {pool:,} scenes were rendered; nothing was kept")


def _round(model: MLIP) -> None:
    """Give weights the values they have in half precision; the transforms, which are not written, stay exact."""
    model.load_state_dict({name: tensor.half() for name, tensor in model.state_dict().items()})


def _facts(
    settings: PretrainSettings,
    pairs: _Pairs,
    model: MLIP,
    done: PairProgress,
    fabric: Fabric,
) -> dict[str, Any]:
    """How a model came to be, as plain values."""
    training = settings.training
    pictures = pairs.source.batch_size * training.accumulate
    data = dict(pairs.facts)
    if pairs.seen.ids:
        data["fitted_on"] = pairs.seen.ids
    return {
        "data": data,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": done.step,
        "batch_size": pictures,
        "pairs_seen": done.step * pictures * settings.data.sampled,
        "precision": fabric._precision.precision,
        "hardware": hardware(fabric.device, fabric.world_size),
        "seconds": round(done.seconds, 1),
        "settings": settings.model_dump(mode="json"),
    }


def _before(begun: Path, name: str) -> list[dict[str, Any]]:
    """The runs that made the model to start from, first to last: its name and weights, and what each was trained on."""
    content = read_config(begun)
    facts = content["facts"]
    data = {key: value for key, value in facts.get("data", {}).items() if key != "fitted_on"}
    last = {"name": name, "weights": content["weights"], "data": data, "start": facts.get("start")}
    return [*facts.get("before", []), last]


def _by_name(scores: list[Score]) -> dict[str, float]:
    """Values of the spatial embedding alone."""
    return {score.name: score.value for score in scores if score.score == SCORES[0]}


def _finish(
    run: RunFolder,
    settings: PretrainSettings,
    model: MLIP,
    tokenizer: Tokenizer,
    scores: list[Score],
    facts: dict[str, Any],
    seen: SeenPictures,
) -> None:
    """Write curve, scorecard and, last of all, the model folder."""
    curve = read_curve(run.path / "log.jsonl")
    if scores:
        curve["probes"].append({"step": facts["steps"], **_by_name(scores)})
    write_curve(run.path, curve)
    figures = [score.to_json() for score in scores]
    write_json(run.path / "scorecard.json", {"model": facts, "scores": figures})
    save_model(
        run.result,
        model,
        tokenizer,
        model_card(settings, facts, scores),
        {**facts, "scores": figures, **seen.facts()},
        half=settings.training.save_precision == "float16",
    )
