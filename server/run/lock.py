"""A lock that allows one server per run: two would overwrite each other's rounds in the ledger."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from zo_common.errors import ConfigError

_TRIES, _PAUSE = 5, 0.05  # whoever asks whether a run is running has the lock for an instant


class RunLock:
    """An advisory lock on a run's directory; the operating system releases it when the process ends.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / ".lock").open("w")
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if left:
                    time.sleep(_PAUSE)
        self._file.close()
        raise ConfigError(f"another server is running in {directory}: stop it first, or name another output")

    def release(self) -> None:
        """Release the run for another server."""
        self._file.close()


def is_locked(directory: Path) -> bool:
    """Return whether a server is running in a run's directory; nothing is written there."""
    try:
        with (directory / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
