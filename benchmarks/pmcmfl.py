"""PmcmFL, its rivals and its ablations on virtual sites: what is missing in training by what is shown in test.

Run, first to choose settings on development seeds, then once for the table::

    OMP_NUM_THREADS=1 python benchmarks/pmcmfl.py --work FOLDER --develop
    OMP_NUM_THREADS=1 python benchmarks/pmcmfl.py --work FOLDER [--seeds 0 1 2 3 4] [--arms ...] [--conditions ...]

Every arm of every cell is a file in ``FOLDER/records`` as soon as it is done; an interrupted run goes on from there,
and processes with different seeds may share a folder. Seed s simulates study s (people, scenes, who keeps which trials)
and decides everything random of masks and training, alike for all arms: see `phosphene.evaluation.federated_matrix`.

Eight virtual people who differ in layout and tuning, each with their own training scenes and common test scenes; image
targets of the pocket encoder, captions. Sites keep trials by a Dirichlet distribution over classes; what their shares
came out as is in the results. Development has other seeds, hence other people and scenes, and is scored on training
stimuli that were held out. Its choices are a file, written before the table is begun. Every tuned arm has as many
candidates; the published recipe also stands untuned, as it comes out.

`central-by-pattern` (seven trainings) is run at half of the modalities missing, ablations in one cell of the main
condition; not all rivals at other rates than half.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nsd_size import machine

import phosphene as ph
from phosphene.errors import unknown
from phosphene.evaluation.federated_matrix import Plan, chosen_of, run_matrix, tune
from phosphene.evaluation.federated_rivals import ABLATIONS, ARMS, Arm
from phosphene.evaluation.federated_summary import Records, claims, rows
from phosphene.evaluation.federated_tables import choices_table, markdown
from phosphene.evaluation.hospitals import Cell, Hospitals, held_out, hospitals_of_study, skewed
from phosphene.evaluation.scorecard import plain
from phosphene.federation import LabelClasses, dealt
from phosphene.files import read_json, write_json
from phosphene.virtual import make_settings, simulate

HERE = Path(__file__).parent
RESULTS, DEVELOPMENT = HERE / "results" / "pmcmfl.json", HERE / "results" / "pmcmfl_development.json"
SEEDS = {"final": [10, 11, 12, 13, 14], "development": [100, 101]}
STUDY: dict[str, Any] = {
    "subjects": 8,
    "sessions": 1,
    "repeats": 1,
    "runs": 1,
    "stimuli": {"test": 200, "common": 0, "own": 480, "size": 32, "captions": 1},
    "person": {"voxels": 200, "noise": 0.5, "warp": 4.0, "rotation": 1.2, "nonlinearity": 0.15},
}
ENCODERS = {"image": "z:pocket", "text": "tfidf-svd100"}
CLASSES = ["group"]
CONDITIONS: dict[str, dict[str, Any]] = {
    "4 sites of one, classes even": {"people": 4, "sites": 4, "trials": 200, "alpha": None},
    "4 sites of two, Dirichlet 0.5": {"people": 8, "sites": 4, "trials": 100, "alpha": 0.5},
    "8 sites of one, Dirichlet 0.1": {"people": 8, "sites": 8, "trials": 120, "alpha": 0.1},
}
MAIN = "4 sites of two, Dirichlet 0.5"
RATES = {MAIN: [0.0, 0.3, 0.5, 0.8]}
BY_PATTERN = "central-by-pattern"
SHORT = ("pmcmfl", "pmcmfl-paper", "dropout-token", "token", "fedavg-zero", "local", "central")
"""Arms at other rates than half; where nothing is missing, the main condition has all."""
HALF = 0.5
COMMON: dict[str, Any] = {"model": {"width": 64}, "client": {"epochs": 2, "batch_size": 64}}
ROUNDS = 12

log = logging.getLogger("pmcmfl")


class Bench:
    """The virtual study of a seed; it is simulated when something is asked of it."""

    def __init__(self, seed: int, study: Mapping[str, Any] = STUDY) -> None:
        self.seed, self.plan = seed, study

    @cached_property
    def whole(self) -> dict[tuple[int, int], Hospitals]:
        """All trials, by the numbers of people and sites."""
        study = simulate(make_settings(None, **self.plan), self.seed, progress=False).study
        train = study.split("train")
        options: dict[str, Any] = {"fit_on": train.stimulus_ids, "cache": False, "progress": False}
        image, text = (ph.encode(study.stimuli, ENCODERS[name], **options) for name in ("image", "text"))
        classes = LabelClasses.found(train.stimuli.labels, CLASSES)
        return {
            (people, sites): hospitals_of_study(study, dealt(study.subjects[:people], sites), classes, (image, text))
            for people, sites in {(each["people"], each["sites"]) for each in CONDITIONS.values()}
        }

    def hospitals(self, condition: str, develop: bool) -> Hospitals:
        """Sites of a condition; for development without a test stimulus."""
        own = CONDITIONS[condition]
        made = self.whole[own["people"], own["sites"]]
        return skewed(held_out(made) if develop else made, own["trials"], own["alpha"], self.seed)


def cells(condition: str, seed: int) -> list[Cell]:
    """Cells of the table for a condition; where nothing is missing there is but one kind."""
    rates = RATES.get(condition, [0.0, HALF])
    return [
        Cell(condition, kind, rate, seed)  # type: ignore[arg-type]
        for rate in rates
        for kind in (("instance", "site") if rate else ("instance",))
    ]


def arms_of(cell: Cell, names: Sequence[str]) -> dict[str, Arm]:
    """Arms that are run in a cell."""
    full = cell.rate == HALF or (cell.condition, cell.rate) == (MAIN, 0)
    left_out = (set() if full else ARMS.keys() - set(SHORT)) | (set() if cell.rate == HALF else {BY_PATTERN})
    found = {name: ARMS[name] for name in names if name in ARMS and name not in left_out}
    if (cell.condition, cell.kind, cell.rate) == (MAIN, "instance", HALF):
        found |= {name: ABLATIONS[name] for name in names if name in ABLATIONS}
    return found


def final(options: argparse.Namespace) -> None:
    """Every cell with the choices of development; writes and prints the table."""
    chosen = chosen_settings(options.development, options.arms)
    records, shares = [], {}
    for seed in options.seeds:
        bench = Bench(seed)
        for condition in options.conditions:
            made, told = table_of(bench, condition, options, chosen)
            records += made
            shares[f"{condition}, seed {seed}"] = told
    found = Records(records)
    result = {**told_of(options, records), "chosen": chosen, "shares": shares, "claims": claims(found)}
    write_json(options.json, plain({**result, "rows": rows(found)}))
    print(markdown(found))


def chosen_settings(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """What development chose for arms; an ablation stands over the choice of its model."""
    if not path.exists():
        raise SystemExit(f"{path} does not exist: run `python benchmarks/pmcmfl.py --work FOLDER --develop` first")
    chosen: dict[str, Any] = read_json(path)["chosen"]
    if lacking := sorted({(ARMS | ABLATIONS)[name].like or name for name in names} - chosen.keys()):
        raise SystemExit(f"{path} has no choice for {', '.join(lacking)}: develop these arms first")
    return chosen


def table_of(
    bench: Bench, condition: str, options: argparse.Namespace, chosen: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Any]:
    """Records of a condition and seed, and the realised shares of classes."""
    hospitals = bench.hospitals(condition, develop=False)
    records = []
    for cell in cells(condition, bench.seed):
        plan = Plan(arms_of(cell, options.arms), chosen, COMMON, options.rounds)
        start = time.process_time()
        records += run_matrix(hospitals, plan, [cell], options.work)
        log.info("%s: %d arms, %.0f s", cell.words, len(plan.arms), time.process_time() - start)
    return records, hospitals.shares


def develop(options: argparse.Namespace) -> None:
    """Every candidate of every arm on the development seeds; writes the choices."""
    arms = {name: ARMS[name] for name in options.arms if name in ARMS}
    tried: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        hospitals = Bench(seed).hospitals(MAIN, develop=True)
        asked = [Cell(MAIN, kind, HALF, seed) for kind in ("instance", "site")]
        found = tune(hospitals, Plan(arms, {}, COMMON, options.rounds), asked, options.work / "development")
        for name, each in found.items():
            tried.setdefault(name, []).extend(each)
    merged = {name: over_seeds(each) for name, each in tried.items()}
    known = read_json(options.development)["tried"] if options.development.exists() else {}
    merged = {name: each for name, each in {**known, **merged}.items() if name in ARMS}
    result = {**told_of(options, []), "tried": merged, "chosen": chosen_of(merged)}
    write_json(options.development, plain(result))
    print(choices_table(merged))


def over_seeds(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Candidates of all seeds: each with its mean score and the number of its cells."""
    merged: list[dict[str, Any]] = []
    for row in found:
        same = next((each for each in merged if each["settings"] == row["settings"]), None)
        if same is None:
            merged.append({**row, "by_seed": [row["score"]]})
        else:
            same["by_seed"].append(row["score"])
            same["score"] = sum(same["by_seed"]) / len(same["by_seed"])
            same["cells"] += row["cells"]
    return merged


def told_of(options: argparse.Namespace, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where, how long, of what, and by which command."""
    mode = " --develop" if options.develop else ""
    facts = {"study": STUDY, "encoders": ENCODERS, "classes": CLASSES, "conditions": CONDITIONS, "common": COMMON}
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} --work FOLDER{mode} "
        f"--seeds {' '.join(map(str, options.seeds))} --rounds {options.rounds}",
        "seeds": options.seeds,
        "rounds": options.rounds,
        "cpu_seconds_of_training": round(
            sum(record["cost"]["cpu_s"] for record in records if not record["arm"].startswith("rule-"))
        ),
        **facts,
        "arms": {name: (ARMS | ABLATIONS)[name].what for name in options.arms},
    }


def main() -> None:
    """Run what is missing, summarise, write."""
    known = [*ARMS, *ABLATIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of finished records")
    parser.add_argument("--develop", action="store_true", help="choose settings on development seeds")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--arms", nargs="+", default=known, help="some of the arms only, ablations included")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--development", type=Path, default=DEVELOPMENT, help="chosen settings")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the summary goes")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("phosphene").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name in options.arms:
        if name not in known:
            raise SystemExit(str(unknown("arm", name, known)))
    options.seeds = options.seeds or SEEDS["development" if options.develop else "final"]
    (develop if options.develop else final)(options)


if __name__ == "__main__":
    main()
