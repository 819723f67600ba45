"""Progress on stderr, out of the way of results on stdout: a bar, or a spinner where there is nothing to count."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

PATIENCE = 2.0  # seconds without a bar


def working(what: str) -> Status:
    """Return a context that shows words with a spinner, on a terminal alone: imports, loading of a model."""
    return Console(stderr=True).status(what)


class Bar:
    """Appears after two seconds of work, on a terminal alone; use it as a context manager.

    Args:
        what: the words before it.
        total: of the whole work, in any unit.
        console: where it is drawn; stderr by default.

    Attributes:
        drawn: whether it has appeared.
    """

    def __init__(self, what: str, total: float, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        # results go to a stdout of their own, which may be a file: rich must not draw them into the bar's terminal
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(what, total=max(total, 1e-9))
        self._started = time.monotonic()
        self.drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.drawn:
            self._bar.stop()

    def at(self, done: float, total: float | None = None, what: str | None = None) -> None:
        """So much is done; `total` changes the whole, `what` the words."""
        self._bar.update(self._task, completed=done, total=total, description=what)
        if not self.drawn and self._console.is_terminal and time.monotonic() - self._started > PATIENCE:
            self.drawn = True
            self._bar.start()

    def after(self, before: float) -> Callable[[float, float], None]:
        """Return a callback (done, total) of a part of the work that follows what is done `before` it."""
        return lambda done, total: self.at(before + done)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Out of the way of what is printed in this block."""
        if self.drawn:
            self._bar.stop()
        yield
        sys.stdout.flush()
        if self.drawn:
            self._bar.start()
