"""Server and sites as processes over TLS: the same weights, strangers refused, dead sites borne, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

from loopback import deployment
from loopback_grid import SETTINGS, in_process, run_config, same

from phosphene.federation import Fault, GlobalState

SCRIPT = Path(__file__).parents[2] / "examples" / "federated" / "deploy_loopback.py"


def processes_with(words: str) -> list[str]:
    """Command lines, of processes that still run, in which these words stand."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            alive = entry.with_name("stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            continue
        if alive and words in line and int(entry.parent.name) != os.getpid():
            found.append(line)
    return found


def test_a_deployment_with_tls_and_registered_sites(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flower"
    config = run_config(study, tmp_path, rounds=1, wait=300.0, deadline=300.0)
    config = {name: value for name, value in config.items() if name not in ("study", "keep")}
    with deployment(folder) as server:
        nodes = {}
        for number, name in enumerate(("first", "second")):
            own = ("--study", study, "--partition", f"{number}/2")
            nodes[name] = server.start_site(name, server.key(name), *own)
        stranger = server.start_site(
            "stranger", server.key("stranger", register=False), "--study", study, "--partition", "0/2"
        )
        started = time.monotonic()
        status, said = server.run(config)
        patience = max(25.0, time.monotonic() - started)  # a busy machine starts processes slowly
        assert status == "finished:completed", said
        state = GlobalState.load(tmp_path / "run" / "round-00001" / "server", SETTINGS)
        assert same(state, in_process(study, 2, 1).shared)

        assert stranger.wait(30) != 0
        assert not (folder / "stranger" / "keep").exists()
        assert "305" in server.processes.log("stranger")

        server.processes.end(nodes["second"], kill=True)
        status, said = server.run({**config, "rounds": 2, "deadline": patience, "wait": patience})
        assert status == "finished:completed", said
        assert "site-2 is missing" in said or "1 of 2 sites came in time" in said
        state = GlobalState.load(tmp_path / "run" / "round-00002" / "server", SETTINGS)
        assert same(state, in_process(study, 2, 2, faults=[Fault.parse("drop:site-2:2")]).shared)

        strict = {**config, "out": str(tmp_path / "strict"), "quorum": 2, "deadline": 10.0, "wait": 10.0}
        status, said = server.run(strict)
        assert status == "finished:failed"
        assert "2 are needed" in said
    assert processes_with(str(folder)) == []


def test_the_script_leaves_nothing_behind_when_it_is_interrupted(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    script = subprocess.Popen([sys.executable, SCRIPT], env=environment, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*/node-1.log")) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_with(str(tmp_path)) != []
    script.send_signal(signal.SIGINT)
    assert script.wait(60) == 130
    script.stdout.close()
    assert processes_with(str(tmp_path)) == []
    assert list(tmp_path.glob("phosphene-federated-*")) == []
