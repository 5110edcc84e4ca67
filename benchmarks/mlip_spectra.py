"""Where does the frequency stage help? Pictures with natural spectra, whole, low-passed and high-passed.

Run after ``mlip_arms.py --develop``, whose choices it takes::

    OMP_NUM_THREADS=1 python benchmarks/mlip_spectra.py --work FOLDER

Small single objects before 1/f mist or dead leaves; captions in varied English, which say where the light comes from
in about half of the cases and what the background is in about half. Attributes live in high frequencies (striped,
dotted, checkered, rough), in low ones (faded; the direction of the light, a gradient over the whole picture), or in
both. Models see whole pictures in training, and in the evaluation new scenes as they are, low-passed at 4 and
high-passed at 6 cycles a picture. Every run is a line of ``FOLDER/records.jsonl``; an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mlip_arms import FINAL_WORDS, RESULTS, arms, checked, chosen_settings, several, told, with_arguments
from mlip_arms_summary import TITLES, cell, difference, hits_of, mean_sd, told_difference
from mlip_study import BASE, SCORES, Gallery, Question, looks, pictures_of, run_record, sentence, wanted_words

from phosphene.files import write_json
from phosphene.stimuli import band_limited
from phosphene.stimuli.scenes import SceneGraphs, chosen_captions, sample_graphs
from phosphene.stimuli.scenes.vocabulary import BACKGROUNDS, LIGHTS

ARMS = ("clip", "spectral", "mlip")
CONTROLS = ("mlip-slower",)  # with the learning rate of the others; run when named
WORDS = {**FINAL_WORDS, "background": ["mist", "dead-leaves"], "light": ["right", "above", "left", "below"]}
FINE, SLOW = ["striped", "dotted", "checkered", "rough"], ["matte", "faded"]
#: arguments of `band_limited`, cycles a picture
COPIES: dict[str, dict[str, float]] = {"whole": {}, "low-passed": {"high": 4.0}, "high-passed": {"low": 6.0}}
DATA = {"objects": 1, "scale": (0.18, 0.3), "captions": 5, "only": WORDS}
MODEL = {"vocabulary": 800, "text_context": 80}  # varied captions are longer, of more words
_EVERYTHING = 4  # the caption of a scene that leaves nothing out
_EVALUATED = 2**51  # added to the seed of a run: scenes of its evaluation, far from those of training and probes
#: what is told: columns of the tables as (part of the answers, tasks whose hits are averaged)
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "shape": ("looks", ("shape",)),
    "colour": ("looks", ("colour",)),
    "material": ("looks", ("material",)),
    "fine material": ("fine", ("material",)),
    "matte or faded": ("slow", ("material",)),
    "light": ("light", ("light",)),
    "background": ("background", ("background",)),
    "retrieval": ("retrieval", ("image to text", "text to image")),
}
COMPARISONS = (
    *(("spectral", "clip"), ("mlip", "clip"), ("mlip", "spectral")),
    *(("mlip-slower", "clip"), ("mlip-slower", "mlip")),
)


# -- what models are asked ----------------------------------------------------------------------------------------


def questions(pictures: int, seed: int) -> list[Question | Gallery]:
    """All tasks on every copy of the same scenes."""
    draw = partial(sample_graphs, seed=_EVALUATED + seed, holdout="train", rule=BASE["data"]["rule"])
    graphs = draw(pictures, objects=1, only=WORDS, scale=DATA["scale"])
    frames = pictures_of(graphs, BASE["model"]["image_size"]).numpy()
    asked: list[Question | Gallery] = []
    for copy, band in COPIES.items():
        pixels = torch.from_numpy(band_limited(frames, **band) if band else frames)
        asked += [
            looks(f"{copy}, looks", graphs, pixels, WORDS),
            *(_among(f"{copy}, {name}", graphs, pixels, some) for name, some in (("fine", FINE), ("slow", SLOW))),
            _surroundings(f"{copy}, light", graphs, pixels, "light"),
            _surroundings(f"{copy}, background", graphs, pixels, "background"),
        ]
        half = slice(0, pictures // 2)
        some = graphs.take(half)
        captions = chosen_captions(some, np.full(len(some), _EVERYTHING))
        asked.append(Gallery(f"{copy}, retrieval", pixels[half], captions))
    return asked


def _among(part: str, graphs: SceneGraphs, pixels: torch.Tensor, materials: Sequence[str]) -> Question:
    """Objects of some materials, to be told from one another alone."""
    words = {**WORDS, "material": list(materials)}
    rows = np.flatnonzero(np.isin(graphs.material[:, 0], wanted_words(words)["material"][0]))
    return looks(part, graphs.take(rows), pixels[torch.from_numpy(rows)], words)


def _surroundings(part: str, graphs: SceneGraphs, pixels: torch.Tensor, what: str) -> Question:
    """Direction of the light, or the background, of objects of any shape and colour."""
    words, wanted = wanted_words(WORDS), WORDS[what]
    said = {"light": [f"lit from {LIGHTS[name][1][0]}" for name in wanted]} if what == "light" else {}
    said = said or {"background": [f"against {BACKGROUNDS[name][0]}" for name in wanted]}
    known = list(LIGHTS if what == "light" else BACKGROUNDS)
    joint = ", " if what == "light" else " "
    prompts = [
        sentence(f"{colour} {noun}{joint}{phrase}")
        for noun in words["shape"][1]
        for colour in words["colour"][1]
        for phrase in said[what]
    ]
    truth = {name: np.searchsorted(words[name][0], getattr(graphs, name)[:, 0]) for name in ("shape", "colour")}
    place = {known.index(name): at for at, name in enumerate(wanted)}
    truth[what] = np.array([place[value] for value in getattr(graphs, what).tolist()])
    return Question(part, pixels, prompts, truth, [*(len(words[name][0]) for name in ("shape", "colour")), len(wanted)])


# -- tables -------------------------------------------------------------------------------------------------------


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares of hits by arm, copy, score and task; paired differences; where an interval excludes zero."""
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if "failed" not in record:
            by_arm.setdefault(record["arm"], {})[record["seed"]] = record
    tables = {
        copy: {arm: {score: _shares(rows, copy, score) for score in SCORES} for arm, rows in by_arm.items()}
        for copy in COPIES
    }
    pairs = [((one, SCORES[0]), (other, SCORES[0])) for one, other in COMPARISONS]
    pairs += [(("mlip", score), ("mlip", SCORES[0])) for score in SCORES[1:]]
    pairs += [(("mlip", SCORES[-1]), ("clip", SCORES[0]))]
    differences = {
        f"{TITLES[first[0]]} ({first[1]}) minus {TITLES[second[0]]} ({second[1]})": {
            copy: _differences(by_arm, first, second, copy) for copy in COPIES
        }
        for first, second in pairs
        if first[0] in by_arm and second[0] in by_arm
    }
    clear = [
        f"{name}: {task}, {copy}: {100 * one['mean']:+.1f}"
        for name, by_copy in differences.items()
        for copy, by_task in by_copy.items()
        for task, one in by_task.items()
        if one["t"] is not None and one["t"][0] * one["t"][1] > 0
    ]
    return {
        "failed": [f"{one['arm']}, seed {one['seed']}: {one['failed']}" for one in records if "failed" in one],
        "chance": _chances(records),
        "parameters": {arm: next(iter(rows.values()))["parameters"] for arm, rows in by_arm.items()},
        "cpu_s": {arm: mean_sd([one["cpu_s"] for one in rows.values()]) for arm, rows in by_arm.items()},
        "tables": {
            copy: {arm: {score: row for score, row in rows.items() if row} for arm, rows in by_copy.items()}
            for copy, by_copy in tables.items()
        },
        "differences": differences,
        "interval_excludes_zero": clear,
    }


def _chances(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    answers = next((one["answers"] for one in records if "failed" not in one), [])
    known = {(one["part"], one["task"]): one["chance"] for one in answers}
    return {task: known["whole, " + part, names[0]] for task, (part, names) in TASKS.items()} if known else {}


def _shares(rows: Mapping[int, Mapping[str, Any]], copy: str, score: str) -> dict[str, Any]:
    found = {}
    for task, (part, names) in TASKS.items():
        hits = [hits_of(rows[seed], f"{copy}, {part}", names, score) for seed in sorted(rows)]
        if all(one is not None for one in hits):
            found[task] = mean_sd([float(one.mean()) for one in hits if one is not None])
    return found


def _differences(
    by_arm: Mapping[str, Mapping[int, Mapping[str, Any]]], first: tuple[str, str], second: tuple[str, str], copy: str
) -> dict[str, Any]:
    seeds = sorted(set(by_arm[first[0]]) & set(by_arm[second[0]]))
    found = {}
    for task, (part, names) in TASKS.items():
        both = [
            [hits_of(by_arm[arm][seed], f"{copy}, {part}", names, score) for seed in seeds]
            for arm, score in (first, second)
        ]
        found[task] = difference(*both)  # type: ignore[arg-type]
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Tables for every copy, then the differences."""
    lines = [f"Failed: {one}" for one in result["failed"]]
    rule = "|---" * (len(TASKS) + 2) + "|"
    chances = " | ".join(f"{result['chance'][task]:.3f}" for task in TASKS) if result["chance"] else ""
    for copy, by_arm in result["tables"].items():
        lines += [
            f"### {copy} pictures",
            "",
            f"| arm | score | {' | '.join(TASKS)} |",
            rule,
            f"| chance | | {chances} |",
        ]
        for arm, scores in by_arm.items():
            for score, row in scores.items():
                lines.append(f"| {TITLES[arm]} | {score} | {' | '.join(cell(row[task]) for task in TASKS)} |")
        lines.append("")
    lines += [
        "### Paired differences, points; 95 % intervals of Student's t over seeds",
        "",
        f"| difference | pictures | {' | '.join(TASKS)} |",
        rule,
    ]
    for name, by_copy in result["differences"].items():
        for copy, row in by_copy.items():
            lines.append(f"| {name} | {copy} | {' | '.join(told_difference(row[task], ('t',)) for task in TASKS)} |")
    lines += [
        "",
        "Intervals (t, over seeds) that exclude zero:",
        *(f"* {one}" for one in result["interval_excludes_zero"]),
    ]
    if not result["interval_excludes_zero"]:
        lines.append("* none")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with_arguments(parser, steps=2000)
    parser.add_argument("--json", default=RESULTS.with_name("mlip_spectra.json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("phosphene").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    options.seeds = options.seeds or [0, 1, 2]
    options.arms = options.arms or list(ARMS)
    names, every = checked(options, (*ARMS, *CONTROLS)), arms()
    chosen = {name: chosen_settings(options.development, every[name].like or name) for name in names}
    own = {name: several(settings, every[name].over) for name, settings in chosen.items()}
    common = {"model": MODEL, "training": {"steps": options.steps}, "data": {**DATA, "pool": options.pool}}
    records = [
        run_record(
            options.work,
            {"mode": "spectra", "arm": name},
            several(BASE, common, every[name].settings, own[name]),
            seed,
            partial(questions, options.pictures, seed),
            options.pictures,
        )
        for seed in options.seeds
        for name in names
    ]
    facts = {"words": WORDS, "copies": COPIES, "chosen": own}
    result = {**told(options, records), **facts, **summarise(records)}
    write_json(options.json, result)
    print(markdown(result))


if __name__ == "__main__":
    main()
