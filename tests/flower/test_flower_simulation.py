"""`flwr run` in simulation: the weights of the engine in process, and no good end without an update."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

from loopback import simulation
from loopback_grid import SETTINGS, in_process, run_config, same

from phosphene.federation import GlobalState


def test_a_simulated_run_has_the_same_weights_and_a_failed_one_says_so(study: Path, tmp_path: Path) -> None:
    with simulation(tmp_path / "flower") as server:
        told = server.run(run_config(study, tmp_path, rounds=2, wait=300.0, deadline=300.0))
        assert told[0] == "finished:completed", told[1]
        bad = run_config(tmp_path / "none.h5", tmp_path / "bad", wait=5.0)
        status, said = server.run(bad)
    there = GlobalState.load(tmp_path / "run" / "round-00002" / "server", SETTINGS)
    assert same(there, in_process(study, 2, 2).shared)
    assert status == "finished:failed"
    assert "0 of 2 sites said who they are" in said
    assert not (tmp_path / "bad" / "run").exists()
