"""Addresses that servers listen on: every one of a host's, or one sentence."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

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


def test_a_page_on_a_port_in_use_is_refused_before_it_is_announced(tmp_path: Path, taken: socket.socket) -> None:
    (tmp_path / SETTINGS_LOG).write_text("")
    address = f"127.0.0.1:{taken.getsockname()[1]}"

    found = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--listen", address])

    assert isinstance(found.exception, ConfigError)
    assert f"{address} cannot be listened on" in str(found.exception)
    assert "http://" not in found.output
