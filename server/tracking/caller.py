"""Calls of a tracker from a thread of its own, with a limit of time."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread, current_thread

from server.tracking.tracker import Tracker

PATIENCE = 120.0
"""Seconds for one call: trackers of a network try again for a while."""

Call = Callable[[Tracker], None]


class _Pending:
    """A call, and how it has ended."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.done = Event()
        self.error: BaseException | None = None


class TrackerCaller:
    """Calls one tracker, always from the same thread; a call that does not return does not hold up the run for ever.

    Args:
        seconds: limit of a call.

    Attributes:
        name: the tracker's name in warnings.
    """

    def __init__(self, tracker: Tracker, seconds: float = PATIENCE) -> None:
        self.name = tracker.name
        self._tracker, self._seconds = tracker, seconds
        self._calls: SimpleQueue[_Pending | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def call(self, call: Call) -> None:
        """Call the tracker and wait for its return.

        Raises:
            TimeoutError: it did not return in time; the thread is left to it.
            RuntimeError: it tried to end the program.
            Exception: as the tracker.
        """
        if current_thread() is self._thread:  # a warning of the server's that this tracker caused
            call(self._tracker)
            return
        pending = _Pending(call)
        self._calls.put(pending)
        if not pending.done.wait(self._seconds):
            raise TimeoutError(f"a call has not returned within {self._seconds:g} s")
        if isinstance(pending.error, Exception):
            raise pending.error
        if pending.error is not None:
            raise RuntimeError(f"it raised {type(pending.error).__name__}")

    def close(self) -> None:
        """End the thread once its calls have returned."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (pending := self._calls.get()) is not None:
            try:
                pending.call(self._tracker)
            except BaseException as error:  # a tracker's SystemExit as well: only its own thread would end
                pending.error = error
            pending.done.set()
