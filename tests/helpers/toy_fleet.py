"""Devices of a federation on the fake grid that train nothing: drawn scalars, real rounds, what the server hears."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_grid import Device, FakeGrid, Memory
from flwr.app import Message
from flwr.common.serde import recorddict_to_proto
from toy_engine import ToyEngine

from client.device import requests as device
from client.device import warm
from client.device_identity import DeviceIdentity
from zo_common.config.run import RunConfig
from zo_common.speech.metrics import Scores
from zo_common.wire.evaluation import EvaluationReply
from zo_common.wire.plan import Plan, Reply, Status


class RecordingGrid(FakeGrid):
    """Keeps all that the server's process receives, and may alter what it sends."""

    def __init__(self, config: RunConfig, memories: list[Memory]) -> None:
        super().__init__(config, memories)
        self.received: list[bytes] = []
        self.alter: Callable[[int, dict[str, Any]], None] = lambda node, record: None

    def _ask(self, device: Device, message: Message, server_round: int) -> Message:
        self.alter(message.metadata.dst_node_id, message.content.config_records["zo"])  # type: ignore[arg-type]
        return super()._ask(device, message, server_round)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        answers = list(super().pull_messages(message_ids))
        self.received += [recorddict_to_proto(a.content).SerializeToString() for a in answers if a.has_content()]
        return answers


class Utterances:
    """As many as a device has."""

    skipped = ()

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


class CrowdEngine(ToyEngine):
    """Real rounds on toy weights; what it measures is drawn, not trained."""

    def _measured(self, base: Reply, plan: Plan, data: Any, *_: Any) -> Reply:
        draw = np.random.default_rng([plan.client_id, plan.server_round])
        grads = draw.normal(size=(plan.local_steps, plan.estimator.num_queries)).astype(np.float32)
        loss = float(np.float32(draw.random()))
        return replace(base, num_examples=len(data), loss=loss, projected_grads=grads)


def toy_grids(monkeypatch: pytest.MonkeyPatch, count: int = 3) -> Callable[[RunConfig], RecordingGrid]:
    """Makes grids of so many devices without a model of any size, with three and more utterances each."""

    def engine(config: RunConfig) -> CrowdEngine:
        if not warm._engines:
            warm._engines[("toy",)] = CrowdEngine(config)
        found = warm._engines[("toy",)]
        assert isinstance(found, CrowdEngine)
        return found

    monkeypatch.setattr(device, "warm_engine", engine)
    monkeypatch.setattr(device, "_train_data", lambda config, engine, identity: Utterances(3 + identity.client_id))
    return lambda config: RecordingGrid(config, [Memory() for _ in range(count)])


LossOf = Callable[[int, int, int], float | None]  # of client, round and checksum; None where it cannot answer


def held_out_losses(monkeypatch: pytest.MonkeyPatch, loss_of: LossOf) -> list[tuple[int, int, int]]:
    """Gives devices their mean losses, of ten utterances; what was asked, as clients, rounds and checksums."""
    asked: list[tuple[int, int, int]] = []

    def look(config: RunConfig, plan: Plan, identity: DeviceIdentity, **_: Any) -> EvaluationReply:
        engine = device.warm_engine(config)
        status = engine.sync(plan)
        reply = EvaluationReply(
            status, plan.server_round, engine.have_round, identity.client_id, engine.state.checksum()
        )
        if status is not Status.OK:
            return reply
        asked.append((identity.client_id, plan.server_round - 1, reply.checksum))
        loss = loss_of(*asked[-1])
        if loss is None:
            return replace(reply, status=Status.ERROR, message="no held-out speech")
        if not math.isfinite(loss):
            return replace(reply, status=Status.NON_FINITE, message="not finite")
        return replace(reply, loss_sum=10 * loss, scores=Scores(utterances=10))

    monkeypatch.setattr(device, "check_held_out", look)
    return asked


TOY = {"model": "toy", "data": "none", "trained_tensors": "all", "num_queries": 2, "local_steps": 2}
TOY |= {"server_model": False, "learning_rate": 0.01}
