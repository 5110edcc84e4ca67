"""MLIP part by part against plain CLIP, below half a million parameters: same pairs, same steps, same run.

Run, first to choose settings on development seeds and words, then once for the table::

    OMP_NUM_THREADS=1 python benchmarks/mlip_arms.py --work FOLDER --develop --seeds 100
    OMP_NUM_THREADS=1 python benchmarks/mlip_arms.py --work FOLDER

Every run is a line of ``FOLDER/records.jsonl`` as soon as it is done, and goes on from its checkpoint where it was
interrupted. Two processes may share a folder when they are given different ``--seeds`` or ``--arms``.

Training scenes show up to two objects with plain captions, from a pool; three quarters of the groups are hard. The six
shapes, four colours and six materials of the table are not those of development, except for four materials, of which
the grammar has only eight. Development held out pairs, one colour of each shape; at this budget the arms name
the shape of an unseen pair little better than by chance. The table therefore holds out triples of shape, colour and
material, and every pair of their words occurs in training, as unseen compositions are usually understood.

Scenes of the evaluation are new for every seed and the same for all arms. Every arm, plain CLIP included, has as many
candidate settings; the choice falls on the best mean of zero-shot on unseen compositions (all attributes together) and
retrieval. The fixed filters take the choice of the learned ones. Plain CLIP also runs longer, with the settings chosen
for it: for the processor time of all four losses, and for twice the pairs. All four losses were given another learning
rate than the arms they are held against: the last three arms say what that alone is worth.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mlip_arms_summary import choose, markdown, summarise, trials_markdown
from mlip_study import BASE, Arm, Gallery, Question, looks, pictures_of, run_record, step_ratio
from nsd_size import machine

from phosphene.errors import unknown
from phosphene.files import read_json, write_json
from phosphene.settings import merge
from phosphene.stimuli.scenes import plain_captions, sample_graphs

__all__ = ["FINAL_WORDS", "arms", "checked", "chosen_settings", "several", "told", "with_arguments"]

RESULTS = Path(__file__).parent / "results" / "mlip_arms.json"
DEVELOPMENT = Path(__file__).parent / "results" / "mlip_arms_development.json"
SEEDS = {"final": [0, 1, 2], "development": [100, 101]}
FINAL_WORDS: dict[str, list[str]] = {
    "shape": ["ball", "box", "ring", "cross", "star", "crescent"],
    "colour": ["red", "green", "blue", "yellow"],
    "material": ["matte", "striped", "dotted", "checkered", "rough", "faded"],
}
# one colour of four is held out of every shape
DEVELOPMENT_WORDS: dict[str, list[str]] = {
    "shape": ["heart", "house", "flower", "tree", "gear", "arrow"],
    "colour": ["orange", "teal", "white", "black"],
    "material": ["glossy", "metallic", "striped", "dotted", "rough", "faded"],
}
WORDS = {"final": FINAL_WORDS, "development": DEVELOPMENT_WORDS}
RULES = {"final": "shape-colour-material", "development": "shape-colour"}
DATA = {"objects": 2, "plain": 1.0, "captions": 1}
_EVALUATED = 2**50  # added to the seed of a run: scenes of its evaluation, far from those of training and probes
_EIGHTHS = 8

log = logging.getLogger("mlip_arms")

# -- arms and their candidate settings ----------------------------------------------------------------------------

STEADY = {"training": {"learning_rate": 2e-3}}
SLOW = {"training": {"learning_rate": 1e-3}}
SLOWEST = {"training": {"learning_rate": 5e-4}}
ONE_CYCLE = {"training": {"learning_rate": 3e-3, "schedule": "one-cycle", "warmup": 0.2}}
SIGMOID = {**STEADY, "objective": {"form": "sigmoid", "bias": -5.0}}
POOLED = {"objective": {"pool_tokens": 16}}
TOP = {"model": {"token_embed": 64}, "objective": {"top_tokens": 8}}


def body(spectral: int, spatial: int, **model: Any) -> dict[str, Any]:
    """Settings of an image tower trained with CLIP's loss alone."""
    heads = {"frequency_head": False, "token_heads": False}
    others = ("frequency_weight", "spatial_token_weight", "frequency_token_weight")
    return {
        "model": {"spectral_blocks": spectral, "spatial_blocks": spatial, **heads, **model},
        "objective": {"spatial_weight": 1.0, **dict.fromkeys(others, 0.0)},
    }


def losses(frequency: float = 0.0, spatial_token: float = 0.0, frequency_token: float = 0.0) -> dict[str, Any]:
    """Weights of the losses beside CLIP's."""
    return {
        "objective": {
            "frequency_weight": frequency,
            "spatial_token_weight": spatial_token,
            "frequency_token_weight": frequency_token,
        }
    }


def several(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Layers of settings, the later over the earlier."""
    settings: dict[str, Any] = {}
    for layer in layers:
        settings = merge(settings, dict(layer))
    return settings


def arms() -> dict[str, Arm]:
    """All arms by name, in the order in which they are run; each has five candidate settings, or those of another."""
    plain = (STEADY, SLOW, ONE_CYCLE, SIGMOID, SLOWEST)
    strong, light = losses(frequency=0.5), losses(frequency=0.2)
    frequency = tuple(map(several, plain, (strong, light, light, strong, light)))
    strong, light = losses(spatial_token=0.25), losses(spatial_token=0.1)
    token = tuple(map(several, plain, (strong, light, light, strong, light), (POOLED, TOP, POOLED, POOLED, TOP)))
    strong, light = losses(0.5, 0.25, 0.25), losses(0.2, 0.1, 0.1)
    full = tuple(map(several, plain, (strong, light, light, strong, light), (POOLED, TOP, POOLED, POOLED, TOP)))
    heads = {"frequency_head": True, "token_heads": True}
    return {
        arm.name: arm
        for arm in (
            Arm("clip", body(0, 4), plain),
            Arm("clip-equal-compute", body(0, 4), like="clip", times=None),
            Arm("clip-double", body(0, 4), like="clip", times=2.0),
            Arm("spectral", body(2, 2), plain),
            Arm("spectral-frequency", body(2, 2, frequency_head=True), frequency),
            Arm("spectral-token", body(2, 2, token_heads=True), token),
            Arm("mlip", body(2, 2, **heads), full),
            Arm("mlip-parallel", body(2, 4, arrangement="parallel", **heads), full),
            Arm("lowpass", body(2, 2, spectral_filter="lowpass"), like="spectral"),
            Arm("highpass", body(2, 2, spectral_filter="highpass"), like="spectral"),
            Arm("clip-faster", body(0, 4), like="clip", over=SLOW),
            Arm("spectral-faster", body(2, 2), like="spectral", over=SLOW),
            Arm("mlip-slower", body(2, 2, **heads), like="mlip", over=SLOWEST),
        )
    }


# -- one run ------------------------------------------------------------------------------------------------------


def settings_of(arm: Arm, own: Mapping[str, Any], options: argparse.Namespace, ratio: float) -> dict[str, Any]:
    """All tables of a run; the probes divide its steps into eighths."""
    steps = round(options.steps * (max(ratio, 1.0) if arm.times is None else arm.times) / _EIGHTHS) * _EIGHTHS
    common = {
        "training": {"steps": steps, "probe_steps": steps // _EIGHTHS, "probe_pictures": options.pictures // 2},
        "data": {**DATA, "rule": RULES[options.mode], "only": WORDS[options.mode], "pool": options.pool},
    }
    return several(BASE, common, arm.settings, own)


def questions(mode: str, pictures: int, seed: int) -> list[Question | Gallery]:
    """What a model is asked: single objects by attribute, and retrieval of scenes as it was trained on."""
    words, asked = WORDS[mode], []
    for role, part in (("train", "seen"), ("unseen", "unseen")):
        draw = partial(sample_graphs, seed=_EVALUATED + seed, holdout=role, rule=RULES[mode], only=words)
        single = draw(pictures, objects=1)
        scenes = draw(pictures // 2, start=pictures, objects=DATA["objects"])
        size = BASE["model"]["image_size"]
        asked.append(looks(part, single, pictures_of(single, size), words))
        asked.append(Gallery(part, pictures_of(scenes, size), plain_captions(scenes)))
    return asked


def run(arm: Arm, trial: int | None, own: Mapping[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The record of one run."""
    ratio = compute_ratio(options)["ratio"] if arm.times is None else 1.0
    facts = {"mode": options.mode, "arm": arm.name, **({} if trial is None else {"trial": trial})}
    settings = settings_of(arm, own, options, ratio)
    ask = partial(questions, options.mode, options.pictures, seed)
    return run_record(options.work, facts, settings, seed, ask, options.pictures)


def compute_ratio(options: argparse.Namespace) -> dict[str, Any]:
    """How much a step of all four losses costs over one of plain CLIP; measured once a work folder."""
    path = options.work / "step_ratio.json"
    if not path.exists():
        pair = [(arms()[name], chosen_settings(options.development, name)) for name in ("mlip", "clip")]
        measured = step_ratio(*(settings_of(arm, own, options, 1.0) for arm, own in pair))
        if not path.exists():  # another process may have been faster, and its number is what counts then
            write_json(path, measured)
    ratio: dict[str, Any] = read_json(path)
    return ratio


def chosen_settings(path: Path, arm: str) -> dict[str, Any]:
    """What development chose for an arm."""
    if not path.exists():
        raise SystemExit(f"{path} does not exist: run `python benchmarks/mlip_arms.py --work FOLDER --develop` first")
    choices = read_json(path)["choices"]
    if arm not in choices:
        raise SystemExit(f"{path} has no choice for {arm}, only for {', '.join(choices)}: develop that arm first")
    settings: dict[str, Any] = choices[arm]["settings"]
    return settings


# -- all of them --------------------------------------------------------------------------------------------------


def develop(names: Sequence[str], options: argparse.Namespace) -> None:
    """Every candidate of every arm on the development seeds; writes the choices."""
    every = arms()
    names = [name for name in names if every[name].trials]
    records = [
        run(every[name], trial, own, seed, options)
        for seed in options.seeds
        for name in names
        for trial, own in enumerate(every[name].trials)
    ]
    effort = {"seeds": options.seeds, "steps": options.steps, "pool": options.pool}
    choices = choose(records, {name: every[name].trials for name in names})
    choices = {name: {**choice, **effort} for name, choice in choices.items()}
    known = read_json(options.development)["choices"] if options.development.exists() else {}
    merged = {**known, **choices}  # arms that were developed by another call stay
    facts = {"words": WORDS["development"], "rule": RULES["development"]}
    facts |= {"choices": {name: merged[name] for name in every if name in merged}}
    write_json(options.development, {**told(options, records), **facts})
    print(trials_markdown(facts["choices"]))


def final(names: Sequence[str], options: argparse.Namespace) -> None:
    """Every arm with its chosen settings on fresh seeds; writes and prints the table."""
    every = arms()
    chosen = {name: chosen_settings(options.development, every[name].like or name) for name in names}
    own = {name: several(settings, every[name].over) for name, settings in chosen.items()}
    records = [run(every[name], None, own[name], seed, options) for seed in options.seeds for name in names]
    facts = {"words": WORDS["final"], "rule": RULES["final"], "chosen": own}
    if any(every[name].times is None for name in names):
        facts["step_ratio"] = compute_ratio(options)
    result = {**told(options, records), **facts, **summarise(records)}
    write_json(options.json, result)
    print(markdown(result))


def told(options: argparse.Namespace, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where, how long and by which command."""
    mode = " --develop" if getattr(options, "mode", None) == "development" else ""
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} --work FOLDER{mode} "
        f"--seeds {' '.join(map(str, options.seeds))} --steps {options.steps} --pool {options.pool}",
        **{name: getattr(options, name) for name in ("seeds", "steps", "pool", "pictures")},
        "cpu_seconds_of_runs": round(sum(record["cpu_s"] for record in records)),
        "wall_seconds_of_runs": round(sum(record.get("wall_s", 0.0) for record in records)),
    }


def with_arguments(parser: argparse.ArgumentParser, steps: int) -> None:
    """Arguments that all benchmarks of pretraining take, and the default of one."""
    parser.add_argument("--work", type=Path, required=True, help="folder of runs and finished records")
    parser.add_argument("--arms", nargs="+", help="some of the arms only")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=steps, help="a multiple of 8")
    parser.add_argument("--pool", type=int, default=20_032, help="scenes that are trained on")
    parser.add_argument("--pictures", type=int, default=1024, help="pictures of a zero-shot question; half to retrieve")
    parser.add_argument("--development", type=Path, default=DEVELOPMENT, help="chosen settings")


def checked(options: argparse.Namespace, known: Sequence[str]) -> list[str]:
    """Names of the arms to run."""
    if options.steps < _EIGHTHS or options.steps % _EIGHTHS:
        raise SystemExit(f"--steps must be a multiple of {_EIGHTHS}, found {options.steps}")
    for name in options.arms or []:
        if name not in known:
            raise SystemExit(str(unknown("arm", name, known)))
    options.work.mkdir(parents=True, exist_ok=True)
    return [name for name in known if options.arms is None or name in options.arms]


def main() -> None:
    """Run what is missing, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with_arguments(parser, steps=1000)
    parser.add_argument("--develop", dest="mode", action="store_const", const="development", default="final")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("phosphene").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    options.seeds = options.seeds or SEEDS[options.mode]
    names = checked(options, list(arms()))
    (develop if options.mode == "development" else final)(names, options)


if __name__ == "__main__":
    main()
