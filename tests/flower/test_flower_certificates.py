"""Certificates and keys at the door: what is wrong is told with the file, before any process starts."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from phosphene.errors import InputError
from phosphene.federation.flower import __main__ as command
from phosphene.federation.flower import certificates
from phosphene.federation.flower.certificates import (
    check_reached,
    check_server_files,
    check_site_files,
    make_node_key,
    make_server_files,
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return make_server_files(tmp_path / "own", ["127.0.0.1", "server.clinic.example"])


@pytest.fixture
def others(tmp_path: Path) -> dict[str, Path]:
    return make_server_files(tmp_path / "other", ["127.0.0.1"])


@pytest.fixture
def node_key(tmp_path: Path) -> Path:
    return make_node_key(tmp_path / "node.key")[0]


def test_files_that_were_made_are_accepted(files: dict[str, Path], node_key: Path) -> None:
    check_server_files(**files, host="127.0.0.1")
    check_server_files(**files, host="server.clinic.example")
    check_site_files(files["authority"], node_key)
    assert (node_key.stat().st_mode & 0o777, files["key"].stat().st_mode & 0o777) == (0o600, 0o600)
    with pytest.raises(InputError, match="are not written over"):
        make_node_key(node_key)


@pytest.mark.parametrize("name", ["authority", "certificate", "key"])
def test_a_missing_file_is_named(files: dict[str, Path], name: str) -> None:
    files[name].unlink()
    with pytest.raises(InputError, match=f"{files[name]} cannot be read: No such file"):
        check_server_files(**files, host="127.0.0.1")


@pytest.mark.parametrize("name", ["authority", "certificate", "key"])
def test_a_file_of_another_kind_is_named(files: dict[str, Path], name: str) -> None:
    files[name].write_text("-----BEGIN NOTHING-----\n")
    with pytest.raises(InputError, match=rf"{files[name]} is (no certificate in PEM|not an unencrypted private key)"):
        check_server_files(**files, host="127.0.0.1")


def test_files_that_do_not_belong_together_are_named(files: dict[str, Path], others: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=f"not signed by {others['authority']}"):
        check_server_files(others["authority"], files["certificate"], files["key"], "127.0.0.1")
    with pytest.raises(InputError, match=f"{others['key']} is not the key of {files['certificate']}"):
        check_server_files(files["authority"], files["certificate"], others["key"], "127.0.0.1")
    with pytest.raises(
        InputError, match=r"holds for server\.clinic\.example, 127\.0\.0\.1; the server is reached as 10"
    ):
        check_server_files(**files, host="10.0.0.1")
    with pytest.raises(InputError, match="is no authority"):
        check_server_files(files["certificate"], files["certificate"], files["key"], "127.0.0.1")


def test_a_certificate_that_has_run_out_is_named(files, node_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=31)

    monkeypatch.setattr(certificates, "datetime", Later)
    with pytest.raises(InputError, match=r"server\.crt holds from .* UTC, and not now"):
        check_server_files(**files, host="127.0.0.1")
    with pytest.raises(InputError, match=r"authority\.crt holds from"):
        check_site_files(files["authority"], node_key)


def test_keys_that_prove_nothing_are_named(files: dict[str, Path], node_key: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"server\.key is not an unencrypted private key in OpenSSH's form"):
        check_site_files(files["authority"], files["key"])
    other = tmp_path / "ed25519.key"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    other.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*form))
    with pytest.raises(InputError, match=r"ed25519\.key is a key of kind Ed25519PrivateKey; nodes prove themselves by"):
        check_site_files(files["authority"], other)
    node_key.chmod(0o644)
    with pytest.raises(InputError, match=r"may be read by others on this machine .*: chmod 600"):
        check_site_files(files["authority"], node_key)


def test_a_site_tells_a_server_it_cannot_trust(files, others, caplog) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files["certificate"], files["key"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def serve() -> None:
            for _ in range(2):
                taken, _ = listening.accept()
                try:
                    context.wrap_socket(taken, server_side=True).close()
                except OSError:
                    taken.close()

        served = threading.Thread(target=serve, daemon=True)
        served.start()
        check_reached(files["authority"], "127.0.0.1", port)
        with pytest.raises(InputError, match=f"a certificate that {others['authority']} does not vouch for"):
            check_reached(others["authority"], "127.0.0.1", port)
        served.join(5)
    check_reached(files["authority"], "127.0.0.1", port)
    assert "cannot be reached now" in caplog.text


def test_a_server_without_tls_is_told(files: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            taken, _ = listening.accept()
            taken.recv(100)
            taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            taken.close()

        served = threading.Thread(target=serve, daemon=True)
        served.start()
        with pytest.raises(InputError, match="does not answer in TLS"):
            check_reached(files["authority"], "127.0.0.1", listening.getsockname()[1])
        served.join(5)


def _told(words: list, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["flower", *map(str, words)])
    monkeypatch.setattr(command.os, "execve", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_commands_start_nothing_with_wrong_files(files, others, node_key, study, tmp_path, capsys, monkeypatch):
    server = ["server", "--authority", others["authority"], "--certificate", files["certificate"]]
    told = _told([*server, "--key", files["key"], "--host", "127.0.0.1"], capsys, monkeypatch)
    assert told.startswith("error:")
    assert "not signed by" in told
    site = ["site", "--authority", files["authority"], "--superlink", "127.0.0.1:1", "--keep", tmp_path / "keep"]
    named = [*site, "--key", node_key, "--name", "north"]
    assert "node.pub cannot be read" in _told(
        [*site, "--key", tmp_path / "node.pub", "--study", study, "--name", "a"], capsys, monkeypatch
    )
    assert "no study file" in _told([*named, "--study", tmp_path / "none.h5"], capsys, monkeypatch)
    assert "a --name, or a --partition" in _told([*named, "--study", study, "--partition", "0/2"], capsys, monkeypatch)
    assert "quotes" in _told([*named, "--study", study, "--people", 'a"b'], capsys, monkeypatch)
    limited = [*named, "--study", study, "--epsilon-limit", 3]
    assert "epsilon-limit has no use without privacy" in _told(limited, capsys, monkeypatch)
    assert "unknown modality 'words'" in _told([*named, "--study", study, "--holds", "words"], capsys, monkeypatch)
    clusters = [*named, "--study", study, "--clusters", files["authority"]]
    assert "is no readable file of clusters" in _told(clusters, capsys, monkeypatch)
    assert "HOST:PORT" in _told([*named, "--study", study, "--superlink", "server"], capsys, monkeypatch)


def test_a_site_becomes_a_supernode_that_contacts_nobody_else(files, node_key, study, tmp_path, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(command.os, "execve", lambda path, words, environment: started.append((words, environment)))
    words = ["--authority", files["authority"], "--key", node_key, "--superlink", "127.0.0.1:1", "--study", study]
    words = ["flower", "site", *words, "--keep", tmp_path / "keep", "--name", "north", "--home", tmp_path / "home"]
    words += ["--privacy", "update_limit=4 update_noise=2", "--epsilon-limit", 20, "--holds", "image,fmri"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    ((said, environment),) = started
    own = 'privacy="update_limit=4 update_noise=2" holds="fmri,image" epsilon-limit="20.0"'
    assert said[-1] == f'site="north" study="{study}" keep="{tmp_path / "keep"}" {own}'
    assert "--insecure" not in said
    assert environment["FLWR_HOME"] == str(tmp_path / "home")
    assert {environment[name] for name in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")} == {"0"}
