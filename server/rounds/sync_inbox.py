"""Collector of answers to plans without training, which only let devices catch up with the last round."""

from __future__ import annotations

from server.messaging.foreign_text import plain
from zo_common.errors import CodecError
from zo_common.wire.plan import Plan, Status, decode_reply


class SyncInbox:
    """Collects client ids of devices whose checksum matches the plan's; `details` says why others do not."""

    def __init__(self, plans: dict[int, Plan]) -> None:
        self._plans = plans
        self.behind: dict[int, int] = {}
        self.details: list[str] = []
        self.reached: set[int] = set()

    @property
    def accepted(self) -> int:
        """Number of devices that hold the state."""
        return len(self.reached)

    def put(self, node_id: int, data: bytes) -> None:
        """Process one node's reply."""
        plan = self._plans[node_id]
        device = f"client {plan.client_id}"
        try:
            reply = decode_reply(data)
        except CodecError as error:
            self.refuse("malformed", f"{device}: {error}")
            return
        if reply.status is Status.BEHIND:
            self.behind[node_id] = reply.have_round
        elif reply.status is not Status.OK:
            self.refuse(reply.status.name, f"{device}: {plain(reply.message) or reply.status.name}")
        elif plan.checksum and reply.checksum != plan.checksum:
            self.refuse("wrong-checksum", f"{device} is at {reply.checksum:016x}, expected {plan.checksum:016x}")
        else:
            self.reached.add(plan.client_id)

    def refuse(self, reason: str, detail: str, node_id: int | None = None) -> None:
        """Record why a device does not hold the state."""
        self.details.append(detail)
