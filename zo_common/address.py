"""Addresses to listen on, as `HOST:PORT`."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from zo_common.errors import ConfigError

NO_HOST_NAME = "it is no name of a host"
"""Reason of a refused address whose host is not written as a name can be."""
_NOT_HERE = errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT


def host_and_port(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`; an IPv6 address stands in brackets.

    Raises:
        ConfigError: one of them is missing, or the port is above 65535.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) <= 65535):
        raise ConfigError(f"the address to listen on is {address!r}, expected HOST:PORT such as 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each of a host's addresses, bound to it, for a server that listens on them.

    An address that this machine does not have, such as ::1 where IPv6 is off, is left out if there is another.

    Raises:
        ConfigError: an address is in use, or none is this machine's.
    """
    bound: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, kind, protocol, _, place in dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
            try:
                bound.append(_bound(family, kind, protocol, place))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                absent = error
        if absent is not None and not bound:
            raise absent
    except (OSError, UnicodeError) as error:  # the latter where no name is written so
        for each in bound:
            each.close()
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = error.strerror if isinstance(error, OSError) else NO_HOST_NAME
        raise ConfigError(f"{name} cannot be listened on ({reason}): name another address") from None
    return bound


def _bound(family: int, kind: int, protocol: int, place: Any) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(place)
    except OSError:
        made.close()
        raise
    return made
