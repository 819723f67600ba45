"""End of a supervised run: bad checks halve the step and stop the run early; it ends with the best known state."""

from __future__ import annotations

import logging
import math
from typing import Any

from server.guards.closing import applied_records, averaged_rounds
from server.guards.guard import Progress
from server.guards.logged_guard import Check, LoggedGuard
from server.run.log import RoundReport
from zo_common.ledger.record import Record

logger = logging.getLogger(__name__)
_SMALLER = 0.5  # factor on the step after a bad check


class BestStateGuard(LoggedGuard[Check]):
    """Base of the guards of supervised runs, on the server's or the devices' held-out speech."""

    _stopped = False

    @property
    def final_round(self) -> int:
        """As `Guard.final_round`: the ledger's last round, once the run has ended or must end."""
        ended = self._closed or self._stuck or self._stopped
        return self._last_round if ended else self._config.num_server_rounds + self.closings

    @property
    def step_factor(self) -> float:
        """As `Guard.step_factor`: a factor of 0.5 for every bad check."""
        return _SMALLER ** len(self.taken_back)

    @property
    def closings(self) -> int:
        """As `Guard.closings`."""
        return sum(bool(row["closing"]["record"]) for row in self._closing_rows)

    def progress(self) -> list[Progress]:
        """As `Guard.progress`, of checks of the same speech."""
        found, bad = [], 0
        for row in self._rows:
            if (change := row.get("change")) and row["of"] == self._of:
                numbers = change["mean"], change["error"], _SMALLER**bad
                found.append(Progress(change["after"], row["server_round"], *numbers))
            bad += row.get("good") is False
        return found

    def stop(self) -> None:
        """As `Guard.stop`."""
        self._stopped = True

    @property
    def _closing_rows(self) -> list[dict[str, Any]]:
        return [row for row in self._rows if "closing" in row]

    @property
    def _last_round(self) -> int:
        return self._state.ledger.ledger.last_round

    @property
    def _stuck(self) -> bool:
        return self._refusals >= self._config.max_bad_rounds

    @property
    def _closed(self) -> bool:
        if not (rows := self._closing_rows):
            return False
        same: bool = rows[-1]["server_round"] == self._last_round
        return same and (self._stopped or self._config.num_server_rounds <= int(rows[-1]["closing"]["rounds"]))

    def _ending(self, chosen: str, why: str, losses: dict[str, float | None], *, record: bool) -> dict[str, Any]:
        """Log how the run ends and return it as fields of the log. After a stop, a resumed run continues from there.

        Args:
            losses: losses of the candidates.
            record: whether the ledger needs a further record to reach that state.
        """
        rounds = self._config.num_server_rounds
        if not self._stuck:
            rounds = min(rounds, self._last_round - self.closings)
        if self._stuck:
            logger.warning(f"guard: {self._config.max_bad_rounds} checks in a row were bad, the run ends early")
        logger.info(f"guard: the run ends with {why}")
        ending: dict[str, Any] = {"chosen": chosen, "record": record, "stopped": self._stuck or self._stopped}
        return ending | {"rounds": rounds, "why": why, "candidates": losses}

    def _report(self, number: int, closing: str) -> RoundReport:
        """Return the log line of a record that the guard added."""
        size = self._state.ledger.path.stat().st_size
        checksum = f"{self._state.checksum:016x}" if self._state.checksum else ""
        return RoundReport(number, 0.0, 0, 0, checksum=checksum, ledger_bytes=size, closing=closing)

    def _applied_records(self, after: int) -> tuple[Record, ...]:
        return applied_records(self._state.ledger.ledger.records, self.taken_back, after)

    def _averaged(self) -> tuple[Record, ...]:
        """Return the rounds whose states are averaged."""
        first = max([self._rows[0]["server_round"], *(row["server_round"] for row in self._closing_rows)])
        made = self._applied_records(first)
        return made[len(made) - averaged_rounds(len(made)) :]

    def summary(self) -> dict[str, Any] | None:
        """As `Guard.summary`: checks, undone rounds, the final state and why it was chosen."""
        rows = [row for row in self._rows if row["of"] == self._of and "good" in row]
        looks = [{key: row[key] for key in ("server_round", "good", "loss")} for row in rows if "closing" not in row]
        ends = {"start": rows[0]["loss"], "end": rows[-1]["loss"]} if rows else {}
        closing = self._closing_rows[-1]["closing"] if self._closed else None
        found = {"of": self._of, "looks": looks, "taken_back": self.taken_back}
        return found | ends | {"step_factor": self.step_factor, "closing": closing}


def check_change(row: dict[str, Any]) -> None:
    """Raise KeyError or TypeError if a row's change of the loss, where it has one, is malformed."""
    if (change := row.get("change")) is None:
        return
    after, numbers = change["after"], (change["mean"], change["error"])
    if not (type(after) is int and 0 <= after < row["server_round"]):
        raise TypeError("a change is of no round")
    if not all(type(number) is float and math.isfinite(number) for number in numbers):
        raise TypeError("a change of the loss is no number")


def check_closing(found: dict[str, Any]) -> None:
    """Raise KeyError or TypeError unless these are the fields that `_ending` returns."""
    if not (type(found["record"]) is type(found["stopped"]) is bool and type(found["rounds"]) is int):
        raise TypeError("a field of the run's end is of another type")
    if not (isinstance(found["chosen"], str) and isinstance(found["why"], str)):
        raise TypeError("a field of the run's end is no text")
