"""Flower's own log of a deployment's run, in a file of the run's folder."""

from __future__ import annotations

import logging
from collections import deque
from io import FileIO
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)
FLOWER_LOG = "flower.log"
_LAST = 20  # lines that are shown after a failure


class FlowerLog:
    """Writes lines to a file as they come, and remembers the last ones.

    A file that cannot be written, as on a full disk, is reported once: the run itself goes on.

    Args:
        path: of the file; it is replaced, and its folder made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.lines: deque[str] = deque(maxlen=_LAST)
        self._path = path
        self._file: FileIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(path, "w")  # unbuffered: nothing is left to write when it is closed
        except OSError as error:
            self._give_up(error)

    def write(self, line: str) -> None:
        """Append a line."""
        self.lines.append(line)
        if self._file is None:
            return
        try:
            self._file.write((line + "\n").encode(errors="backslashreplace"))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning(f"{self._path} is not written ({error.strerror}): free or mend the disk; the run goes on")
        self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> FlowerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
