"""A stand-in for Flower's transport, in memory: it calls the ClientApp's handlers of several virtual devices directly.

Messages pass through Flower's serialisation, devices keep their own engines as separate processes would, and faults can
be put in. Ray, HTTP and processes are not in it: `tests/integration` runs those.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import CONTENT, make_client_app
from client.device import warm
from zo_common.config.run import RunConfig


class NeverAnswers(Exception):
    """Raised by a device's fault: its answer never arrives."""


@dataclass
class Memory:
    """What stays warm in one device's process."""

    engines: dict[tuple[object, ...], Any] = field(default_factory=dict)
    datasets: OrderedDict[tuple[object, ...], Any] = field(default_factory=OrderedDict)

    def back_to_base(self) -> None:
        """What a restarted process holds: the base model; cheaper than loading it again, and checked."""
        for engine in self.engines.values():
            engine.rewind(0)
            assert engine.state.checksum() == engine.base_checksum

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The module's globals are this device's."""
        kept = warm._engines, warm._datasets
        warm._engines, warm._datasets = self.engines, self.datasets
        try:
            yield
        finally:
            warm._engines, warm._datasets = kept


@dataclass
class Device:
    """A virtual device; `before(round)` and `after(round, payload)` put faults in by raising or by other bytes."""

    context: Context
    memory: Memory
    online: bool = True
    before: Callable[[int], None] = lambda server_round: None
    after: Callable[[int, bytes], bytes] = lambda server_round, payload: payload
    asked: list[int] = field(default_factory=list)

    @property
    def engine(self) -> Any:
        """Its engine, once it has been asked anything."""
        return next(iter(self.memory.engines.values()))


class FakeGrid(Grid):
    """Devices with partitions 0 … n − 1; node ids are 100 + partition."""

    def __init__(self, config: RunConfig, memories: list[Memory], app: ClientApp | None = None) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.app = app or make_client_app(config)
        self.on_push: Callable[[int], None] = lambda server_round: None
        self.devices: dict[int, Device] = {}
        self._answers: dict[str, Message] = {}
        self._ids = count(1)
        for partition, memory in enumerate(memories):
            memory.back_to_base()
            node = 100 + partition
            place = {"partition-id": partition, "num-partitions": len(memories)}
            self.devices[node] = Device(Context(1, node, place, RecordDict(), {}), memory)

    def __getitem__(self, partition: int) -> Device:
        return self.devices[100 + partition]

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for node, device in self.devices.items() if device.online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            server_round = int(message.metadata.group_id or 0)
            self.on_push(server_round)
            message.metadata.__dict__["_message_id"] = name = str(next(self._ids))
            device = self.devices[message.metadata.dst_node_id]
            if not device.online:
                sent.append("")  # as Flower does with what it cannot send
                continue
            device.asked.append(server_round)
            try:
                answer = self._ask(device, message, server_round)
            except NeverAnswers:
                answer = None
            except Exception as error:  # as Flower reports what a ClientApp raised
                answer = Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)
            if answer is not None:
                self._answers[name] = answer
            sent.append(name)
        return sent

    def _ask(self, device: Device, message: Message, server_round: int) -> Message:
        device.before(server_round)
        message.content = _over_the_wire(message.content)
        with device.memory.in_use():
            answer = self.app(message, device.context)
        answer.content = _over_the_wire(answer.content)
        payload = answer.content.config_records[CONTENT].get("reply")
        if isinstance(payload, bytes):
            changed = device.after(server_round, payload)
            answer.content = RecordDict({CONTENT: ConfigRecord({"reply": changed})})
        return answer

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._answers.pop(name) for name in list(message_ids) if name in self._answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All answers that there will ever be; whoever is silent is not waited for."""
        return self.pull_messages(self.push_messages(messages))


def _over_the_wire(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))
