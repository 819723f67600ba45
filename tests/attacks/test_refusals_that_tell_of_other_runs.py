"""Attack: a server reads in a device's refusal, or in a worker's status, what others' runs do and have spent."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from listening import listen
from secure_worker import Victim
from toy_fleet import CrowdEngine

from client.device_identity import DeviceIdentity
from client.worker.client import make_request
from zo_common.privacy.accountant import epsilon_spent
from zo_common.privacy.charges import release_of
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Status

EXAMPLES = 4


@pytest.mark.parametrize("before", [0, 1])
def test_a_spent_budget_reads_alike_whatever_was_spent(victim: Victim, before: int) -> None:
    plan = victim.plan(privacy=Mechanism("example", 1.0, 2.0, EXAMPLES))
    release, times = release_of("example", 2.0, plan.local_steps, plan.batch_size, EXAMPLES)
    limit = epsilon_spent({release: times}, 1e-6)
    victim.restart(max_epsilon=limit * (1.0 if before else 0.5))
    if before:  # in another run, of another server
        assert victim.in_clear(plan).status is Status.OK
    logged = listen("client")

    reply = victim.in_clear(victim.plan(privacy=plan.privacy, learning_rate=0.25))

    assert (reply.status, reply.projected_grads.size, reply.checksum) == (Status.ERROR, 0, 0)
    told = "this device's owner allows no such answer any more: ask for more noise, or leave this device out"
    assert reply.message == told
    status = json.loads(victim.client.info().status)["last"]["status"]
    assert status == f"error: {told}" and not re.search(r"\d", status)
    assert any("would take it from" in line for line in logged)


def test_a_busy_device_names_no_other_run(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the round that it works on for another server, nor how long that takes."""
    logged, begun, go_on, honest = listen("client"), Event(), Event(), CrowdEngine._measured

    def measured(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(30.0)
        return honest(*arguments)

    monkeypatch.setattr(CrowdEngine, "_measured", measured)
    plan, told = victim.plan(), victim.config.to_mapping() | {"secure-aggregation": False, "trained-tensors": "all"}
    with ThreadPoolExecutor() as pool:
        other = pool.submit(victim.in_clear, plan)
        assert begun.wait(30.0)
        reply = victim.in_clear(victim.plan(learning_rate=0.25))
        hello = victim.client.info(make_request(b"", told | {"run-seed": 5}, DeviceIdentity(9))).hello
        go_on.set()
        assert other.result(30.0).status is Status.OK

    assert (reply.status, reply.message) == (Status.BUSY, "busy with other work")
    assert json.loads(hello)["error"] == "this device is busy with other work: ask it again later"
    assert any("busy with training of round 1" in line for line in logged)
