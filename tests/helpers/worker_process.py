"""A resident worker as a process of its own on a real socket, with a tiny Whisper, and the truth it is held to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import worker_fork
from references import split_snapshot

from client.device.engine import Engine
from client.device_identity import DeviceIdentity
from client.worker.client import WorkerClient, make_request
from client.worker.worker_pb2 import Progress
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.state import LatticeState
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.snapshot import encode_part, encode_snapshot
from zo_common.models.load import load_model
from zo_common.wire.plan import Plan, Reply, decode_plan, decode_reply, encode_plan

IDENTITY = DeviceIdentity(7)


class Forks:
    """The process that workers are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, worker_fork.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def ask(self, **question: Any) -> Any:
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._read())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(20)


class Worker:
    """One worker, its folder and its callers."""

    def __init__(self, forks: Forks, folder: Path, config: RunConfig) -> None:
        self.forks, self.folder, self.config = forks, folder, config
        self.address = f"unix:{folder}/w.sock"
        self.log = folder / "log"
        self.pid = 0
        self._pool = ThreadPoolExecutor(4)

    def start(self, *more: str, **changes: str) -> None:
        options = {
            "model": self.config.model,
            "data": self.config.data,
            "listen": self.address,
            "state": str(self.folder / "state"),
            "precision": "float32",
            "torch-threads": "1",
            **changes,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        self.pid = self.forks.ask(arguments=[*arguments, *more], log=str(self.log))

    def ready(self) -> dict[str, Any]:
        with self.client(wait=60.0) as client:
            found: dict[str, Any] = json.loads(client.info().status)
            return found

    def client(self, wait: float = 0.0, timeout: float = 60.0) -> WorkerClient:
        return WorkerClient(self.address, wait=wait, timeout=timeout)

    def kill(self, number: int = signal.SIGKILL) -> int | None:
        os.kill(self.pid, number)
        return self.wait()

    def wait(self, seconds: float = 30.0) -> int | None:
        found: int | None = self.forks.ask(wait=self.pid, seconds=seconds)
        return found

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = json.loads(client.info().status)
            return found

    def ask(
        self,
        plan: Plan,
        kind: str = "train",
        on_progress: Callable[[Progress], None] = lambda progress: None,
        wait: float = 0.0,
        **changes: Any,
    ) -> bytes:
        request = make_request(encode_plan(plan), replace(self.config, **changes).to_mapping(), IDENTITY)
        with self.client(wait) as client:
            return client.sync(request) if kind == "sync" else getattr(client, kind)(request, on_progress)

    def train(self, plan: Plan, **changes: Any) -> Reply:
        return decode_reply(self.ask(plan, **changes))

    def begin(self, plan: Plan, **changes: Any) -> Future[Reply]:
        """Train in another thread; returns when local steps have moved the weights."""
        moving = threading.Event()
        answer = self._pool.submit(
            lambda: decode_reply(self.ask(plan, on_progress=lambda progress: moving.set(), **changes))
        )
        assert moving.wait(30), answer.result(1) if answer.done() else self.log.read_text()
        return answer


class Truth:
    """The base model and a history on it, in this process."""

    def __init__(self, config: RunConfig) -> None:
        self.engine = Engine(config)
        model = load_model(config.model).model
        self.state = LatticeState(model, config.trained_tensors, config.scale)
        self.base_checksum = self.state.checksum()
        self.base_id = self.engine.base_id
        self.records: list[Record] = []
        rng = np.random.default_rng(3)
        for server_round in range(1, 5):
            part = Contribution(
                client_seed(0, server_round, 3), 3, (0.01 * rng.standard_normal((2, 2))).astype(np.float32)
            )
            self.state.apply(part.updates())
            self.records.append(Record(server_round, self.state.checksum(), (part,)))

    def plan(self, server_round: int = 1, have: int = 0, **changes: Any) -> Plan:
        records = tuple(self.records[have : server_round - 1])
        checksum = self.records[server_round - 2].checksum if server_round > 1 else self.base_checksum
        estimator = EstimatorConfig("two-sided", 2, 1e-3)
        seed = client_seed(0, server_round, IDENTITY.client_id)
        plan = Plan(server_round, seed, IDENTITY.client_id, self.base_id, checksum, 2, 2, 1e-6, estimator, records)
        return decode_plan(encode_plan(replace(plan, **changes)))  # epsilon in float32, as it travels

    def snapshot(self, server_round: int) -> list[bytes]:
        model = load_model(self.engine.config.model).model
        state = LatticeState(model, self.engine.config.trained_tensors, self.engine.config.scale)
        state.apply([u for record in self.records[:server_round] for u in record.updates()])
        base = LatticeState(
            load_model(self.engine.config.model).model, self.engine.config.trained_tensors, self.engine.config.scale
        )
        data = encode_snapshot(base, state)
        checksum = self.records[server_round - 1].checksum
        parts = split_snapshot(
            data,
            base_id=self.base_id,
            client_id=7,
            server_round=server_round,
            checksum=checksum,
            limit=len(data) // 2 + 100,
        )
        return [encode_part(part) for part in parts]
