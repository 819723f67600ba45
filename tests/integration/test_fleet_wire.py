"""The forwarder that the fleet's faults rest on: it counts every byte, and a cut holds them until it is healed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from benchmarks.fleet.forwarder import Wire


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    caller, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=_send_back, args=[caller], daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()


def _send_back(caller: socket.socket) -> None:
    with caller:
        while data := caller.recv(4096):
            caller.sendall(data)


def _connect(wire: Wire) -> socket.socket:
    return socket.create_connection((wire.bind, wire.port), timeout=5)


def test_bytes_are_counted_both_ways(echo: tuple[str, int]) -> None:
    with Wire(echo) as wire, _connect(wire) as line:
        line.sendall(b"x" * 1000)
        received = b""
        while len(received) < 1000:
            received += line.recv(4096)

        assert (wire.up, wire.down) == (1000, 1000)
        assert wire.callers == {"127.0.0.1"}


def test_a_cut_holds_bytes_and_new_connections_until_it_is_healed(echo: tuple[str, int]) -> None:
    with Wire(echo) as wire, _connect(wire) as old:
        old.sendall(b"before")
        assert old.recv(100) == b"before"
        wire.cut()
        with _connect(wire) as new:
            for line in (old, new):
                line.settimeout(0.5)
                line.sendall(b"during")
                with pytest.raises(TimeoutError):
                    line.recv(100)
            assert wire.up == len(b"before")

            wire.heal()

            for line in (old, new):
                line.settimeout(5)
                assert line.recv(100) == b"during"


def test_a_server_that_is_not_there_ends_the_connection(echo: tuple[str, int]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = unused.getsockname()
        with Wire(target) as wire, _connect(wire) as line:
            assert line.recv(100) == b""
