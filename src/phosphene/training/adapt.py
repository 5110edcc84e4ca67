"""`adapt`: a new person for a decoder of other people, from as little as one session."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from phosphene.decoders.adaptable import AdaptableDecoder, AdapterConfig, check_adaptable
from phosphene.decoders.base import Decoder
from phosphene.decoders.seen import seen_together
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.errors import InputError, unknown
from phosphene.files import digest
from phosphene.nn.freezing import adapter_names, frozen, train_only, trainable, twin
from phosphene.training.arms import ARMS, WHOLE_ARMS, settings_of_run
from phosphene.training.bench import (
    Bench,
    prepare,
    refuse_leakage,
    shown_stimuli,
    some_of,
    train_on,
    training_content,
)
from phosphene.training.in_front import aligner_with, check_aligner
from phosphene.training.launch import launch
from phosphene.training.run_folder import RunFolder
from phosphene.training.sampling import check_seed
from phosphene.training.settings import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from phosphene.alignment import Aligner
    from phosphene.encoders import Targets
    from phosphene.recordings import Study, StudyView

__all__ = ["adapt", "parameter_table", "scarce_view"]

log = logging.getLogger(__name__)


def adapt(
    decoder: Decoder | str | Path,
    study: Study,
    targets: Targets,
    subject: str,
    *,
    sessions: float | None = None,
    arm: str = "both",
    out: str | Path | None = None,
    seed: int = 0,
    preset: str | None = None,
    aligner: Aligner | None = None,
    stimuli: Sequence[str] | np.ndarray | None = None,
    progress: bool = True,
    training: Mapping[str, Any] | None = None,
    **adapter: Any,
) -> Decoder:
    """Add a person to a trained decoder, from the training part of a study.

    The person's input layer starts in closed form; then what the arm names is trained, with some of the person's own
    training stimuli set aside for validation, and the best weights are kept (the closed form, if none are better).

    Parameters
    ----------
    decoder : Decoder or path
        Of other people: ``mindtuner``, or ``wills-aligner``, to which `phosphene.training.add_subject` adds the person
        (no arms, adapters or presets). Given as a `Decoder`, it is not changed, and arms with adapters share the memory
        of its weights with what they return. Given as a folder, and without `out`, the person is added to that folder:
        everything new lies in ``people/<subject>/``, nothing else in it is touched (a wills-aligner needs `out`).
    study : Study
        Holds the person's recording; its current split is used, the person's training trials alone.
    targets : Targets
        Of the decoder's encoder.
    subject : str
    sessions : float, optional
        Only the first so many sessions, in order of time; z-scoring takes nothing from later ones (default: all). Of a
        part of a session the first trials are used.
    arm : {"both", "lora", "skip-lora", "ridge-only", "full", "from-scratch"}
        What is trained beside the person's input layer: LoRA on the shared linear layers, Skip-LoRA from the voxels,
        both, or neither. ``"full"`` trains all shared weights and ``"from-scratch"`` new ones: their result knows the
        new person **alone**.
    out : path, optional
        Run folder; the decoder is written to ``decoder/`` in it. An unfinished run with the same settings goes on from
        its last checkpoint; a finished one is read back.
    seed : int
        Decides everything random.
    preset : str, optional
        Settings of adapters and training (tables ``[adapter]`` and ``[adapting]``). Default: ``"nsd"`` for targets of
        50,000 numbers or more, else ``"small"``.
    aligner : Aligner, optional
        Brings the responses of people of the decoder who are in the study to those of the person: their training
        trials say where the input layer starts (`phosphene.decoders.borrowed`). Responses stay in native voxels. The
        person is added to a copy where the aligner does not know them.
    stimuli : sequence of str, optional
        Of the training part, those to train on (default: all); z-scoring still rests on all trials of the sessions.
    progress : bool
        Show a progress bar, on terminals.
    training : mapping, optional
        Settings of `TrainingConfig` over those of the preset.
    **adapter
        Settings of `AdapterConfig` over those of the preset; those of layers that the arm does not have are refused.

    Returns
    -------
    Decoder
        Of everybody before and the new person (of the new person alone for ``"full"`` and ``"from-scratch"``), in eval
        mode. What happened is in ``decoder.apart[subject]`` (in ``decoder.provenance`` where the person is alone):
        ``"trained"`` counts parameters, ``"seconds"`` and ``"start_seconds"`` the time of all and of the closed form;
        ``"alignment"``, behind an aligner, tells whether it knew the person, and from what; if not, the person was
        added to a copy of it from these sessions (`phosphene.training.in_front`). Of a wills-aligner it is in
        ``decoder.provenance["newcomers"][subject]``.

    Raises
    ------
    InputError
        For an unknown person or arm, settings that the arm has no use for, a person the decoder knows, no training
        trials, more sessions than there are, targets of another encoder, decoders that cannot be adapted, a folder of
        another run.
    LeakageError
        When the targets' encoder was fitted on stimuli outside of the training part.
    """
    if arm not in ARMS:
        raise unknown("arm", arm, ARMS)
    check_seed(seed)
    home = None if isinstance(decoder, Decoder) else Path(decoder)
    if home is not None and out is None and arm in WHOLE_ARMS:
        raise InputError(
            f"arm {arm!r} makes a model of {subject} alone, which is no part of {home}: name a run folder (out)"
        )
    given = decoder if isinstance(decoder, Decoder) else Decoder.load(decoder, without=[subject])
    if isinstance(given, WillsAligner):
        _check_of_experts(
            arm, stimuli, {"preset": preset, "aligner": aligner}, adapter, home is not None and out is None
        )
        from phosphene.training.newcomer import add_subject

        words: dict[str, Any] = {"sessions": sessions, "out": out, "seed": seed, "progress": progress}
        return add_subject(given, study, targets, subject, training=training, **words)
    base = _adaptable(given, targets)
    view = _scarce(base, study, targets, subject, sessions, stimuli)
    borrowed = None if aligner is None else _lenders(base, study, targets, view, subject, aligner, arm)
    aligner, alignment = base.aligner, {}
    if borrowed is not None:
        alignment = {"borrowed": borrowed.told}
    if aligner is not None:
        if home is not None and out is None and subject not in aligner.subjects:
            raise InputError(
                f"the aligner in front of {home} does not know {subject}, and adding somebody to it would change that "
                "folder: name a run folder (out)"
            )
        aligner, found = aligner_with(aligner, view, subject)
        alignment = {"alignment": found}
        view = view.through(aligner)
    config, settings = settings_of_run(base, arm, preset, training or {}, adapter)
    plan = _Plan(subject, arm, seed, view, targets, config, settings, borrowed)
    facts = plan.facts(base, study)
    if stimuli is not None:
        facts["training_stimuli"] = digest(*sorted(view.stimulus_ids.tolist()))
    if aligner is not None:
        facts["aligner"] = aligner.identity_of([*(each for each in base.subjects if each not in base.apart), subject])
    run = _run_folder(home, out, subject, {**facts, "training": config.model_dump(mode="json")})
    if run is not None and run.finished:
        return _read_back(run, run.result if home is None or out is not None else home, base, subject, arm)
    start = time.perf_counter()
    fabric = launch(config)
    leads = fabric.global_rank == 0
    fabric.barrier()  # every process has looked into the run folder before the first one writes there
    work = plan.decoder(base)
    told = plan.carry_out(work, fabric, run, progress and leads)
    told |= facts | alignment | {"n_trials": view.n_trials(subject), "scaling": view.scaling}
    told |= {"seconds": time.perf_counter() - start, "training_content": training_content(view)}
    if aligner is not None:
        work.align(aligner)
    if arm in WHOLE_ARMS:
        if arm == "full":  # the shared weights began where the base had them
            before = base.provenance.get("training_content") or {}
            told["training_content"] = seen_together(before, told["training_content"], study.name)
        work.provenance = {**told, "decoder": work.name, "subjects": dict(work.subjects)}
    else:
        work.know_person(subject, {**work.apart[subject], **told})
    if aligner is not None:
        work.provenance["aligner"] = aligner.identity
    if run is not None and leads:
        if home is not None and out is None:
            work.save_person(run.result, subject)
        else:
            work.save(run.result)
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # of the whole network: the result is a small part of it
    return work


def _check_of_experts(
    arm: str, stimuli: Any, words: Mapping[str, Any], adapter: Mapping[str, Any], in_place: bool
) -> None:
    """Refuse what has no use where a person gets gates over the experts of a wills-aligner."""
    given = [name for name, value in {**words, "stimuli": stimuli}.items() if value is not None]
    given += [*(["arm"] if arm != "both" else []), *adapter]
    if given:
        raise InputError(
            "a wills-aligner has no arms, no adapter settings, no presets of adaptation and no aligner beside its own: "
            f"a new person gets gates over its experts, by settings of training alone; found {', '.join(given)}"
        )
    if in_place:
        raise InputError("a wills-aligner with a new person is written as a whole: name a run folder (out)")


def _read_back(run: RunFolder, place: Path, base: AdaptableDecoder, subject: str, arm: str) -> Decoder:
    """The decoder that a finished run ended with."""
    log.info("%s holds this run, finished: read back", run.path)
    found, wanted = Decoder.load(place), {subject} if arm in WHOLE_ARMS else {*base.subjects, subject}
    if set(found.subjects) != wanted:
        raise InputError(
            f"{run.path} holds this run with a decoder of {', '.join(found.subjects)}, but the base now knows "
            f"{', '.join(base.subjects)}: name another run folder"
        )
    return found


@dataclass(frozen=True)
class _Lenders:
    """People of the base who are in the study, and the aligner that brings them and the new person together."""

    aligner: Aligner
    view: StudyView
    told: dict[str, Any]


def _lenders(
    base: AdaptableDecoder, study: Study, targets: Targets, view: StudyView, subject: str, aligner: Aligner, arm: str
) -> _Lenders:
    if arm == "from-scratch":
        raise InputError("arm 'from-scratch' knows nothing of other people: an aligner has no use")
    if base.aligner is not None:
        raise InputError(f"this {base.name} decoder has an aligner in front of it; another one beside it has no use")
    check_aligner(aligner, study)
    people = [each for each in base.subjects if each in study.subjects and each in aligner.subjects]
    if not people:
        raise InputError(
            f"nobody of the decoder ({', '.join(base.subjects)}) is both in study {study.name!r} "
            f"({', '.join(study.subjects)}) and in the {aligner.name} aligner ({', '.join(aligner.subjects)}): "
            "there is nobody whose responses could be brought to the new person's"
        )
    lent = study.split("train").subset(people)
    targets.rows(lent.stimulus_ids[shown_stimuli(lent)])
    known, told = aligner_with(aligner, view, subject)
    told |= {"people": people, "identity": known.identity_of([*people, subject])}
    return _Lenders(known, lent, told)


def _adaptable(decoder: Decoder, targets: Targets) -> AdaptableDecoder:
    check_adaptable(type(decoder))
    assert isinstance(decoder, AdaptableDecoder)
    decoder.check_targets(targets)
    return decoder


def _scarce(
    base: AdaptableDecoder,
    study: Study,
    targets: Targets,
    subject: str,
    sessions: float | None,
    stimuli: Sequence[str] | np.ndarray | None,
) -> StudyView:
    """The person's part of the training data, in native voxels: some sessions, and the stimuli shown in them."""
    base.refuse_known(subject)
    refuse_leakage(study, study.split("train"), targets)
    view = scarce_view(study, subject, sessions, stimuli)
    targets.rows(view.stimulus_ids)
    return view


def scarce_view(
    study: Study,
    subject: str,
    sessions: float | None = None,
    stimuli: Sequence[str] | np.ndarray | None = None,
) -> StudyView:
    """The training trials of one person, of the first sessions or of some stimuli alone where these are named.

    Raises
    ------
    InputError
        For an unknown person, more sessions than there are, stimuli outside of the training part, no trials at all.
    """
    if subject not in study.subjects:
        raise unknown(f"subject of study {study.name!r}:", subject, study.subjects)
    view = study.split("train").subset([subject])
    if stimuli is not None:
        view = some_of(view, stimuli)
    if sessions is not None:
        view = view.first_sessions(sessions)
    if view.n_trials(subject) == 0:
        within = "" if sessions is None else f" in the first {sessions:g} session{'s' * (sessions > 1)}"
        raise InputError(
            f"{subject} has no trials in the training part of split {view.split_name!r}{within}: "
            "there is nothing to adapt to"
        )
    return view.restrict(view.stimulus_ids[shown_stimuli(view)])


def _run_folder(home: Path | None, out: str | Path | None, subject: str, facts: Mapping[str, Any]) -> RunFolder | None:
    if out is not None:
        return RunFolder(Path(out), facts)
    return None if home is None else RunFolder(home / "people" / subject, facts, result="adapter")


@dataclass(frozen=True)
class _Plan:
    """One adaptation: who, how, and from what."""

    subject: str
    arm: str
    seed: int
    view: StudyView
    targets: Targets
    config: TrainingConfig
    adapter: AdapterConfig
    lenders: _Lenders | None

    def facts(self, base: AdaptableDecoder, study: Study) -> dict[str, Any]:
        """What it was started with, as plain values."""
        return {
            "subject": self.subject,
            "arm": self.arm,
            "n_sessions": self.view.n_sessions,
            "sessions": list(self.view.sessions(self.subject)),
            "seed": self.seed,
            "study": study.name,
            "study_digest": study.digest,
            "split": self.view.split_name,
            "kind": base.target_kind,
            "targets": self.targets.identity,
            "base": base.base,
            "adapter": self.adapter.model_dump(mode="json"),
            "n_training_stimuli": len(self.view.stimulus_ids),
            **({} if self.lenders is None else {"borrowed": self.lenders.told["identity"]}),
        }

    def decoder(self, base: AdaptableDecoder) -> AdaptableDecoder:
        """One that shares the base's tensors and has the person in it, or of the person alone; without the aligner.

        The view has aligned the responses already.
        """
        n_voxels = self.view.n_voxels(self.subject)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            if self.arm in WHOLE_ARMS:
                work = type(base)(base.config, {self.subject: n_voxels}, base.target_shape)
                work.encoder = base.encoder
                if self.arm == "full":
                    work.take_shared(base)
            else:
                work = twin(base, base.aligner, base.encoder)
                work.aligner, work.fronts = None, nn.ModuleList()
                work.adopt(self.subject, n_voxels, self.arm, self.adapter)
        work.voxel_dropout.p = self.adapter.voxel_dropout
        work.arrange_voxels(self.subject, self.view.voxels(self.subject), self.view.space(self.subject))
        return work

    def carry_out(
        self, work: AdaptableDecoder, fabric: Fabric, run: RunFolder | None, progress: bool
    ) -> dict[str, Any]:
        """Train what the arm names; what else changes is an error."""
        bench = prepare(work, self.view, self.targets, work.target_kind, self.config, self.seed, fabric)
        if run is not None and fabric.global_rank == 0:
            run.begin()  # what was refused until here leaves no folder in which other settings would be refused
        if self.arm in WHOLE_ARMS:
            work.requires_grad_(True)
            told = self._train(work, bench, fabric, run, progress)
            work.conclude(bench.view, self.targets, work.target_kind)
        else:
            people = {whose for whose, _ in adapter_names(work).values()}
            train_only(work, self.subject if self.subject in people else None, work.own(self.subject))
            with work.alone(self.subject), frozen(work, work.own(self.subject)):
                told = self._train(work, bench, fabric, run, progress)
            work.eval()
        report = trainable(work, work.of_people)
        counts = {name: sum(getattr(report, name).values()) for name in ("adapters", "own", "base")}
        return {**told, "trained": {**counts, "shared": report.shared, "share": report.share}}

    def _train(
        self, work: AdaptableDecoder, bench: Bench, fabric: Fabric, run: RunFolder | None, progress: bool
    ) -> dict[str, Any]:
        """Start in closed form, unless a checkpoint is there; train; tell how it went."""
        seconds = 0.0

        def start() -> bool:
            nonlocal seconds
            begun = time.perf_counter()
            if self.arm == "from-scratch":
                work.warm_start(bench.view, self.targets, work.target_kind, progress)
            else:
                given = (bench.view, self.subject, self.targets, work.target_kind)
                of = self.lenders
                borrowed = None if of is None else work.borrow(of.aligner, of.view, *given)
                work.start_person(self.subject, bench.view, self.targets, work.target_kind, borrowed)
            seconds = time.perf_counter() - begun
            log.info("%s: input layer in closed form in %.1f s", self.subject, seconds)
            return True

        folder, title = None if run is None else run.checkpoints, f"{work.name}: {self.subject}, {self.arm}"
        told = train_on(bench, work, self.config, self.seed, fabric, folder, start, title, progress)
        return {**told, "start_seconds": seconds}


def parameter_table(facts: Mapping[str, Any]) -> str:
    """What was trained of a network and what that is in shared parameters, as a few lines of text.

    Parameters
    ----------
    facts : mapping
        ``decoder.apart[subject]``, or ``decoder.provenance`` of a model of one person.
    """
    trained = facts["trained"]
    rows = [
        ("adapters", f"{trained['adapters']:,}", f"{trained['share']:.2%} of {trained['shared']:,} shared"),
        ("own input layer", f"{trained['own']:,}", "not shared with anybody"),
        ("shared weights", f"{trained['base']:,}", "trained too" if trained["base"] else "frozen"),
    ]
    return "\n".join(f"  {name:<16} {count:>14}  {words}" for name, count, words in rows)
