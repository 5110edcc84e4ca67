"""What a pretrained model comes with: a card in words, a scorecard in numbers, a curve in a picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from phosphene._version import __version__
from phosphene.encoders.mlip.similarity import SCORES
from phosphene.files import atomic_path, write_json
from phosphene.training.log import read_log
from phosphene.training.pretraining.probes import Score
from phosphene.training.pretraining.settings import PretrainSettings

__all__ = ["hardware", "model_card", "read_curve", "write_curve"]

_CURVE_POINTS = 500


def hardware(device: torch.device, processes: int = 1) -> str:
    """The machine in words: the GPU, or the processor and its threads."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    threads = torch.get_num_threads()
    return f"{processes} x {name} ({threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()})"


def read_curve(log: Path) -> dict[str, list[dict[str, Any]]]:
    """Course of a run from its log: loss and its parts, and probes; long courses are thinned evenly."""
    records = read_log(log) if log.exists() else []
    steps = [{k: v for k, v in record.items() if k != "event"} for record in records if record["event"] == "step"]
    stride = -(-len(steps) // _CURVE_POINTS) or 1
    probes = [{"step": record["step"], **record["scores"]} for record in records if record["event"] == "probe"]
    return {"steps": steps[::-1][::stride][::-1], "probes": probes}


def write_curve(folder: Path, curve: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write ``curve.json`` and ``curve.png``."""
    write_json(folder / "curve.json", curve)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [point["step"] for point in curve["steps"]]
    left.plot(steps, [point["loss"] for point in curve["steps"]], marker=".", markersize=3, color="#204a87")
    left.set(xlabel="step", ylabel="loss", title="Training loss")
    for name in list(curve["probes"][0])[1:] if curve["probes"] else []:
        at = [point["step"] for point in curve["probes"]]
        right.plot(at, [100 * point[name] for point in curve["probes"]], marker=".", label=name)
    right.set(xlabel="step", ylabel="accuracy (%)", title="Probes of the averaged weights", ylim=(0, 100))
    if curve["probes"]:
        right.legend(fontsize="x-small", frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(folder / "curve.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _figure(score: Score) -> str:
    return f"{100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _table(scores: Sequence[Score]) -> list[str]:
    """One row a task, one column a way to compare."""
    columns = [name for name in SCORES if any(score.score == name for score in scores)]
    lines = [
        f"| probe | on | n | chance | {' | '.join(columns)} |",
        f"|---|---|---|---|{'---|' * len(columns)}",
    ]
    rows: dict[tuple[str, str, str], dict[str, Score]] = {}
    for score in scores:
        rows.setdefault((score.probe, score.part, score.task), {})[score.score] = score
    for (probe, part, task), by_name in rows.items():
        first = next(iter(by_name.values()))
        figures = " | ".join(_figure(by_name[name]) if name in by_name else "" for name in columns)
        lines.append(f"| {probe}: {task} | {part} | {first.n} | {100 * first.chance:.2g} | {figures} |")
    return lines


def _recipe(settings: PretrainSettings, facts: Mapping[str, Any]) -> list[str]:
    data = settings.data
    if facts["data"]["source"] == "scenes":
        held = (
            "every composition occurs in training"
            if data.rule == "none"
            else f"compositions held out by the rule {data.rule!r} occur in probes only"
        )
        plain = f", {100 * data.plain:.0f} % of them plain" if data.plain else ""
        simple = f"; the first {data.simple_batches:,} batches show one object with a plain caption"
        held += simple if data.simple_batches else ""
        supply = f"a pool of {data.pool:,} scenes" if data.pool else "new scenes in every step"
        return [
            _supply(facts),
            f"{supply[0].upper()}{supply[1:]}, {settings.model.image_size} x {settings.model.image_size} pixels; "
            f"{data.sampled} of {data.captions} captions a scene in a step{plain}; {100 * data.hard_share:.0f} % of "
            f"groups of {data.group} scenes have {data.group_colours} colours and {data.group_materials} materials; "
            f"{held}.",
        ]
    data_facts = facts["data"]
    return [
        f"{data_facts['training_pictures']:,} pictures with {data_facts['captions']:,} captions; "
        f"{data_facts['held_out_pictures']:,} further pictures held out for the probes "
        f"(content {data_facts['identity']}).",
    ]


def _sources(facts: Mapping[str, Any]) -> set[str]:
    """What the weights were trained on, in all runs that made them: "scenes", "pictures", "unknown"."""
    runs = [*facts.get("before", ()), facts]
    sources = {run["data"].get("source", "unknown") for run in runs}
    return sources if runs[0]["start"] is None else {*sources, "unknown"}


def _supply(facts: Mapping[str, Any]) -> str:
    """What a run on scenes can say of itself: that there was nothing else only where all runs before it tell so."""
    sources = _sources(facts)
    if sources == {"scenes"}:
        return "**Trained on procedural scenes only**: no photograph, no text written by people."
    what = "pictures in one before" if "pictures" in sources else "a model that does not tell all it was trained on"
    return f"**This run: procedural scenes**, after {what}."


def _before(facts: Mapping[str, Any]) -> list[str]:
    """One line for each of the runs that made the model to start from."""
    lines = []
    for place, run in enumerate(facts.get("before", ())):
        data = run["data"]
        what = {"scenes": "procedural scenes", "pictures": "pictures"}.get(data.get("source", ""), "nothing is told")
        if {"training_pictures", "captions", "identity"} <= data.keys():
            what = f"{data['training_pictures']:,} pictures with {data['captions']:,} captions"
            what += f" (content {data['identity']})"
        what += ", after a model of which nothing is told" if run["start"] is not None and not place else ""
        lines.append(f"* Before, as `{run['name']}` (weights {run['weights']}): {what}.")
    return lines


def _objective(settings: PretrainSettings, facts: Mapping[str, Any]) -> str:
    """Settings of the objective that have a use; of what was learned the last value and the first."""
    values, idle = settings.objective.model_dump(mode="json"), settings.objective.without_use()
    learned = {**facts["temperatures"], **facts["biases"]}
    said = []
    for key, first in values.items():
        last = learned.get(key)
        if key in idle or (first is None and last is None):
            continue
        if last is None or (first is not None and f"{last:.4g}" == f"{first:.4g}"):
            said.append(f"{key} {first}")
        else:
            said.append(f"{key} {last:.4g} (learned{'' if first is None else f', from {first:g}'})")
    return ", ".join(said)


def _merging(settings: PretrainSettings) -> list[str]:
    merge = settings.model.merge
    if merge is None or not merge.active:
        return []
    said = ", ".join(f"merge.{setting}" for setting in merge.changed(type(merge).model_fields))
    return [f"* Trained and scored with token merging ({said}); as an encoder it merges nothing unless it is told to."]


def model_card(settings: PretrainSettings, facts: Mapping[str, Any], scores: Sequence[Score]) -> str:
    """The card of a model, in Markdown.

    Parameters
    ----------
    settings : PretrainSettings
    facts : mapping
        As `pretrain` gathers them.
    scores : sequence of Score
    """
    model, training = settings.model, settings.training
    arrangement = (
        "plain CLIP (no spectral blocks)"
        if not model.spectral_blocks
        else f"{model.spectral_blocks} spectral and {model.spatial_blocks} attention blocks, {model.arrangement}"
    )
    begun = "random weights" if facts["start"] is None else f"the model with weights {facts['start']}"
    begun += ", a given tokenizer" if facts.get("tokenizer") else ""
    name = f" {facts['preset']}" if facts["preset"] else ""
    title = f"MLIP model{name}" if facts["start"] is None else f"Fine-tuned MLIP model, preset{name}"
    batches = f" in {training.accumulate} batches" if training.accumulate > 1 else ""
    averaged = f"averaged weights (decay {training.ema:g})" if training.ema else "weights not averaged"
    lines = [
        f"# {title}",
        "",
        f"{facts['parameters']:,} parameters; image tower of width {model.width}: {arrangement}; pictures of "
        f"{model.image_size} x {model.image_size} in patches of {model.patch}; text tower of width {model.text_width}, "
        f"{model.text_blocks} blocks, at most {model.text_context} tokens.",
        "",
        "## Training",
        "",
        *_recipe(settings, facts),
        "",
        *_before(facts),
        f"* Start: {begun}; seed {facts['seed']}.",
        f"* {facts['steps']:,} steps of {facts['batch_size']:,} pictures{batches}: "
        f"{facts['pairs_seen']:,} pairs of picture and caption seen.",
        f"* AdamW, learning rate {training.learning_rate:g} ({training.schedule}), weight decay "
        f"{training.weight_decay:g}, {averaged}, precision {facts['precision']}.",
        *_changes(facts),
        f"* Objective: {_objective(settings, facts)}.",
        *_merging(settings),
        f"* {facts['hardware']}; {facts['seconds'] / 60:.1f} minutes.",
        *(["* Weights are written as float16; the scores are theirs."] if training.save_precision == "float16" else []),
        f"* phosphene {__version__}, torch {torch.__version__}.",
        "",
        "## Scores",
        "",
        "Accuracy in % with the 95 % interval over pictures (Wilson; training was run once, so nothing is said about "
        "other seeds). Retrieval and 'all together' count the first place only. The first column of scores compares "
        "the spatial embedding alone, as CLIP does; the others add the cosines of the frequency embedding and the "
        "token-level similarities.",
        "",
        *_table(scores),
        "",
        "## Limits",
        "",
        *_limits(facts),
        *_untrained(facts),
    ]
    return "\n".join(lines) + "\n"


def _changes(facts: Mapping[str, Any]) -> list[str]:
    """Settings that were changed on the way; those named above are the last ones."""
    lines = []
    for change in facts.get("changes", ()):
        words = ", ".join(f"{key} from {old} to {new}" for key, (old, new) in change["changed"].items())
        lines.append(f"* Changed after step {change['step']:,}, because {change['what']}: {words}.")
    return lines


def _untrained(facts: Mapping[str, Any]) -> list[str]:
    """Embeddings that are as random as they began."""
    names = facts["untrained"]
    return [f"* Nothing trained these embeddings, which are random: {', '.join(names)}."] if names else []


def _limits(facts: Mapping[str, Any]) -> list[str]:
    if facts["data"]["source"] == "pictures":
        return [
            "* Knows what the pictures and captions named above show; its probes come from the same source and say "
            "nothing about other pictures.",
        ]
    words = (
        "* Knows the words and things of the scene grammar: shapes, colours, materials, places, backgrounds, light. "
    )
    if _sources(facts) != {"scenes"}:
        return [f"{words}Its probes show scenes alone: they say nothing about the pictures of other runs."]
    return [
        f"{words}Nothing is known of its behaviour on photographs.",
        "* Small and trained for a short time: a target for studies of decoding and a start for fine-tuning, no "
        "substitute for encoders trained on web data.",
    ]
