"""What a worker's runtime does around each request: weights left wrong are not kept, repeats are recognised."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Condition
from typing import Any

import pytest
from listening import listen
from toy_engine import ToyEngine, history, toy_engine

from client.device import follower as follower_module
from client.device import requests as device
from client.device.privacy_account import PrivacyAccount
from client.device_identity import DeviceIdentity
from client.worker import runtime as runtime_module
from client.worker.client import make_request
from client.worker.job import Job
from client.worker.job_queue import BUSY, JobQueue
from client.worker.journal import Journal
from client.worker.runtime import WorkerRuntime
from zo_common.directions.seeds import client_seed
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.state import LatticeState
from zo_common.ledger.record import Record
from zo_common.wire.calibration import (
    CalibrationAnswer,
    CalibrationAsk,
    decode_answer,
    encode_ask,
)
from zo_common.wire.plan import Plan, Reply, Status, decode_reply, encode_plan

IDENTITY = DeviceIdentity(3)


class Ended(BaseException):
    """The process would have ended."""


class Toy:
    """A runtime with a toy engine on rounds of its own."""

    def __init__(self, folder: Path) -> None:
        self.engine = toy_engine()
        self.config = self.engine.config
        self.words = listen("client.worker")
        self.journal = Journal(folder)
        self.queue = JobQueue(1.0)
        self.runtime = WorkerRuntime({}, self.journal, self.queue)

    def plan(self, server_round: int, records: list[Record], checksum: int | None = None) -> Plan:
        checksum = records[-1].checksum if checksum is None else checksum
        estimator = EstimatorConfig("two-sided", 2, 2.0**-10)
        return Plan(
            server_round,
            client_seed(0, server_round, 3),
            3,
            self.engine.base_id,
            checksum,
            4,
            2,
            1e-4,
            estimator,
            tuple(records),
        )

    def prepare(self, plan: Plan, kind: Any = "sync") -> Any:
        request = make_request(encode_plan(plan), self.config.to_mapping(), IDENTITY)
        return self.runtime.prepare(kind, request, IDENTITY)

    def sync(self, plan: Plan) -> Reply:
        request, work = self.prepare(plan)
        answer, _ = work(Job(request, Condition()))
        return decode_reply(answer)

    @property
    def on_disk(self) -> tuple[int, int]:
        """Round and checksum that a restart would find."""
        saved = self.journal.saved()
        assert saved is not None
        self.journal.close()
        self.journal.__init__(self.journal.folder)
        back = toy_engine()
        self.journal.recover(back, saved)
        return back.have_round, back.state.checksum()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    made = Toy(tmp_path / "state")
    monkeypatch.setattr(device, "warm_engine", lambda config: made.engine)
    monkeypatch.setattr(runtime_module, "warm_engine", lambda config: made.engine)
    yield made
    made.queue.close(1.0)
    made.journal.close()


def _halfway(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """From the call after so many on, applying rounds moves some of the weights and then finds no memory."""
    right, calls = follower_module.apply_all, []

    def apply(state: LatticeState, updates: list[Any], sign: int = 1) -> None:
        calls.append(sign)
        if len(calls) <= after:
            right(state, updates, sign)
            return
        right(state, updates[:1], sign)
        raise MemoryError

    monkeypatch.setattr(follower_module, "apply_all", apply)


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("after", [0, 1])
def test_half_applied_weights_are_loaded_again(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, after: int, checksums: bool
) -> None:
    """`after` 0: going back fails half-way; 1: that succeeds, and the rounds of the other history fail half-way."""
    ours, theirs = history(6, 1, checksums=checksums), history(4, 2, checksums=checksums)
    fork = [*ours[:2], *theirs[2:]] if not checksums else theirs
    assert toy.sync(toy.plan(7, ours)).status is Status.OK

    with monkeypatch.context() as patch:
        _halfway(patch, after)
        with pytest.raises(MemoryError):
            toy.sync(toy.plan(5, fork))

    base = toy_engine().base_checksum
    assert (toy.engine.have_round, toy.engine.state.checksum(), toy.engine.loads) == (0, base, 2)
    assert toy.on_disk == (0, base)
    assert any("the weights are not those of a round that is known" in word for word in toy.words)
    assert toy.sync(toy.plan(7, ours)).status is Status.OK


def test_a_round_that_was_gone_back_to_before_the_failure_is_kept(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = history(6, 1)
    toy.sync(toy.plan(7, ours))
    with monkeypatch.context() as patch:
        patch.setattr(ToyEngine, "_is", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            toy.sync(toy.plan(5, ours[:4]))

    assert (toy.engine.have_round, toy.engine.loads) == (4, 1)
    assert toy.on_disk == (4, ours[3].checksum)


def test_weights_that_cannot_be_looked_at_are_loaded_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = history(3, 1)
    toy.sync(toy.plan(4, ours))
    with monkeypatch.context() as patch:
        patch.setattr(toy.engine.state, "checksum", _broken)
        with pytest.raises(RuntimeError):
            toy.sync(toy.plan(4, ours))

    assert (toy.engine.have_round, toy.engine.loads) == (0, 2)
    assert any("cannot be computed after this work (RuntimeError: CUDA error)" in word for word in toy.words)
    assert toy.sync(toy.plan(4, ours)).status is Status.OK


def test_an_error_that_stays_ends_the_process(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        raise Ended

    toy.sync(toy.plan(4, history(3, 1)))
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(LatticeState, "checksum", _broken)
    monkeypatch.setattr(ToyEngine, "_load", _broken)

    with pytest.raises(Ended):
        toy.sync(toy.plan(4, [], checksum=1))

    assert ended == [70]
    assert "the worker exits and must be restarted" in toy.words[-1]


def _broken(*_: object) -> int:
    raise RuntimeError("CUDA error")


class TestRepeats:
    def test_of_a_known_state_are_one_request_whichever_rounds_came_along(self, toy: Toy) -> None:
        ours = history(4)
        digests = {toy.prepare(toy.plan(5, ours[have:], ours[-1].checksum), "train")[0].digest for have in range(5)}
        assert len(digests) == 1

    @pytest.mark.parametrize("change", [{"seed": 43}, {"checksum": 9}, {"server_round": 6, "records": ()}])
    def test_other_work_is_another_request(self, toy: Toy, change: dict[str, Any]) -> None:
        plan = toy.plan(5, history(4))
        assert toy.prepare(plan, "train")[0].digest != toy.prepare(replace(plan, **change), "train")[0].digest

    def test_of_an_unknown_state_are_told_apart_by_their_rounds(self, toy: Toy) -> None:
        digests = {toy.prepare(toy.plan(5, history(4, salt), 0), "train")[0].digest for salt in (1, 2)}
        assert len(digests) == 2


class TestStatus:
    def test_an_idle_worker_tells_the_weights_own_checksum(self, toy: Toy) -> None:
        ours = history(3)
        toy.sync(toy.plan(4, ours))
        assert toy.runtime.status()["checksum"] == f"{ours[-1].checksum:016x}"

        tensor = toy.engine.state.tensors[0]
        tensor.weight.view(-1)[5] += 2.0**tensor.grid_exponent

        assert toy.runtime.status()["checksum"] == f"{toy.engine.state.checksum():016x}"
        assert toy.runtime.status(refresh=False)["checksum"] == f"{ours[-1].checksum:016x}"

    def test_while_the_engine_is_used_or_broken_it_tells_the_last_one_known(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = history(3)
        toy.sync(toy.plan(4, ours))
        monkeypatch.setattr(toy.engine.state, "checksum", _broken)
        for held in (False, True):
            if held:
                assert toy.runtime._lock.acquire(blocking=False)
            assert toy.runtime.status()["checksum"] == f"{ours[-1].checksum:016x}"
        toy.runtime._lock.release()


def test_introductions_to_several_runs_are_given_again_while_work_goes_on(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def introduce(config: Any, identity: object) -> dict[str, object]:
        return {"seed": config.run_seed}

    monkeypatch.setattr(device, "hello", introduce)
    monkeypatch.setattr(JobQueue, "job", Job(toy.prepare(toy.plan(5, history(4)))[0], Condition()))
    configs = [replace(toy.config, run_seed=seed) for seed in range(12)]
    for config in configs:
        toy.runtime.hello(config, IDENTITY)

    with toy.runtime._lock:
        found = [json.loads(toy.runtime.hello(config, IDENTITY)) for config in (configs[0], configs[4], configs[-1])]

    assert found[0]["busy"] is True and BUSY in found[0]["error"]
    assert found[1:] == [{"seed": 4}, {"seed": 11}]


class TestCalibration:
    ASK = CalibrationAsk(seed=5, client_id=3, place=0, devices=1, passes=8, batch_size=2)

    def ask(self, toy: Toy) -> Any:
        request = make_request(encode_ask(self.ASK), toy.config.to_mapping(), IDENTITY)
        asked, work = toy.runtime.prepare("sync", request, IDENTITY)
        answer, again = work(Job(asked, Condition()))
        assert not again
        return decode_answer(answer), asked

    def test_a_question_goes_to_the_device_and_the_state_is_known_afterwards(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def calibrated(
            config: Any, ask: CalibrationAsk, identity: DeviceIdentity, on_synced: Any, *_: Any
        ) -> CalibrationAnswer:
            on_synced(toy.engine)
            return CalibrationAnswer(Status.OK, ask.seed, ask.client_id)

        monkeypatch.setattr(runtime_module, "calibrate", calibrated)

        answer, asked = self.ask(toy)

        assert answer == CalibrationAnswer(Status.OK, 5, 3)
        assert toy.on_disk == (0, toy.engine.base_checksum)
        assert decode_answer(asked.refuse(Status.BUSY, "busy")).message == "busy"

    def test_an_owner_with_a_limit_refuses(self, toy: Toy, tmp_path: Path) -> None:
        toy.runtime._account = PrivacyAccount(tmp_path / "account", 8.0, 1e-6)
        answer, _ = self.ask(toy)
        assert answer.status is Status.ERROR
        assert "max-epsilon" in answer.message
