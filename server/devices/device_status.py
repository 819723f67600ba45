"""Status of each device: when it is asked again, whether it must rebuild its weights, whether it is excluded.

A resumed server reads it from `devices.json`, so that it asks the same devices; without this file all start with a
clean status.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from server.devices.back_off import MOST_SKIPPED_WAITING, WAITED_FOR, skipped
from server.devices.evidence import Evidence
from server.run.log import write_whole
from zo_common.checked import STRICT, read_values

logger = logging.getLogger(__name__)
DEVICES_NAME = "devices.json"
DRIFT = frozenset({"wrong-checksum", "client-checksum"})
_NOT_ITS_FAULT = frozenset({"late", "duplicate", "no-majority"})
_MOST_SKIPPED = 32


@dataclass
class DeviceStatus:
    """One device as the server has seen it; bytes are sums of payloads since the server started.

    Attributes:
        have_round: the last ledger round that the device reported as applied.
        last_seen_round: the last round it answered in, validly or not.
        failures, waits: rounds in a row that failed by its fault, and in which it was busy or catching up.
        until_round: it is not asked before this round.
        scalars: statistics of its scalars compared with the other devices'.
    """

    __pydantic_config__ = STRICT
    client_id: int
    node_id: int = 0
    name: str = ""
    have_round: int = 0
    last_seen_round: int = 0
    payload_up: int = 0
    payload_down: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    waits: int = 0
    drifts: int = 0
    until_round: int = 0
    excluded: bool = False
    word: str = ""
    scalars: Evidence = field(default_factory=Evidence)

    def describe(self, server_round: int) -> dict[str, Any]:
        """Return the device's entry for devices.json."""
        entry = asdict(self)
        backing_off = self.until_round > server_round
        entry["refused"] = dict(self.refused)
        entry["standing"] = "excluded" if entry.pop("excluded") else "backing-off" if backing_off else "ok"
        return entry


class DeviceStatuses:
    """Status of every client that was ever a member, by client id."""

    def __init__(self) -> None:
        self._of: dict[int, DeviceStatus] = {}

    def of(self, client_id: int) -> DeviceStatus:
        """Return the client's status; a clean one if the client is new."""
        return self._of.setdefault(client_id, DeviceStatus(client_id))

    def __iter__(self) -> Iterator[DeviceStatus]:
        return iter(self._of.values())

    def may_be_asked(self, client_id: int, server_round: int) -> bool:
        """Return whether the client is neither excluded nor backing off."""
        status = self.of(client_id)
        return not status.excluded and status.until_round <= server_round

    def answered(self, client_id: int, server_round: int) -> None:
        """Record a valid answer: resets the counts of failures and drift."""
        status = self.of(client_id)
        status.failures = status.waits = status.drifts = status.until_round = 0
        status.have_round = max(server_round - 1, 0)
        status.last_seen_round = server_round
        status.word = ""

    def failed(self, client_id: int, server_round: int, reason: str, detail: str) -> None:
        """Record a failure. From the third in a row on, the client skips 1, 2, 4 … 32 rounds, or 8 if it was busy."""
        status = self.of(client_id)
        status.refused[reason] += 1
        status.word = detail
        if reason != "no-answer":
            status.last_seen_round = server_round
        if reason in _NOT_ITS_FAULT:
            return
        if reason in WAITED_FOR:
            status.waits += 1
            times, most = status.waits, MOST_SKIPPED_WAITING
        else:
            status.failures += 1
            times, most = status.failures, _MOST_SKIPPED
        if rounds := skipped(times, most):
            status.until_round = server_round + 1 + rounds

    def drifted(self, client_id: int) -> bool:
        """Record weights that differ from the server's; True: it must rebuild, False: it did so and is excluded."""
        status = self.of(client_id)
        if status.drifts:
            reason = "its weights were off again after a rebuild: check its base model, memory and release"
            self.exclude(client_id, reason)
        elif not status.excluded:
            logger.warning(f"device {client_id} must rebuild from its base model")
        return not status.excluded

    def exclude(self, client_id: int, reason: str) -> None:
        """Ask the client no more in this run."""
        status = self.of(client_id)
        status.excluded, status.word = True, reason
        logger.warning(f"device {client_id} is excluded: {reason}")

    def rebuilt(self, client_id: int) -> None:
        """Record that the client reported a rebuild of its weights."""
        self.of(client_id).drifts += 1

    def save(self, directory: Path, server_round: int) -> None:
        """Write `devices.json` for people and `zo-asr server status`."""
        devices = [s.describe(server_round) for s in sorted(self._of.values(), key=lambda s: s.client_id)]
        text = json.dumps({"server_round": server_round, "devices": devices}, indent=1)
        write_whole(directory / DEVICES_NAME, text + "\n")

    def load(self, directory: Path, last_round: int) -> None:
        """Read what an earlier server wrote, if it is of this or an earlier round; ignore anything else."""
        try:
            found = json.loads((directory / DEVICES_NAME).read_text())
            if int(found["server_round"]) > last_round:
                return
            known = [_status(entry) for entry in found["devices"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return
        self._of = {status.client_id: status for status in known}

    def excluded(self, client_ids: Iterable[int]) -> list[int]:
        """Return those of the given clients that are excluded."""
        return [client for client in client_ids if self.of(client).excluded]


def _status(entry: dict[str, Any]) -> DeviceStatus:
    """Parse an entry of devices.json.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the entry is malformed.
    """
    excluded = entry.pop("standing") == "excluded"
    return read_values(DeviceStatus, entry | {"excluded": excluded})
