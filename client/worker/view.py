"""A worker's status for people: a table, and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from zo_common.console import printable

_LOOK_SECONDS = 0.5


def show(status: dict[str, Any], console: Console | None = None) -> None:
    """Print a status as a table."""
    table = Table(show_header=False)
    for label, value in rows(status):
        table.add_row(label, Text(printable(value)))  # words of servers and of devices are no markup
    (console or Console(soft_wrap=True, highlight=False)).print(table)


def rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    """Return label and text of each row."""
    start = f", from a snapshot of round {status['start_round']}" if status["start_round"] else ""
    last, counts = status["last"], status["counts"]
    found = [
        ("model", f"{status['model']}  {status['fingerprint'][:16]}"),
        ("data", status["data"]),
        ("device", f"{status['device']}, {status['precision']}, {status['memory_bytes'] / 2**20:.0f} MiB"),
        ("round", f"{status['round']}{start}, checksum {status['checksum']}"),
        ("now", job_text(status["job"])),
        ("last", f"{last['kind']} round {last['round']}: {last['status']}, {last['at']}" if last else "nothing yet"),
        ("answers", ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"),
        ("state", status["state_folder"]),
    ]
    return [*found, ("unsaved", status["unsaved"])] if status["unsaved"] else found


def job_text(job: dict[str, Any] | None) -> str:
    """Return the work in progress in one line."""
    if job is None:
        return "idle"
    step = f", step {job['step']} of {job['steps']}" if job["steps"] else ""
    loss = f", loss {job['loss']:.4f}" if job["kind"] == "train" and job["step"] else ""
    rate = f", {job['queries_per_second']:.1f} queries/s" if job["queries_per_second"] else ""
    left = f", {job['seconds_left']:.0f} s left" if job["seconds_left"] >= 0 else ""
    return f"{job['kind']} round {job['server_round']}{step}{loss}{rate}{left}"


class Follower:
    """A progress bar of the work in progress, updated twice a second until Ctrl-C."""

    def __init__(self, console: Console | None = None) -> None:
        self._bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(), console=console or Console())
        self._task: TaskID = self._bar.add_task("", total=1)

    def __enter__(self) -> Follower:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def run(self, read_status: Callable[[], dict[str, Any]], times: int | None = None) -> None:
        """Read the status and draw the bar, `times` times or without end."""
        done = 0
        while times is None or done < times:
            job = read_status()["job"]
            total, step = (max(1, job["steps"]), job["step"]) if job else (1, 0)
            self._bar.update(self._task, description=job_text(job), total=total, completed=step)
            done += 1
            if times is None or done < times:
                time.sleep(_LOOK_SECONDS)
