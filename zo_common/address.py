"""Addresses to listen on, as `HOST:PORT`."""

from __future__ import annotations

import ipaddress

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
