"""A lock between processes on what is read, changed and written again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zo_common.binary.durable import PRIVATE


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out; the lock is `<name>.lock` beside the file, as each change replaces the file itself.

    Raises:
        OSError: the lock cannot be created.
    """
    lock = path.with_name(path.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        os.fchmod(descriptor, PRIVATE)  # the umask may have taken what the next process needs
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the system releases it, however this process ends
        yield
    finally:
        os.close(descriptor)
