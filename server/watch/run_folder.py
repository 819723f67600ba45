"""The state of a run, read from its folder while its server writes there, or after the end."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from server.devices.device_status import DEVICES_NAME
from server.run.lock import is_locked
from server.run.log import CURVE, EVALUATION, GUARD_LOG, ROUNDS, SETTINGS_LOG
from server.run.log_file import RUN_LOG
from server.watch.json_files import JsonLines, JsonTable
from zo_common.ledger.layout import CHAIN_BYTES, LEDGER_NAME

_FILES = (ROUNDS, CURVE, GUARD_LOG, SETTINGS_LOG, EVALUATION, DEVICES_NAME, LEDGER_NAME, RUN_LOG)
Status = Literal["running", "finished", "stopped", "new"]
Rows = list[dict[str, Any]]
_ROUND: dict[str, Any] = {
    "asked": int,
    "answered": int,
    "refused": dict,
    "seconds": (int, float),
    "loss": (int, float, NoneType),
    "up": dict,
    "down": dict,
}
_MEASURED: dict[str, Any] = {
    "loss": (int, float, NoneType),
    "wer": (int, float),
    "cer": (int, float),
    "utterances": int,
    "headline": str,
}


@dataclass(frozen=True)
class RunNow:
    """A run at one time; rows are as their files hold them.

    Attributes:
        status: "stopped" if there are rounds, no server and no end: killed, or stopped by a user.
        rounds: of rounds.jsonl.
        curve: evaluations of the held-out split, of curve.jsonl.
        checks: of guard.jsonl.
        devices: of devices.json.
        settings: of the last start, by kebab-case keys.
        verdict: what is wrong with the result of a finished run; empty if nothing is.
        head: the ledger's chain value after the last round, 32 hexadecimal digits; empty if unknown.
        changed: seconds since the epoch of the last change of the ledger; 0 without one.
        started: the same of the server's last start; 0 if unknown.
    """

    name: str
    status: Status = "new"
    rounds: Rows = field(default_factory=list)
    curve: Rows = field(default_factory=list)
    checks: Rows = field(default_factory=list)
    devices: Rows = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""
    ledger_bytes: int = 0
    head: str = ""
    changed: float = 0.0
    started: float = 0.0

    @property
    def last_round(self) -> int:
        """The last round in the log; 0 before the first."""
        return int(self.rounds[-1]["server_round"]) if self.rounds else 0

    @property
    def target_rounds(self) -> int:
        """The rounds that the settings ask for; 0 if unknown."""
        found = self.settings.get("num-server-rounds")
        return found if type(found) is int else 0

    @property
    def epsilon_spent(self) -> float | None:
        """The largest ε of any device; None without privacy."""
        found = [row["epsilon_spent"] for row in self.rounds if row.get("epsilon_spent") is not None]
        return float(found[-1]) if found else None

    @property
    def epsilon_limit(self) -> float | None:
        """`target-epsilon`; None without privacy."""
        if self.settings.get("privacy", "none") == "none":
            return None
        found = self.settings.get("target-epsilon")
        return float(found) if isinstance(found, (int, float)) else 0.0


class RunFolder:
    """Reads a run's folder, each time only what is new in its logs; it writes nothing.

    Args:
        name: what the run is called; by default the folder's name.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.path = path
        self.name = os.fsencode(name or path.absolute().name).decode(errors="backslashreplace")  # need not be UTF-8
        self._rounds, self._curve = JsonLines(path / ROUNDS), JsonLines(path / CURVE)
        self._checks, self._settings = JsonLines(path / GUARD_LOG), JsonLines(path / SETTINGS_LOG)
        self._end, self._devices = JsonTable(path / EVALUATION), JsonTable(path / DEVICES_NAME)

    def read(self) -> RunNow:
        """Return the run as it is now."""
        rounds = [row for row in self._rounds.read() if _has(row, _ROUND)]
        end = self._end.read()
        starts = self._settings.read()
        size, changed, head = self._ledger(rounds)
        status, verdict = self._status(rounds, end, changed), end.get("verdict")
        return RunNow(
            name=self.name,
            status=status,
            rounds=rounds,
            curve=[row for row in self._curve.read() if _has(row, _MEASURED)],
            checks=[row for row in self._checks.read() if _has(row, _MEASURED)],
            devices=_devices(self._devices.read()),
            settings=_inner(starts[-1], "settings") if starts else {},
            verdict=verdict if status == "finished" and isinstance(verdict, str) else "",
            ledger_bytes=size,
            head=head,
            changed=changed,
            started=_changed(self.path / SETTINGS_LOG),
        )

    def signature(self) -> tuple[object, ...]:
        """Return what differs as soon as `read`, or the server's log, would say something else."""
        return (is_locked(self.path), *(_stamp(self.path / name) for name in _FILES))

    def _status(self, rounds: Rows, end: dict[str, Any], changed: float) -> Status:
        if is_locked(self.path):
            return "running"
        if not end:
            return "stopped" if rounds else "new"
        last = rounds[-1].get("checksum") if rounds else ""
        if last and end.get("checksum"):  # of an earlier end, if the run went on
            return "finished" if end["checksum"] == last else "stopped"
        ended = _changed(self.path / EVALUATION)
        return "finished" if ended and ended >= changed else "stopped"

    def _ledger(self, rounds: Rows) -> tuple[int, float, str]:
        """Return the ledger's bytes, its last change and its chain value after the last round of the log."""
        try:
            with (self.path / LEDGER_NAME).open("rb") as file:
                found = (self.path / LEDGER_NAME).stat()
                end = rounds[-1].get("ledger_bytes") if rounds else 0
                if not (type(end) is int and CHAIN_BYTES <= end <= found.st_size):
                    end = found.st_size
                file.seek(max(0, end - CHAIN_BYTES))
                return found.st_size, found.st_mtime, file.read(CHAIN_BYTES).hex()
        except OSError:
            return 0, 0.0, ""


def _has(row: dict[str, Any], kinds: dict[str, Any]) -> bool:
    """Return whether a row has its round, and the fields that are shown are of their types, where they are given."""
    shown = all(isinstance(row[name], kind) for name, kind in kinds.items() if name in row)
    return shown and type(row.get("server_round")) is int


def _changed(path: Path) -> float:
    """Return when a file was changed, in seconds since the epoch; 0 without one."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return inode, size and time of a file; zeros without one."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _inner(row: dict[str, Any], key: str) -> dict[str, Any]:
    found = row.get(key)
    return found if isinstance(found, dict) else {}


def _devices(table: dict[str, Any]) -> Rows:
    found = table.get("devices")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return [row for row in rows if type(row.get("client_id")) is int and isinstance(row.get("refused", {}), dict)]
