"""Attack: a server reads in a device's refusal, or in the worker's status, what other servers' runs have spent."""

from __future__ import annotations

import json
import re

import pytest
from listening import listen
from secure_worker import Victim

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
