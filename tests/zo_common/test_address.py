"""Addresses that servers listen on: every one of a host's, or one sentence."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.deploy.certificates import new_authority, private_pem
from server.deploy.cli import app
from server.run.log import SETTINGS_LOG
from zo_common.address import listening_sockets
from zo_common.errors import ConfigError


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A socket that listens on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_free_address_is_bound_and_can_be_reached() -> None:
    (bound,) = listening_sockets("127.0.0.1", 0)
    with bound:
        bound.listen()
        with socket.create_connection(bound.getsockname(), timeout=5) as made:
            assert made.getpeername() == bound.getsockname()


def test_a_name_is_bound_at_each_of_its_addresses() -> None:
    found = listening_sockets("localhost", 0)

    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    assert {each.getsockname()[0] for each in found} == addresses
    for each in found:
        each.close()


def test_a_port_in_use_is_one_sentence(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"^127\.0\.0\.1:{port} cannot be listened on \(Address already in use\): "):
        listening_sockets("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])  # of nobody (RFC 5737, RFC 6761)
def test_an_address_of_another_machine_is_one_sentence(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{host}:8080 cannot be listened on \(.+\): name another address$"):
        listening_sockets(host, 8080)


def test_what_is_no_name_of_a_host_is_one_sentence() -> None:
    expected = r"^foo\.\.bar:8645 cannot be listened on \(it is no name of a host\): name another address$"
    with pytest.raises(ConfigError, match=expected):
        listening_sockets("foo..bar", 8645)


ELSEWHERE = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))  # of nobody (RFC 3849)
HERE = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))


def test_an_address_that_the_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [ELSEWHERE, HERE])

    (bound,) = listening_sockets("localhost", 0)
    with bound:
        assert bound.getsockname()[0] == "127.0.0.1"

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [ELSEWHERE])
    with pytest.raises(ConfigError, match=r"^localhost:0 cannot be listened on \(.+\): name another address$"):
        listening_sockets("localhost", 0)


def test_a_page_on_a_port_in_use_is_refused_before_it_is_announced(tmp_path: Path, taken: socket.socket) -> None:
    (tmp_path / SETTINGS_LOG).write_text("")
    address = f"127.0.0.1:{taken.getsockname()[1]}"

    found = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--listen", address])

    assert isinstance(found.exception, ConfigError)
    assert f"{address} cannot be listened on" in str(found.exception)
    assert "http://" not in found.output


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """A certificate, its key and another's key, a text, and a file that is not there."""
    authority, other = new_authority(), new_authority()
    texts = {"certificate": authority.certificate_pem, "key": private_pem(authority.key), "text": b"hello"}
    texts["other"] = private_pem(other.key)
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in (*texts, "absent")}


@pytest.mark.parametrize("command", ["dashboard", "metrics"])
@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("text", "key", "{text} is no PEM file, expected a certificate or a private key"),
        ("certificate", "text", "{text} is no PEM file, expected a certificate or a private key"),
        ("absent", "key", "{absent} cannot be read (No such file or directory)"),
        ("certificate", "absent", "{absent} cannot be read (No such file or directory)"),
        ("key", "key", "{key} and {key} cannot be used for TLS ("),
        ("certificate", "other", "{certificate} and {other} cannot be used for TLS (KEY_VALUES_MISMATCH)"),
    ],
)
def test_tls_files_that_cannot_be_used_are_refused_before_an_address_is_announced(
    tmp_path: Path, pair: dict[str, Path], command: str, certificate: str, key: str, said: str
) -> None:
    (tmp_path / SETTINGS_LOG).write_text("")
    options = ["--listen", "127.0.0.1:0", "--certificate", str(pair[certificate]), "--key", str(pair[key])]

    found = CliRunner().invoke(app, [command, str(tmp_path), *options])

    assert isinstance(found.exception, ConfigError)
    assert said.format(**pair) in str(found.exception)
    assert "https://" not in found.output
