"""The proxy before a small upstream: what gets through, what does not, and what a device is told."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding
from proxy_upstream import TRICKS, Upstream, exchange, running_upstream
from proxy_upstream import ask as ask_at

from server.deploy.certificates import client_context, new_authority, private_pem, server_certificate
from server.deploy.proxy import Limits, make_app, serve, server_config
from zo_common.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of a deployment."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = new_authority()
    certificate, key = server_certificate(authority, ("localhost",))
    (folder / "ca.crt").write_bytes(authority.certificate_pem)
    (folder / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(private_pem(key))
    (folder / "other.crt").write_bytes(new_authority().certificate_pem)
    return folder


@pytest.fixture
def upstream(folder: Path) -> Iterator[Upstream]:
    """What the proxy stands before."""
    with running_upstream(folder) as server:
        yield server


Ask = Callable[..., tuple[int, bytes]]


@contextmanager
def _proxy(folder: Path, port: int, *, limits: Limits | None = None, authority: str = "ca.crt") -> Iterator[int]:
    """A running proxy before the SuperLink's port; gives its own."""
    app = make_app(f"https://127.0.0.1:{port}", client_context(folder / authority), limits)
    listening = socket.create_server(("127.0.0.1", 0))
    tls = {"certificate": folder / "server.crt", "key": folder / "server.key"}
    config = server_config(app, bind="127.0.0.1", port=0, limits=limits, **tls)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    end = time.monotonic() + 10
    while not server.started and time.monotonic() < end:
        time.sleep(0.02)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture
def ask(folder: Path, upstream: Upstream) -> Iterator[Ask]:
    """Asks the upstream through a proxy."""
    with _proxy(folder, upstream.server_port) as port:
        yield lambda *args, **kwargs: ask_at(folder, port, *args, **kwargs)


def test_a_request_of_a_device_gets_through_unchanged(ask: Ask, upstream: Upstream) -> None:
    headers = (
        b"flwr-public-key: a2V5\r\nflwr-signature: c2ln\r\nflwr-timestamp: now\r\nAccept: application/protobuf\r\n"
    )

    status, content = ask(b"/v1/fleet/pull-messages", b"\x00\xffbody", headers=headers)

    assert (status, content) == (200, b"/v1/fleet/pull-messages|\x00\xffbody")
    [(path, seen, body)] = upstream.asked
    assert (path, body) == ("/v1/fleet/pull-messages", b"\x00\xffbody")
    assert (seen["flwr-public-key"], seen["flwr-signature"], seen["flwr-timestamp"]) == ("a2V5", "c2ln", "now")
    assert seen["accept"] == "application/protobuf"


@pytest.mark.parametrize("target", TRICKS)
def test_nothing_but_the_fleet_api_gets_through(ask: Ask, upstream: Upstream, target: bytes) -> None:
    status, _ = ask(target)

    assert status in (404, 400)
    assert upstream.asked == []


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"CONNECT"])
def test_only_post_gets_through(ask: Ask, upstream: Upstream, method: bytes) -> None:
    status, _ = ask(b"/v1/fleet/pull-messages", method=method)

    assert status in (405, 400, 404)
    assert upstream.asked == []


def test_a_refusal_of_the_superlink_reaches_the_device(ask: Ask) -> None:
    assert ask(b"/v1/fleet/unknown")[0] == 401


def test_the_callers_word_for_its_own_address_is_not_believed(ask: Ask, upstream: Upstream) -> None:
    ask(b"/v1/fleet/x", headers=b"X-Forwarded-For: 10.9.8.7\r\nForwarded: for=10.9.8.7\r\nX-Real-IP: 10.9.8.7\r\n")

    assert upstream.asked[0][1]["x-forwarded-for"] == "127.0.0.1"
    assert "10.9.8.7" not in str(upstream.asked[0][1])


def test_headers_of_one_hop_end_at_the_proxy(ask: Ask, upstream: Upstream) -> None:
    ask(b"/v1/fleet/x", headers=b"Connection: x-secret\r\nX-Secret: 1\r\nTE: trailers\r\nProxy-Authorization: y\r\n")

    assert {"x-secret", "te", "proxy-authorization"}.isdisjoint(upstream.asked[0][1])


def test_a_body_in_chunks_gets_through(ask: Ask, upstream: Upstream) -> None:
    status, _ = ask(b"/v1/fleet/push", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", headers=b"Transfer-Encoding: chunked\r\n")

    assert status == 200
    assert upstream.asked[0][2] == b"abcde"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(folder: Path, upstream: Upstream, chunked: bool) -> None:
    headers = b"Transfer-Encoding: chunked\r\n" if chunked else b""
    body = b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n" if chunked else b"x" * 1024
    with _proxy(folder, upstream.server_port, limits=Limits(body=1000)) as port:
        assert ask_at(folder, port, b"/v1/fleet/push", body, headers=headers)[0] == 413
        assert ask_at(folder, port, b"/v1/fleet/push", b"x" * 1000)[0] == 200
    assert [len(body) for _, _, body in upstream.asked if len(body) >= 1000] == [1000]


@pytest.mark.parametrize("lengths", [(b"-5",), (b"5", b"9"), (b"x",)])
def test_a_length_that_is_none_is_refused(folder: Path, upstream: Upstream, lengths: tuple[bytes, ...]) -> None:
    with _proxy(folder, upstream.server_port) as port:
        told = b"".join(b"Content-Length: %s\r\n" % length for length in lengths)
        request = b"POST /v1/fleet/x HTTP/1.1\r\nHost: zo\r\nConnection: close\r\n" + told + b"\r\nhello"
        assert exchange(folder, port, request)[0] == 400
    assert upstream.asked == []


def test_a_body_that_trickles_in_is_cut_off(folder: Path, upstream: Upstream) -> None:
    with _proxy(folder, upstream.server_port, limits=Limits(body_seconds=0.5)) as port:
        began = time.monotonic()
        request = b"POST /v1/fleet/x HTTP/1.1\r\nHost: zo\r\nContent-Length: 100\r\n\r\nfirst"
        assert exchange(folder, port, request)[0] == 504
        assert time.monotonic() - began < 8


def test_headers_that_never_end_hold_no_connection(folder: Path, upstream: Upstream) -> None:
    with _proxy(folder, upstream.server_port, limits=Limits(idle_seconds=0.5)) as port:
        began = time.monotonic()
        assert exchange(folder, port, b"POST /v1/fleet/x HTTP/1.1\r\nHost: zo\r\n") == (0, b"")
        assert time.monotonic() - began < 8


def test_a_superlink_that_is_down_is_a_reason_to_try_later(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = unused.getsockname()[1]
    with _proxy(folder, nobody) as port:
        assert ask_at(folder, port, b"/v1/fleet/pull-messages")[0] == 502


def test_a_superlink_that_does_not_answer_is_a_reason_to_try_later(folder: Path, upstream: Upstream) -> None:
    with _proxy(folder, upstream.server_port, limits=Limits(answer_seconds=0.5)) as port:
        assert ask_at(folder, port, b"/v1/fleet/slow")[0] == 504


def test_a_superlink_with_another_authoritys_certificate_is_not_spoken_to(folder: Path, upstream: Upstream) -> None:
    with _proxy(folder, upstream.server_port, authority="other.crt") as port:
        assert ask_at(folder, port, b"/v1/fleet/x", b"secret")[0] == 502
    assert upstream.asked == []


def test_many_devices_at_once(folder: Path, upstream: Upstream) -> None:
    answers: list[tuple[int, bytes]] = []
    with _proxy(folder, upstream.server_port) as port:
        threads = [
            threading.Thread(target=lambda n=n: answers.append(ask_at(folder, port, b"/v1/fleet/x", b"%d" % n)))
            for n in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert sorted(answers) == sorted((200, b"/v1/fleet/x|%d" % n) for n in range(24))


def test_tls_files_that_cannot_be_used_are_refused_before_the_proxy_is_announced(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "server.key").write_bytes(b"no key")
    tls = {"certificate": folder / "server.crt", "key": tmp_path / "server.key"}
    app = make_app("https://127.0.0.1:1", client_context(folder / "ca.crt"))

    with caplog.at_level("INFO"), pytest.raises(ConfigError, match=r"server\.key is no PEM file"):
        serve(server_config(app, bind="127.0.0.1", port=0, **tls))

    assert "running on" not in caplog.text
