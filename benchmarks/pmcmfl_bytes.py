"""What sites are sent in a round, put right in the results of ``pmcmfl.py``: nothing is trained again.

Run after it, on the same machine or another::

    OMP_NUM_THREADS=1 python benchmarks/pmcmfl_bytes.py

The run of the table counted the prototype library for all that a site is sent, also where it is empty: in the first
round, and in every round of arms that read no prototypes. What is sent does not depend on what is learned, but on the
network, on whose trials are complete and on which settings make a library. So every arm that exchanges weights has two
rounds of one step each, on the same studies, masks and seeds; arms alike in all that decides about bytes share them.
Later rounds are as the second, and `bytes_down` is the mean over all. `bytes_up` is measured too, and nothing is
written where it is not what the run had.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pmcmfl import COMMON, RESULTS, Bench

from phosphene.evaluation.federated_matrix import Plan
from phosphene.evaluation.federated_rivals import ABLATIONS, ARMS, Arm
from phosphene.evaluation.hospitals import Cell, Hospitals
from phosphene.evaluation.scorecard import plain
from phosphene.federation import federate
from phosphene.federation.adapter import with_adapters
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.settings import FederationSettings
from phosphene.files import read_json, write_json

ONE_STEP = {"client": {"epochs": 1, "batch_size": 10**6}}

log = logging.getLogger("pmcmfl_bytes")


class Cells:
    """Hospitals of a condition and seed, and what was measured on them.

    Parameters
    ----------
    hospitals : Hospitals
    plan : Plan
        Of the run.
    """

    def __init__(self, hospitals: Hospitals, plan: Plan) -> None:
        self.hospitals, self.plan = hospitals, plan
        self._sites: dict[Cell, Any] = {}
        self._found: dict[str, tuple[float, float]] = {}

    def measured(self, arm: Arm, cell: Cell) -> tuple[float, float]:
        """Bytes up and down of a site and round, mean over both."""
        settings = self.plan.settings(arm, self.hospitals.task, cell.seed)
        decides = settings.model_dump(mode="json", include={"model", "library"})
        key = str((cell.words, decides, settings.reads_prototypes, arm.privacy))
        if key not in self._found:
            self._found[key] = self._rounds(arm, cell, FederationSettings.build(settings.model_dump(), ONE_STEP))
        return self._found[key]

    def _rounds(self, arm: Arm, cell: Cell, settings: FederationSettings) -> tuple[float, float]:
        if cell not in self._sites:
            sites = self.hospitals.sites(cell, settings)
            self._sites[cell] = {name: with_adapters(site, settings) for name, site in sites.items()}
        privacy = PrivacySettings(**arm.privacy, seed=settings.seed) if arm.privacy else None
        first, later = federate(self._sites[cell], settings, 2, privacy=privacy, progress=False).history
        weights = np.array([1, self.plan.rounds - 1]) / self.plan.rounds
        up = [np.mean(list(record.bytes_up.values())) for record in (first, later)]
        return float(weights @ up), float(weights @ [first.bytes_down, later.bytes_down])


def corrected(result: Mapping[str, Any]) -> list[tuple[dict[str, Any], float, float]]:
    """Rows of arms that exchange weights, and their bytes up and down, mean over seeds."""
    known = {**ARMS, **ABLATIONS}
    rows = [row for row in result["rows"] if known[row["arm"]].engine == "federated"]
    plan, found = Plan(ARMS, result["chosen"], COMMON, result["rounds"]), {}
    for seed in result["seeds"]:
        bench, made = Bench(seed), {}
        for number, row in enumerate(rows):
            condition = row["condition"]
            if condition not in made:
                made[condition] = Cells(bench.hospitals(condition, develop=False), plan)
            cell = Cell(condition, row["kind"], row["rate"], seed)
            found.setdefault(number, []).append(made[condition].measured(known[row["arm"]], cell))
        log.info("seed %d: %d rows", seed, len(rows))
    return [(row, *np.mean(found[number], axis=0).tolist()) for number, row in enumerate(rows)]


def main() -> None:
    """Measure, check what is sent up, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS, help="results of pmcmfl.py, which are put right")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("phosphene").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    result = read_json(options.json)
    for row, up, down in corrected(result):
        where = f"{row['condition']}, {row['kind']}, {row['rate']:g}, {row['arm']}"
        if abs(up - row["cost"]["bytes_up"]) > 0.5:
            raise SystemExit(f"{where}: {up:.1f} bytes up here, {row['cost']['bytes_up']:.1f} in the run")
        if abs(down - row["cost"]["bytes_down"]) > 0.5:
            print(f"{where}: {row['cost']['bytes_down']:.0f} becomes {down:.0f}")
        row["cost"]["bytes_down"] = round(down, 1)
    result["bytes_down_from"] = f"python benchmarks/{Path(__file__).name}"
    write_json(options.json, plain(result))


if __name__ == "__main__":
    main()
