"""Expansion of ~ in paths that users write."""

from __future__ import annotations

import os

_SOCKET = "unix:"


def home_expanded(path: str) -> str:
    """Expand a leading ~ or ~user in a path, or in a path after `unix:`; leave anything else unchanged."""
    scheme = _SOCKET if path.startswith(_SOCKET) else ""
    rest = path.removeprefix(scheme)
    try:
        return scheme + os.path.expanduser(rest)  # noqa: PTH111  (Path would change what is no path, such as a hub id)
    except ValueError:  # not a user name
        return path
