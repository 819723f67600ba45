"""A run in another process on this console: its messages and rounds, from the files that its server writes."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from server.messaging.byte_counts import ByteCounts
from server.run.log import RoundReport
from server.run.log_file import RUN_LOG
from server.watch.log_tail import LogTail
from server.watch.progress import RunProgress
from server.watch.run_folder import RunFolder
from zo_common.console import printable

_EVERY = 0.5  # seconds between two looks
_STAMP = re.compile(r"\S+Z (?P<level>[A-Z]+) ")
_OF_A_ROUND = re.compile(r"(\[ROUND \d+\]|  [├└]──) ")  # a round's own lines, which the progress shows


class RunFollower:
    """Shows what is new in a run's folder until the block is left, as `zo-asr train` shows its own run.

    What was there before is not shown again. On a quiet console only warnings are shown.

    Args:
        folder: of the run; it need not exist yet.
        recent: messages from before that are shown first.
    """

    def __init__(self, folder: Path, progress: RunProgress, recent: int = 0) -> None:
        self._folder, self._log = RunFolder(folder), LogTail(folder / RUN_LOG)
        self._progress, self._level = progress, ""
        start, lines = self._log.read()
        self._shown_lines = max(0, start + len(lines) - recent)
        self._shown_round = self._folder.read().last_round
        self._ended = Event()
        self._thread = Thread(target=self._run, name="follow", daemon=True)

    def __enter__(self) -> RunFollower:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_EVERY):
            self.show_new()
        self.show_new()

    def show_new(self) -> None:
        """Show what is new."""
        start, lines = self._log.read()
        if start + len(lines) < self._shown_lines:  # another file
            self._shown_lines = 0
        for line in lines[max(0, self._shown_lines - start) :]:
            self._message(line)
        self._shown_lines = start + len(lines)
        found = self._folder.read()
        self._progress.num_rounds = found.target_rounds
        self._shown_round = min(
            self._shown_round, found.last_round
        )  # a resumed run repeats rounds that its ledger lacks
        held_out = {row["server_round"]: row for row in found.curve}
        for row in found.rounds:
            if row["server_round"] > self._shown_round:
                self._progress.round(_report(row, held_out.get(row["server_round"])))
                self._shown_round = row["server_round"]

    def _message(self, line: str) -> None:
        found = _STAMP.match(line)
        if found is not None:
            self._level, line = found["level"], line[found.end() :]
        if not _OF_A_ROUND.match(line):
            self._progress.say(printable(line), warning=self._level not in ("DEBUG", "INFO"))


def _report(row: dict[str, Any], evaluation: dict[str, Any] | None) -> RoundReport:
    """Return what the progress shows of a line of rounds.jsonl."""
    loss, up = row.get("loss"), row.get("up") or {}
    return RoundReport(
        row["server_round"],
        0.0,
        int(row.get("asked", 0)),
        int(row.get("answered", 0)),
        loss=float(loss) if loss is not None else None,
        up=ByteCounts(int(up.get("payload", 0))),
        seconds=float(row.get("seconds", 0.0)),
        evaluation=evaluation if evaluation and evaluation.get("loss") is not None else None,
    )
