"""What was recorded, how it was trained, what the audits found, and how to do it again: in words."""

from __future__ import annotations

import datetime
import platform
import textwrap
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.reporting.figures import number, percentage
from phosphene.reporting.page import Audit, Curve, Fact, Person, Series

if TYPE_CHECKING:
    from phosphene.evaluation import Scorecard
    from phosphene.recordings import Study

__all__ = [
    "audits",
    "curves",
    "facts",
    "is_virtual",
    "noun",
    "protocol",
    "recorded",
    "repeats",
    "sources",
    "today",
    "versions",
]

_PACKAGES = ("phosphene", "torch", "numpy", "scipy", "scikit-learn", "h5py", "pillow")
_CURVES = {"loss": "Loss", "top-1": "Top-1 on validation stimuli", "two-way": "Two-way on validation stimuli"}


def noun(study: Study) -> str:
    """What was shown, in one word."""
    if study.stimuli.fps is not None:
        return "clip"
    return "picture" if study.stimuli.has_pixels else "stimulus"


def is_virtual(study: Study) -> bool:
    """Whether the recordings are simulated by `phosphene.virtual`."""
    return str(study.recipe.get("source", "")).startswith("phosphene.virtual")


def repeats(scorecard: Scorecard) -> int:
    """Presentations averaged into one test response, rounded mean over people; 1 where it is not known."""
    found = list(scorecard.protocol.get("trials_per_stimulus", {}).values())
    return max(1, round(float(np.mean(found)))) if found else 1


def recorded(study: Study, scorecard: Scorecard) -> tuple[Person, ...]:
    """One line a person; with several splits, the trials of the first one."""
    splits, role = scorecard.protocol.get("splits", []), scorecard.protocol.get("role", "test")
    here = study.using(splits[0]) if splits and splits[0] in study.split_names else study
    roles = here.roles() if here.split_names else {}
    people = []
    for name in scorecard.protocol.get("subjects", study.subjects):
        recording = study.recordings[name]
        shown = recording.trials["stimulus_id"]
        trained = int(np.isin(shown, roles.get("train", [])).sum())
        tested = shown if role == "all" else shown[np.isin(shown, roles.get(role, []))]
        counts = np.unique(tested, return_counts=True)[1]
        people.append(
            Person(name, recording.n_voxels, trained, len(tested), _range(counts), ", ".join(list(recording.rois)[:12]))
        )
    return tuple(people)


def facts(study: Study, scorecard: Scorecard, people: Sequence[Person]) -> tuple[Fact, ...]:
    """The strip of figures under the headline."""
    told, what = scorecard.protocol, noun(study)
    many = "stimuli" if what == "stimulus" else f"{what}s"
    splits = told.get("splits", [])
    tested, trained = list(told.get("stimuli", {}).values()), list(told.get("training_stimuli", {}).values())
    decoders = [d for d in told.get("decoder", {}).values() if d.get("study", study.name) != study.name]
    if decoders:  # fitted on another study: what was learned from is not what the rivals learned from
        trained = [int(d["n_training_stimuli"]) for d in decoders]
    elsewhere = ", ".join(sorted({str(d["study"]) for d in decoders}))
    target = told.get("target", {})
    shape = " × ".join(str(side) for side in target.get("shape", []))
    found = [
        Fact("People", str(len(people)), study.name),
        Fact("Voxels", _range([person.voxels for person in people]), "of each person"),
        Fact(
            f"Training {many}",
            _range(trained) if trained else "none",
            f"of another study, {elsewhere}"
            if elsewhere
            else "of each fold"
            if len(splits) > 1
            else "the only ones anything was fitted on",
        ),
        Fact(
            f"Test {many}",
            number(sum(tested)),
            f"{len(splits)} folds of {_range(tested)}" if len(splits) > 1 else "never seen in training",
        ),
        Fact(
            "Repeats averaged",
            str(repeats(scorecard)),
            "a single response" if repeats(scorecard) == 1 else f"of each test {what}",
        ),
        Fact("Decoded to", target.get("name", "?"), f"{target.get('kind', '')} {shape}".strip()),
    ]
    return tuple(found)


def curves(provenance: Mapping[str, Any]) -> tuple[Curve, ...]:
    """Loss of training and validation, and the validation figures, by epoch."""
    records = provenance.get("curves") or []
    best = provenance.get("best_epoch")
    marks = ((float(best), "best"),) if best else ()
    made = []
    for figure, title in _CURVES.items():
        series = []
        if figure == "loss":
            series.append(_series("training", [(r["epoch"], r["loss"]) for r in records if r.get("loss") is not None]))
        checked = [(r["epoch"], r["validation"][figure]) for r in records if figure in (r.get("validation") or {})]
        series.append(_series("validation", checked))
        kept = tuple(line for line in series if line.x)
        if kept:
            made.append(Curve(title, "epoch", figure, kept, marks, percent=figure != "loss"))
    return tuple(made)


def audits(scorecard: Scorecard) -> tuple[Audit, ...]:
    """Every audit of the scorecard with a verdict; one that could not be made says why."""
    found = scorecard.audits
    predictions = found.get("predictions", {}).get(scorecard.method, {})
    return (
        _overlap(found.get("overlap", {})),
        _semantic(found.get("semantic_leakage", {})),
        _rank(predictions),
        _closer(predictions),
        _ceiling(found.get("noise_ceiling") or {}),
        *(Audit("Note", "unknown", note) for note in scorecard.notes),
    )


def protocol(scorecard: Scorecard) -> tuple[tuple[str, str], ...]:
    """The protocol as pairs of words, without the long parts."""
    told = scorecard.protocol
    pairs = [
        ("Part", f"{told.get('role', '?')} of {', '.join(told.get('splits', [])) or '?'}"),
        ("Candidates", told.get("candidates", "")),
        ("Repeats averaged", str(told.get("repeats", ""))),
        ("Unit", told.get("unit", "")),
        ("Interval", told.get("interval", "")),
        ("Null", told.get("null", "")),
        ("Resamples", f"{told['n_boot']:,} bootstrap, {told['n_perm']:,} permutations" if "n_boot" in told else ""),
        ("Seed", str(told.get("seed", ""))),
        ("Tasks", ", ".join(task["name"] for task in told.get("tasks", []))),
    ]
    return tuple((name, words) for name, words in pairs if words)


def sources(study: Study, provenance: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Where the data and the decoder come from."""
    settings = provenance.get("settings") or {}
    pairs = [
        ("Study", study.name),
        ("Source", _plain(study.recipe.get("source"))),
        ("Licence", study.licence or "not stated"),
        ("Citation", study.citation),
        ("Study digest", study.digest),
        ("Scaling", "z-score per session, from training trials" if study.scaling == "session" else study.scaling),
        ("Decoder", provenance.get("decoder", "")),
        ("Decoder settings", ", ".join(f"{name} {_plain(value)}" for name, value in settings.items())),
        ("Training seed", _plain(provenance.get("seed"))),
        ("Steps", _plain(provenance.get("steps"))),
    ]
    return tuple((name, textwrap.shorten(words, 400, placeholder=" …")) for name, words in pairs if words)


def versions(scorecard: Scorecard) -> tuple[tuple[str, str], ...]:
    """Versions at work now; those of the evaluation beside them where they differ."""
    now = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            now[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    then = scorecard.protocol.get("versions", {})
    now |= {name: version for name, version in then.items() if name not in now}
    differ = {name: f" (evaluated with {then[name]})" for name in now if name in then and then[name] != now[name]}
    return tuple((name, version + differ.get(name, "")) for name, version in now.items())


def today() -> str:
    """The date, as the page prints it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _range(values: Any) -> str:
    """One number, or the smallest to the largest."""
    counts = [int(value) for value in values]
    if not counts:
        return "none"
    low, high = min(counts), max(counts)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _series(name: str, points: Sequence[tuple[float, float]]) -> Series:
    return Series(name, tuple(float(x) for x, _ in points), tuple(float(y) for _, y in points))


def _mean(entries: Mapping[str, Any], key: str) -> float | None:
    """Mean of a figure over folds or people; None where nobody has it."""
    values = [entry[key] for entry in entries.values() if entry.get(key) is not None]
    return float(np.mean(values)) if values else None


def _overlap(folds: Mapping[str, Any]) -> Audit:
    name, meaning = "Overlap of training and test", "Compared by name, by content of the pictures and by caption."
    if not folds:
        return Audit(name, "unknown", "There is no training part to compare with.", meaning)
    same = sum(fold["ids"] + fold["contents"] for fold in folds.values())
    captions = sum(fold["captions"] for fold in folds.values())
    tested = sum(fold["test_stimuli"] for fold in folds.values())
    if same:
        examples = [example for fold in folds.values() for example in fold["examples"]][:3]
        told = (
            f"Test stimuli stand in the training part ({same} matches among {tested}), such as {', '.join(examples)}."
        )
        return Audit(name, "bad", told, meaning)
    told = f"None of the {tested} test stimuli, nor an identical picture, is in the training part"
    if captions:
        return Audit(name, "warn", f"{told}; {captions} share a caption with a training stimulus.", meaning)
    return Audit(name, "good", f"{told}; no caption is shared.", meaning)


def _semantic(folds: Mapping[str, Any]) -> Audit:
    name = "Near neighbours in training"
    meaning = (
        "A decoder may name the cluster it knows. Where this is high, a leave-cluster-out split is the harder test."
    )
    near, inside = _mean(folds, "test_to_training"), _mean(folds, "within_training")
    if near is None:
        return Audit(name, "unknown", "There is no training part to compare with.", meaning)
    duplicates = _mean(folds, "near_duplicates") or 0.0
    told = f"Median cosine of a test target to its nearest training target: {near:.2f}"
    told += f" (between training targets: {inside:.2f})" if inside is not None else ""
    told += f"; {percentage(duplicates)} have a near duplicate (0.99 or more)."
    return Audit(name, "warn" if duplicates > 0.01 else "good", told, meaning)


def _rank(people: Mapping[str, Any]) -> Audit:
    name = "Effective rank of predictions"
    meaning = (
        "A low rank means that the decoder gives few distinct answers; participation ratio of the centred predictions."
    )
    own, true = _mean(people, "effective_rank"), _mean(people, "effective_rank_of_targets")
    if own is None or true is None:
        return Audit(name, "unknown", "It was not measured.", meaning)
    verdict = "good" if own >= 0.5 * true else "warn"
    return Audit(
        name, "good" if verdict == "good" else "warn", f"{own:.1f}, of {true:.1f} of the true targets.", meaning
    )


def _closer(people: Mapping[str, Any]) -> Audit:
    name = "Closer to training than to the truth"
    meaning = (
        "Common where there are many training stimuli; close to all would mean naming what is known, not what is seen."
    )
    share = _mean(people, "closer_to_training")
    if share is None:
        return Audit(name, "unknown", "There is no training part to compare with.", meaning)
    told = f"{percentage(share)} of predictions lie nearer to some training target than to their own."
    return Audit(name, "good" if share < 0.95 else "warn", told, meaning)


def _ceiling(people: Mapping[str, Any]) -> Audit:
    name, meaning = (
        "Noise ceiling",
        "Share of the averaged responses’ variance over stimuli that any model could explain.",
    )
    if not people:
        told = "Too few test stimuli were shown more than once, so it cannot be measured."
        return Audit(name, "unknown", told, meaning)
    words = []
    for person, found in people.items():
        words.append(f"{person} {percentage(found['voxel_median'])}")
    told = f"Median voxel: {', '.join(words[:6])}{' …' if len(words) > 6 else ''}."
    halves = _mean(people, "halves_two_way")
    if halves is not None:
        told += f" One half of the repeats finds its stimulus in the other half two-way in {percentage(halves)}."
    return Audit(name, "good", told, meaning)
