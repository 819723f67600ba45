"""Handling of SIGINT and SIGTERM in a simulation: the current round is abandoned, and the ledger stays valid.

Flower runs the server in a thread and waits in the main thread for devices in Ray's processes. An exception in the main
thread would leave the server waiting for answers that never come, and end Ray while threads wait for it. So a signal is
a request:

1. The handler records it; the server raises `GivenUp` at its next call of the grid or next step of a long task.
2. Once the server has closed its ledger, Ray's workers are killed, and Flower's threads return.
3. Flower ends Ray in its usual way, and the caller gets `Interrupted`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TextIO, cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds.events import Events

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORKERS = b"ray::ClientAppActor"


class Interrupted(KeyboardInterrupt):
    """A signal ended a simulation; its processes have ended, and the ledger has all earlier rounds.

    Attributes:
        number: the signal's number; a command's exit status is this plus 128.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class GivenUp(Exception):
    """Raised in the server to abandon the current round on request."""


class Stop:
    """A stop request that a signal sets; a context manager that handles signals in the main thread.

    Args:
        message: function that returns the final message to the user.
        grace: seconds after which, or at a second signal, the process is killed; 0 waits for the server's next call
            of the grid, and never kills the process.
        put_away: cleanup before the process is killed.
    """

    def __init__(
        self, message: Callable[[], str] = str, grace: float = 0.0, put_away: Callable[[], None] = lambda: None
    ) -> None:
        self.number = 0
        self._put_away = put_away
        self._message = message
        self._grace = grace
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Stop:
        self.listen()
        return self

    def listen(self) -> None:
        """Install the signal handlers; repeated once Ray has started, which installs its own."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # ignored signals: a background job of a shell
                    self._before.setdefault(number, signal.signal(number, self.request))

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def request(self, number: int, frame: object = None) -> None:
        """Request the stop; the signal handler."""
        if self.number and self._grace:
            self._end_at_once()
        if self.number:
            return
        self.number = number
        _say("stopping: the round in flight is given up")
        if self._grace:
            self._timer = threading.Timer(self._grace, self._end_at_once)
            self._timer.daemon = True
            self._timer.start()

    def check(self) -> None:
        """Raise GivenUp if a stop was requested."""
        if self.number:
            raise GivenUp

    def raise_if_asked(self) -> None:
        """Raise Interrupted if a stop was requested; called when everything has ended."""
        if self.number:
            raise Interrupted(self.number, self._message())

    def watched(self, events: Events) -> Events:
        """Return events that check for a stop request during long tasks."""

        def on_stage(label: str, done: int, total: int) -> None:
            self.check()
            events.on_stage(label, done, total)

        return replace(events, on_stage=on_stage)

    def server(self, app: ServerApp) -> ServerApp:
        """Wrap the app with a grid that checks for a stop request; on a stop, no worker keeps computing."""
        watched = ServerApp()

        @watched.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                app(_WatchedGrid(grid, self), context)  # type: ignore[arg-type]
            finally:
                if self.number:
                    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it would print a traceback for each worker
                    _kill(_WORKERS)

        return watched

    def quieted(self, stream: TextIO) -> TextIO:
        """Return a stream that drops, once a stop was requested, Ray's lines about workers that are killed here.

        Ray writes them to `sys.stdout` whatever `log_to_driver` says.
        """
        return cast(TextIO, _QuietedStream(stream, self))

    def _end_at_once(self) -> None:
        _kill(b"")
        with suppress(Exception):  # no error may keep the process alive
            self._put_away()
            _say(self._message())
        os._exit(128 + self.number)


class _QuietedStream:
    """`print` writes a line and its end in two calls; both are dropped."""

    def __init__(self, stream: TextIO, stop: Stop) -> None:
        self._stream, self._stop, self._dropped = stream, stop, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        was_dropped = self._dropped and text == "\n"
        self._dropped = bool(self._stop.number) and "(raylet)" in text
        return len(text) if self._dropped or was_dropped else self._stream.write(text)


class _WatchedGrid:
    """A grid that checks for a stop request before and after every call."""

    def __init__(self, grid: Grid, stop: Stop) -> None:
        self._grid, self._stop = grid, stop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._grid, name)
        if not callable(found):
            return found

        @wraps(found)
        def call(*arguments: Any, **named: Any) -> Any:
            self._stop.check()
            answer = found(*arguments, **named)
            self._stop.check()  # the signal may have reached the devices too; their answers are then errors
            return answer

        return call


@contextmanager
def ray_out_of_signals(**init: Any) -> Iterator[None]:
    """Start Ray in a thread that lives as long as the run: in the main thread, Ray would replace SIGTERM's handler.

    The kernel kills Ray's processes when the thread that started them ends.
    """
    import ray

    over = threading.Event()
    started: list[BaseException | None] = []
    ready = threading.Event()

    def keep() -> None:
        try:
            ray.init(**init)
            started.append(None)
        except BaseException as error:
            started.append(error)
        ready.set()
        over.wait()

    thread = threading.Thread(target=keep, name="ray", daemon=True)
    thread.start()
    ready.wait()
    try:
        if started[0] is not None:
            raise started[0]
        yield
    finally:
        ray.shutdown()
        over.set()
        thread.join()


def _kill(title: bytes) -> None:
    """Kill child processes whose title has this prefix; callers that wait for their answers get an error."""
    for process in _descendants(os.getpid()):
        with suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(title):
                os.kill(process, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    """Return the descendants of a process, from Linux's /proc; empty on other systems."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def _say(message: str) -> None:
    """Write one line to stderr; safe in a signal handler."""
    with suppress(OSError):
        os.write(2, f"{message}\n".encode(errors="replace"))
