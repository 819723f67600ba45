"""JSON files that another process appends to or replaces, read again only as far as they changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """Reads only what was added since the last look; a file that was replaced or cut is read anew.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []
        self._of: tuple[int, int] | None = None  # device and inode
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return all rows by now, in a new list; a last line without its end is left for the next look."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != self._of or found.st_size < self._offset:
                    self._of, self._offset, self._rows = (found.st_dev, found.st_ino), 0, []
                file.seek(self._offset)
                added = file.read()
        except OSError:
            self._of, self._offset, self._rows = None, 0, []
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._rows += [row for line in whole.splitlines() if (row := _row(line)) is not None]
        return list(self._rows)


class JsonTable:
    """A JSON object in a file that is replaced atomically.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table: dict[str, Any] = {}
        self._of: tuple[int, ...] = ()  # device, inode, time of change and size

    def read(self) -> dict[str, Any]:
        """Return the object by now, which callers must not change; an empty one if it is missing or malformed."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                now = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
                if now != self._of:
                    self._of, self._table = now, _row(file.read()) or {}
        except OSError:
            self._of, self._table = (), {}
        return self._table


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
