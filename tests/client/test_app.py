"""The ClientApp without a worker: an engine in this process serves every kind of message."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_grid import Memory
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from references import split_snapshot

from client.app import MOST_PATTERN, _leave_time, _take_tensors, make_client_app
from client.device.engine import Engine
from client.device.warm import warm_engine
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.lattice.state import LatticeState
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.snapshot import encode_part, encode_snapshot
from zo_common.models.load import load_model
from zo_common.speech.metrics import Scores
from zo_common.wire.calibration import CalibrationAsk, decode_answer, encode_ask
from zo_common.wire.evaluation import decode_evaluation
from zo_common.wire.plan import Plan, Status, decode_reply, encode_plan

Ask = Callable[..., bytes]


@pytest.fixture(scope="module")
def kept() -> Memory:
    return Memory()


@pytest.fixture
def config(settings: Callable[..., RunConfig]) -> RunConfig:
    return settings(eval_split="test", batch_size=1)


@pytest.fixture
def engine(kept: Memory, config: RunConfig) -> Iterator[Engine]:
    with kept.in_use():
        found = warm_engine(config)
        found.rewind(0)
        yield found


@pytest.fixture
def ask(config: RunConfig) -> Ask:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def ask(kind: str, key: str = "reply", changes: dict[str, Any] | None = None, **record: bytes) -> bytes:
        message = Message(RecordDict({"zo": ConfigRecord(record)}), dst_node_id=5, message_type=kind)
        context = Context(1, 5, {"client-id": 5}, RecordDict(), replace(config, **changes or {}).to_mapping())
        found = make_client_app()(message, context).content.config_records["zo"][key]
        assert isinstance(found, bytes)
        return found

    return ask


def _record(engine: Engine) -> Record:
    part = Contribution(client_seed(0, 1, 3), 3, np.full((1, 1), 0.01, np.float32))
    engine.state.apply(part.updates())
    record = Record(1, engine.state.checksum(), (part,))
    engine.state.apply(part.updates(), sign=-1)
    return record


def _plan(engine: Engine, config: RunConfig, record: Record) -> Plan:
    return Plan(
        2, client_seed(0, 2, 5), 5, engine.base_id, record.checksum, 1, 1, 1e-6, config.estimator_config, (record,)
    )


def test_every_kind_of_message_is_served(engine: Engine, config: RunConfig, ask: Ask) -> None:
    record = _record(engine)
    plan = encode_plan(_plan(engine, config, record))

    hello = json.loads(ask("query", "hello", hello=b""))
    assert (hello["client_id"], hello["num_examples"]) == (5, 9)
    synced = decode_reply(ask("query.sync", plan=plan))
    assert (synced.status, synced.have_round, synced.checksum) == (Status.OK, 1, record.checksum)
    trained = decode_reply(ask("train", plan=plan))
    assert (trained.status, trained.have_round, trained.projected_grads.shape) == (Status.OK, 1, (1, 2))
    evaluated, looked = (decode_evaluation(ask(kind, plan=plan)) for kind in ("evaluate", "evaluate.look"))
    assert evaluated.scores.utterances == 3
    assert (looked.status, looked.scores, looked.checksum) == (Status.OK, Scores(utterances=3), record.checksum)
    assert looked.loss_sum == pytest.approx(evaluated.loss_sum)
    bare = encode_plan(replace(_plan(engine, config, record), records=()))
    rebuilt = decode_reply(ask("query.rebuild", plan=bare))
    assert (rebuilt.status, rebuilt.have_round, rebuilt.checksum) == (Status.OK, 0, engine.base_checksum)
    assert decode_reply(ask("train", plan=bare)).status is Status.BEHIND


def test_a_snapshot_is_taken_in_parts(engine: Engine, config: RunConfig, ask: Ask) -> None:
    record = _record(engine)
    states = [LatticeState(load_model(config.model).model, config.trained_tensors, config.scale) for _ in range(2)]
    states[1].apply(record.updates())
    data = encode_snapshot(*states)
    place = {"base_id": engine.base_id, "client_id": 5, "server_round": 1, "checksum": record.checksum}
    parts = split_snapshot(data, **place, limit=len(data) // 2 + 100)

    replies = [decode_reply(ask("query.sync", part=encode_part(part))) for part in parts]

    assert [(reply.status, reply.have_round, reply.client_id) for reply in replies] == [
        (Status.OK, 0, 5),
        (Status.OK, 1, 5),
    ]
    assert replies[-1].checksum == record.checksum
    other = encode_part(replace(parts[0], base_id=1))
    assert decode_reply(ask("query.sync", part=other)).status is Status.CHECKSUM


def test_a_user_error_is_a_reply(engine: Engine, config: RunConfig, ask: Ask) -> None:
    plan = encode_plan(_plan(engine, config, _record(engine)))

    for kind, decode in (
        ("train", decode_reply),
        ("evaluate", decode_evaluation),
        ("evaluate.look", decode_evaluation),
    ):
        reply = decode(ask(kind, changes={"data": "/nowhere"}, plan=plan))
        assert reply.status is Status.ERROR and "1 problem in the data" in reply.message
    private = {"privacy": "example", "weighting": "uniform"}
    refused = [
        decode_evaluation(ask("evaluate.look", changes=changes, plan=plan)) for changes in ({"eval_split": ""}, private)
    ]
    assert [reply.status for reply in refused] == [Status.ERROR] * 2
    assert "name a split as guard-split" in refused[0].message and "losses carry no noise" in refused[1].message
    assert "1 problem in the data" in json.loads(ask("query", "hello", {"data": "/nowhere"}, hello=b""))["error"]


def test_a_device_that_drops_out_raises(engine: Engine, config: RunConfig, ask: Ask) -> None:
    plan = encode_plan(_plan(engine, config, _record(engine)))
    with pytest.raises(ConnectionError, match="dropped out"):
        ask("train", changes={"drop_out": 0.999999}, plan=plan)


@pytest.mark.parametrize(("left", "age", "word"), [(30, 100.0, "the round closed 70 s before"), (30, 5.0, "")])
def test_a_message_whose_round_has_closed_is_left_out(
    config: RunConfig, engine: Engine, left: int, age: float, word: str
) -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    plan = Plan(1, client_seed(0, 1, 5), 5, engine.base_id, engine.base_checksum, 1, 1, 1e-6, config.estimator_config)
    record = ConfigRecord({"plan": encode_plan(plan), "seconds-left": left})
    message = Message(RecordDict({"zo": record}), dst_node_id=5, message_type="train")
    message.metadata.__dict__["_created_at"] -= age

    answer = make_client_app()(message, Context(1, 5, {}, RecordDict(), config.to_mapping()))

    found = answer.content.config_records["zo"]
    assert ("error" in found) == bool(word)
    assert word in str(found.get("error", ""))


def test_the_time_that_is_left_bounds_the_wait_for_the_worker() -> None:
    settings: dict[str, Any] = {"round-timeout": 600.0}

    assert _leave_time({"seconds-left": 50}, settings, time.time() - 20) is None
    assert 29 < settings["round-timeout"] <= 30
    assert _leave_time({"seconds-left": 5000}, settings, time.time() + 100) is None  # a clock that is behind
    assert settings["round-timeout"] <= 30
    assert _leave_time({}, settings, 0.0) is None  # an older server does not say


def test_a_calibrations_question_is_answered(engine: Engine, config: RunConfig, ask: Ask) -> None:
    question = CalibrationAsk(seed=1, client_id=5, place=0, devices=1, passes=4, batch_size=2)
    answer = decode_answer(ask("query.calibrate", calibration=encode_ask(question)))
    assert answer.status is Status.OK, answer.message
    assert set(answer.measures) == {"encoder-decoder-bias"}


@pytest.mark.parametrize(
    ("record", "asked", "expected"),
    [
        ({}, "auto", "auto"),
        ({"tensors": "encoder-first/norm@1"}, "auto", "encoder-first/norm@1"),
        ({"tensors": "encoder-first/norm@1"}, "bias", "bias"),
    ],
)
def test_a_choice_stands_for_auto_alone(record: dict[str, Any], asked: str, expected: str) -> None:
    settings = {"trained-tensors": asked}
    assert _take_tensors(record, settings) is None
    assert settings == {"trained-tensors": expected}


@pytest.mark.parametrize("chosen", ["", b"bias", 3, "x" * (MOST_PATTERN + 1)])
def test_a_choice_that_is_no_pattern_is_refused(chosen: Any) -> None:
    settings = {"trained-tensors": "auto"}
    assert "update the server" in str(_take_tensors({"tensors": chosen}, settings))
    assert settings == {"trained-tensors": "auto"}
