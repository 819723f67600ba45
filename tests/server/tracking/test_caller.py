"""Calls of a tracker: in order and from one thread, and a run that no tracker ends or holds up."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from threading import Event, Thread, current_thread

import pytest

from server.tracking.caller import TrackerCaller
from server.tracking.tracker import RunFacts, Tracker
from server.tracking.tracking import Tracking
from zo_common.config.run import RunConfig


class Threads(Tracker):
    """Remembers the threads that call it."""

    def __init__(self) -> None:
        self.seen: list[Thread] = []

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        self.seen.append(current_thread())


class Hanging(Tracker):
    """Does not return from a warning until the test ends."""

    name = "hanging"

    def __init__(self) -> None:
        self.calls = 0
        self.end = Event()

    def on_warning(self, server_round: int, message: str) -> None:
        self.calls += 1
        self.end.wait()


def _round(tracker: Tracker) -> None:
    tracker.on_round(1, {})


def test_all_calls_come_from_one_thread_also_those_within_a_call() -> None:
    tracker = Threads()
    caller = TrackerCaller(tracker)

    caller.call(_round)
    caller.call(lambda found: caller.call(_round))
    caller.close()

    assert len(tracker.seen) == 2 and len(set(tracker.seen)) == 1
    assert tracker.seen[0] is not current_thread()


def test_a_tracker_that_ends_the_program_is_an_error() -> None:
    caller = TrackerCaller(Tracker())

    with pytest.raises(RuntimeError, match="it raised SystemExit"):
        caller.call(lambda tracker: sys.exit(3))
    with pytest.raises(OSError, match="no space left"):
        caller.call(_full)
    caller.close()


def _full(tracker: Tracker) -> None:
    raise OSError("no space left")


def test_a_tracker_that_hangs_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    hanging = Hanging()

    with Tracking(RunConfig(), [hanging], patience=0.1) as tracking:
        tracking.begin(RunFacts(Path(), {}, {}, 3, resumed=True))
        for message in ("first", "second"):
            logging.getLogger("server.rounds.federation").warning(message)

    assert hanging.calls <= 1  # none yet, if its thread is slow to begin
    dropped = "hanging gets no more of this run: TimeoutError: a call has not returned within 0.1 s"
    assert caplog.text.count(dropped) == 1
    hanging.end.set()
