"""Plans out, replies in: one round's messages over Flower's Grid, with a deadline and catch-up of devices behind."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.roster import CONTENT, serialised_size
from server.run_log import ByteCounts
from zo_common.contribution import Record
from zo_common.messages import Plan, encode_plan

_POLL_SECONDS = 0.2, 2.0  # at least, at most
_POLL_SHARE = 0.1
PUSH_BYTES = 32 << 20  # payload of the messages held at once
_CATCH_UPS = 3  # behind → older rounds → checksum off → all rounds


def pause(took: float) -> float:
    """Seconds to wait between two looks for answers, of which the last took that long.

    A look costs time in proportion to the devices that are waited for. With a thousand of them on one machine, looking
    as often as possible would take a core from those that compute.
    """
    least, most = _POLL_SECONDS
    return min(most, max(least, took / _POLL_SHARE))


class Inbox(Protocol):
    """Where replies go: `server.validation.RoundInbox` or `server.client_evaluation.EvaluationInbox`."""

    behind: dict[int, int]

    def put(self, node_id: int, data: bytes) -> None: ...

    def refuse(self, reason: str, detail: str) -> None: ...


class Exchange:
    """Sends plans to nodes and fills an inbox until all have answered or the deadline has passed."""

    def __init__(self, grid: Grid, timeout: float, message_type: str = MessageType.TRAIN) -> None:
        self._grid = grid
        self._timeout = timeout
        self._message_type = message_type
        self.down = ByteCounts()
        self.up = ByteCounts()

    def run(self, plans: dict[int, Plan], inbox: Inbox, records: tuple[Record, ...]) -> None:
        """One round: every node gets its plan; one that is behind gets the rounds it lacks and another chance.

        Args:
            records: all rounds of the ledger.
        """
        deadline = time.monotonic() + self._timeout
        waiting = plans
        for _ in range(_CATCH_UPS):
            inbox.behind.clear()
            sent = self._push(waiting)
            for _ in range(len(waiting) - len(sent)):
                inbox.refuse("no-answer", "a device's plan could not be sent")
            self._collect(sent, inbox, deadline)
            waiting = {n: replace(plans[n], records=records[have:]) for n, have in inbox.behind.items()}
            if not waiting or time.monotonic() > deadline:
                break
        for node in inbox.behind:
            inbox.refuse("behind", f"client {plans[node].client_id} did not catch up in time")

    def _push(self, plans: dict[int, Plan]) -> set[str]:
        """Hand plans to Flower in slices of bounded size: those of all devices together may not fit in memory."""
        pushed: set[str] = set()
        messages: list[Message] = []
        held = 0
        for node, plan in plans.items():
            payload = encode_plan(plan)
            content = RecordDict({CONTENT: ConfigRecord({"plan": payload})})
            self.down.add(len(payload), serialised_size(content))
            messages.append(
                Message(content, dst_node_id=node, message_type=self._message_type, group_id=str(plan.server_round))
            )
            held += len(payload)
            if held >= PUSH_BYTES:
                pushed |= self._hand_over(messages)
                messages, held = [], 0
        return pushed | self._hand_over(messages)

    def _hand_over(self, messages: list[Message]) -> set[str]:
        return {str(i) for i in self._grid.push_messages(messages) if i} if messages else set()

    def _collect(self, pending: set[str], inbox: Inbox, deadline: float) -> None:
        while pending:
            asked = time.monotonic()
            answers = list(self._grid.pull_messages(pending))
            took = time.monotonic() - asked
            for answer in answers:
                pending.discard(answer.metadata.reply_to_message_id)
            self._take(answers, inbox)
            if time.monotonic() > deadline:
                for _ in pending:
                    inbox.refuse("no-answer", "a device did not answer before the round's deadline")
                return
            if pending:
                time.sleep(pause(took))

    def _take(self, answers: Iterable[Message], inbox: Inbox) -> None:
        for answer in answers:
            node = answer.metadata.src_node_id
            if answer.has_error():
                inbox.refuse("no-answer", f"node {node}: {answer.error.reason}")
                continue
            try:
                payload = answer.content.config_records[CONTENT]["reply"]
            except KeyError:
                payload = b""
            data = payload if isinstance(payload, bytes) else b""
            self.up.add(len(data), serialised_size(answer.content))
            inbox.put(node, data)
