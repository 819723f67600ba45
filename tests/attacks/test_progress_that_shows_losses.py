"""Attack: the server's app asks the worker for its progress and its status, which say what no answer says."""

from __future__ import annotations

import json
from threading import Event
from typing import Any

import pytest
from listening import listen
from secure_worker import Sum, Victim
from toy_fleet import CrowdEngine

from client.device.secure_sums import FAILED
from client.device_identity import DeviceIdentity
from client.worker.client import WorkerError, make_request
from zo_common.errors import ZOError
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.masked_reply import is_masked
from zo_common.wire.plan import Plan, Status, decode_reply, encode_plan

LOSS = 3.25  # which a caller sees as the bytes of a float, or as text
SECRET = "coefficient -2.28e29 of alice.wav"


class Watched:
    """A training that pauses after its first step, until a caller has seen the progress."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = Event()
        honest = CrowdEngine._measured

        def measured(engine: Any, base: Any, plan: Plan, data: Any, on_step: Any = None) -> Any:
            if on_step is not None:
                on_step(0, LOSS)
                assert self.seen.wait(30.0)
            return honest(engine, base, plan, data)

        monkeypatch.setattr(CrowdEngine, "_measured", measured)

    def losses(self, victim: Victim, plan: Plan, secure: bytes = b"", **settings: Any) -> tuple[set[float], bytes]:
        """The losses that events and status show, and the answer."""
        config = victim.config.to_mapping() | {key.replace("_", "-"): value for key, value in settings.items()}
        found: set[float] = set()

        def look(progress: Any) -> None:
            if progress.step:
                found.add(progress.loss)
                found.add(json.loads(victim.client.info().status)["job"]["loss"])
                self.seen.set()

        request = make_request(encode_plan(plan), config, DeviceIdentity(plan.client_id), secure=secure)
        return found, victim.client.train(request, look)


def test_no_loss_of_a_masked_training(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    attacked = Sum(victim, range(1, 4))
    sharers = attacked.share()
    losses, answer = Watched(monkeypatch).losses(victim, attacked.plan, sharers[0])
    assert losses == {0.0} and is_masked(answer)


@pytest.mark.parametrize("level", ["example", "device"])
def test_no_loss_of_a_training_with_noise(victim: Victim, monkeypatch: pytest.MonkeyPatch, level: Any) -> None:
    plan = victim.plan(privacy=Mechanism(level, 1.0, 2.0, 1))
    losses, answer = Watched(monkeypatch).losses(victim, plan, secure_aggregation=False)
    assert losses == {0.0} and decode_reply(answer).status is Status.OK


def test_in_the_open_it_is_shown(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, _ = Watched(monkeypatch).losses(victim, victim.plan(), secure_aggregation=False)
    assert losses == {LOSS}


@pytest.mark.parametrize("error", [ZOError(SECRET), RuntimeError(SECRET), ValueError(SECRET), MemoryError(SECRET)])
def test_a_masked_training_that_fails_gives_one_answer_whatever_the_error(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Which of its errors a recording causes would be more than that it failed; a status is not to tell it either."""
    logged = listen("client")
    attacked = Sum(victim, range(1, 4))
    sharers = attacked.share()

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(CrowdEngine, "_measured", fail)
    reply = decode_reply(attacked.mask(sharers))
    told = reply.status, reply.have_round, reply.checksum, reply.num_examples, reply.loss, reply.message
    assert told == (Status.ERROR, 0, 0, 0, 0.0, FAILED) and not reply.projected_grads.size
    status = victim.client.info().status
    assert json.loads(status)["last"]["status"] == f"error: {FAILED}" and SECRET not in status
    assert any(SECRET in line for line in logged)
    with pytest.raises(WorkerError, match="no secure sum is under way"):
        attacked.server.add_shares(0, victim.step(attacked.server.close_advertising()[0]))
