"""What alignment restores on virtual people: inter-subject correlation by warp, rotation and method, over seeds.

    python benchmarks/alignment_isc.py
    python benchmarks/alignment_isc.py --actions96 actions96.h5      # nine real people instead, see docs/actions96.md

Prints, for held-out stimuli, mean and range over seeds of the inter-subject correlation, the same normalised by noise
(all places, higher areas), and of identification by the others' patterns (chance 0.5). Writes
``benchmarks/results/alignment_isc.json`` (``alignment_actions96.json``). About 80 seconds of one core; 10 more.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.alignment import Aligner, inter_subject_correlation, make_aligner, unaligned
from phosphene.files import write_json
from phosphene.recordings import Recording, Study
from phosphene.virtual import VirtualStudy, make_settings, simulate

SEEDS = (0, 1, 2)
HIGHER = ("LOC", "FFA", "EBA", "PPA")
WARPS, ROTATIONS = (0.0, 2.0, 4.0, 8.0), (0.6, 1.2)
MEASURES = ("raw", "normalised", "higher", "identification")
METHODS = ("ridge", "procrustes", "srm", "hybrid")
PLAN: dict[str, Any] = {
    "subjects": 3,
    "sessions": 3,
    "repeats": 3,
    "stimuli": {"test": 100, "common": 200, "own": 0, "size": 32, "captions": 1},
}
PERSON: dict[str, Any] = {"voxels": 400, "nonlinearity": 0.0, "noise": 0.8}


def people(seed: int, warp: float, rotation: float) -> VirtualStudy:
    """Three people who saw the same 200 training and 100 test scenes three times."""
    person = {**PERSON, "warp": warp, "rotation": rotation}
    return simulate(make_settings(None, **PLAN, person=person), seed, progress=False)


def with_known_warp(result: VirtualStudy) -> Study:
    """The same study with the true functional positions in the voxel tables: what a perfect unwarping would know."""
    known = []
    for person in result.study.recordings.values():
        truth = result.truth.people[person.subject].sheet.functional
        voxels = person.voxels.with_columns(map_u=truth[:, 0], map_v=truth[:, 1])
        known.append(Recording(person.subject, person.read(), person.trials, voxels, **person.meta()))
    return Study(result.study.stimuli, known, {"default": result.study.roles()}, scaling="session")


def measured(aligner: Aligner, study: Study) -> dict[str, float | None]:
    """Raw and normalised, over all places and over higher areas."""
    report = inter_subject_correlation(aligner, study.split("test"), n_boot=0)
    regions = {row.roi for row in report.rows}
    higher = [report.row(roi).normalised for roi in HIGHER if roi in regions]
    return {
        "raw": report.row().value,
        "normalised": report.row().normalised,
        "identification": report.identification,
        "higher": None if len(higher) < len(HIGHER) else float(np.mean(higher)),  # type: ignore[arg-type]
    }


def one_seed(seed: int) -> dict[str, dict[str, float | None]]:
    """All conditions of one seed."""
    found = {}
    for warp in WARPS:
        result = people(seed, warp, 0.0)
        study, test = result.study, result.study.split("test")
        found[f"warp {warp:g} | unaligned"] = measured(unaligned(test), study)
        found[f"warp {warp:g} | anatomical"] = measured(make_aligner("anatomical").fit(study.split("train")), study)
        known = with_known_warp(result)
        aligner = make_aligner("anatomical", columns=("map_u", "map_v")).fit(known.split("train"))
        found[f"warp {warp:g} | anatomical, warp known"] = measured(aligner, known)
        for method in METHODS:
            found[f"warp {warp:g} | {method}"] = measured(make_aligner(method).fit(study.split("train")), study)
    for warp, rotation in [*((0.0, rotation) for rotation in ROTATIONS), (4.0, 1.2)]:
        study = people(seed, warp, rotation).study
        name = f"rotation {rotation:g}" if warp == 0 else f"warp {warp:g}, rotation {rotation:g}"
        found[f"{name} | unaligned"] = measured(unaligned(study.split("test")), study)
        for method in ("anatomical", *METHODS):
            found[f"{name} | {method}"] = measured(make_aligner(method).fit(study.split("train")), study)
    return found


def shuffled(study: Study, seed: int = 0) -> Study:
    """Everybody's voxels in an order of their own on the common grid: nothing is left for anatomy to find."""
    rng = np.random.default_rng(seed)
    people = []
    for person in study.recordings.values():
        responses = person.read()[:, rng.permutation(person.n_voxels)]
        people.append(Recording(person.subject, responses, person.trials, person.voxels, **person.meta()))
    splits = {name: study.roles(name) for name in study.split_names}
    return Study(study.stimuli, people, splits, scaling=study.scaling, unit=study.unit)


def real_people(path: Path) -> None:
    """Mean over the folds of actions96, voxels as recorded and shuffled."""
    rows = []
    with Study.open(path) as study:
        for order, people in (("as recorded", study), ("shuffled", shuffled(study))):
            for name, settings in (("anatomical", {}), ("srm", {"features": (5,)}), ("srm", {"features": (20,)})):
                reports = []
                for fold in people.split_names:
                    now = people.using(fold)
                    aligner = make_aligner(name, **settings).fit(now.split("train"))
                    reports.append(inter_subject_correlation(aligner, now.split("test"), n_boot=0))
                raw, told = [r.row().value for r in reports], [r.identification for r in reports]
                label = f"{name} {settings['features'][0]}" if settings else name
                rows.append({"voxels": order, "method": label, "raw": raw, "identification": told})
                print(f"{order:<12} {label:<12} {np.mean(raw):.2f}  identification {np.mean(told):.3f}")  # type: ignore[arg-type]
    write_json(Path(__file__).parent / "results" / "alignment_actions96.json", {"rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actions96", type=Path, metavar="STUDY", help="measure this imported study instead")
    arguments = parser.parse_args()
    if arguments.actions96:
        real_people(arguments.actions96)
    else:
        virtual_people()


def virtual_people() -> None:
    """All conditions over all seeds, printed and written."""
    start = time.process_time()
    by_seed = {seed: one_seed(seed) for seed in SEEDS}
    rows = []
    for name in by_seed[SEEDS[0]]:
        row: dict[str, Any] = {"condition": name.split(" | ")[0], "method": name.split(" | ")[1]}
        for measure in MEASURES:
            values = [by_seed[seed][name][measure] for seed in SEEDS]
            if any(value is None for value in values):
                row[measure] = None
                continue
            row[measure] = {
                "mean": float(np.mean(values)),  # type: ignore[arg-type]
                "std": float(np.std(values, ddof=1)),  # type: ignore[arg-type]
                "by_seed": values,
            }
        rows.append(row)
        shown = [
            "-"
            if row[m] is None
            else f"{row[m]['mean']:.2f} ({min(row[m]['by_seed']):.2f} to {max(row[m]['by_seed']):.2f})"
            for m in MEASURES
        ]
        print(f"{row['condition']:<22} {row['method']:<24} " + "".join(f"{text:<24}" for text in shown))
    seconds = time.process_time() - start
    print(f"{seconds:.0f} seconds of processor time, seeds {SEEDS}")
    facts = {"seeds": SEEDS, "plan": PLAN, "person": PERSON, "seconds": round(seconds), "rows": rows}
    write_json(Path(__file__).parent / "results" / "alignment_isc.json", facts)


if __name__ == "__main__":
    main()
