"""`add_subject`: one more person for a trained wills-aligner; only what is the person's own is trained."""

from __future__ import annotations

import glob
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from phosphene.decoders import Decoder
from phosphene.decoders.seen import seen_together
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.errors import InputError
from phosphene.nn.freezing import frozen, state_digest, twin
from phosphene.training.adapt import scarce_view
from phosphene.training.bench import check_classes, prepare, refuse_leakage, train_on, training_content
from phosphene.training.in_front import aligner_with
from phosphene.training.launch import launch
from phosphene.training.run_folder import RunFolder
from phosphene.training.sampling import check_seed
from phosphene.training.settings import TrainingConfig

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["add_subject"]

log = logging.getLogger(__name__)


def add_subject(
    decoder: Decoder,
    study: Study,
    targets: Targets,
    subject: str,
    *,
    sessions: float | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    training: Mapping[str, Any] | None = None,
) -> WillsAligner:
    """Add a person to a trained wills-aligner, from the training part of a study.

    The person's embedding for the router and, where people have them, a private expert are trained; everything else
    stays bit for bit. Gates begin as those of somebody without an id, and if no step improves validation, they stay.
    Where nothing is a person's own (a router of data and anatomy), only the voxels are standardised.

    Parameters
    ----------
    decoder : WillsAligner
        Not changed; the result shares the memory of its weights.
    study : Study
        Holds the person's recording; its current split is used, the person's training trials alone.
    targets : Targets
        Of the decoder's encoder.
    subject : str
    sessions : float, optional
        Only the first so many sessions, in order of time (default: all).
    out : path, optional
        Run folder; the decoder is written to ``decoder/`` in it. An unfinished run with the same settings goes on from
        its last checkpoint; a finished one is read back.
    seed : int
    progress : bool
    training : mapping, optional
        Settings of `TrainingConfig` over those of the decoder's own second stage; refused where nothing is a person's
        own.

    Returns
    -------
    WillsAligner
        Of everybody before and the new person, in eval mode. What happened is in
        ``decoder.provenance["newcomers"][subject]``: ``"alignment"`` tells whether the aligner in front knew the
        person, and from what (`phosphene.training.in_front`).

    Raises
    ------
    InputError
        For another kind of decoder, one without experts or with inputs of one's own (`pool_subjects` false), a person
        it knows, no training trials, targets of another encoder, somebody whom the aligner can neither find nor add.
    LeakageError
        When the targets' encoder was fitted on stimuli outside of the training part.
    """
    base = _checked(decoder, targets, subject)
    check_seed(seed)
    refuse_leakage(study, study.split("train"), targets)
    view = scarce_view(study, subject, sessions)
    if training and not base.own(next(iter(base.subjects))):
        raise InputError(
            f"training settings ({', '.join(training)}) have no use: with router = {base.config.router} and "
            "private = False nothing in this wills-aligner is a person's own, and nothing is trained"
        )
    config = TrainingConfig.build(base.provenance["stage2"]["training"], {"mixing_fraction": 0.0}, training or {})
    check_classes(base, float((training or {}).get("class_weight", 0.0)))
    facts = {
        "subject": subject,
        "sessions": list(view.sessions(subject)),
        "n_trials": view.n_trials(subject),
        "seed": seed,
        "study": study.name,
        "study_digest": study.digest,
        "split": view.split_name,
        "targets": targets.identity,
        "base": state_digest(base),
        "aligner": None if base.aligner is None else base.aligner.identity,
    }
    run = None
    if out is not None:
        run = RunFolder(Path(out), {**facts, "training": config.model_dump(mode="json")})
        if run.finished:
            log.info("%s holds this run, finished: read back", run.path)
            found = Decoder.load(run.result)
            assert isinstance(found, WillsAligner)
            return found
    start = time.perf_counter()
    fabric = launch(config)
    fabric.barrier()  # every process has looked into the run folder before the first one writes there
    work, view, aligner, alignment = _with_person(base, view, subject, seed)
    bench = prepare(work, view, targets, work.target_kind, config, seed, fabric)
    if run is not None and fabric.global_rank == 0:
        run.begin()  # what was refused until here leaves no folder in which other settings would be refused
    own = work.own(subject)
    told: dict[str, Any] = {"trained": sum(work.get_parameter(name).numel() for name in own), **alignment}

    def start_own() -> bool:
        work.start_individuals(bench.view, targets, work.target_kind, [subject], known=False)
        return True

    if own:
        _let_train(work, own)
        folder, title = None if run is None else run.checkpoints, f"{work.name}: {subject}"
        with frozen(work, [glob.escape(name) for name in own]):
            shown = progress and fabric.global_rank == 0
            told |= train_on(bench, work, config, seed, fabric, folder, start_own, title, shown)
    else:
        log.info("nothing of %s is a person's own: %s is decoded by what the router finds", work.name, subject)
    if aligner is not None:
        work.align(aligner)
        work.provenance["aligner"] = aligner.identity
    content = training_content(view)
    _remember(work, subject, {**facts, **told, "seconds": time.perf_counter() - start}, content)
    if run is not None and fabric.global_rank == 0:
        work.eval().save(run.result)
    return work.eval()


def _checked(decoder: Decoder, targets: Targets, subject: str) -> WillsAligner:
    if not isinstance(decoder, WillsAligner):
        raise InputError(f"{decoder.name} has no experts to which a person could be added; wills-aligner has")
    if decoder.router is None:
        raise InputError("this wills-aligner has no experts (stage2 = 'none'): nothing in it is a person's own")
    if not decoder.subject_free:
        raise InputError(
            "everybody has an input of their own in this wills-aligner (pool_subjects = False), and that of a newcomer "
            "would be random: fit it with pool_subjects = True behind an aligner, or anew with this person"
        )
    decoder.refuse_known(subject)
    decoder.check_targets(targets)
    return decoder


def _with_person(
    base: WillsAligner, view: StudyView, subject: str, seed: int
) -> tuple[WillsAligner, StudyView, Aligner | None, dict[str, Any]]:
    """A decoder with the person in it, the view it learns from, and the aligner that goes in front of it later.

    It shares the tensors of the base.
    """
    work, native = twin(base, base.aligner, base.encoder), view
    aligner, facts = work.aligner, {}
    if aligner is not None:
        aligner, told = aligner_with(aligner, native, subject)
        facts = {"alignment": told}
        view = native.through(aligner)
        work.aligner, work.fronts = None, nn.ModuleList()  # the view has aligned the responses already
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        work.add_subject(subject, view.n_voxels(subject))
    work.meet(subject, native.voxels(subject))
    work.arrange_voxels(subject, view.voxels(subject), view.space(subject))
    return work, view, aligner, facts


def _let_train(work: WillsAligner, own: Sequence[str]) -> None:
    """Let these parameters ask for gradients, and nothing else."""
    for name, parameter in work.named_parameters():
        parameter.requires_grad_(name in own)
        parameter.grad = None


def _remember(work: WillsAligner, subject: str, facts: Mapping[str, Any], content: Mapping[str, str]) -> None:
    """Keep what is known of the newcomer; what they were shown counts as seen by the decoder."""
    work.provenance["newcomers"] = {**work.provenance.get("newcomers", {}), subject: dict(facts)}
    before = work.provenance.get("training_content", {})
    work.provenance["training_content"] = seen_together(before, content, facts["study"])
