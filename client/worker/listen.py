"""The worker's address: a Unix socket that its owner alone can open, or a loopback port with a token."""

from __future__ import annotations

import hmac
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from client.worker.client import MESSAGE_BYTES
from zo_common.address import is_loopback
from zo_common.errors import ConfigError

SERVER_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # two workers on one port would take turns
]
_MOST_PATH_BYTES = 107  # of a Unix socket


def socket_path(address: str) -> Path | None:
    """Return the path of `unix:/path`; None for other addresses."""
    if not address.startswith("unix:"):
        return None
    path = Path("/" + address.removeprefix("unix:").lstrip("/"))
    if address.removeprefix("unix:")[:1] != "/" or len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise ConfigError(
            f"listen is {address!r}, expected unix: and an absolute path of at most {_MOST_PATH_BYTES} bytes, such as "
            "unix:/run/zo-asr/worker.sock"
        )
    return path


def expect_local(address: str, token: str) -> None:
    """Refuse to listen on an address that others than this machine's owner could reach.

    Raises:
        ConfigError: the address is neither a Unix socket nor loopback with a token.
    """
    if socket_path(address) is not None:
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and is_loopback(host.strip("[]"))):
        raise ConfigError(
            f"listen is {address!r}, expected unix:/path, or a loopback address and port such as 127.0.0.1:7777: the "
            "worker serves this machine alone"
        )
    if not token:
        raise ConfigError(f"listen is {address!r} without a token: give --token-file, or listen on unix:/path")


def bind(server: grpc.Server, address: str, token: str) -> str:
    """Add an address to a server before its start; return the actual one (for port 0 the system chooses).

    Raises:
        ConfigError: see `expect_local`; or the address is in use.
    """
    expect_local(address, token)
    path = socket_path(address)
    if path is not None:
        _bind_socket(server, path)
        return f"unix:{path}"
    try:
        return f"{address.rpartition(':')[0]}:{server.add_insecure_port(address)}"
    except RuntimeError:
        raise ConfigError(f"{address} cannot be listened on: is another worker running there?") from None


def _bind_socket(server: grpc.Server, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_stale(path)
    before = os.umask(0o177)  # the socket is never open to others, not even for a moment
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise ConfigError(f"{path} cannot be listened on: check that its folder can be written") from None
    finally:
        os.umask(before)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a killed worker."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is there and no socket: name another, or remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise ConfigError(f"{path} belongs to something that does not answer ({error.strerror})") from None
    raise ConfigError(f"a worker listens on {path} already: stop it, or name another socket")


class TokenCheck(grpc.ServerInterceptor):  # type: ignore[misc]
    """Interceptor that refuses requests without the token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._refuse = grpc.unary_unary_rpc_method_handler(_refuse)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return the method, or a refusal."""
        found = [value for key, value in details.invocation_metadata if key == "authorization"]
        given = found[0].encode() if len(found) == 1 and isinstance(found[0], str) else b""
        return continuation(details) if hmac.compare_digest(given, self._expected) else self._refuse


def _refuse(_: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")


def notify(state: str) -> None:
    """Send `READY=1` or `STOPPING=1` to systemd, if it asked for notifications."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())
