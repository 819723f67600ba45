"""The checks of a guard in a write-ahead log, from which a resumed run continues."""

from __future__ import annotations

import json
import logging
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from server.guards.guard import Contributions, Guard
from server.run.log import GUARD_LOG, read_rows
from server.run.state import RunState
from zo_common.binary.durable import write_durably
from zo_common.config.run import RunConfig
from zo_common.errors import ChecksumMismatch, ConfigError
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record import Record

logger = logging.getLogger(__name__)
Check = TypeVar("Check")


def negated(records: tuple[Record, ...]) -> Contributions:
    """Return the contributions that undo rounds: theirs with negated coefficients, the last first."""
    return tuple(replace(c, coefficients=-c.coefficients) for record in reversed(records) for c in record.contributions)


def check_state(checksum: int, ledger: Ledger, server_round: int) -> None:
    """Raise ChecksumMismatch unless the checksum is that of the weights after `server_round`."""
    good = ledger.records[server_round - 1].checksum if server_round else ledger.header.base_checksum
    if checksum != good:
        raise ChecksumMismatch(
            f"undoing the rounds after {server_round} before round {ledger.last_round + 1} is recorded leads to "
            f"checksum {checksum:016x}, expected {good:016x}: the server's memory is damaged, resume the run"
        )


class LoggedGuard(Guard, ABC, Generic[Check]):
    """A guard with a log `guard.jsonl`: each check is on disk before the ledger has the round that it decides on.

    Args:
        of: the speech that it checks, and the measure; checks on other speech cannot be compared.
    """

    _state: RunState

    def __init__(self, config: RunConfig, of: str) -> None:
        super().__init__(config)
        self._of = of
        self._path = Path(config.output) / GUARD_LOG
        self._rows: list[dict[str, Any]] = []
        self._best: Check | None = None
        self._good_round = 0  # after which the weights were last those of a good check
        self._refusals = 0

    @abstractmethod
    def _row_of(self, found: Check, *, good: bool) -> dict[str, Any]:
        """Return a check as fields of a log line."""

    @abstractmethod
    def _read_row(self, row: dict[str, Any]) -> Check | None:
        """Inverse of `_row_of`; None for a bad check. Raises KeyError, TypeError, ValueError for a malformed row."""

    @abstractmethod
    def _remember_good(self, server_round: int, found: Check) -> None:
        """Update the best good check with another good one."""

    def _change(self, found: Check) -> tuple[float, float] | None:
        """Return the change of the loss since the last good check, and its standard error; None if unknown."""
        return None

    def begin(self, state: RunState) -> None:
        """Start guarding a run, with the logged checks of rounds that are in the ledger."""
        self._state = state
        if state.resumed and self._path.exists():
            self._take_up(state.ledger.ledger.last_round)

    def _take_up(self, last: int) -> None:
        """Read the checks of rounds that are in the ledger: a crash may come between a check and its round's record."""
        try:
            found = read_rows(self._path)
            for row in found:
                if row["server_round"] <= last:
                    self._take_up_row(row)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError(
                f"{self._path} holds a line that is not a check of the guard: move the file away, and the weights as "
                "they are count as good"
            ) from None
        if len(self._rows) < len(found):  # a later round with the same number is a different one
            self._write(last)

    def _take_up_row(self, row: dict[str, Any]) -> None:
        """Process a log line. Raises KeyError, TypeError, ValueError if it is malformed."""
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
        """First and last round of each undone range; the last one is the record that undid the others."""
        bad = [row for row in self._rows if not row["good"]]
        return [(row.get("after", row["server_round"] - 1) + 1, row["server_round"]) for row in bad]

    def summary(self) -> dict[str, Any] | None:
        """As `Guard.summary`."""
        looks = [{key: row[key] for key in ("server_round", "good")} for row in self._rows]
        return {"of": self._of, "looks": looks, "taken_back": self.taken_back}

    def scalars(self, server_round: int) -> dict[str, float]:
        """As `Guard.scalars`."""
        for row in reversed(self._rows):
            if row["server_round"] < server_round:
                break
            if row["server_round"] == server_round and "good" in row:
                found = {"good": row["good"], "loss": row.get("loss"), **row.get("health", {})}
                return {f"guard/{name}": float(value) for name, value in found.items() if value is not None}
        return {}

    def _note(self, server_round: int, found: Check, *, good: bool, **more: Any) -> None:
        change = self._change(found)
        if change is not None and all(map(math.isfinite, change)) and "closing" not in more:
            more["change"] = {"after": self._good_round, "mean": change[0], "error": change[1]}
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
        except OSError as error:  # a resumed run then starts from the lines that exist
            logger.warning(f"round {server_round}: {self._path} is not written: {error.strerror}")

    def _remember(self, server_round: int, good: Check | None) -> None:
        """Remember a check; after a bad one, the round's record has restored the weights of the last good one."""
        self._good_round = server_round
        self._refusals = self._refusals + 1 if good is None else 0
        if good is not None:
            self._remember_good(server_round, good)
