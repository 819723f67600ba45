"""The round log rounds.jsonl, with bytes of payloads and of serialised messages."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from server.messaging.byte_counts import ByteCounts

INTRODUCTIONS = "introductions.jsonl"
ROUNDS = "rounds.jsonl"
SETTINGS_LOG = "settings.jsonl"
GUARD_LOG = "guard.jsonl"
CURVE = "curve.jsonl"
EVALUATION = "evaluation.json"
BEFORE, AFTER = "transcripts-before.jsonl", "transcripts-after.jsonl"
ON_DEVICES = {BEFORE: "devices-before.jsonl", AFTER: "devices-after.jsonl"}
_ELSEWHERE = "evaluation", "scalars"  # fields of a report that are in other files


@dataclass
class RoundReport:
    """One line of rounds.jsonl; bytes are sums over the round's clients. Lines of other files are left out of it.

    Attributes:
        suspected: client id → report on its scalars (`server.devices.suspicion`).
        told: client id → message of a device that answered, such as how it computes its loss, and why.
        closing: for a record that the guard added, the state that it leads to: "good" (the guard's last good check),
            "best", "average", or "last".
        evaluation: a line of curve.jsonl.
        scalars: numbers of the round's lines in steps.jsonl and guard.jsonl, by name.
    """

    server_round: int
    learning_rate: float
    asked: int
    answered: int
    loss: float | None = None
    epsilon_spent: float | None = None
    checksum: str = ""
    down: ByteCounts = field(default_factory=ByteCounts)
    up: ByteCounts = field(default_factory=ByteCounts)
    refused: Counter[str] = field(default_factory=Counter)
    suspected: dict[str, str] = field(default_factory=dict)
    zero_quanta_share: float = 0.0
    ledger_bytes: int = 0
    seconds: float = 0.0
    told: dict[str, str] = field(default_factory=dict)
    closing: str = ""
    evaluation: dict[str, Any] | None = None
    scalars: dict[str, float] = field(default_factory=dict)


class RunLog:
    """Appends rounds to `<output>/rounds.jsonl`, keeps totals, and drops rounds that a resumed run repeats."""

    def __init__(self, directory: Path, resume_after: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / ROUNDS
        self.rows: list[dict[str, Any]] = []
        self._torn = False
        if self.path.exists():
            rows = filter(_is_row, read_rows(self.path))
            self.rows = [row for row in rows if row["server_round"] <= resume_after]
        logged = {row["server_round"] for row in self.rows}
        # a crash between ledger and log loses a row: the round is valid, but its bytes are unknown
        self.rows += [_lost(r) for r in range(1, resume_after + 1) if r not in logged]
        self.rows.sort(key=lambda row: int(row["server_round"]))
        write_rows(self.path, self.rows)

    def add_introduction(self, introductions: dict[str, Any], *, resumed: bool) -> None:
        """Add a line to introductions.jsonl, once per server start: bytes of the devices' introductions."""
        path = self.path.with_name(INTRODUCTIONS)
        write_rows(path, [*(read_rows(path) if resumed and path.exists() else []), introductions])

    def append(self, report: RoundReport) -> None:
        """Write one round; after a failure, the next call writes all rounds again.

        Raises:
            OSError: the file cannot be written, e.g. because the disk is full.
        """
        row = _row_of(report)
        self.rows.append(row)
        if self._torn:
            write_rows(self.path, self.rows)
            self._torn = False
            return
        self._torn = True  # until the whole line is written
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json(row) + "\n")
            file.flush()
        self._torn = False

    def total(self, direction: str, kind: str = "payload") -> int:
        """Return the bytes of all rounds and clients; direction "up" or "down"."""
        return sum(int(row[direction][kind]) for row in self.rows)


def _is_row(row: dict[str, Any]) -> bool:
    """Return whether a row has the fields that are summed, sorted and told; otherwise its round counts as lost."""
    number, rate = row.get("server_round"), row.get("learning_rate")
    told = row.get("told", {})
    return has_bytes(row) and type(number) is int and type(rate) in (int, float) and isinstance(told, dict)


def has_bytes(row: dict[str, Any]) -> bool:
    """Return whether a row has the bytes of payloads and messages, both ways."""
    bytes_of = [row.get(direction) for direction in ("up", "down")]
    counts = [each.get(kind) for each in bytes_of if isinstance(each, dict) for kind in ("payload", "serialised")]
    return len(counts) == 4 and all(type(number) is int for number in counts)


def _lost(server_round: int) -> dict[str, Any]:
    return _row_of(RoundReport(server_round, 0.0, 0, 0)) | {"lost": True}


def _row_of(report: RoundReport) -> dict[str, Any]:
    row = {name: value for name, value in asdict(report).items() if name not in _ELSEWHERE}
    return row | {"refused": dict(report.refused)}  # asdict rebuilds a Counter with pairs for keys


def write_whole(path: Path, text: str) -> None:
    """Replace a file atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    write_whole(path, _json(value, indent=1) + "\n")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace a file of JSON lines atomically."""
    write_whole(path, "".join(_json(row) + "\n" for row in rows))


def _json(value: Any, indent: int | None = None) -> str:
    """Serialise to JSON without escaping non-ASCII letters; only file names that are not valid text are escaped."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode(errors="backslashreplace").decode()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines up to the first malformed one, which a crash may leave."""
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows
