"""The roster of devices: every node introduces itself once, before its first training, at any time in the run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.devices.enrolment import Enrolment
from server.messaging.byte_counts import ByteCounts
from server.messaging.exchange import CONTENT, ask, serialised_size
from server.messaging.foreign_text import plain, printable
from server.messaging.validation import MAX_EXAMPLES
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError

logger = logging.getLogger(__name__)
DESCRIPTION = ("fingerprint", "base_checksum", "tensors")
_NEWCOMER_SECONDS = 60.0  # a round waits at most this long for devices that introduce themselves
_MOST_HELLO_BYTES = 4 << 20  # the list of a large model's tensors is about 100 kB
_FIRST_SECONDS = 120.0  # at least: after a server crash, nodes with pending messages stay blocked for a minute
_MOST_ROUNDS_APART = 32
_BUSY_PATIENCE, _MOST_BUSY_ROUNDS_APART = 3, 8  # of a device in another run
_MOST_FAULTS, _LONGEST_FAULT = 1000, 2000  # faults that a device may list, and characters in each
_MOST_NAMED = 8  # devices listed in one line


@dataclass
class Introductions:
    """Totals of introductions: bytes both ways, and recordings that devices skipped as bad."""

    down: ByteCounts = field(default_factory=ByteCounts)
    up: ByteCounts = field(default_factory=ByteCounts)
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """One device: Flower's node id, our client id, number of utterances, description of its base model, name."""

    node_id: int
    client_id: int
    num_examples: int
    description: dict[str, Any]
    name: str = ""


def wait_for_nodes(grid: Grid, least: int, timeout: float) -> list[int]:
    """Wait until at least `least` nodes are connected; return their ids.

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


class _Registrations:
    """Collects the devices' introductions and sorts them into members and problems."""

    def __init__(self, introductions: Introductions) -> None:
        self.members: dict[int, Member] = {}
        self.messages: dict[int, str] = {}
        self.busy: set[int] = set()  # in another run: they will be free again soon
        self.stop = False
        self._introductions = introductions
        self._description: dict[str, Any] = {}
        self._problems: list[str] = []
        self._refusals: dict[str, list[str]] = {}

    def take(self, answer: Message) -> None:
        """Process one node's answer."""
        node = answer.metadata.src_node_id
        if answer.has_error():
            self._problem(node, f"node {node} did not answer ({plain(str(answer.error.reason))})")
            return
        try:
            record = answer.content.config_records[CONTENT]
            if "error" in record:
                self._problem(node, f"node {node}: {plain(str(record['error']))}")
                return
            payload = record["hello"]
            if not isinstance(payload, bytes) or len(payload) > _MOST_HELLO_BYTES:
                raise ValueError(f"expected at most {_MOST_HELLO_BYTES} bytes")
            self._introductions.up.add(len(payload), serialised_size(answer.content))
            introduction = json.loads(payload)
            if not isinstance(introduction, dict):
                raise ValueError("expected a JSON object")
            self._read(node, introduction)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            self._problem(node, f"node {node} introduced itself with malformed bytes ({plain(str(error), 200)})")

    def _problem(self, node: int, message: str) -> None:
        self._problems.append(message)
        self.messages[node] = message

    def _read(self, node: int, introduction: dict[str, Any]) -> None:
        if "error" in introduction:
            self.stop = self.stop or bool(introduction.get("stop"))
            if introduction.get("busy") is True:
                self.busy.add(node)
            problem = printable(str(introduction["error"])[:20_000])
            name = plain(str(introduction.get("client_id")), 20)
            for fault in _faults(introduction) or [problem]:
                self._refusals.setdefault(fault, []).append(name)
            self.messages[node] = f"device {name}: {problem}"
            return
        client, examples, skipped = (introduction.get(key, 0) for key in ("client_id", "num_examples", "skipped"))
        if not all(type(number) is int for number in (client, examples, skipped)):
            raise ValueError("expected whole numbers")
        member = Member(
            node, client, examples, self._shared(introduction), plain(str(introduction.get("name", "")), 100)
        )
        if not (0 <= member.client_id < 1 << 64 and 1 <= member.num_examples <= MAX_EXAMPLES):
            claim = f"client id {member.client_id} and {member.num_examples} examples"
            self._problem(node, f"node {node} claims {claim}")
            return
        if skipped > 0:
            self._introductions.skipped[str(member.client_id)] = skipped
        self.members[node] = member

    def _shared(self, introduction: dict[str, Any]) -> dict[str, Any]:
        """Return a device's description of its base model; equal descriptions are one shared object."""
        description = {key: value for key, value in introduction.items() if key in DESCRIPTION}
        if description != self._description:
            self._description = description
        return self._description

    def problems(self) -> list[str]:
        """Return one line per distinct problem: virtual devices on one data set all see its faulty rows."""
        return self._problems + [f"{_devices(names)}: {problem}" for problem, names in self._refusals.items()]


def _faults(introduction: dict[str, Any]) -> list[str]:
    """Return the faults of a device's recordings, if it lists them."""
    problems = introduction.get("problems")
    if not isinstance(problems, list) or len(problems) > _MOST_FAULTS:
        return []
    return [printable(fault[:_LONGEST_FAULT]) for fault in problems if isinstance(fault, str)]


def _devices(names: list[str]) -> str:
    names = sorted(names, key=lambda name: (len(name), name))  # numeric order
    if len(names) > _MOST_NAMED:
        return f"{len(names)} devices ({', '.join(names[:_MOST_NAMED])}, …)"
    return f"device{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _register(
    grid: Grid, nodes: Iterable[int], timeout: float, introductions: Introductions, also: Mapping[str, str]
) -> _Registrations:
    content = ConfigRecord({"hello": b"", **also})
    queries = [
        Message(RecordDict({CONTENT: content}), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes
    ]
    for message in queries:
        introductions.down.add(0, serialised_size(message.content))
    registrations = _Registrations(introductions)
    for answer in ask(grid, queries, timeout):
        registrations.take(answer)
    return registrations


class Roster:
    """The devices of a run, and which of them are online.

    Attributes:
        members: by node id, all that introduced themselves with what this run needs.
        online: node ids that were connected when last checked.
        also: further entries of every question (`server.rounds.calibration.message_entries`).
        told: bytes of introductions both ways, and recordings that devices skipped.
    """

    def __init__(self, grid: Grid, config: RunConfig, enrolment: Enrolment | None = None) -> None:
        self.members: dict[int, Member] = {}
        self.online: set[int] = set()
        self.introductions = Introductions()
        self.also: Mapping[str, str] = {}
        self._grid = grid
        self._config = config
        self._enrolment = enrolment or Enrolment()
        self._registered: Mapping[int, int] | None = None
        self._again: dict[int, tuple[int, int, str]] = {}  # node → (round to ask again, times asked, last message)

    def start(self) -> None:
        """Wait for devices and let them introduce themselves; those that cannot train are left out with a warning.

        Raises:
            ConfigError: one of the operator's own devices has bad recordings, or fewer than `min-clients` devices can
                train; the message says why they cannot.
        """
        least, timeout = self._config.min_clients, self._config.round_timeout
        nodes = wait_for_nodes(self._grid, least, timeout)
        self.online = set(nodes)
        registrations = _register(self._grid, nodes, max(timeout, _FIRST_SECONDS), self.introductions, self.also)
        problems = registrations.problems()
        self.members = {}
        for node, member in sorted(registrations.members.items()):
            if message := self._take(member):
                registrations.messages[node] = message
                problems.append(message)
        stop = registrations.stop and self._enrolment.own_devices
        if len(self.members) < least or stop:
            head = f"{len(self.members)} of {len(nodes)} devices can train, min-clients is {least}:"
            if stop:
                head = "the data must be corrected before training starts (skip-bad=true trains on what is good):"
            raise ConfigError(
                "\n  ".join([head, *(problems or ["no other device answered: are the clients running?"])])
            )
        if len(self.members) < len(nodes):
            logger.warning(f"{len(nodes) - len(self.members)} of {len(nodes)} devices are left out, for these reasons")
        for problem in problems:
            logger.warning(problem)
        for node in set(nodes) - set(self.members):
            self._ask_again_later(node, 0, registrations.messages.get(node, ""), busy=node in registrations.busy)
        self._tell_skipped(self.members.values())

    def _tell_skipped(self, members: Iterable[Member]) -> None:
        for client in (str(member.client_id) for member in members):
            if count := self.introductions.skipped.get(client):
                logger.warning(f"device {client} skipped {count} bad recording{'s' if count > 1 else ''}")

    def leave_out(self, node: int, message: str, server_round: int = 0, *, busy: bool = False) -> None:
        """Take a device off the roster; it may introduce itself again some rounds later, a busy one sooner."""
        self.members.pop(node, None)
        if self._ask_again_later(node, server_round, message, busy=busy):
            logger.warning(f"{message}; it is left out")

    def _ask_again_later(self, node: int, server_round: int, message: str, *, busy: bool) -> bool:
        """Schedule the next introduction; return whether the message is new."""
        _, times, last = self._again.get(node, (0, 0, ""))
        pause = min(_MOST_ROUNDS_APART, 1 << min(times, _MOST_ROUNDS_APART))
        if busy:  # each introduction may take as long as a round waits for one
            pause = min(_MOST_BUSY_ROUNDS_APART, 1 << min(max(0, times - _BUSY_PATIENCE), _MOST_BUSY_ROUNDS_APART))
        self._again[node] = server_round + pause, times + 1, message
        return message != last

    def refresh_online(self) -> None:
        """Update `online` from the grid."""
        self.online = set(self._grid.get_node_ids())

    def refresh(self, server_round: int) -> list[Member]:
        """Update `online`; devices that are new, or were left out some rounds ago, introduce themselves.

        Returns:
            New members. The caller checks their base model and may `leave_out` them.
        """
        self.refresh_online()
        due = [n for n in sorted(self.online - self.members.keys()) if self._again.get(n, (0,))[0] <= server_round]
        if not due:
            return []
        timeout = min(_NEWCOMER_SECONDS, self._config.round_timeout)
        registrations = _register(self._grid, due, timeout, self.introductions, self.also)
        fresh = []
        for node in due:
            member = registrations.members.get(node)
            if member is None:
                message = registrations.messages.get(node, f"node {node} did not answer")
                self.leave_out(node, message, server_round, busy=node in registrations.busy)
            elif message := self._take(member):
                self.leave_out(node, message, server_round)
            else:
                fresh.append(member)
        self._tell_skipped(fresh)
        return fresh

    def _take(self, member: Member) -> str:
        """Take a device on the roster, or return why it is none: its client id is another's.

        A device that is offline is replaced where no register says whose its client id is.
        """
        node, client = member.node_id, member.client_id
        self._registered = registered = self._enrolment.nodes(self._registered)
        if registered is not None and registered.get(client) != node:
            return f"node {node} claims client id {client}, which is not enrolled with its key"
        for other in [other for other, known in self.members.items() if known.client_id == client]:
            if registered is None and other in self.online:
                return (
                    f"device {client} (node {node}) claims the client id of node {other}: set distinct client-id values"
                )
            del self.members[other]
        self.members[node] = member
        return ""
