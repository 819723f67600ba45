"""A lock that allows one server per run: two would overwrite each other's rounds in the ledger."""

from __future__ import annotations

import fcntl
from pathlib import Path

from zo_common.errors import ConfigError


class RunLock:
    """An advisory lock on a run's directory; the operating system releases it when the process ends.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / ".lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(
                f"another server is running in {directory}: stop it first, or name another output"
            ) from None

    def release(self) -> None:
        """Release the run for another server."""
        self._file.close()


def is_locked(directory: Path) -> bool:
    """Return whether a server is running in a run's directory."""
    if not (directory / ".lock").exists():
        return False
    try:
        RunLock(directory).release()
    except ConfigError:
        return True
    return False
