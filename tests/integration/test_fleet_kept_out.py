"""Who is kept out of a deployment: every way in but the right one is refused, each by its own guard."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from memory_superlink import Killed

from benchmarks.fleet.children import wait_until
from benchmarks.fleet.device_commands import supernode_command
from benchmarks.fleet.processes import Fleet, free_ports
from server.deploy import registration
from server.deploy.certificates import (
    load_authority,
    new_authority,
    private_pem,
    server_certificate,
    write_private,
)
from server.deploy.deployment import CONNECTION
from server.deploy.devices import add_device, register_device, revoke
from server.deploy.flower import KEY_IN_USE, FlowerError, flwr_json
from zo_common.device_key import new_device_key

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def fleet(tiny_whisper: Path, mini_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A server with two devices enrolled, neither of them started."""
    with Fleet(tmp_path_factory.mktemp("fleet"), tiny_whisper, mini_corpus, (), ("anna", "ben")) as made:
        yield made


def _supernode(fleet: Fleet, name: str = "anna", **changes: str) -> list[str]:
    """A device's SuperNode with other arguments."""
    command = supernode_command(fleet.deployment, name, socket=fleet.socket_of(name))
    for key, value in ({"port": str(free_ports(1))} | changes).items():
        command[command.index("--" + key.replace("_", "-")) + 1] = value
    return command


def test_a_device_with_an_unknown_key(fleet: Fleet, tmp_path: Path) -> None:
    private, _ = new_device_key()
    write_private(tmp_path / "strange.key", private)

    status, said = fleet.attempt("unknown", _supernode(fleet, auth_supernode_private_key=str(tmp_path / "strange.key")))

    assert status != 0
    assert "Failed to activate SuperNode" in said
    assert fleet.online() == set()


def test_a_revoked_device_is_cut_off_and_stays_out(fleet: Fleet, tmp_path: Path) -> None:
    key = tmp_path / "kept.key"
    shutil.copyfile(fleet.deployment.device_folder_of("ben") / "node.key", key)
    command = supernode_command(fleet.deployment, "ben", socket=fleet.socket_of("ben"))
    command[command.index("--auth-supernode-private-key") + 1] = str(key)
    child = fleet.children.start("ben", command, fleet.environment)
    wait_until("ben online", lambda: "ben" in fleet.online(), 60, every=1)

    done = fleet.cli("revoke", str(fleet.deployment.root), "ben")

    assert done.returncode == 0, done.stderr
    child.process.wait(30)  # it ends, as its next request was refused
    assert fleet.online() == set()
    status, said = fleet.attempt("ben-again", command)
    assert status != 0
    assert "Failed to activate SuperNode" in said
    assert fleet.online() == set()
    assert not (fleet.deployment.device_folder_of("ben") / "node.key").exists()


def _lose_the_answer(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """Add a device, kill its registration where SuperLink has made the node, and return the node's id."""
    add_device(fleet.deployment, name, make_key=True)
    answers = []

    def killed(*arguments: Any, **options: Any) -> dict[str, Any]:
        answers.append(flwr_json(*arguments, **options))
        if "register" in arguments:
            raise Killed
        return answers[-1]

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(registration, "flwr_json", killed)
        register_device(fleet.deployment, name)
    device, node_id = fleet.deployment.device(name), str(answers[-1]["node-id"])
    assert device.node_id == "" and device.nodes_before and node_id not in device.nodes_before
    return node_id


def test_a_registration_that_was_cut_off_is_completed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    node_id = _lose_the_answer(fleet, monkeypatch, "cleo")

    register_device(fleet.deployment, "cleo")

    assert fleet.deployment.device("cleo").node_id == node_id
    fleet.children.start("cleo", _supernode(fleet, "cleo"), fleet.environment)
    wait_until("cleo online", lambda: "cleo" in fleet.online(), 60, every=1)  # the node has this device's key
    fleet.children.stop("cleo")


def test_a_registration_that_was_cut_off_is_revoked(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_id, key = _lose_the_answer(fleet, monkeypatch, "dora"), tmp_path / "kept.key"
    shutil.copyfile(fleet.deployment.device_folder_of("dora") / "node.key", key)

    revoke(fleet.deployment, "dora")

    nodes = flwr_json(fleet.deployment, "supernode", "list", CONNECTION)["nodes"]
    assert {node["node-id"]: node["status"] for node in nodes}[node_id] == "unregistered"
    status, said = fleet.attempt("dora", _supernode(fleet, "dora", auth_supernode_private_key=str(key)))
    assert status != 0
    assert "Failed to activate SuperNode" in said


@pytest.mark.parametrize("by_hand", [False, True])
def test_revoke_of_a_key_without_a_known_node(fleet: Fleet, tmp_path: Path, by_hand: bool) -> None:
    name, public = f"emil-{by_hand}", tmp_path / "emil.pub"
    public.write_text(add_device(fleet.deployment, name, make_key=True).public_key)
    register_it = partial(flwr_json, fleet.deployment, "supernode", "register", str(public), CONNECTION)
    if by_hand:
        node_id = str(register_it()["node-id"])
        with pytest.raises(FlowerError, match=f"0 nodes have come .* expected 1; it may be .*{node_id}"):
            revoke(fleet.deployment, name)
        assert not fleet.deployment.device(name).revoked
        flwr_json(fleet.deployment, "supernode", "unregister", node_id, CONNECTION)
    else:
        revoke(fleet.deployment, name)

    with pytest.raises(FlowerError) as refused:
        register_it()
    assert refused.value.code == KEY_IN_USE


def test_an_expired_server_certificate_is_refused_by_devices(fleet: Fleet, tmp_path: Path) -> None:
    there, port = fleet.deployment, free_ports(1)
    forgotten = tmp_path / "forgotten"
    shutil.copytree(there.root, forgotten)
    settings = (forgotten / "deployment.toml").read_text()
    (forgotten / "deployment.toml").write_text(settings.replace(f"port = {there.port}\n", f"port = {port}\n", 1))
    authority = load_authority(there.authority, there.authority_key)
    certificate, key = server_certificate(authority, there.hosts, now=datetime.now(UTC) - timedelta(days=366))
    (forgotten / "keys" / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    write_private(forgotten / "keys" / "server.key", private_pem(key))
    command = [f"{there.bin}/zo-asr", "server", "proxy", str(forgotten)]
    proxy = fleet.children.start("expired", command, fleet.environment)
    wait_until("a proxy with an expired certificate", lambda: f":{port}" in proxy.log.read_text(), 30)

    status, said = fleet.attempt("expired-node", _supernode(fleet, superlink=f"127.0.0.1:{port}"))

    fleet.children.stop("expired")
    assert status != 0
    assert "certificate has expired" in said


def test_a_device_that_trusts_another_authority(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "other.crt").write_bytes(new_authority().certificate_pem)

    status, said = fleet.attempt("foreign", _supernode(fleet, root_certificates=str(tmp_path / "other.crt")))

    assert status != 0
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_a_device_without_tls(fleet: Fleet) -> None:
    command = _supernode(fleet)
    at = command.index("--root-certificates")
    command[at : at + 2] = ["--insecure"]

    status, said = fleet.attempt("insecure", command)

    assert status != 0
    assert "TLS" in said


@pytest.mark.parametrize("which", ["port", "superlink_port"])
def test_plain_http(fleet: Fleet, which: str) -> None:
    port = getattr(fleet.deployment, which)
    assert fleet.answers(port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/fleet/pull-messages", body=b"")

    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()


def test_a_superexec_with_another_secret(fleet: Fleet, tmp_path: Path) -> None:
    write_private(tmp_path / "other.secret", b"x" * 32)
    command = fleet.deployment.superexec_command()
    command[command.index("--superexec-auth-secret-file") + 1] = str(tmp_path / "other.secret")
    refusals = _refused_superexecs(fleet)

    fleet.attempt("superexec-strange", command)

    assert _refused_superexecs(fleet) > refusals


def _refused_superexecs(fleet: Fleet) -> int:
    return fleet.children["superlink"].log.read_text().count("SuperExec authentication failed")


@pytest.mark.parametrize("arguments", [("ls",), ("run", "{app}"), ("supernode", "list")], ids=" ".join)
def test_the_operators_commands_do_not_pass_the_proxy(fleet: Fleet, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    there = fleet.deployment
    settings = (there.flower_home / "config.toml").read_text()
    outside = settings.replace(there.superlink_address, f"127.0.0.1:{there.port}")
    (tmp_path / "config.toml").write_text(outside)
    filled = [part.format(app=there.app) for part in arguments]

    refused = fleet.command(["flwr", *filled, "deployment"], FLWR_HOME=str(tmp_path))

    assert refused.returncode != 0
    assert "404 Not Found" in refused.stdout + refused.stderr


def test_a_raw_request_for_the_operators_api_gets_404_of_the_proxy_alone(fleet: Fleet) -> None:
    context = ssl.create_default_context(cafile=str(fleet.deployment.authority))

    def status(port: int, path: str) -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
        connection.request("POST", path, body=b"", headers={"content-type": "application/x-protobuf"})
        found = connection.getresponse().status
        connection.close()
        return found

    for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/fleet/../control/list-runs"):
        assert status(fleet.deployment.port, path) == 404
    assert status(fleet.deployment.superlink_port, "/v1/control/list-runs") != 404  # it is there, behind the proxy
    assert status(fleet.deployment.port, "/v1/fleet/pull-messages") in (401, 415)  # the devices' own


def test_another_user_of_the_device_at_the_workers_socket(fleet: Fleet) -> None:
    fleet.start_worker("anna")
    wait_until("anna's worker", lambda: fleet.is_awake("anna"), 60)
    path = fleet.socket_of("anna").removeprefix("unix:")
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    knock = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"

    def ask(user: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_python(), "-c", knock], capture_output=True, text=True, check=False, timeout=20, user=user
        )

    assert ask(None).returncode == 0
    try:
        refused = ask("nobody")
    except (PermissionError, LookupError, KeyError) as error:
        pytest.skip(f"a process of another user cannot be started here: {error}")
    fleet.children.stop("worker-anna")
    assert refused.returncode != 0
    assert "Permission denied" in refused.stderr


def _python() -> str:
    """An interpreter that other users may run."""
    found = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip("there is no Python in /usr/bin that another user could run")
    return found


def test_the_superlink_is_on_the_loopback_interface_alone(fleet: Fleet) -> None:
    port = fleet.deployment.superlink_port
    assert fleet.answers(port)
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex((_own_address(), port)) != 0


def _own_address() -> str:
    """An address of this machine that is not loopback; loopback's second one where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.2"
