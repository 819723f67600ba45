"""Who takes part: every node introduces itself once, before any training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.run_log import ByteCounts
from zo_common.errors import ConfigError

CONTENT = "zo"
DESCRIPTION = ("fingerprint", "base_checksum", "tensors")


def serialised_size(content: RecordDict) -> int:
    """Bytes of Flower's protobuf of a message's content."""
    from flwr.common.serde import recorddict_to_proto

    return int(recorddict_to_proto(content).ByteSize())


@dataclass
class Introductions:
    """What introductions cost and told: bytes both ways, and recordings that devices skipped as bad."""

    down: ByteCounts = field(default_factory=ByteCounts)
    up: ByteCounts = field(default_factory=ByteCounts)
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """One device: Flower's node id, our client id, how many utterances it trains on, what it said of its base."""

    node_id: int
    client_id: int
    num_examples: int
    description: dict[str, Any]


def wait_for_nodes(grid: Grid, least: int, timeout: float) -> list[int]:
    """Node ids once at least `least` are connected.

    Raises:
        ConfigError: too few after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= least:
            return nodes
        if time.monotonic() > deadline:
            raise ConfigError(f"{len(nodes)} devices are connected after {timeout:g} s, min-clients is {least}")
        time.sleep(0.5)


class _Roll:
    """Takes the devices' answers one by one and sorts them into members and problems."""

    def __init__(self, told: Introductions) -> None:
        self.members: dict[int, Member] = {}
        self.stop = False
        self._told = told
        self._description: dict[str, Any] = {}
        self._problems: list[str] = []
        self._refusals: dict[str, list[str]] = {}

    def take(self, answer: Message) -> None:
        """One node's answer, whatever it is."""
        node = answer.metadata.src_node_id
        if answer.has_error():
            self._problems.append(f"node {node} did not answer ({answer.error.reason})")
            return
        try:
            payload = bytes(answer.content.config_records[CONTENT]["hello"])  # type: ignore[arg-type]
            self._told.up.add(len(payload), serialised_size(answer.content))
            self._read(node, json.loads(payload))
        except (KeyError, TypeError, ValueError) as error:
            self._problems.append(f"node {node} introduced itself with malformed bytes ({error})")

    def _read(self, node: int, word: dict[str, Any]) -> None:
        if "error" in word:
            self.stop = self.stop or bool(word.get("stop"))
            self._refusals.setdefault(str(word["error"]), []).append(str(word.get("client_id")))
            return
        member = Member(node, int(word["client_id"]), int(word["num_examples"]), self._shared(word))
        if not 0 <= member.client_id < 1 << 64 or member.num_examples < 1:
            self._problems.append(f"node {node} claims client id {member.client_id} and {member.num_examples} examples")
            return
        if int(word.get("skipped", 0)):
            self._told.skipped[str(member.client_id)] = int(word["skipped"])
        self.members[node] = member

    def _shared(self, word: dict[str, Any]) -> dict[str, Any]:
        """What a device says of its base model; devices that say the same share it, however many they are."""
        said = {key: value for key, value in word.items() if key in DESCRIPTION}
        if said != self._description:
            self._description = said
        return self._description

    def problems(self) -> list[str]:
        """One line for devices that say the same: virtual devices on one data set all see its faulty rows."""
        return self._problems + [
            f"device{'s' if len(who) > 1 else ''} {', '.join(who)}: {what}" for what, who in self._refusals.items()
        ]


def introduce(
    grid: Grid,
    nodes: Iterable[int],
    timeout: float,
    on_problem: Callable[[str], None],
    least: int = 1,
    told: Introductions | None = None,
) -> dict[int, Member]:
    """Ask every node who it is; those that cannot train are left out, with a word.

    Args:
        told: filled with the bytes of both ways and with skipped recordings.

    Raises:
        ConfigError: two nodes claim one client id, a simulated device has bad recordings, or fewer than `least`
            devices can train; says why they cannot.
    """
    messages = [
        Message(RecordDict({CONTENT: ConfigRecord({"hello": b""})}), dst_node_id=node, message_type=MessageType.QUERY)
        for node in nodes
    ]
    told = told or Introductions()
    for message in messages:
        told.down.add(0, serialised_size(message.content))
    roll = _Roll(told)
    for answer in grid.send_and_receive(messages, timeout=timeout):
        roll.take(answer)
    problems = roll.problems()
    for problem in problems:
        on_problem(problem)
    ids = [m.client_id for m in roll.members.values()]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ConfigError(f"two devices claim client id {twice}: set distinct client-id values in their node configs")
    if len(roll.members) < least or roll.stop:
        head = f"{len(roll.members)} of {len(messages)} devices can train, min-clients is {least}:"
        if roll.stop:
            head = "the data must be corrected before training starts (skip-bad=true trains on what is good):"
        raise ConfigError("\n  ".join([head, *(problems or ["no other device answered: are the clients running?"])]))
    return roll.members
