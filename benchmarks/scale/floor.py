"""Flower's own floor: an app that exchanges messages as ours does, of the same sizes, and computes nothing.

It polls exactly as our server does (`server.messaging.exchange.pause`), so this is Flower's floor with our polling.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from server.devices.roster import CONTENT, wait_for_nodes
from server.messaging.exchange import pause
from simulations.runner import actors_for, simulate
from zo_common.estimator.settings import EstimatorConfig
from zo_common.ledger.record import Contribution, Record
from zo_common.wire.plan import Plan, Reply, Status, encode_plan, encode_reply

HELLO_BYTES = 600  # fingerprint, checksum and the list of a few trained tensors
TIMEOUT = 600.0


@dataclass(frozen=True)
class Sizes:
    """Payload bytes of a round with all of `devices` devices answering K·q = `scalars` each, of encoded messages."""

    devices: int
    scalars: int

    @property
    def plan(self) -> int:
        """A plan that carries one ledger round."""
        record = Record(1, 0, tuple(Contribution(0, device, self._answer) for device in range(self.devices)))
        estimator = EstimatorConfig("two-sided", self.scalars, 1e-3)
        return len(encode_plan(Plan(2, 0, 0, 0, 0, 1, 1, 0.0, estimator, (record,))))

    @property
    def reply(self) -> int:
        """A reply without a word to the operator."""
        return len(encode_reply(Reply(Status.OK, 2, 1, 0, 0, 0, projected_grads=self._answer)))

    @property
    def _answer(self) -> NDArray[np.float32]:
        return np.zeros((1, self.scalars), np.float32)


def run_floor(sizes: Sizes, rounds: int) -> list[float]:
    """Return seconds of each round of messages to all devices and back, in Flower's simulation engine."""
    seconds: list[float] = []
    simulate(_server(sizes, rounds, seconds), _client(sizes), sizes.devices, actors_for(sizes.devices))
    return seconds


def _content(key: str, size: int) -> RecordDict:
    return RecordDict({CONTENT: ConfigRecord({key: bytes(size)})})


def _server(sizes: Sizes, rounds: int, seconds: list[float]) -> ServerApp:
    app = ServerApp()
    plan = sizes.plan

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = wait_for_nodes(grid, sizes.devices, TIMEOUT)
        hello = [Message(_content("hello", 0), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes]
        list(grid.send_and_receive(hello, timeout=TIMEOUT))
        for _ in range(rounds):
            start = time.monotonic()
            _exchange(grid, nodes, plan)
            seconds.append(time.monotonic() - start)

    return app


def _exchange(grid: Grid, nodes: Iterable[int], size: int) -> None:
    """Push and pull as `server.messaging.exchange.Exchange` does."""
    messages = [Message(_content("plan", size), dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes]
    pending = {str(name) for name in grid.push_messages(messages)}
    deadline = time.monotonic() + TIMEOUT
    while pending and time.monotonic() < deadline:
        asked = time.monotonic()
        answers = list(grid.pull_messages(pending))
        seconds = time.monotonic() - asked
        pending -= {answer.metadata.reply_to_message_id for answer in answers}
        if any(answer.has_error() for answer in answers):
            raise RuntimeError("a device of the floor failed")
        if pending:
            time.sleep(pause(seconds))


def _client(sizes: Sizes) -> ClientApp:
    app = ClientApp()
    reply = sizes.reply

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        return Message(_content("hello", HELLO_BYTES), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(_content("reply", reply), reply_to=message)

    return app
