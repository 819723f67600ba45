"""Fault: an owner's setting is read, and not handed to one of the things that a server can ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from secure_worker import SECURE, Victim
from toy_fleet import CrowdEngine, Utterances
from typer.testing import CliRunner

from client.app import make_client_app
from client.device import requests as device
from client.device.demands import Demands
from client.device.sum_keys import sum_keys
from client.device_identity import DeviceIdentity
from client.worker import cli
from client.worker.client import make_request
from client.worker.worker_pb2 import Request
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.wire.calibration import CalibrationAsk, decode_answer, encode_ask
from zo_common.wire.evaluation import decode_evaluation
from zo_common.wire.plan import Plan, Status, decode_reply, encode_plan

OPEN = {"secure_aggregation": False, "evaluate_on": "clients", "eval_split": "test", "guard_split": "test"}
Ask = Callable[[Victim, RunConfig], Any]


def _asked(victim: Victim, config: RunConfig, content: int = Request.PLAN) -> Any:
    return make_request(encode_plan(victim.plan()), config.to_mapping(), DeviceIdentity(0), content)


def _evaluate(victim: Victim, config: RunConfig) -> Any:
    return decode_evaluation(victim.client.evaluate(_asked(victim, config)))


def _look(victim: Victim, config: RunConfig) -> Any:
    return decode_evaluation(victim.client.evaluate(_asked(victim, config, Request.LOOK)))


def _calibrate(victim: Victim, config: RunConfig) -> Any:
    payload = encode_ask(CalibrationAsk(1, 0, 0, 1, 4, 2))
    return decode_answer(victim.client.sync(make_request(payload, config.to_mapping(), DeviceIdentity(0))))


def _train(victim: Victim, config: RunConfig) -> Any:
    return decode_reply(victim.client.train(_asked(victim, config)))


LIMITS: dict[str, dict[str, Any]] = {
    "secure-only": {"demands": Demands(secure_only=True)},
    "least-privacy": {"demands": Demands("example", 1.0)},
    "max-epsilon": {"max_epsilon": 8.0},
}
WORDS = "secure-only and was asked|answers with privacy=|counts have neither|owner sets terms|limits ε|set max-epsilon"


@pytest.mark.parametrize("ask", [_evaluate, _look, _calibrate, _train], ids=lambda ask: ask.__name__)
@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_a_worker_holds_every_kind_of_message_to_them(victim: Victim, ask: Ask, limit: dict[str, Any]) -> None:
    victim.restart(**limit)
    answer = ask(victim, replace(victim.config, **OPEN))
    assert answer.status is Status.ERROR
    assert any(word in answer.message for word in WORDS.split("|")), answer.message


def test_a_worker_is_given_what_the_command_line_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[cli.Options] = []
    monkeypatch.setattr(cli, "run_worker", given.append)
    words = "--least-privacy device --least-noise 0.5 --secure-only --least-weights 7 --secure-cohort 9 --max-epsilon 4"
    done = CliRunner().invoke(cli.app, ["--model", "m", "--data", "d", *words.split()])
    assert done.exit_code == 0, done.output
    [options] = given
    assert Demands.of(options.demands) == Demands("device", 0.5, True, 7)
    assert (sum_keys(options.sums).least, options.max_epsilon) == (9, 4.0)


NODES: dict[str, dict[str, Any]] = {
    "secure-only": {"secure-only": True},
    "least-privacy": {"least-privacy": "example", "least-noise": 1.0},
    "max-epsilon": {"max-epsilon": 8.0},
}


@pytest.mark.parametrize("kind", ["train", "evaluate", "evaluate.look", "query.calibrate"])
@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_a_device_without_a_worker_holds_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: dict[str, Any], kind: str
) -> None:
    config = RunConfig(**{**SECURE, **OPEN, "directions": "independent"})
    engine = CrowdEngine(config)
    monkeypatch.setattr(device, "warm_engine", lambda _: engine)
    monkeypatch.setattr(device, "_train_data", lambda *_: Utterances(4))
    plan = Plan(1, client_seed(0, 1, 5), 5, engine.base_id, engine.base_checksum, 1, 4, 0.5, config.estimator_config)
    content: dict[str, Any] = {"plan": encode_plan(plan)}
    if kind == "query.calibrate":
        content = {"calibration": encode_ask(CalibrationAsk(1, 5, 0, 1, 4, 2))}
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    own = {"client-id": 5, "privacy-account": str(tmp_path / "account")} | node
    context = Context(1, 5, own, RecordDict(), config.to_mapping())
    message = Message(RecordDict({"zo": ConfigRecord(content)}), dst_node_id=5, message_type=kind)

    answer = dict(make_client_app()(message, context).content.config_records["zo"])

    text = str(answer.get("error") or answer["reply"].decode(errors="replace"))
    assert any(word in text for word in WORDS.split("|")), text


def test_a_caller_of_a_worker_does_not_share_its_recordings_out(victim: Victim) -> None:
    """By a column of its choice, a server would count a device's utterances by speaker, or ask for one at a time."""
    config = replace(victim.config, partition_by="transcription").to_mapping()
    hello = make_request(b"", config, DeviceIdentity(0, 2, 4))
    plan = make_request(encode_plan(victim.plan()), config, DeviceIdentity(0, 2, 4))
    for ask in (lambda: victim.client.info(hello), lambda: victim.client.train(plan)):
        with pytest.raises(Exception, match="a worker's recordings are one device's"):
            ask()
