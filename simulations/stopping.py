"""SIGINT and SIGTERM in a simulation: the round in flight is given up, everything ends, the ledger stays whole.

Flower runs the server in a thread and waits in the main thread for devices in Ray's processes. An exception in the main
thread would leave the server waiting for a round that nobody answers, and end Ray under threads that wait for it. So a
signal is a request:

1. The handler notes it; the server raises `GivenUp` at its next look at the grid or next step of long work.
2. Once the server has let its ledger go, Ray's workers are killed, whatever they compute: Flower's threads return.
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
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds.events import Events

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORKERS = b"ray::ClientAppActor"


class Interrupted(KeyboardInterrupt):
    """A signal ended a simulation: nothing of it runs any more, and the ledger has all rounds before.

    Attributes:
        number: the signal's; a command's exit status is 128 more.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class GivenUp(Exception):
    """The server gives the round in flight up: it was asked to."""


class Stop:
    """A request to stop that a signal makes; a context manager that handles signals in the main thread.

    Args:
        message: what to tell the user in the end.
        grace: seconds after which, or at a second signal, the process ends whatever it computes; 0 waits for the
            server's next look, and leaves the process to its owner.
        put_away: what to remove before the process is ended.
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
        """Handle signals; again once Ray has started, whose own handler prints where the process is."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as a shell starts what is in the background
                    self._before.setdefault(number, signal.signal(number, self.request))

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def request(self, number: int, frame: object = None) -> None:
        """Ask for the end; as a signal handler."""
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
        """Raises GivenUp once the end was asked for."""
        if self.number:
            raise GivenUp

    def raise_if_asked(self) -> None:
        """Raises Interrupted once the end was asked for; nothing may be running any more."""
        if self.number:
            raise Interrupted(self.number, self._message())

    def watched(self, events: Events) -> Events:
        """Events that look for a request in the middle of long work."""

        def on_stage(label: str, done: int, total: int) -> None:
            self.check()
            events.on_stage(label, done, total)

        return replace(events, on_stage=on_stage)

    def server(self, app: ServerApp) -> ServerApp:
        """The app on a grid that looks for a request; it leaves no worker computing behind once it was asked to end."""
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

    def _end_at_once(self) -> None:
        _kill(b"")
        with suppress(Exception):  # nothing may keep the process
            self._put_away()
            _say(self._message())
        os._exit(128 + self.number)


class _WatchedGrid:
    """A grid whose every call looks for a request to stop, before and after."""

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
            self._stop.check()  # the signal may have reached the devices too, whose answers are errors then
            return answer

        return call


@contextmanager
def ray_out_of_signals(**init: Any) -> Iterator[None]:
    """Ray, started by a thread that outlives the work: in the main thread it would take SIGTERM's handler for itself.

    The kernel kills what Ray starts when the thread that started it ends.
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
    """Kill the processes under this one whose title starts so; what waits for their answers gets an error."""
    for process in _descendants(os.getpid()):
        with suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(title):
                os.kill(process, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    """Processes below one, as Linux tells; none elsewhere, where a step is waited for."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def _say(message: str) -> None:
    """One line on stderr, whatever a signal has interrupted."""
    with suppress(OSError):
        os.write(2, f"{message}\n".encode(errors="replace"))
