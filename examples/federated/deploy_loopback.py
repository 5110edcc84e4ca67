"""A real deployment on one machine: server and sites as processes, TLS, registered sites, and the weights compared.

    python examples/federated/deploy_loopback.py --sites 2 --rounds 2

makes throw-away certificates and keys, starts a SuperLink and a SuperNode a site, runs phosphene's app, and compares
the server's state with that of `phosphene.federation.federate` in process: exit status 0 for the same bits, else 1.
Everything lies in one temporary folder, and is gone afterwards, processes too, however the script ends (Ctrl-C, too).
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from loopback import deployment

from phosphene.encoders import targets_named
from phosphene.federation import (
    FederationSettings,
    GlobalState,
    LabelClasses,
    Missing,
    StudySites,
    dealt,
    federate,
)
from phosphene.recordings import Study
from phosphene.virtual import make_settings, simulate

SETTINGS = FederationSettings.preset(model={"width": 16}, client={"epochs": 1})
RUN = {
    "set": "model.width=16 client.epochs=1",
    "classes": "group",
    "targets": "z:pixels",
    "text": "tfidf",
    "missing": 0.3,
    "wait": 120.0,
    "deadline": 120.0,
}


def main() -> int:
    """Deploy, run, compare, clean up."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep everything here, logs too, instead of a temporary folder")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as the sites have: sums depend on it in their last bits
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="phosphene-federated-") as temporary:
        folder = given.folder or Path(temporary)
        study = _study(folder / "study.h5")
        try:
            status, said, seconds = _deployed(folder, study, given.sites, given.rounds)
        except KeyboardInterrupt:
            print("interrupted: processes and files are gone")
            return 130
        print(said)
        print(f"{status} after {seconds:.0f} s")
        if status != "finished:completed":
            return 1
        there = GlobalState.load(folder / "run" / f"round-{given.rounds:05d}" / "server", SETTINGS)
        here = federate(_sites(study, given.sites), SETTINGS, given.rounds, progress=False).shared
        same = _same(there, here)
    print(f"weights and library {'equal those' if same else 'DIFFER from those'} of the engine in process")
    return 0 if same else 1


def _deployed(folder: Path, study: Path, sites: int, rounds: int) -> tuple[str, str, float]:
    started = time.perf_counter()
    with deployment(folder) as server:
        for number in range(sites):
            name = f"node-{number + 1}"
            server.start_site(name, server.key(name), "--study", study, "--partition", f"{number}/{sites}")
        run = {**RUN, "sites": sites, "rounds": rounds, "out": str(folder / "run")}
        status, said = server.run(run, timeout=600.0)
    return status, said, time.perf_counter() - started


def _study(path: Path) -> Path:
    """Four virtual people, in seconds."""
    stimuli = {"test": 8, "common": 0, "own": 24, "size": 32, "captions": 1}
    settings = make_settings(None, subjects=4, sessions=1, repeats=1, runs=1, stimuli=stimuli, person={"voxels": 50})
    return simulate(settings, 0, progress=False).study.save(path)


def _sites(study: Path, n_sites: int) -> dict:
    with Study.open(study) as opened:
        view = opened.split("train")
        targets = targets_named(RUN["targets"], opened, False), targets_named(RUN["text"], opened, False)
        classes = LabelClasses.found(view.stimuli.labels, [RUN["classes"]])
        made = StudySites(opened, dealt(view.subjects, n_sites), classes, *targets)
        return made.sites(SETTINGS.model.width, Missing(RUN["missing"]))


def _same(one: GlobalState, other: GlobalState) -> bool:
    here, there = one.to_tensors()[0], other.to_tensors()[0]
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


if __name__ == "__main__":
    sys.exit(main())
