"""One attempt at a round: who was asked, what came back, and with whom another attempt may succeed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from server.devices.roster import Member
from server.devices.selection import Able
from server.messaging.exchange import Exchange
from server.messaging.validation import RoundInbox
from zo_common.errors import RunStopped
from zo_common.secure_sum.device import LEAST_COHORT
from zo_common.wire.plan import Plan


@dataclass(frozen=True)
class Attempt:
    """One attempt at a round.

    Attributes:
        plans: of the devices that were asked, by node.
        inbox: their replies.
        exchange: the bytes of all messages.
        summed: number of devices in the secure sum that was opened.
        faulty: devices that made it impossible, by client id, with what they did.
        others: nodes that may be asked again, where some device made it impossible.
    """

    plans: dict[int, Plan]
    inbox: RoundInbox
    exchange: Exchange
    summed: int = 0
    faulty: dict[int, str] = field(default_factory=dict)
    others: set[int] = field(default_factory=set)

    def members_again(self, server_round: int, chosen: list[Member], least: int, able: Able | None) -> list[Member]:
        """Return the devices of another attempt; none where this one came to an end, or with too few of them.

        Args:
            chosen: the members of the first attempt.
            least: the fewest replies that count.
            able: returns those of the members that the round's number may still be asked of.
        """
        again = [member for member in chosen if member.node_id in self.others]
        try:
            again = able(server_round, again) if able and again else again
        except RunStopped:  # their budget is spent
            return []
        return again if len(again) >= max(LEAST_COHORT, least) else []

    def after(self, first: Attempt) -> Attempt:
        """Return this attempt with what is to be recorded of an earlier one at the same round."""
        inbox = self.inbox
        inbox.refused.update(first.inbox.refused)
        inbox.details[:0] = first.inbox.details
        inbox.failed = first.inbox.failed | inbox.failed
        self.exchange.traffic.include(first.exchange.traffic)
        return replace(self, plans=first.plans, faulty=first.faulty | self.faulty)
