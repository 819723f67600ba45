"""A lock between processes on what is read, changed and written again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zo_common.binary.durable import PRIVATE


@contextmanager
def locked(path: Path, *, kept: bool = True) -> Iterator[None]:
    """Keep other processes out; the lock is `<name>.lock` beside the file, as each change replaces the file itself.

    Args:
        kept: leave the lock's file there for the next process; else it is `.<name>.lock`, and removed. All that share a
            lock must agree.

    Raises:
        OSError: the lock cannot be created.
    """
    whole = path.resolve()  # "." has no name
    lock = whole.parent / (f"{whole.name}.lock" if kept else f".{whole.name}.lock")
    descriptor = _taken(lock)
    while not is_at(descriptor, lock):  # the process that held it has removed it
        os.close(descriptor)
        descriptor = _taken(lock)
    try:
        yield
    finally:
        if not kept and not os.fstat(descriptor).st_size:  # a file with content is somebody's own
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _taken(lock: Path) -> int:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        os.fchmod(descriptor, PRIVATE)  # the umask may have taken what the next process needs
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the system releases it, however this process ends
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_at(descriptor: int, lock: Path) -> bool:
    """Return whether an open file is the one that is there: who held a lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False
