"""A lock that allows one server per run: two would overwrite each other's rounds in the ledger."""

from __future__ import annotations

import fcntl
import random
import time
from pathlib import Path
from typing import IO

from zo_common.errors import ConfigError

_PROBED_SECONDS = 0.05  # at most, between attempts while others only look


class RunLock:
    """An advisory lock on a run's directory; the operating system releases it when the process ends.

    Who only looks whether a server runs (`is_locked`) holds the file shared for a moment: a start then tries again.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / ".lock").open("w")
        while not _take(self._file, fcntl.LOCK_EX):
            if not _take(self._file, fcntl.LOCK_SH):
                self._file.close()
                raise ConfigError(f"another server is running in {directory}: stop it first, or name another output")
            fcntl.flock(self._file, fcntl.LOCK_UN)
            time.sleep(random.uniform(0.0, _PROBED_SECONDS))  # two that start at once must not meet for ever

    def release(self) -> None:
        """Release the run for another server."""
        self._file.close()


def is_locked(directory: Path) -> bool:
    """Return whether a server is running in a run's directory, without being in its way."""
    try:
        with (directory / ".lock").open("rb") as file:
            return not _take(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _take(file: IO[str] | IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
