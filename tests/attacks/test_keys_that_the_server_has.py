"""Attack: a server keeps the private keys that it made for its devices, and signs in their name."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from stand_in_flower import Flower, flower
from typer.testing import CliRunner

from client.worker.cli import app as worker
from server.deploy.cli import app as server
from zo_common.secure_sum.node_keys import NodeSigner, PeerKeys

__all__ = ["flower"]  # a fixture


@pytest.fixture
def folder(tmp_path: Path, flower: Flower, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment's folder, as `init` writes it for two devices."""
    monkeypatch.setattr("sys.executable", str(flower.folder / "python"))
    _run("init", str(tmp_path / "there"), "--host", "localhost", "--device", "anna", "--device", "ben")
    return tmp_path / "there"


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(server, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def _make_key(there: Path) -> str:
    done = CliRunner().invoke(worker, ["key", str(there)])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()[0]


def _private_keys(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and b"OPENSSH PRIVATE KEY" in path.read_bytes()]


def test_no_private_key_of_a_device_is_ever_on_the_server(folder: Path, flower: Flower, tmp_path: Path) -> None:
    assert _private_keys(folder) == []
    flower.answer({"supernode register": {"success": True, "node-id": 7}})
    device = tmp_path / "anna"
    device.mkdir()
    line = _make_key(device)

    assert "anna: client 0, node 7" in _run("enroll", str(folder), "anna", "--public-key", line)

    assert _private_keys(folder) == []
    assert stat.S_IMODE((device / "node.key").stat().st_mode) == 0o600
    signature = NodeSigner((device / "node.key").read_bytes()).sign(b"word")
    peers = PeerKeys.parse((folder / "peers.keys").read_text())
    assert peers.holds(0, b"word", signature) and 1 not in peers


def test_a_device_without_a_key_waits_for_it(folder: Path, flower: Flower) -> None:
    assert "'ben' has no key yet" in _run("enroll", str(folder), "ben")
    done = CliRunner().invoke(server, ["enroll", str(folder)])
    assert "'anna' has no key yet" in str(done.exception)
    assert flower.asked == []


def test_a_key_that_lies_on_the_server_is_told(folder: Path, flower: Flower) -> None:
    flower.answer({"supernode list": {"success": True, "nodes": []}})
    assert json.loads(_run("status", str(folder), "--json"))["private_keys"] == []
    _make_key(folder / "devices" / "ben")

    shown = " ".join(_run("status", str(folder)).split())

    assert "private keys of devices lie on this server (ben)" in shown
