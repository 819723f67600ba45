"""Attack: requests of two lengths, answers that nobody reads, and what a proxy in other hands could read."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from proxy_upstream import Upstream, exchange, running_upstream

from server.deploy.certificates import client_context
from server.deploy.deployment import Deployment
from server.deploy.folder import init_folder
from server.deploy.proxy import Limits, make_app, server_config


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    made = Deployment(root=tmp_path_factory.mktemp("there") / "deployment", hosts=("localhost",))
    init_folder(made, ["anna"], make_keys=True)
    return made


@pytest.fixture
def upstream(deployment: Deployment) -> Iterator[Upstream]:
    with running_upstream(deployment.keys) as server:
        yield server


@contextmanager
def _proxy(deployment: Deployment, port: int, limits: Limits | None = None) -> Iterator[tuple[int, uvicorn.Server]]:
    app = make_app(f"https://127.0.0.1:{port}", client_context(deployment.authority), limits)
    listening = socket.create_server(("127.0.0.1", 0))
    files = {"certificate": deployment.certificate, "key": deployment.key}
    server = uvicorn.Server(server_config(app, bind="127.0.0.1", port=0, limits=limits, **files))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    try:
        yield listening.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def test_a_request_of_two_lengths_is_a_bad_one(deployment: Deployment, upstream: Upstream) -> None:
    head = b"POST /v1/fleet/x HTTP/1.1\r\nHost: zo\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    with _proxy(deployment, upstream.server_port) as (port, _):
        status, _ = exchange(deployment.keys, port, head + b"8\r\nabcdefgh\r\n0\r\n\r\n")
    assert status == 400
    assert upstream.asked == []


def test_an_answer_that_nobody_reads_holds_no_connection(deployment: Deployment, upstream: Upstream) -> None:
    """The upstream sends the body back: more than fits into the buffers between."""
    body = b"x" * (24 << 20)
    head = b"POST /v1/fleet/x HTTP/1.1\r\nHost: zo\r\nContent-Length: %d\r\n\r\n" % len(body)
    with (
        _proxy(deployment, upstream.server_port, Limits(answer_seconds=0.5, body_seconds=300.0)) as (port, server),
        socket.create_connection(("127.0.0.1", port), 300) as plain,
        client_context(deployment.authority).wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(head + body)
        assert tls.recv(1) == b"H"  # the answer has begun; from now on nobody reads
        end = time.monotonic() + 120
        while server.server_state.connections:
            assert time.monotonic() < end, "the connection is held"
            time.sleep(0.05)


def test_the_proxy_gets_four_files_and_no_users_rights(deployment: Deployment, tmp_path: Path) -> None:
    unit = (deployment.root / "systemd" / "zo-asr-proxy.service").read_text().splitlines()
    given = dict(line.removeprefix("LoadCredential=").split(":") for line in unit if line.startswith("LoadCredential="))
    assert "DynamicUser=yes" in unit and not [line for line in unit if line.startswith(("User=", "WorkingDirectory="))]
    assert set(given) == {"deployment.toml", "ca.crt", "server.crt", "server.key"}
    assert f"ExecStart={deployment.bin}/zo-asr server proxy ${{CREDENTIALS_DIRECTORY}}" in unit
    for name, path in given.items():
        (tmp_path / name).write_bytes(Path(path).read_bytes())

    served = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("server.deploy.proxy.serve", served.append)
        from server.deploy.cli import proxy

        proxy(tmp_path)

    [config] = served
    config.load()  # reads certificate and key
    assert (Path(config.ssl_certfile), Path(config.ssl_keyfile)) == (tmp_path / "server.crt", tmp_path / "server.key")
