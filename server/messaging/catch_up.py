"""Payloads that bring a device that is behind up to date: plan, ledger records, or a snapshot in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from zo_common.errors import ZOError
from zo_common.ledger.record import Record
from zo_common.ledger.record_codec import encode_record
from zo_common.ledger.snapshot import encode_part, snapshot_part
from zo_common.wire.plan import Plan, encode_plan

logger = logging.getLogger(__name__)
_WEIGHTS_A_BYTE = 8  # a snapshot is rarely smaller: if fewer bytes of ledger are missing, none is made


@dataclass(frozen=True)
class Outgoing:
    """One payload for a device.

    Attributes:
        key: "plan" or "part", the payload's key in the message's record.
        final: whether it asks for the round's training; otherwise it only helps the device catch up, as "query.sync".
    """

    key: str
    payload: bytes
    final: bool


@dataclass
class _Transfer:
    """A snapshot that is being sent to one device; a later round continues after the last part."""

    server_round: int
    checksum: int
    data: bytes
    sent: int = 0
    acknowledged: int = 0


class CatchUp:
    """The history of a run, sent to devices in messages of bounded size.

    Args:
        limit: maximum bytes of ledger records or snapshot in one message; a larger single record is sent alone.
        weights: number of trained weights.
        snapshot: returns the present state's difference to the base model; None if the server holds no model.
    """

    def __init__(self, limit: int, weights: int, snapshot: Callable[[], bytes] | None) -> None:
        self._limit = limit
        self._least_snapshot = weights // _WEIGHTS_A_BYTE
        self._make = snapshot
        self._made: tuple[int, bytes] = (-1, b"")
        self._records: tuple[Record, ...] = ()
        self._ends = [0]  # bytes of all records up to a round
        self._transfers: dict[int, _Transfer] = {}

    def begin_round(self, records: tuple[Record, ...]) -> None:
        """Update the ledger's records so far."""
        for record in records[len(self._records) :]:
            self._ends.append(self._ends[-1] + len(encode_record(record)) + 4)
        self._records = records

    def acknowledge(self, client_id: int) -> None:
        """Record that a device has received the last part."""
        if transfer := self._transfers.get(client_id):
            transfer.acknowledged = transfer.sent

    def begin_again(self, client_id: int) -> None:
        """Start a round: parts without an acknowledgement are sent again; devices accept repeated parts."""
        if transfer := self._transfers.get(client_id):
            transfer.sent = transfer.acknowledged

    def start_over(self, client_id: int) -> None:
        """Record that a device has lost the parts of its snapshot."""
        self._transfers.pop(client_id, None)

    def next(self, plan: Plan, have: int) -> Outgoing:
        """Return the next payload for a device that has applied `have` rounds; `plan.client_id` identifies it."""
        target = plan.server_round - 1
        transfer = self._transfers.get(plan.client_id)
        if transfer is not None and have >= transfer.server_round:
            del self._transfers[plan.client_id]
            transfer = None
        if have >= target:
            return Outgoing("plan", encode_plan(replace(plan, records=())), final=True)
        if transfer is None:
            transfer = self._smaller_snapshot(plan, self._ends[target] - self._ends[have])
        if transfer is not None and (part := self._next_part(plan, transfer)) is not None:
            return part
        end = have + 1
        while end < target and self._ends[end + 1] - self._ends[have] <= self._limit:
            end += 1
        records = self._records[have:end]
        if end == target:
            return Outgoing("plan", encode_plan(replace(plan, records=records)), final=True)
        piece = replace(plan, server_round=end + 1, checksum=records[-1].checksum, records=records)
        return Outgoing("plan", encode_plan(piece), final=False)

    def _smaller_snapshot(self, plan: Plan, missing: int) -> _Transfer | None:
        """Start sending a snapshot of the present state if it is smaller than the missing records."""
        target = plan.server_round - 1
        if self._make is None or missing <= self._least_snapshot:
            return None
        if self._made[0] != target and not self._make_one(target):
            return None
        if len(self._made[1]) >= missing:
            return None
        transfer = _Transfer(target, plan.checksum, self._made[1])
        self._transfers[plan.client_id] = transfer
        return transfer

    def _make_one(self, target: int) -> bool:
        assert self._make is not None
        try:
            self._made = target, self._make()
        except (ZOError, OSError, MemoryError) as error:
            self._make = None
            logger.warning(f"no snapshot can be made ({error}): devices that are behind are sent the ledger")
            return False
        self._least_snapshot = max(self._least_snapshot, len(self._made[1]))  # not worth it for a shorter history
        return True

    def _next_part(self, plan: Plan, transfer: _Transfer) -> Outgoing | None:
        part = snapshot_part(
            transfer.data,
            transfer.sent,
            base_id=plan.base_id,
            client_id=plan.client_id,
            server_round=transfer.server_round,
            checksum=transfer.checksum,
            limit=self._limit,
        )
        if transfer.sent == part.parts:  # all parts were sent without success: fall back to the ledger
            self.start_over(plan.client_id)
            return None
        transfer.sent += 1
        return Outgoing("part", encode_part(part), final=False)
