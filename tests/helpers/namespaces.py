"""Devices in network namespaces of their own, each with an address, on a bridge that the server is on too."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_PATIENCE = 20.0


class NotPermitted(Exception):
    """No namespaces can be made here; the message says why."""


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=_PATIENCE)
    if check and done.returncode != 0:
        raise NotPermitted(f"ip {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")


@contextmanager
def bridged(names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The server's address on the bridge, and each device's namespace by name; all is removed afterwards.

    Raises:
        NotPermitted: iproute2 is missing, or this user or kernel may not.
    """
    if shutil.which("ip") is None:
        raise NotPermitted("the command ip is missing")
    tag = secrets.token_hex(3)
    bridge, subnet = f"zo{tag}", f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
    spaces = {name: f"zo-{tag}-{number}" for number, name in enumerate(names)}
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number, space in enumerate(spaces.values()):
            outside, inside = f"zo{tag}{number}", f"zi{tag}{number}"
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
            _ip("link", "set", outside, "master", bridge, "up")
            _ip("-n", space, "address", "add", f"{subnet}.{10 + number}/24", "dev", inside)
            _ip("-n", space, "link", "set", inside, "up")
            _ip("-n", space, "link", "set", "lo", "up")
        yield f"{subnet}.1", spaces
    finally:
        for number, space in enumerate(spaces.values()):
            _ip("netns", "del", space, check=False)
            _ip("link", "del", f"zo{tag}{number}", check=False)
        _ip("link", "del", bridge, check=False)
