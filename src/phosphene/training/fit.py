"""`fit`: from a study and targets to a trained decoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from phosphene.alignment.one_grid import why_not
from phosphene.decoders import ClassesConfig, Decoder, DecoderConfig, make_decoder
from phosphene.decoders.registry import decoder_class
from phosphene.errors import InputError, unknown
from phosphene.files import digest
from phosphene.settings import load_preset, merge, presets
from phosphene.stimuli.multilabel import find_classes
from phosphene.training.bench import (
    Bench,
    check_classes,
    prepare,
    refuse_leakage,
    set_aside,
    shown_stimuli,
    some_of,
    train_on,
    training_content,
)
from phosphene.training.episodes import EpisodeLoader, EpisodeStep, check_episodes, check_sessions
from phosphene.training.in_front import check_aligner
from phosphene.training.launch import launch
from phosphene.training.run_folder import RunFolder
from phosphene.training.sampling import check_seed
from phosphene.training.settings import TrainingConfig
from phosphene.training.token_alignment import require_tokens

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from phosphene.alignment import Aligner
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["choose_preset", "fit"]

log = logging.getLogger(__name__)

# a study counts as NSD-like from here on: numbers in a token grid, trials of the richest person
_LARGE_TARGET, _MANY_TRIALS = 50_000, 5_000
_FEW_STIMULI = 200  # the preset for tiny studies


def fit(
    name: str,
    study: Study,
    targets: Targets,
    *,
    preset: str | None = None,
    subjects: Sequence[str] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    kind: str | None = None,
    aligner: Aligner | None = None,
    stimuli: Sequence[str] | np.ndarray | None = None,
    progress: bool = True,
    training: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Decoder:
    """Fit a decoder to the training part of a study; nothing of its other parts is looked at.

    Parameters
    ----------
    name : str
        A decoder, e.g. ``"lite-mind"``, ``"mindeye-mlp"``, ``"ridge"``.
    study : Study
        Its current split is used (``study.using(...)`` sets another).
    targets : Targets
        What to predict, by stimulus id.
    preset : str, optional
        Settings of decoder and training. Default: ``"nsd"`` where the targets have tokens of at least 50,000 numbers
        and somebody has more than 5,000 training trials, ``"tiny"`` below 200 training stimuli, else ``"small"``.
    subjects : sequence of str, optional
        People to train on (default: all).
    seed : int
        Decides everything random: first weights, validation split, order, mixing, dropout.
    out : path, optional
        Run folder: settings, log, checkpoints, and the decoder in ``decoder/``. An unfinished run with the same
        settings goes on from its last checkpoint; a finished one is read back.
    kind : {"tokens", "pooled"}, optional
        Which targets to predict (default: what the preset names, else pooled).
    aligner : Aligner, optional
        Takes everybody's responses into a common space first; it goes with the decoder. Such a decoder has one input
        for all (``pool_subjects``) unless the settings say otherwise.
    stimuli : sequence of str, optional
        Of the training part, those to train on (default: all); z-scoring still rests on all of it.
    progress : bool
        Show a progress bar, on terminals.
    training : mapping, optional
        Settings of `TrainingConfig` over those of the preset.
    **settings
        Settings of the decoder over those of the preset.

    Returns
    -------
    Decoder
        In eval mode, on the CPU, with the weights that were best on validation stimuli.

    Raises
    ------
    LeakageError
        When the targets' encoder, or the aligner, was fitted on stimuli outside of the training part.
    InputError
        For unknown names or settings, stimuli without targets, a run folder of another run, an objective that
        compares tokens where the targets have none.
    TrainingError
        When the loss or a gradient is not finite. With the same run folder the learning rate, ``gradient_clip`` and
        ``precision`` may then be others.
    """
    cls = decoder_class(name)
    check_seed(seed)
    view = study.split("train")
    if subjects is not None:
        view = view.subset(list(subjects))
    refuse_leakage(study, view, targets)
    if stimuli is not None:
        view = some_of(view, stimuli)
    native = view
    if aligner is not None:
        check_aligner(aligner, study)
        settings = {"pool_subjects": True, **settings}
        view = view.through(aligner)
    targets.rows(view.stimulus_ids[shown_stimuli(view)])  # names stimuli without targets before anything is written
    preset = preset or choose_preset(name, view, targets)
    layers = load_preset("decoders", name, preset) if preset else {}
    kind = _kind(kind, layers.get("kind"), targets)
    configs = _stages(layers.get("training", {}), training or {})
    config = configs["training"]
    for one in configs.values():
        if one.alignment:
            require_tokens(one.alignment, targets.shape(kind))
    settings = _with_classes(cls.Config.build(layers.get("decoder", {}), settings), settings, view)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = make_decoder(
            name,
            preset,
            subjects={subject: view.n_voxels(subject) for subject in view.subjects},
            target_shape=targets.shape(kind),
            **settings,
        )
    for subject in view.subjects:
        decoder.meet(subject, native.voxels(subject))
        decoder.arrange_voxels(subject, view.voxels(subject), view.space(subject))
    if aligner is None and decoder.subject_free and len(view.subjects) > 1 and (reason := why_not(view)):
        log.warning(
            "people share one input of this %s decoder, but %s: their voxels are taken for the same places as they are "
            "listed; an aligner (aligner=, --align) brings people together",
            name,
            reason,
        )
    decoder.encoder = targets.encoder
    origin = _origin(decoder, study, view, targets, kind, seed)
    if aligner is not None:
        origin["aligner"] = aligner.identity
    _check_stages(decoder, configs, training or {})
    if cls.closed_form and training:
        raise InputError(f"{name} is fitted in closed form; it has no training settings ({', '.join(training)})")
    run = None
    if out is not None:
        staged = {name: one for name, one in configs.items() if name in decoder.stages() and not cls.closed_form}
        facts = {name: one.model_dump(mode="json") for name, one in staged.items()}
        run = RunFolder(Path(out), {"preset": preset, **origin, **facts})
        if run.finished:
            log.info("%s holds this run, finished: read back", run.path)
            return Decoder.load(run.result)
    leads = True
    if cls.closed_form:
        if run is not None:
            run.begin()
        decoder.solve(view, targets, kind, progress)
        decoder.eval()
    else:
        fabric = launch(config)
        _check_data(decoder, configs, view, seed, fabric.world_size)
        leads = fabric.global_rank == 0
        fabric.barrier()  # every process has looked into the run folder before the first one writes there
        if run is not None and leads:
            run.begin()
        for stage in decoder.stages():
            config = _of_stage(configs, stage)
            decoder.begin(stage)
            decoder.zero_grad()  # what the last step of the stage before left would count in the norm that is clipped
            bench = prepare(decoder, view, targets, kind, config, seed, fabric, standardise=stage == "training")
            told = _trained(fabric, decoder, bench, targets, kind, config, seed, stage, run, progress and leads)
            decoder.provenance |= told if stage == "training" else {stage: told}
        decoder.conclude(bench.view, targets, kind)
    if run is not None and run.changes:
        decoder.provenance["changes"] = run.changes
    if aligner is not None:
        decoder.align(aligner)  # not before: it was trained on what the view had aligned already
    decoder.provenance |= origin | {"scaling": view.scaling, "training_content": training_content(view)}
    if run is not None and leads:
        decoder.save(run.result)
    return decoder


def _trained(
    fabric: Fabric,
    decoder: Decoder,
    bench: Bench,
    targets: Targets,
    kind: str,
    config: TrainingConfig,
    seed: int,
    stage: str,
    run: RunFolder | None,
    progress: bool,
) -> dict[str, Any]:
    """Start at the decoder's closed form, or where its last stage ended, train, and tell how it went."""
    first, episodes = stage == "training", decoder.episodes(stage)
    return train_on(
        bench,
        decoder,
        config,
        seed,
        fabric,
        None if run is None else run.checkpoints if first else run.path / stage / run.checkpoints.name,
        lambda: decoder.warm_start(bench.view, targets, kind, progress, stage) or not first,
        f"fit {decoder.name}" if first else f"{decoder.name}, {stage}",
        progress,
        None if episodes is None else EpisodeLoader(bench.loader, seed),
        None if episodes is None else EpisodeStep(decoder, bench.objective, episodes),
    )


def _stages(*layers: Mapping[str, Any]) -> dict[str, TrainingConfig]:
    """Settings of the first stage, and of later ones by name: nested tables, which lie over those of the first."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, dict(layer))
    nested = {name: table for name, table in merged.items() if isinstance(table, Mapping)}
    first = {name: value for name, value in merged.items() if name not in nested}
    configs = {"training": TrainingConfig.build(first)}
    return configs | {name: TrainingConfig.build(first, table) for name, table in nested.items()}


def _of_stage(configs: Mapping[str, TrainingConfig], stage: str) -> TrainingConfig:
    return configs.get(stage, configs["training"])


def _check_stages(decoder: Decoder, configs: Mapping[str, TrainingConfig], asked: Mapping[str, Any]) -> None:
    """Refuse stages that were asked for and are not there, and what any stage would stumble over.

    A preset may know more stages and weights than the settings leave a use for.
    """
    nested = [table for table in asked.values() if isinstance(table, Mapping)]
    weight = max([float(table.get("class_weight", 0.0)) for table in (asked, *nested)])
    for name in asked:
        if isinstance(asked[name], Mapping) and name not in decoder.stages():
            raise unknown(f"stage of {decoder.name}:", name, decoder.stages())
    check_classes(decoder, weight)
    known = decoder.config.classes if isinstance(decoder.config, ClassesConfig) else ()
    if known and not decoder.closed_form and not any(_of_stage(configs, s).class_weight for s in decoder.stages()):
        raise InputError(
            f"class_columns make a head for {len(known)} classes, which class_weight = 0 would leave untrained; "
            "give training.class_weight > 0, or no class_columns"
        )
    decoder.check_stages()


def _check_data(
    decoder: Decoder, configs: Mapping[str, TrainingConfig], view: StudyView, seed: int, processes: int
) -> None:
    """Refuse training data from which one of the stages could not learn as its settings say."""
    for stage in decoder.stages():
        config = _of_stage(configs, stage)
        ids, aside = set_aside(view, config, seed)
        if decoder.episodes(stage) is not None:
            check_episodes(config, processes)
            part = view.restrict(ids[~aside])
            check_sessions({name: np.asarray(part.trials(name)["session"]) for name in part.subjects})


def _with_classes(config: DecoderConfig, settings: Mapping[str, Any], view: StudyView) -> dict[str, Any]:
    """Settings of the decoder with the classes that training stimuli have in the columns it asks for."""
    if not isinstance(config, ClassesConfig) or not config.class_columns or config.classes:
        return dict(settings)
    return {**settings, "classes": find_classes(view.stimuli.labels, config.class_columns)}


def choose_preset(name: str, view: StudyView, targets: Targets) -> str | None:
    """Preset by the size of the data; None for a decoder without presets."""
    known = presets("decoders", name)
    most = max((view.n_trials(subject) for subject in view.subjects), default=0)
    large = "tokens" in targets.kinds and int(np.prod(targets.shape("tokens"))) >= _LARGE_TARGET and most > _MANY_TRIALS
    tiny = len(view.stimulus_ids) < _FEW_STIMULI
    wanted = ("nsd" if large else "tiny" if tiny else "small", "small", "default")
    return next((preset for preset in wanted if preset in known), None)


def _kind(asked: str | None, preferred: str | None, targets: Targets) -> str:
    if asked is not None and asked not in targets.kinds:
        raise unknown("kind of targets", asked, targets.kinds)
    return asked or (preferred if preferred in targets.kinds else None) or "pooled"


def _origin(decoder: Decoder, study: Study, view: StudyView, targets: Targets, kind: str, seed: int) -> dict[str, Any]:
    """What a fit was started with, as plain values."""
    return {
        "decoder": decoder.name,
        "settings": decoder.config.model_dump(mode="json"),
        "kind": kind,
        "seed": seed,
        "study": study.name,
        "study_digest": study.digest,
        "split": view.split_name,
        "subjects": dict(decoder.subjects),
        "training_stimuli": digest(*sorted(view.stimulus_ids.tolist())),
        "n_training_stimuli": len(view.stimulus_ids),
        "targets": targets.identity,
    }
