"""Attack: a server reads transcripts, file names and settings of a device in what the device says of an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from listening import listen

from client.app import make_client_app
from client.worker.job import Job, Request
from client.worker.job_queue import JobQueue
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import client_seed
from zo_common.errors import LedgerError
from zo_common.ledger.snapshot import SnapshotPart, encode_part
from zo_common.wire.calibration import CalibrationAsk, encode_ask
from zo_common.wire.plan import Plan, encode_plan

Settings = Callable[..., RunConfig]
SECRET = "meet me at the old bridge"
KINDS = {"query": "hello", "train": "plan", "evaluate": "plan", "evaluate.look": "plan"}
PART = encode_part(SnapshotPart(0, 5, 1, 0, 0, 2, b"data"))
# kinds of messages that ask for no plan's work: key and payload
OTHERS = {
    "query.calibrate": ("calibration", encode_ask(CalibrationAsk(1, 5, 0, 1, 4, 2))),
    "query.sync": ("part", PART),
}


@pytest.fixture
def home(mini_corpus: Path, tmp_path: Path) -> Path:
    """A device's recordings in a folder of a telling name, with a table that cannot be read as it should."""
    target = tmp_path / "alice-divorce"
    shutil.copytree(mini_corpus, target)
    for split in ("train", "test"):
        table = target / split / "metadata.csv"
        table.write_text(f'{table.read_text()}nowhere.wav,"{SECRET}",alice\n"{SECRET}\n')
    return target


def _answers(config: RunConfig, node: dict[str, Any]) -> list[bytes]:
    """All that goes back for one message of each kind."""
    plan = Plan(1, client_seed(0, 1, 5), 5, 1, 1, 1, 1, 1e-6, config.estimator_config)
    payloads = {kind: (key, encode_plan(plan) if key == "plan" else b"") for kind, key in KINDS.items()}
    return [_answer(kind, *payload, config, node) for kind, payload in payloads.items()]


def _answer(kind: str, key: str, payload: bytes, config: RunConfig, node: dict[str, Any]) -> bytes:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    context = Context(1, 5, {"client-id": 5} | node, RecordDict(), config.to_mapping())
    content = RecordDict({"zo": ConfigRecord({key: payload})})
    answer = make_client_app()(Message(content, dst_node_id=5, message_type=kind), context)
    return recorddict_to_proto(answer.content).SerializeToString()


def test_broken_recordings_are_counted_to_the_server_and_listed_to_the_device(settings: Settings, home: Path) -> None:
    logged = listen("client")
    answers = _answers(settings(eval_split="test", guard_split="test"), {"data": str(home)})
    for answer in answers:
        assert b"problem" in answer
        assert SECRET.encode() not in answer and b"alice" not in answer and b"nowhere" not in answer
    assert any("nowhere.wav" in line for line in logged)


@pytest.mark.parametrize("setting", ["data", "model"])
def test_a_devices_own_paths_stay_there(settings: Settings, tmp_path: Path, setting: str) -> None:
    config = settings(eval_split="test", guard_split="test", tail_tokens=64)
    for answer in _answers(config, {setting: str(tmp_path / "alice-divorce")}):
        assert b"this device's own log says why" in answer or b"problem" in answer
        assert b"alice" not in answer


@pytest.mark.parametrize("kind", OTHERS)
def test_nor_do_they_leave_in_answers_without_a_plan(settings: Settings, tmp_path: Path, kind: str) -> None:
    answer = _answer(kind, *OTHERS[kind], settings(), {"model": str(tmp_path / "alice-divorce")})
    assert b"this device's own log says why" in answer
    assert b"alice" not in answer


def test_what_nobody_foresaw_is_told_by_its_kind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("client.device.requests.warm_engine", fail)
    for answer in _answers(settings(eval_split="test", guard_split="test"), {}):
        assert b"runtime-error: this device's own log says why" in answer
        assert SECRET.encode() not in answer


def test_a_worker_tells_an_unforeseen_error_by_its_kind() -> None:
    def fail(job: Any) -> Any:
        raise RuntimeError(SECRET)

    logged = listen("client")
    queue = JobQueue()
    job = queue.submit(Request("train", b"d", 1, (0, 0, 0), lambda status, word: b""), fail)
    assert isinstance(job, Job)
    job.wait(0, 60.0)
    queue.close(60.0)
    assert "runtime-error" in repr(job.failure) and SECRET not in repr(job.failure)
    assert any(SECRET in line for line in logged)


@pytest.mark.parametrize("error", [RuntimeError(SECRET), LedgerError(SECRET)])
def test_in_a_simulation_the_operator_hears_all(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("client.device.requests.warm_engine", fail)
    node = {"partition-id": 0, "num-partitions": 2, "client-id": 5}
    for answer in _answers(settings(eval_split="test", guard_split="test"), node):
        assert SECRET.encode() in answer


def test_whoever_set_a_pattern_that_matches_nothing_reads_which(settings: Settings) -> None:
    config = settings(eval_split="test", guard_split="test", trained_tensors="nowhere.at.all")
    for answer in _answers(config, {}):
        assert b"'nowhere.at.all' matches none of the model's" in answer


def test_a_fault_of_the_model_is_not_taken_for_one_of_the_secure_sum(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError(SECRET)

    monkeypatch.setattr("client.device.requests.warm_engine", fail)
    logged = listen("client")
    for answer in _answers(settings(eval_split="test", guard_split="test"), {}):
        assert b"value-error: this device's own log says why" in answer
    assert any(SECRET in line for line in logged)
