"""One damaged input against one reader: it returns or raises what it may, in bounded time and memory."""

from __future__ import annotations

import random
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fuzz_edits import Edit, edited, random_edits
from fuzz_target import Target

SECONDS = 5  # of this process's own time for one input
BYTES_EACH = 200  # allocated for a byte of input, beyond the target's allowance


class Failure(Exception):
    """A reader that did what it must not; the message says what, `data` with which bytes."""

    def __init__(self, word: str, data: bytes) -> None:
        super().__init__(f"{word}; input of {len(data)} bytes: {data[:400].hex()}")
        self.data = data


@contextmanager
def _no_hang(data: bytes) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Failure(f"more than {SECONDS} s", data)

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def feed(target: Target, data: bytes, *, weigh: bool) -> bool:
    """Give the reader these bytes, wrapped; whether it accepted them.

    Args:
        weigh: whether to measure memory too, which takes several times as long.

    Raises:
        Failure: another error than the target may raise, too much time or too much memory.
    """
    wrapped = target.wrap(data)
    if weigh:
        tracemalloc.start()
    try:
        with _no_hang(wrapped):
            target.read(wrapped)
        accepted = True
    except Failure:
        raise
    except target.errors:
        accepted = False
    except BaseException as error:
        raise Failure(f"{type(error).__name__}: {error}"[:500], wrapped) from error
    finally:
        peak = tracemalloc.get_traced_memory()[1] if weigh else 0
        tracemalloc.stop()
    bound = target.allowance + BYTES_EACH * max(len(data), len(wrapped))
    if peak > bound:
        raise Failure(f"{peak} bytes allocated, at most {bound} were expected", wrapped)
    return accepted


def damaged(target: Target, edits: list[Edit], rng: random.Random) -> bytes:
    """A valid input of the target after these edits."""
    return edited(rng.choice(target.seeds), edits, rng.choice(target.seeds))


def draw(target: Target, rng: random.Random) -> bytes:
    """A random damaged input."""
    return damaged(target, random_edits(rng, target.is_json), rng)
