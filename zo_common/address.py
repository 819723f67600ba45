"""Addresses to listen on, as `HOST:PORT`."""

from __future__ import annotations

import ipaddress
import socket

from zo_common.errors import ConfigError


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

    Raises:
        ConfigError: an address is in use, or is none of this machine's.
    """
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, place in dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
            bound.append(socket.socket(family, kind, protocol))
            bound[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound[-1].bind(place)
    except OSError as error:
        for each in bound:
            each.close()
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ConfigError(f"{name} cannot be listened on ({error.strerror}): name another address") from None
    return bound
