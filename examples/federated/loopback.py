"""A server and sites as processes of this machine: TLS, registered sites, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from phosphene.federation.flower.__main__ import QUIET
from phosphene.federation.flower.certificates import make_node_key, make_server_files

APP = Path(__file__).with_name("app")
HOST = "127.0.0.1"
_PATIENCE = 60.0  # seconds for a process to come up
_GRACE = 15.0  # seconds to end by itself before it is killed
_LAST = 5.0  # seconds for all that was killed to be gone


class Processes:
    """Processes whose output goes to files of a folder; all are ended, with what they started, at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._running = folder, []
        self.environment = {**os.environ, **QUIET, "FLWR_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        path = (str(Path(sys.executable).parent), os.environ.get("PATH", ""))
        self.environment["PATH"] = os.pathsep.join(path)
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, words: list, home: str = "home") -> subprocess.Popen:
        """A process in a session of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, "FLWR_HOME": str(self.folder / home)},
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, port: int, process: subprocess.Popen, name: str) -> None:
        """Until something answers there."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                return
            time.sleep(0.2)
        raise RuntimeError(f"{name} did not come up:\n{self.log(name)[-2000:]}")

    def end(self, process: subprocess.Popen, kill: bool = False) -> None:
        """End a process and what it started: asked first, unless it is to be killed."""
        if not kill:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        _signal(process, signal.SIGKILL)  # also what is left of its session
        process.wait()
        end = time.monotonic() + _LAST
        while _signal(process, 0) and time.monotonic() < end:  # what is killed on a busy machine is not gone at once
            time.sleep(0.05)

    def stop(self) -> None:
        """End all; sites first, so that they can take their leave."""
        for process in self._running:
            _signal(process, signal.SIGTERM)
        for process in self._running:
            self.end(process)


class Federation:
    """Flower's server, and the commands that are given to it."""

    def __init__(self, folder: Path) -> None:
        self.processes, self.port = Processes(folder), free_port()
        (folder / "home").mkdir(parents=True, exist_ok=True)

    def flwr(self, *words: object, timeout: float = 120.0) -> str:
        """A ``flwr`` command; an error of it is one."""
        done = subprocess.run(
            ["flwr", *map(str, words)],
            env=self.processes.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"flwr {words[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(self, config: Mapping[str, object], timeout: float = 300.0, *words: object) -> tuple[str, str]:
        """Run the app to its end: the run's status, such as ``finished:completed``, and what the server said.

        ``flwr run`` itself ends with 0 however the run ended.
        """
        told = self.flwr("run", APP, "here", "--stream", "--run-config", pairs(config), *words, timeout=timeout)
        newest = json.loads(self.flwr("list", "here", "--format", "json"))["runs"][0]
        return newest["status"], told

    def connect(self, **facts: object) -> None:
        """Write where commands find the server."""
        lines = ["[superlink]", 'default = "here"', "[superlink.here]", f'address = "{HOST}:{self.port}"']
        lines += [f"{name.replace('_', '-')} = {json.dumps(value)}" for name, value in facts.items()]
        (self.processes.folder / "home" / "config.toml").write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def simulation(folder: Path) -> Iterator[Federation]:
    """A server that simulates its sites; ``flwr run`` with ``:local:`` would leave one behind that nobody ends."""
    made = Federation(folder)
    try:
        words = ["flower-superlink", "--insecure", "--simulation", "--host", HOST, "--port", made.port]
        server = made.processes.start("server", words)
        made.processes.wait_for(made.port, server, "server")
        made.connect(insecure=True)
        yield made
    finally:
        made.processes.stop()


class Deployment(Federation):
    """A server with TLS that knows its sites, and sites with a key each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.files = make_server_files(folder / "server", [HOST, "localhost"])

    def start_server(self) -> None:
        """Check the files, start, and wait until it is there."""
        files = [word for name, path in self.files.items() for word in (f"--{name}", path)]
        words = [sys.executable, "-m", "phosphene.federation.flower", "server", *files]
        words += ["--host", HOST, "--port", self.port]
        self.processes.wait_for(self.port, self.processes.start("server", words), "server")
        self.connect(root_certificates=str(self.files["authority"]))

    def key(self, site: str, register: bool = True) -> Path:
        """A key for a site, made there; its public half goes to the server."""
        private, public = make_node_key(self.folder / site / "node.key")
        if register:
            self.flwr("supernode", "register", public, "here", "--name", site)
        return private

    def start_site(self, site: str, key: Path, *words: object, port: int | None = None) -> subprocess.Popen:
        """A site; `words` say what it has: ``--study``, ``--name`` or ``--partition``, ``--targets`` ..."""
        own = ["--authority", self.files["authority"], "--key", key, "--superlink", f"{HOST}:{self.port}"]
        own += ["--keep", self.folder / site / "keep", "--port", port or free_port()]
        command = [sys.executable, "-m", "phosphene.federation.flower", "site", *own, *words]
        return self.processes.start(site, command, home=f"{site}/home")


@contextlib.contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """A server that is up; everything that was started in it is ended."""
    made = Deployment(folder)
    try:
        made.start_server()
        yield made
    finally:
        made.processes.stop()


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return found.getsockname()[1]


def pairs(config: Mapping[str, object]) -> str:
    """Settings as ``--run-config`` takes them."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())


def _signal(process: subprocess.Popen, number: int) -> bool:
    """Whether anything of the process's session was there to be told."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
