"""The owner of a device allows so much privacy to be spent, and a real worker keeps to it."""

from __future__ import annotations

import signal
from dataclasses import replace

from worker_process import IDENTITY, Truth, Worker

from zo_common.directions.seeds import client_seed
from zo_common.privacy.accountant import epsilon_spent
from zo_common.privacy.charges import release_of
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Status, decode_reply


def test_an_owners_limit_outlives_the_worker_and_the_run(worker: Worker, truth: Truth) -> None:
    """One answer fits the account, a second does not, after a kill and in a run with another seed either."""
    plan = truth.plan(1, privacy=Mechanism("example", 1.0, 2.0, 8))
    release, times = release_of("example", 2.0, plan.local_steps, plan.batch_size, 9)
    limit = {"max-epsilon": str(epsilon_spent({release: 2 * times}, 1e-6) - 1e-6)}
    worker.start(**limit)
    worker.ready()
    without_noise = worker.train(truth.plan(1))
    assert without_noise.status is Status.ERROR and "scalars without noise" in without_noise.message
    first = worker.ask(plan)
    assert decode_reply(first).status is Status.OK
    assert worker.kill() == -signal.SIGKILL

    worker.start(**limit)
    worker.ready()
    assert worker.ask(plan) == first  # from its journal: nothing new is told
    slower, other = replace(plan, learning_rate=0.5e-6), replace(plan, seed=client_seed(9, 1, IDENTITY.client_id))
    for answer in (worker.train(slower), worker.train(other, run_seed=9)):
        assert answer.status is Status.ERROR
        assert not answer.projected_grads.size
        assert "this device's owner allows no such answer any more" in answer.message
    assert "round 1 would take it from" in worker.log.read_text()
