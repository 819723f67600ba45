"""A lock that allows one server per run: two would overwrite each other's rounds in the ledger."""

from __future__ import annotations

import fcntl
import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from zo_common.binary.locked import is_at
from zo_common.errors import ConfigError

_PROBED_SECONDS = 0.05  # at most, between attempts while others only look


class RunLock:
    """An advisory lock on a run's directory; the operating system releases it when the process ends.

    Who only looks whether a server runs (`is_locked`) holds the file shared for a moment: a start then tries again. A
    directory that the lock made, and that holds nothing else when it is released, is removed.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._path, self._made = directory / ".lock", False
        while True:
            self._made = _make(directory) or self._made
            try:
                self._file = self._path.open("w")
            except FileNotFoundError:
                refuse_dangling(self._path)
                continue  # another run has just removed the directory
            self._take()
            if is_at(self._file.fileno(), self._path):
                return
            self._file.close()

    def _take(self) -> None:
        while not _take(self._file, fcntl.LOCK_EX):
            if not _take(self._file, fcntl.LOCK_SH):
                self._file.close()
                raise ConfigError(
                    f"another server is running in {self._path.parent}: stop it first, or name another output"
                )
            fcntl.flock(self._file, fcntl.LOCK_UN)
            time.sleep(random.uniform(0.0, _PROBED_SECONDS))  # two that start at once must not meet for ever

    def release(self) -> None:
        """Release the run for another server."""
        if self._file.closed:
            return
        if self._made:
            with suppress(OSError):  # it is left as it is
                if [each.name for each in self._path.parent.iterdir()] == [self._path.name]:
                    self._path.unlink()
                    self._path.parent.rmdir()
        self._file.close()


def refuse_dangling(path: Path) -> None:
    """Refuse a path that cannot be made: at it or above it is a link to what is not there, or a file for a folder.

    Raises:
        ConfigError: names it.
    """
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if there.is_dir() or (there == path and there.exists()):
        return
    what = "a link to a folder that is not there" if there.is_symlink() else "not a folder"
    raise ConfigError(f"{path} cannot be written ({there} is {what}): name another output, or make that folder")


def _make(directory: Path) -> bool:
    """Make a directory, and return whether it was not there."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


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
