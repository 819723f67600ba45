"""Live progress of a run: a bar with round, loss, bytes sent and time left."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from server.run.log import RoundReport
from zo_common.console import LineHandler, shown

if TYPE_CHECKING:
    from server.rounds.federation import Events
    from zo_common.config.run import RunConfig


def headline(name: str, config: RunConfig, devices: str = "") -> str:
    """Return a line on what a run is going to do; `devices` are its devices in words, where it is known."""
    return (
        f"{name}: {f'{devices}, ' if devices else ''}{config.num_server_rounds} rounds of {config.local_steps} step(s) "
        f"x {config.num_queries} queries ({config.estimator}), batch {config.batch_size}, "
        f"trained: {config.trained_tensors}" + ("" if config.needs_text else f", objective: {config.objective}")
    )


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


class RunProgress:
    """A rich progress display driven by a federation's events, with messages above it; use it as a context manager.

    On a quiet console only warnings are shown, on stderr.

    Args:
        starting: what is done before the first round, in words; a moving bar shows them until then. "" shows none.

    Attributes:
        num_rounds: of the whole run.
    """

    def __init__(self, console: Console, num_rounds: int, starting: str = "") -> None:
        self._console = console
        self.num_rounds = num_rounds
        self._sent = 0
        self._task: TaskID | None = None
        self._shown = ExitStack()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,  # a log file gets one line per round instead
        )
        self._starting = self._progress.add_task(starting, total=None, text="") if starting else None

    def __enter__(self) -> RunProgress:
        self._shown.enter_context(self._progress)
        handler = LineHandler(self.say if not self._console.quiet else _warn)
        if self._console.quiet:
            handler.setLevel(logging.WARNING)
        self._shown.enter_context(shown(handler))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.close()

    def events(self) -> Events:
        """Return hooks for `Federation`."""
        from server.rounds.federation import Events  # imported here: who follows a run elsewhere loads no torch

        return Events(on_round=self.round, on_stage=self.track)

    def say(self, message: str, *, warning: bool = False) -> None:
        """Print a line above the bar; on a quiet console only a warning, on stderr."""
        if not self._console.quiet:
            self._progress.console.print(message, highlight=False, markup=False)
        elif warning:
            _warn(message)

    def track(self, label: str, done: int, total: int) -> None:
        """Show a bar for a stage other than rounds (decoding, synthesis)."""
        found = next((t for t in self._progress.tasks if t.description == label), None)
        key = self._progress.add_task(label, total=total, text="") if found is None else found.id
        if found is not None and found.finished:  # the stage repeats, like a guard's check
            self._progress.reset(key, total=total)
        self._progress.update(key, completed=done, total=total)

    def _text(self, report: RoundReport) -> str:
        """Return the text beside the bar after a round."""
        without = "no loss is sent" if report.answered else "no valid reply"
        loss = f"loss {report.loss:.3f}" if report.loss is not None else without
        message = f"{loss}, {self._sent} B up"
        return f"{message}, held-out loss {report.evaluation['loss']:.3f}" if report.evaluation else message

    def round(self, report: RoundReport) -> None:
        """Show a round that has ended."""
        self._sent += report.up.payload
        if self._task is None:
            if self._starting is not None:
                self._progress.remove_task(self._starting)
            self._task = self._progress.add_task("rounds", total=self.num_rounds, text="", completed=0)
        message = self._text(report)
        self._progress.update(self._task, total=self.num_rounds, completed=report.server_round, text=message)
        if not self._console.is_terminal:
            self.say(f"round {report.server_round}/{self.num_rounds}: {message}, {report.seconds:.1f} s")
