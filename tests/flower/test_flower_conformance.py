"""In process and over Flower: the same bits, also after a kill, with protection, and with a share of the sites."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

from loopback_grid import LoopbackGrid, in_process, partitions, run_config, same

from phosphene.federation.flower import RunSettings, federate_over


def over(study: Path, folder: Path, n: int = 2, behaviour=None, **changes):
    given = run_config(study, folder, sites=n, **changes)
    return federate_over(LoopbackGrid(partitions(n), given, behaviour), RunSettings.of_config(given), pause=0.01)


def test_weights_and_library_are_those_of_the_engine_in_process(study: Path, tmp_path: Path) -> None:
    there, here = over(study, tmp_path), in_process(study, 2, 3)
    assert same(there.shared, here.shared)
    for mine, other in zip(there.history, here.history, strict=True):
        assert (mine.used, mine.metrics, mine.bytes_up, mine.bytes_down) == (
            other.used, other.metrics, other.bytes_up, other.bytes_down
        )  # fmt: skip
        assert mine.fractions == pytest.approx(other.fractions)
