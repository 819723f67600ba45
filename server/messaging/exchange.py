"""Exchange of plans and replies over Flower's Grid, with a deadline and catch-up for devices that are behind."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.messaging.byte_counts import Traffic
from server.messaging.catch_up import CatchUp, Outgoing
from server.messaging.foreign_text import plain
from zo_common.errors import CodecError
from zo_common.wire.plan import Plan, Status, decode_reply, encode_plan

CONTENT = "zo"
SYNC, REBUILD, SECURE, CALIBRATE = "query.sync", "query.rebuild", "query.secure", "query.calibrate"
LOOK = "evaluate.look"
_POLL_SECONDS = 0.2, 2.0  # at least, at most
_POLL_SHARE = 0.1
PUSH_BYTES = 32 << 20  # payload of the messages in memory at once
_BEHIND_ANSWERS = 3  # behind → older rounds → checksum off → all rounds
SECONDS_LEFT = "seconds-left"
_TTL_SLACK = 900.0  # seconds: a device's clock may be off by minutes, and late answers are still counted


def serialised_size(content: RecordDict) -> int:
    """Return the size in bytes of a message's content as Flower's protobuf.

    This needs a module that is private to Flower. Its public methods count something else: `ConfigRecord.count_bytes`
    leaves out the protobuf's own bytes, and `deflate` makes the objects that Flower keeps in a store.
    """
    from flwr.common.serde import recorddict_to_proto

    return int(recorddict_to_proto(content).ByteSize())


def pause(seconds: float) -> float:
    """Return the seconds to wait before the next poll for answers.

    A poll takes time in proportion to the number of pending devices. With a thousand of them on one machine, polling
    as often as possible would occupy a core that devices need.

    Args:
        seconds: duration of the last poll.
    """
    least, most = _POLL_SECONDS
    return min(most, max(least, seconds / _POLL_SHARE))


class Inbox(Protocol):
    """Collector of replies: `server.messaging.validation.RoundInbox` or `server.rounds.inboxes.EvaluationInbox`."""

    behind: dict[int, int]

    @property
    def accepted(self) -> int: ...

    def put(self, node_id: int, data: bytes) -> None: ...

    def refuse(self, reason: str, detail: str, node_id: int | None = None) -> None: ...


@dataclass
class Late:
    """Messages of closed rounds whose answers may still arrive: message id → (node, round)."""

    waiting: dict[str, tuple[int, int]] = field(default_factory=dict)
    catching_up: dict[str, int] = field(default_factory=dict)

    def close(self, pending: dict[str, int], server_round: int, catching_up: dict[str, int]) -> None:
        """Close a round without these answers; those of nodes in `catching_up` (with client ids) only show progress."""
        self.waiting.update((name, (node, server_round)) for name, node in pending.items())
        self.catching_up |= catching_up

    def forget_before(self, server_round: int) -> None:
        """Stop waiting for answers of rounds before `server_round`."""
        self.waiting = {name: place for name, place in self.waiting.items() if place[1] >= server_round}
        self.catching_up = {name: client for name, client in self.catching_up.items() if name in self.waiting}


class Exchange:
    """Sends plans to nodes and fills an inbox until all, or enough, have answered or the deadline has passed.

    Attributes:
        traffic: bytes of this exchange.
    """

    def __init__(
        self,
        grid: Grid,
        timeout: float,
        catch_up: CatchUp,
        message_type: str = MessageType.TRAIN,
        late: Late | None = None,
        attached: Mapping[int, bytes] | None = None,
        also: Mapping[str, str] | None = None,
    ) -> None:
        self._grid = grid
        self._timeout = timeout
        self._catch_up = catch_up
        self._message_type = message_type
        self._late = late or Late()
        self._also = also or {}  # entries of every message (`server.rounds.calibration.message_entries`)
        self._attached = attached or {}  # entries of a training plan's message, by node (secure aggregation)
        self._pending: dict[str, int] = {}
        self._final: dict[str, bool] = {}
        self._behind: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._deadline = 0.0
        self.traffic = Traffic()

    def run(self, plans: dict[int, Plan], inbox: Inbox, first: Iterator[tuple[int, Outgoing]], enough: int = 0) -> None:
        """Run one round: every node gets its plan; one that is behind gets the missing rounds and then the plan again.

        Args:
            first: the first payloads, generated one by one: those of all devices together may not fit in memory.
            enough: number of valid answers after which the round closes; 0 waits for all.
        """
        self._deadline = deadline = time.monotonic() + self._timeout
        outgoing: Iterable[tuple[int, Outgoing]] = first
        while True:
            self._push(outgoing, plans, inbox)
            asked = time.monotonic()
            names = [*self._pending, *self._late.waiting]
            answers = list(self._grid.pull_messages(names)) if names else []
            seconds = time.monotonic() - asked
            outgoing = [out for answer in answers for out in self._receive(answer, plans, inbox)]
            if not (self._pending or outgoing):
                break
            if enough and inbox.accepted >= enough:
                # devices that are catching up continue although the round closes
                self._push([(node, out) for node, out in outgoing if not out.final], plans, inbox)
                break
            if time.monotonic() > deadline:
                self._give_up(plans, inbox, [node for node, _ in outgoing])
                break
            if not outgoing:
                time.sleep(pause(seconds))
        if plans:
            behind = {name: plans[node].client_id for name, node in self._pending.items() if not self._final[name]}
            self._late.close(self._pending, next(iter(plans.values())).server_round, behind)

    def _give_up(self, plans: dict[int, Plan], inbox: Inbox, catching_up: list[int]) -> None:
        for name, node in self._pending.items():
            if self._final[name]:
                inbox.refuse("no-answer", f"client {plans[node].client_id} did not answer in time", node)
            else:
                catching_up.append(node)
        for node in catching_up:
            inbox.refuse("catching-up", f"client {plans[node].client_id} is catching up, longer than the round", node)

    def _push(self, outgoing: Iterable[tuple[int, Outgoing]], plans: dict[int, Plan], inbox: Inbox) -> None:
        """Hand messages to Flower in slices of bounded size."""
        batch: list[tuple[int, Outgoing, Message]] = []
        size = 0
        for node, out in outgoing:
            left = max(1, round(self._deadline - time.monotonic()))  # after that, the answer is no longer awaited
            extra = {"secure": self._attached[node]} if out.final and node in self._attached else {}
            parts = ConfigRecord({out.key: out.payload, SECONDS_LEFT: left, **self._also, **extra})
            content = RecordDict({CONTENT: parts})
            payload = len(out.payload) + sum(map(len, extra.values()))
            self.traffic.sent(node, payload, serialised_size(content))
            message = Message(
                content,
                dst_node_id=node,
                message_type=self._message_type if out.final else SYNC,
                ttl=self._timeout + _TTL_SLACK,
                group_id=str(plans[node].server_round),
            )
            batch.append((node, out, message))
            size += len(out.payload)
            if size >= PUSH_BYTES:
                self._hand_over(batch, plans, inbox)
                batch, size = [], 0
        self._hand_over(batch, plans, inbox)

    def _hand_over(self, batch: list[tuple[int, Outgoing, Message]], plans: dict[int, Plan], inbox: Inbox) -> None:
        if not batch:
            return
        names = list(self._grid.push_messages([message for _, _, message in batch])) or [""] * len(batch)
        for (node, out, _), name in zip(batch, names, strict=True):
            if name:
                self._pending[str(name)] = node
                self._final[str(name)] = out.final
            else:
                inbox.refuse("no-answer", f"client {plans[node].client_id}: its plan could not be sent", node)

    def _receive(self, answer: Message, plans: dict[int, Plan], inbox: Inbox) -> list[tuple[int, Outgoing]]:
        """Process one answer; return what to send next to a device that is behind."""
        name = answer.metadata.reply_to_message_id
        if name in self._late.waiting:
            node, server_round = self._late.waiting.pop(name)
            if not answer.has_error():
                self.traffic.received(node, len(payload_of(answer)), serialised_size(answer.content))
                if (client := self._late.catching_up.pop(name, None)) is not None:
                    if is_ok(answer) is not None:
                        self._catch_up.acknowledge(client)
                    return []
                inbox.refuse("late", f"node {node} answered round {server_round} after it had closed")
            return []
        node = self._pending.pop(name, answer.metadata.src_node_id)
        if answer.has_error():
            inbox.refuse("no-answer", f"client {plans[node].client_id}: {plain(str(answer.error.reason))}", node)
            return []
        data = payload_of(answer)
        self.traffic.received(node, len(data), serialised_size(answer.content))
        if message := device_error(answer):
            inbox.refuse("device-error", f"client {plans[node].client_id}: {message}", node)
        elif self._final.get(name, True):
            inbox.put(node, data)
            if (have := inbox.behind.pop(node, None)) is not None:
                return self._bring_nearer(node, plans[node], have, inbox)
        else:
            return self._synced(node, plans[node], data, inbox)
        return []

    def _synced(self, node: int, plan: Plan, data: bytes, inbox: Inbox) -> list[tuple[int, Outgoing]]:
        try:
            reply = decode_reply(data)
        except CodecError as error:
            inbox.refuse("malformed", f"client {plan.client_id}: {error}", node)
            return []
        if reply.status is Status.OK:
            self._catch_up.acknowledge(plan.client_id)
            return self._go_on(node, plan, reply.have_round, inbox)
        if reply.status is Status.BEHIND:
            self._catch_up.start_over(plan.client_id)
            return self._bring_nearer(node, plan, reply.have_round, inbox)
        message = plain(reply.message) or reply.status.name
        inbox.refuse(reply.status.reason, f"client {plan.client_id}: {message}", node)
        return []

    def _go_on(self, node: int, plan: Plan, have: int, inbox: Inbox) -> list[tuple[int, Outgoing]]:
        out = self._catch_up.next(plan, have)
        if out.key == "plan" and have <= self._reached.get(node, -1):
            inbox.refuse("behind", f"client {plan.client_id} takes ledger rounds and has none more", node)
            return []
        if out.key == "plan":
            self._reached[node] = have
        return [(node, out)]

    def _bring_nearer(self, node: int, plan: Plan, have: int, inbox: Inbox) -> list[tuple[int, Outgoing]]:
        self._behind[node] = self._behind.get(node, 0) + 1
        if self._behind[node] >= _BEHIND_ANSWERS:
            inbox.refuse("behind", f"client {plan.client_id} is behind however often it gets what it lacks", node)
            return []
        return [(node, self._catch_up.next(plan, have))]


def first_plans(plans: dict[int, Plan]) -> Iterator[tuple[int, Outgoing]]:
    """Yield plans as first payloads, one by one."""
    return ((node, Outgoing("plan", encode_plan(plan), final=True)) for node, plan in plans.items())


def payload_of(answer: Message) -> bytes:
    """Return the packed reply of an answer; empty if there is none."""
    record = answer.content.config_records.get(CONTENT)
    payload = record.get("reply") if record is not None else None
    return payload if isinstance(payload, bytes) else b""


def device_error(answer: Message) -> str:
    """Return the error message of a device that cannot reply."""
    record = answer.content.config_records.get(CONTENT)
    message = record.get("error") if record is not None else None
    return plain(message) if isinstance(message, str) else ""


def ask(grid: Grid, messages: list[Message], timeout: float) -> list[Message]:
    """Send messages and return the answers that arrive within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pending = {str(name) for name in grid.push_messages(messages) if name} if messages else set()
    answers: list[Message] = []
    while pending:
        asked = time.monotonic()
        found = list(grid.pull_messages(pending))
        pending -= {answer.metadata.reply_to_message_id for answer in found}
        answers += found
        if time.monotonic() > deadline:
            break
        if pending:
            time.sleep(pause(time.monotonic() - asked))
    return answers


def is_ok(answer: Message) -> int | None:
    """Return the round that a device has applied, if it answers OK to a request without scalars; else None."""
    if answer.has_error():
        return None
    try:
        reply = decode_reply(payload_of(answer))
    except CodecError:
        return None
    return reply.have_round if reply.status is Status.OK else None
