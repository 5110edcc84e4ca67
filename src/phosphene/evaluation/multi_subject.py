"""One model of many people beside its rivals: every arm trained on the same data, scored together, pair by pair."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phosphene.alignment import make_aligner
from phosphene.decoders import Decoder
from phosphene.decoders.registry import decoder_class
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.decoders.wills_aligner_config import OF_STAGE2
from phosphene.errors import InputError, refuse_doubles, unknown
from phosphene.evaluation.evaluate import evaluate
from phosphene.evaluation.multi_subject_table import Comparison
from phosphene.evaluation.multilabel import LabelCard, evaluate_labels
from phosphene.training import adapt, fit
from phosphene.training.arms import settings_of_arms
from phosphene.training.progress import progress_bar
from phosphene.training.sampling import check_seed
from phosphene.training.settings import TrainingConfig

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.encoders import Targets
    from phosphene.evaluation.scorecard import Scorecard
    from phosphene.recordings import Study

__all__ = ["ARMS", "OURS", "SINGLE", "STAGE1", "WILLS", "Arm", "Models", "Setup", "first_stage", "multi_subject"]

SINGLE, STAGE1, WILLS = "single-person models", "wills-aligner, stage 1", "wills-aligner, stages 1 + 2"
TABLES = ("decoder", "training", "adapting", "adapter")
_NEWCOMERS = {"fine-tuning": "full", "mindtuner": "both"}  # what is trained of a person: an arm of `adapt`
_PROTOCOLS = ["retrieval", "two-way-cosine"]
_ALONE: dict[str, Any] = {"stage2": "none"}
_LORA: dict[str, Any] = {
    "experts": 1, "balance_weight": 0.0, "private": True, "private_start": "zero", "private_rank": 0
}  # fmt: skip

Models = dict[str, Decoder | dict[str, Decoder]]
"""What an arm trained, by the name in tables: one decoder of all people, or one of each."""


@dataclass(frozen=True)
class Setup:
    """What is alike in all arms.

    Attributes
    ----------
    study : Study
        Its current split.
    targets : Targets
    folder : Path
        Of the runs; what is finished in it is read back, what is not goes on.
    people : tuple of str
    aligner : Aligner
        Takes everybody into one space, for arms that have one.
    seed : int
    preset, kind : str, optional
        As of `phosphene.fit`; the preset is that of every decoder.
    settings, training : dict
        Over those of the preset, of wills-aligner and of the arms that have its trunk.
    mindtuner : dict
        The same for the arms of mindtuner: tables ``decoder`` and ``training`` of the backbone, ``adapting`` and
        ``adapter`` of the newcomer, of which each arm gets what it has a use for (`settings_of_arms`).
    """

    study: Study
    targets: Targets
    folder: Path
    people: tuple[str, ...]
    aligner: Aligner
    seed: int = 0
    preset: str | None = None
    kind: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    mindtuner: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def trunk(
        self, run: str, aligner: Aligner | None = None, people: Sequence[str] | None = None, **settings: Any
    ) -> WillsAligner:
        """Fit wills-aligner with other settings: same trunk, heads, linear path and losses."""
        settings = {**self.settings, **settings}
        training = dict(self.training)
        if settings.get("stage2") == "none":  # what was asked of a stage that this arm does not have is not for it
            settings = {name: value for name, value in settings.items() if name not in OF_STAGE2}
            training.pop("stage2", None)
        found = self._fitted("wills-aligner", run, people, aligner=aligner, training=training, **settings)
        assert isinstance(found, WillsAligner)
        return found

    def backbone(self, run: str, people: Sequence[str] | None = None) -> Decoder:
        """Fit mindtuner: an input layer for each person, all else shared."""
        settings = self.mindtuner.get("decoder", {})
        return self._fitted("mindtuner", run, people, training=self.mindtuner.get("training", {}), **settings)

    def newcomer(self, person: str, arm: str) -> Decoder:
        """Add a person to a backbone of all others, from everything there is of them."""
        tables = (self.mindtuner.get(table, {}) for table in ("adapting", "adapter"))
        adapting, adapter = settings_of_arms(list(_NEWCOMERS.values()), *tables)[arm]
        return adapt(
            self.backbone(f"without/{person}", [each for each in self.people if each != person]),
            self.study,
            self.targets,
            person,
            arm=arm,
            preset=self.preset,
            seed=self.seed,
            out=self.folder / f"newcomers-{arm}" / person,
            progress=False,
            training=adapting,
            **adapter,
        )

    def _fitted(self, name: str, run: str, people: Sequence[str] | None, **settings: Any) -> Decoder:
        return fit(
            name,
            self.study,
            self.targets,
            preset=self.preset,
            subjects=list(people or self.people),
            seed=self.seed,
            out=self.folder / run,
            kind=self.kind,
            progress=False,
            **settings,
        )


# -- arms -----------------------------------------------------------------------------------------------------------


def _single(setup: Setup) -> Models:
    return {SINGLE: {each: setup.trunk(f"single/{each}", people=[each], **_ALONE) for each in setup.people}}


def _naive(setup: Setup) -> Models:
    return {"naive pooling": setup.trunk("naive", **_ALONE)}


def _other_counts(setup: Setup) -> str:
    view = setup.study.split("train")
    counts = {each: view.n_voxels(each) for each in setup.people}
    if len(set(counts.values())) == 1:
        return ""
    return f"it takes voxels by number, and people have {', '.join(f'{n:,} ({each})' for each, n in counts.items())}"


def _mindbridge(setup: Setup) -> Models:
    view = setup.study.split("train")
    width = min(view.n_voxels(each) for each in setup.people) // 2
    pooled = make_aligner("pooled", width=width).fit(view.subset(list(setup.people)))
    return {"MindBridge-style pooling": setup.trunk("mindbridge", pooled, **_ALONE)}


def _embedding(setup: Setup) -> Models:
    settings = {**_ALONE, "person_embedding": True}
    return {"subject embedding": setup.trunk("subject-embedding", setup.aligner, **settings)}


def _ridge(setup: Setup) -> Models:
    return {"per-person ridge, shared backbone": setup.backbone("ridge-inputs")}


def _lora(setup: Setup) -> Models:
    return {"per-person LoRA (one-hot gate)": setup.trunk("lora", setup.aligner, **_LORA)}


def _newcomers(setup: Setup, name: str, arm: str) -> Models:
    return {name: {person: setup.newcomer(person, arm) for person in setup.people}}


def _wills(setup: Setup) -> Models:
    both = setup.trunk("wills-aligner", setup.aligner)
    return {STAGE1: first_stage(both), WILLS: both}


def first_stage(decoder: WillsAligner) -> WillsAligner:
    """What the first stage learned, as a decoder of its own: see `WillsAligner.commonality`."""
    first = copy.deepcopy(decoder)
    first.individual = False
    return first


@dataclass(frozen=True)
class Arm:
    """One way to decode many people.

    Attributes
    ----------
    what : str
        In a line.
    train : callable
        `Setup` to `Models`.
    obstacle : callable
        Why the study does not allow it; nothing where it does.
    """

    what: str
    train: Callable[[Setup], Models]
    obstacle: Callable[[Setup], str] = lambda setup: ""


OURS = "wills-aligner"
ARMS: dict[str, Arm] = {
    OURS: Arm("one model behind the aligner, in two stages; the first alone beside it", _wills),
    "single": Arm("a model for each person, on their own voxels", _single),
    "naive": Arm("one model, voxel by number", _naive, _other_counts),
    "mindbridge": Arm("one model, everybody's voxels averaged to half of the fewest", _mindbridge),
    "subject-embedding": Arm("one model behind the aligner, a learned vector for each person", _embedding),
    "ridge": Arm("an input layer for each person from ridge, a shared backbone (mindtuner's)", _ridge),
    "lora": Arm("one model behind the aligner, LoRA for each person beside one for all", _lora),
    "fine-tuning": Arm(
        "each person new to a backbone of the others, everything fine-tuned",
        partial(_newcomers, name="MindEye2-style full fine-tuning", arm=_NEWCOMERS["fine-tuning"]),
    ),
    "mindtuner": Arm(
        "each person new to a backbone of the others, LoRA and Skip-LoRA",
        partial(_newcomers, name="mindtuner (LoRA and Skip-LoRA)", arm=_NEWCOMERS["mindtuner"]),
    ),
}


# -- all of them ----------------------------------------------------------------------------------------------------


def multi_subject(
    study: Study,
    targets: Targets,
    out: str | Path,
    *,
    arms: Sequence[str] | None = None,
    subjects: Sequence[str] | None = None,
    aligner: str | Aligner = "anatomical",
    classes: Sequence[str] = (),
    preset: str | None = None,
    kind: str | None = None,
    seeds: Sequence[int] = (0,),
    n_boot: int = 1000,
    n_perm: int = 1000,
    training: Mapping[str, Any] | None = None,
    mindtuner: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Train wills-aligner and its rivals on one study, score them together, and say what each difference is worth.

    Every arm has the same training part, targets, seed and rule for validation stimuli; the test part is scored once,
    on the same resamples for all. Runs are kept in `out`: a finished one is read back, an interrupted one goes on.

    Parameters
    ----------
    study : Study
        Of two people or more; its current split.
    targets : Targets
    out : path
        Folder of the runs, of scorecards by seed, and of the table (`Comparison.save`).
    arms : sequence of str, optional
        Of `ARMS`; ``"wills-aligner"`` is always among them. Default: all; those that this study does not allow (voxels
        by number where people have different numbers of them) are left out, and said. An arm that is named must work.
    subjects : sequence of str, optional
        Default: all.
    aligner : str or Aligner
        Into one space, for arms that have one: a name of `make_aligner`, or an aligner fitted to the training part.
    classes : sequence of str
        Label columns, or patterns, for the head for classes (mAP); default: none.
    preset, kind
        As of `phosphene.fit`.
    seeds : sequence of int
        Of weights, validation stimuli and order; a training of every arm for each.
    n_boot, n_perm : int
        Resamples and permutations of the scores.
    training, settings
        Over those of the preset, for wills-aligner and the arms with its trunk.
    mindtuner : mapping, optional
        The same for the arms of mindtuner: see `Setup`.
    progress : bool
        Show a progress bar (only on a terminal).

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        Unknown names, fewer than two people, an arm that was asked for and cannot be trained.
    LeakageError
        As of `fit`.
    """
    wanted = list(ARMS) if arms is None else list(dict.fromkeys([OURS, *arms]))
    for each in wanted:
        if each not in ARMS:
            raise unknown("arm", each, ARMS)
    people = tuple(study.subjects if subjects is None else subjects)
    refuse_doubles("subject", people)
    refuse_doubles("seed", map(str, seeds))
    if len(people) < 2 or not seeds:
        raise InputError(f"two people and a seed are needed, found {len(people)} and {len(seeds)}")
    for seed in seeds:
        check_seed(seed)
    if classes:
        settings = {**settings, "class_columns": tuple(classes)}
    if settings.get("stage2") == "none":
        raise InputError("stage2 = 'none' leaves wills-aligner without its second stage: it is what rivals are held to")
    _check_of_mindtuner(mindtuner or {}, wanted)
    if isinstance(aligner, str):
        aligner = make_aligner(aligner).fit(study.split("train").subset(list(people)))
    common = (settings, training or {}, mindtuner or {})
    setup = Setup(study, targets, Path(out), people, aligner, 0, preset, kind, *common)
    left_out = {name: reason for name in wanted if (reason := ARMS[name].obstacle(setup))}
    if left_out and arms is not None:
        raise InputError("; ".join(f"arm {name!r} cannot be trained: {reason}" for name, reason in left_out.items()))
    wanted = [name for name in wanted if name not in left_out]
    cards: dict[int, Scorecard] = {}
    labels: dict[int, LabelCard] = {}
    with progress_bar("multi-subject", len(seeds) * len(wanted), progress) as tell:
        for at, seed in enumerate(seeds):
            setup = replace(setup, folder=Path(out) / f"seed-{seed}", seed=seed)
            models: Models = {}
            for number, name in enumerate(wanted):
                tell(at * len(wanted) + number, f"seed {seed}, {name}")
                models |= ARMS[name].train(setup)
            cards[seed], said = _scored(setup, models, n_boot, n_perm)
            cards[seed].save(setup.folder / "scores.json")
            if said is not None:
                labels[seed] = said
                said.save(setup.folder / "labels.json")
    told = {name: ARMS[name].what for name in wanted}
    found = Comparison(WILLS, told, cards, labels, left_out)
    found.save(out)
    return found


def _check_of_mindtuner(given: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]) -> None:
    """Refuse settings that do not exist, or that no arm has a use for, before anything is trained."""
    newcomers = [arm for name, arm in _NEWCOMERS.items() if name in wanted]
    used = [*(TABLES[:2] if newcomers or "ridge" in wanted else ()), *(TABLES[2:] if newcomers else ())]
    for table in given:
        if table not in TABLES:
            raise unknown("table of mindtuner's settings", table, TABLES)
        if table not in used:
            raise InputError(f"mindtuner.{table} has no use: none of the arms {', '.join(wanted)} has such settings")
    decoder_class("mindtuner").Config.build(given.get("decoder"))
    TrainingConfig.check_names(given.get("training", {}))
    if newcomers:
        settings_of_arms(newcomers, given.get("adapting", {}), given.get("adapter", {}))


def _scored(setup: Setup, models: Models, n_boot: int, n_perm: int) -> tuple[Scorecard, LabelCard | None]:
    """Scores of all models, ours first; of classes where there are any."""
    ours = models[WILLS]
    assert isinstance(ours, WillsAligner)
    rivals = {name: each for name, each in models.items() if name != WILLS}
    common: dict[str, Any] = {"subjects": setup.people, "n_boot": n_boot, "seed": setup.seed, "name": WILLS}
    card = evaluate(
        ours, setup.study, setup.targets, rivals=rivals, protocols=_PROTOCOLS, n_perm=n_perm, progress=False, **common
    )
    if ours.class_head is None:
        return card, None
    with_classes = {name: each for name, each in rivals.items() if isinstance(_any(each), WillsAligner)}
    return card, evaluate_labels(ours, setup.study, rivals=with_classes, **common)


def _any(models: Decoder | dict[str, Decoder]) -> Decoder:
    return next(iter(models.values())) if isinstance(models, dict) else models
