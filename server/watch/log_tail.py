"""The last lines of a log that another process appends to."""

from __future__ import annotations

from pathlib import Path

MOST_LINES = 200
_MOST_BYTES = 256 << 10  # read at once, from the end
_LONGEST = 2000  # characters of a line


class LogTail:
    """Reads what was added since the last look.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._lines: list[str] = []
        self._count = 0  # lines read so far

    def read(self) -> tuple[int, list[str]]:
        """Return the number of lines before the tail, and the tail, at most `MOST_LINES`."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:
                    self._offset, self._lines, self._count = 0, [], 0
                skipped = size - self._offset > _MOST_BYTES
                file.seek(size - _MOST_BYTES if skipped else self._offset)
                added = file.read(_MOST_BYTES)
        except OSError:
            return self._count - len(self._lines), list(self._lines)
        whole = added[: added.rfind(b"\n") + 1]
        self._offset = size - len(added) + len(whole)
        lines = [line[:_LONGEST] for line in whole.decode(errors="replace").splitlines()]
        lines = lines[1:] if skipped else lines
        self._count += len(lines)
        self._lines = [*self._lines, *lines][-MOST_LINES:]
        return self._count - len(self._lines), list(self._lines)
