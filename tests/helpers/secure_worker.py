"""A real worker, on its socket, as one device of secure sums whose other devices are the attacker's to play."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from secure_cohort import keys_of, node_key
from toy_fleet import TOY, CrowdEngine, Utterances

from client.device import requests as device
from client.device.demands import NO_DEMANDS, Demands
from client.device.privacy_account import ACCOUNT_NAME, PrivacyAccount
from client.device.sum_keys import sum_keys
from client.device_identity import DeviceIdentity
from client.worker import runtime as runtime_module
from client.worker.client import WorkerClient, make_request
from client.worker.job_queue import JobQueue
from client.worker.journal import Journal
from client.worker.runtime import WorkerRuntime
from client.worker.service import start_server
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import shared_seed
from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.device import SecureDevice
from zo_common.secure_sum.messages import KeyList, RevealRequest, Sharers, Survivors
from zo_common.secure_sum.node_keys import peer_line
from zo_common.secure_sum.server import SecureServer
from zo_common.secure_sum.terms import Terms
from zo_common.wire.masked_reply import decode_masked, is_masked, vector_length
from zo_common.wire.plan import Plan, Reply, Status, decode_plan, decode_reply, encode_plan
from zo_common.wire.plan_digest import plan_digest

VICTIM = 0
SECURE = {**TOY, "directions": "shared", "secure_aggregation": True, "local_steps": 1, "weighting": "uniform"}


class Victim:
    """A worker with a toy engine whose scalars are drawn; `restart` is another process with the same folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, signed: bool = False) -> None:
        self.folder, self.signed = folder, signed
        self.config = RunConfig(**SECURE)
        self.engine = CrowdEngine(self.config)
        for module in (device, runtime_module):
            monkeypatch.setattr(module, "warm_engine", lambda config: self.engine)
        self.examples = 4
        monkeypatch.setattr(device, "_train_data", lambda *_: Utterances(self.examples))
        if signed:
            (folder / "node.key").write_bytes(node_key(VICTIM)[0])
            lines = [peer_line(n, node_key(n)[1].decode()) for n in range(10)]
            (folder / "peers.keys").write_text("".join(lines))
        self.start()

    def start(self, demands: Demands = NO_DEMANDS, max_epsilon: float = 0.0, cohort: int = 3) -> None:
        socket = Path(tempfile.mkdtemp(prefix="zo")) / "w.sock"
        key = self.folder / "node.key" if self.signed else ""
        account = PrivacyAccount(self.folder / ACCOUNT_NAME, max_epsilon) if max_epsilon else None
        self.journal, self.queue = Journal(self.folder / "state"), JobQueue(5.0)
        keys = partial(sum_keys, {"node-key": key, "secure-cohort": cohort})
        self.runtime = WorkerRuntime({}, self.journal, self.queue, account, demands, keys)
        if (answer := self.journal.answer()) is not None:
            self.queue.remember(*answer)
        self._server, _, address = start_server(self.runtime, self.queue, f"unix:{socket}", "")
        self.client = WorkerClient(address, wait=5.0, timeout=60.0)

    def close(self) -> None:
        self.queue.close(5.0)
        self._server.stop(0).wait(5.0)
        self.journal.close()

    def restart(self, **options: Any) -> None:
        self.close()
        self.start(**options)

    def plan(self, server_round: int = 1, **changes: Any) -> Plan:
        config, base = self.config, self.engine
        plan = Plan(
            server_round, shared_seed(0, server_round), VICTIM, base.base_id, base.base_checksum, config.local_steps,
            config.batch_size, 0.5, config.estimator_config,
        )  # fmt: skip
        return decode_plan(encode_plan(replace(plan, **changes)))

    def train(self, plan: Plan, secure: bytes = b"", **settings: Any) -> bytes:
        config = replace(self.config, **settings)
        return self.client.train(
            make_request(encode_plan(plan), config.to_mapping(), DeviceIdentity(VICTIM), secure=secure)
        )

    def in_clear(self, plan: Plan, **settings: Any) -> Reply:
        """What a run without secure sums is answered."""
        return decode_reply(self.train(plan, secure_aggregation=False, **settings))

    def step(self, data: bytes) -> bytes:
        return self.client.secure(make_request(data, self.config.to_mapping(), DeviceIdentity(VICTIM)))

    def measured(self, plan: Plan) -> NDArray[np.float32]:
        """What the worker measures for a plan, and nobody is to see."""
        return self.engine._measured(decode_reply(_bare(plan)), plan, Utterances(4)).projected_grads


def _bare(plan: Plan) -> bytes:
    from zo_common.wire.plan import encode_reply

    return encode_reply(Reply(Status.OK, plan.server_round, 0, plan.client_id, plan.seed, 0))


class Sum:
    """One secure sum of the victim and devices that the attacker plays, with vectors of zeros."""

    def __init__(self, victim: Victim, others: range | tuple[int, ...], plan: Plan | None = None, **terms: Any) -> None:
        self.victim, self.plan = victim, plan or victim.plan()
        config = victim.config
        length = vector_length(self.plan.local_steps, config.num_queries, curvature=False)
        given: dict[str, Any] = {"run_id": b"a run of a test.", "server_round": self.plan.server_round} | terms
        self.terms = Terms(**{"length": length, "plan": plan_digest(self.plan, config)} | given)
        self.server = SecureServer(self.terms)
        signers, peers = keys_of(others) if victim.signed else ({}, None)
        if victim.signed:
            _, peers = keys_of(range(10))
        self.silent: set[int] = set()  # others that do not mask
        self.checksum_of_others: int | None = None  # of other weights than the victim's
        self.others = {c: SecureDevice(self.terms, c, signers.get(c), peers) for c in others}

    def share(self, weights: Mapping[int, int] | None = None) -> dict[int, bytes]:
        """Exchange keys and shares; return the lists of sharers."""
        server, everyone = self.server, [VICTIM, *self.others]
        server.add_advertisement(VICTIM, self.victim.step(server.invitation()))
        for client, other in self.others.items():
            server.add_advertisement(client, other.advertise().encode())
        lists = server.close_advertising()
        server.add_shares(VICTIM, self.victim.step(lists[VICTIM]))
        for client, other in self.others.items():
            server.add_shares(client, other.share(KeyList.decode(lists[client])).encode())
        return server.close_sharing(weights or dict.fromkeys(everyone, 1))

    def mask(self, sharers: Mapping[int, bytes]) -> bytes:
        """Return the victim's answer to the plan."""
        return self.victim.train(self.plan, sharers[VICTIM])

    def open(self, answer: bytes, sharers: Mapping[int, bytes]) -> NDArray[np.int64]:
        """Return the sum, which is the victim's vector alone; the others sign and reveal all they are asked for."""
        if not is_masked(answer):
            raise SecureAggregationError(decode_reply(answer).message)
        server, zeros = self.server, np.zeros(self.terms.length, np.int64)
        reply, vector = decode_masked(answer)
        checksum = reply.checksum if self.checksum_of_others is None else self.checksum_of_others
        masked = {VICTIM: server.check_masked(VICTIM, vector)}
        self.others = {client: other for client, other in self.others.items() if client not in self.silent}
        for client, other in self.others.items():
            data = other.mask(Sharers.decode(sharers[client]), zeros, checksum=checksum).encode()
            masked[client] = server.check_masked(client, data)
        alive = server.close_masking(masked)
        server.add_consent(VICTIM, self.victim.step(alive[VICTIM]))
        for client, other in self.others.items():
            server.add_consent(client, other.consent(Survivors.decode(alive[client])).encode())
        requests = server.close_consent()
        server.add_revealed(VICTIM, self.victim.step(requests[VICTIM]))
        for client, other in self.others.items():
            server.add_revealed(client, other.reveal(RevealRequest.decode(requests[client])).encode())
        return server.total()

    def run(self) -> NDArray[np.int64]:
        """All of it."""
        sharers = self.share()
        return self.open(self.mask(sharers), sharers)
