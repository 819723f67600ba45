"""Paths as people write them."""

from __future__ import annotations

import os

_SOCKET = "unix:"


def home_expanded(path: str) -> str:
    """A path, or `unix:` and one, with a leading ~ or ~user as the home folder; all else as it is."""
    scheme = _SOCKET if path.startswith(_SOCKET) else ""
    rest = path.removeprefix(scheme)
    try:
        return scheme + os.path.expanduser(rest)  # noqa: PTH111  (Path would change what is no path, such as a hub id)
    except ValueError:  # no name of a user
        return path
