"""The looks of a guard: lines of a log that is written ahead of the ledger, from which a resumed run goes on."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from server.guards.guard import Contributions, Guard
from server.run.log import read_rows
from server.run.state import RunState
from zo_common.binary.durable import write_durably
from zo_common.config.run import RunConfig
from zo_common.errors import ChecksumMismatch, ConfigError
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record import Record

logger = logging.getLogger(__name__)
LOG_NAME = "guard.jsonl"
Look = TypeVar("Look")


def negated(records: tuple[Record, ...]) -> Contributions:
    """What takes rounds back: all their contributions with the sign of their coefficients changed, the last first."""
    return tuple(replace(c, coefficients=-c.coefficients) for record in reversed(records) for c in record.contributions)


def check_state(checksum: int, ledger: Ledger, server_round: int) -> None:
    """Raises ChecksumMismatch unless weights of this checksum are those after `server_round`."""
    good = ledger.records[server_round - 1].checksum if server_round else ledger.header.base_checksum
    if checksum != good:
        raise ChecksumMismatch(
            f"undoing the rounds after {server_round} before round {ledger.last_round + 1} is recorded leads to "
            f"checksum {checksum:016x}, expected {good:016x}: the server's memory is damaged, resume the run"
        )


class LoggedGuard(Guard, ABC, Generic[Look]):
    """A guard whose every look is a line of `guard.jsonl`, on disk before the round that it decides is in the ledger.

    Args:
        of: which speech it looks at, and how; looks at other speech cannot be compared.
    """

    _state: RunState

    def __init__(self, config: RunConfig, of: str) -> None:
        super().__init__(config)
        self._of = of
        self._path = Path(config.output) / LOG_NAME
        self._rows: list[dict[str, Any]] = []
        self._best: Look | None = None
        self._good_round = 0  # after which the weights were last those of a good look
        self._refusals = 0

    @abstractmethod
    def _row_of(self, found: Look, *, good: bool) -> dict[str, Any]:
        """A look as fields of a line of the log."""

    @abstractmethod
    def _read_row(self, row: dict[str, Any]) -> Look | None:
        """Inverse of `_row_of`; None of a bad look. Raises KeyError, TypeError, ValueError for anything else."""

    @abstractmethod
    def _remember_good(self, server_round: int, found: Look) -> None:
        """Take a good look into the best of them."""

    def begin(self, state: RunState) -> None:
        """Take up a run, with the looks that its log has of the ledger's rounds."""
        self._state = state
        if state.resumed and self._path.exists():
            self._take_up(state.ledger.ledger.last_round)

    def _take_up(self, last: int) -> None:
        """The looks at rounds that are in the ledger: a crash may have come between a look and its round's record."""
        try:
            found = read_rows(self._path)
            for row in found:
                if row["server_round"] <= last:
                    self._take_up_row(row)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError(
                f"{self._path} holds a line that is not a look of the guard: move the file away, and the weights as "
                "they are count as good"
            ) from None
        if len(self._rows) < len(found):  # a later round of that number is another one
            self._write(last)

    def _take_up_row(self, row: dict[str, Any]) -> None:
        """Remember a line of the log. Raises KeyError, TypeError, ValueError where it is none."""
        server_round, good, of = row["server_round"], row["good"], row["of"]
        after = row.get("after", 0)
        if not (type(server_round) is type(after) is int and 0 <= after <= server_round and type(good) is bool):
            raise TypeError("a field is of another type")
        found = self._read_row(row)
        self._rows.append(row)
        if of == self._of:
            self._remember(server_round, found if good else None)

    @property
    def taken_back(self) -> list[tuple[int, int]]:
        """First and last round of each stretch that was undone, the last one being the record that undid the others."""
        bad = [row for row in self._rows if not row["good"]]
        return [(row.get("after", row["server_round"] - 1) + 1, row["server_round"]) for row in bad]

    def summary(self) -> dict[str, Any] | None:
        """As `Guard.summary`."""
        looks = [{key: row[key] for key in ("server_round", "good")} for row in self._rows]
        return {"of": self._of, "looks": looks, "taken_back": self.taken_back}

    def _note(self, server_round: int, found: Look, *, good: bool, **more: Any) -> None:
        if not good:
            more["after"] = self._good_round
        self._remember(server_round, found if good else None)
        row = {"server_round": server_round, "good": good, "of": self._of} | self._row_of(found, good=good) | more
        self._rows.append(row)
        self._write(server_round)

    def _write(self, server_round: int) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, "".join(json.dumps(row) + "\n" for row in self._rows).encode())
        except OSError as error:  # a resumed run then starts from what is there
            logger.warning(f"round {server_round}: {self._path} is not written: {error.strerror}")

    def _remember(self, server_round: int, good: Look | None) -> None:
        """After a bad look the round's record has led back: its weights are those of the last good look, too."""
        self._good_round = server_round
        self._refusals = self._refusals + 1 if good is None else 0
        if good is not None:
            self._remember_good(server_round, good)
