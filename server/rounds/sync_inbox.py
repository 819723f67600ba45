"""Who holds the state after the last round: devices answer a plan that asks for nothing but to catch up."""

from __future__ import annotations

from server.messaging.foreign_text import plain
from zo_common.errors import CodecError
from zo_common.wire.plan import Plan, Status, decode_reply


class SyncInbox:
    """Collects the client ids of devices whose checksum is the plan's; `details` says what became of the others."""

    def __init__(self, plans: dict[int, Plan]) -> None:
        self._plans = plans
        self.behind: dict[int, int] = {}
        self.details: list[str] = []
        self.reached: set[int] = set()

    @property
    def accepted(self) -> int:
        """How many devices are there."""
        return len(self.reached)

    def put(self, node_id: int, data: bytes) -> None:
        """Take one node's bytes."""
        plan = self._plans[node_id]
        who = f"client {plan.client_id}"
        try:
            reply = decode_reply(data)
        except CodecError as error:
            self.refuse("malformed", f"{who}: {error}")
            return
        if reply.status is Status.BEHIND:
            self.behind[node_id] = reply.have_round
        elif reply.status is not Status.OK:
            self.refuse(reply.status.name, f"{who}: {plain(reply.message) or reply.status.name}")
        elif plan.checksum and reply.checksum != plan.checksum:
            self.refuse("wrong-checksum", f"{who} is at {reply.checksum:016x}, expected {plan.checksum:016x}")
        else:
            self.reached.add(plan.client_id)

    def refuse(self, reason: str, detail: str, node_id: int | None = None) -> None:
        """Note why a device is not there."""
        self.details.append(detail)
