"""A resident worker as a process of its own, on a real socket with a tiny Whisper, and what happens to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worker_fork
from typer.testing import CliRunner

from client.engine import Engine
from client.place import Place
from client.warm import warm_dataset
from client.worker_cli import app
from client.worker_client import WorkerClient, WorkerError, make_request
from client.worker_pb2 import Progress, Request
from zo_common.config import RunConfig
from zo_common.contribution import Contribution, Record
from zo_common.estimator import EstimatorConfig
from zo_common.evaluation_reply import decode_evaluation
from zo_common.messages import Plan, Reply, Status, decode_plan, decode_reply, encode_plan
from zo_common.models import load_whisper
from zo_common.seeds import client_seed
from zo_common.snapshot import encode_part, encode_snapshot, split_snapshot
from zo_common.state import LatticeState

ENDLESS = 60_000  # steps; a test ends the training long before
PLACE = Place(7)


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
        request = make_request(encode_plan(plan), replace(self.config, **changes).to_mapping(), PLACE)
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


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


@pytest.fixture
def worker(forks: Forks, settings: Callable[..., RunConfig]) -> Iterator[Worker]:
    """Not started yet."""
    folder = Path(tempfile.mkdtemp(prefix="zo"))
    made = Worker(forks, folder, settings(eval_split="test", precision="float32"))
    yield made
    if made.pid and made.wait(0.01) is None:
        made.kill()
    shutil.rmtree(folder)


class Truth:
    """The base model and a history on it, in this process."""

    def __init__(self, config: RunConfig) -> None:
        self.engine = Engine(config)
        model, _ = load_whisper(config.model)
        self.state = LatticeState(model, config.trained_tensors)
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
        seed = client_seed(0, server_round, PLACE.client_id)
        plan = Plan(server_round, seed, PLACE.client_id, self.base_id, checksum, 2, 2, 1e-6, estimator, records)
        return decode_plan(encode_plan(replace(plan, **changes)))  # epsilon in float32, as it travels

    def snapshot(self, server_round: int) -> list[bytes]:
        model, _ = load_whisper(self.engine.config.model)
        state = LatticeState(model, self.engine.config.trained_tensors)
        state.apply([u for record in self.records[:server_round] for u in record.updates()])
        base = LatticeState(load_whisper(self.engine.config.model)[0], self.engine.config.trained_tensors)
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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the workers have it: losses are then equal to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shared_truth() -> dict[str, Truth]:
    return {}


@pytest.fixture
def truth(shared_truth: dict[str, Truth], worker: Worker) -> Truth:
    if not shared_truth:
        shared_truth["tiny"] = Truth(worker.config)
    return shared_truth["tiny"]


def test_a_worker_answers_as_an_engine_in_this_process_does(worker: Worker, truth: Truth) -> None:
    worker.start()
    found = worker.ready()
    assert (found["round"], found["job"], found["model"]) == (0, None, worker.config.model)
    with worker.client() as client:
        hello = json.loads(client.info(make_request(b"", worker.config.to_mapping(), PLACE)).hello)
    assert hello == {"client_id": 7, "num_examples": 9, "skipped": 0} | truth.engine.describe()

    plan = truth.plan(3)
    first, again = worker.ask(plan), worker.ask(plan)
    truth.engine.rewind(0)
    expected = truth.engine.train(plan, warm_dataset(worker.config, truth.engine, None, 1))
    reply = decode_reply(first)
    assert (reply.status, reply.have_round, reply.checksum) == (Status.OK, 2, truth.records[1].checksum)
    np.testing.assert_array_equal(reply.projected_grads, expected.projected_grads)
    assert again == first

    evaluation = decode_evaluation(worker.ask(truth.plan(4, 2), "evaluate"))
    assert (evaluation.status, evaluation.scores.utterances) == (Status.OK, 3)
    behind = worker.train(truth.plan(5, 4))
    assert (behind.status, behind.have_round) == (Status.BEHIND, 3)
    synced = decode_reply(worker.ask(truth.plan(5, 3), "sync"))
    assert (synced.status, synced.have_round, synced.checksum) == (Status.OK, 4, truth.records[3].checksum)
    other = worker.train(truth.plan(5, 4, base_id=9))
    assert other.status is Status.CHECKSUM and "0000000000000009" in other.message

    status = worker.status()
    assert (status["round"], status["checksum"]) == (4, f"{truth.records[3].checksum:016x}")
    assert status["counts"]["answered"] == 6 and status["unsaved"] == ""
    assert status["memory_bytes"] > 1 << 20


def test_rebuild_snapshot_and_other_settings(worker: Worker, truth: Truth) -> None:
    worker.start()
    worker.ready()
    settings = worker.config.to_mapping()
    with worker.client() as client:
        assert decode_reply(client.sync(make_request(encode_plan(truth.plan(3)), settings, PLACE))).have_round == 2
        rebuild = make_request(encode_plan(truth.plan(3, records=())), settings, PLACE, Request.REBUILD)
        rebuilt = decode_reply(client.sync(rebuild))
        assert (rebuilt.status, rebuilt.have_round, rebuilt.checksum) == (Status.OK, 0, truth.base_checksum)
        parts = [decode_reply(client.sync(make_request(p, settings, PLACE, Request.PART))) for p in truth.snapshot(3)]
    assert [(part.status, part.have_round) for part in parts] == [(Status.OK, 0), (Status.OK, 3)]
    assert parts[-1].checksum == truth.records[2].checksum

    assert worker.kill() == -signal.SIGKILL  # back at the snapshot
    worker.start()
    assert (worker.ready()["start_round"], worker.status()["round"]) == (3, 3)
    reply = worker.train(truth.plan(5, 3))
    assert (reply.status, reply.checksum) == (Status.OK, truth.records[3].checksum)

    other = worker.train(truth.plan(1, checksum=0), trained_tensors="encoder-conv")
    assert other.status is Status.OK
    status = worker.status()
    assert (status["trained_tensors"], status["round"]) == ("encoder-conv", 0)
    assert "other settings: the model is loaded again" in worker.log.read_text()


def test_busy_attach_supersede_and_cancel(worker: Worker, truth: Truth) -> None:
    worker.start("--orphan-seconds", "0.5")
    worker.ready()
    endless = truth.plan(3, local_steps=ENDLESS)
    running = worker.begin(endless)
    shown = CliRunner().invoke(app, ["status", "--listen", worker.address, "--json"])
    job = json.loads(shown.stdout)["job"]
    assert (job["kind"], job["server_round"], job["steps"], job["callers"]) == ("train", 3, ENDLESS, 1)
    assert job["queries_per_second"] > 0 and job["seconds_left"] > 0

    busy = worker.train(truth.plan(3, batch_size=1))
    assert busy.status is Status.BUSY
    assert busy.message.startswith("busy with training of round 3 for ") and busy.message.endswith(" s more")
    assert decode_evaluation(worker.ask(truth.plan(3), "evaluate")).status is Status.BUSY
    with worker.client() as client:  # who asks who it is gets an answer meanwhile, for other settings a word
        request = make_request(b"", replace(worker.config, trained_tensors="encoder-conv").to_mapping(), PLACE)
        assert "busy with round 3" in json.loads(client.info(request).hello)["error"]
    attached = worker.begin(endless)
    assert worker.status()["job"]["callers"] == 2

    later = worker.train(truth.plan(4, 2))
    assert (later.status, later.checksum) == (Status.OK, truth.records[2].checksum)
    for stopped in (running.result(20), attached.result(20)):
        assert stopped.status is Status.ERROR and "round 4 superseded it" in stopped.message

    running = worker.begin(truth.plan(5, 3, local_steps=ENDLESS))
    cancelled = CliRunner().invoke(app, ["cancel", "--listen", worker.address])
    assert cancelled.stdout == "stopping the training of round 5\n"
    assert "the operator of the device cancelled it" in running.result(20).message
    status = worker.status()
    assert (status["job"], status["counts"]["busy"], status["counts"]["cancelled"]) == (None, 2, 3)

    plan = truth.plan(5, 4, local_steps=ENDLESS, batch_size=1)
    request = make_request(encode_plan(plan), worker.config.to_mapping(), PLACE)
    with WorkerClient(worker.address, timeout=1.5) as client, pytest.raises(WorkerError, match=r"within 1\.5 s"):
        client.train(request)
    deadline = time.monotonic() + 10
    while worker.status()["job"] is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "nobody has waited for it for 0.5 s" in worker.log.read_text()
    reply = worker.train(truth.plan(5, 4))
    assert (reply.status, reply.checksum) == (Status.OK, truth.records[3].checksum)  # all of that left no trace


def test_sigterm_in_training_saves_and_ends_well(worker: Worker, truth: Truth) -> None:
    worker.start()
    worker.ready()
    running = worker.begin(truth.plan(4, local_steps=ENDLESS))

    began = time.monotonic()
    assert worker.kill(signal.SIGTERM) == 0
    assert time.monotonic() - began < 15
    assert not Path(worker.address.removeprefix("unix:")).exists()
    with pytest.raises(WorkerError, match="could not be reached"):
        running.result(20)
    worker.start()
    found = worker.ready()
    assert (found["round"], found["checksum"]) == (3, f"{truth.records[2].checksum:016x}")
    assert "cannot be used" not in worker.log.read_text()


def test_sigkill_in_training_is_recovered_and_the_caller_gets_its_answer(worker: Worker, truth: Truth) -> None:
    worker.start()
    worker.ready()
    done = worker.ask(truth.plan(2))
    plan = truth.plan(4, 1, local_steps=100)
    running = worker.begin(plan, wait=60.0)  # asks again until a worker is back

    assert worker.kill() == -signal.SIGKILL
    assert Path(worker.address.removeprefix("unix:")).exists()  # nobody tidied up
    worker.start()
    reply = running.result(60)

    truth.engine.rewind(0)
    expected = truth.engine.train(truth.plan(4, local_steps=100), warm_dataset(worker.config, truth.engine, None, 1))
    assert (reply.status, reply.have_round, reply.checksum) == (Status.OK, 3, truth.records[2].checksum)
    np.testing.assert_array_equal(reply.projected_grads, expected.projected_grads)
    starts = [line for line in worker.log.read_text().splitlines() if "recordings in" in line]
    assert ["round 0, checksum" in starts[0], "round 3, checksum" in starts[1], len(starts)] == [True, True, 2]
    assert worker.kill() == -signal.SIGKILL
    worker.start()
    worker.ready()
    assert decode_reply(worker.ask(plan)).projected_grads.tobytes() == reply.projected_grads.tobytes()
    assert worker.status()["last"] == {}  # from disk, not trained again
    assert decode_reply(done).status is Status.OK


def test_new_recordings_are_read_and_mistakes_are_told_at_start(worker: Worker, truth: Truth, tmp_path: Path) -> None:
    data = shutil.copytree(worker.config.data, tmp_path / "data")
    worker.start(data=str(data))
    worker.ready()
    assert worker.train(truth.plan(1)).num_examples == 9
    table = data / "train" / "metadata.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-2]) + "\n")
    assert worker.train(truth.plan(1, batch_size=1)).num_examples == 7
    assert "the table of recordings has changed" in worker.log.read_text()
    with worker.client() as client, pytest.raises(WorkerError, match="unknown setting 'nonsense'"):
        client.train(make_request(encode_plan(truth.plan()), {"nonsense": 1}, PLACE))
    with worker.client() as client, pytest.raises(WorkerError, match="plan starts with"):
        client.train(make_request(b"junk", {}, PLACE))

    second = Worker(worker.forks, worker.folder, worker.config)
    for changes, word in (
        ({}, "error: another worker uses state folder"),
        ({"state": str(tmp_path / "other")}, "error: a worker listens on"),
        ({"state": str(tmp_path / "other"), "model": "/nowhere"}, "error: model '/nowhere' is neither"),
        ({"state": str(tmp_path / "other"), "data": "/nowhere"}, "'/nowhere' is not there"),
        ({"listen": "0.0.0.0:1"}, "error: listen is '0.0.0.0:1', expected unix:/path"),
    ):
        second.log = tmp_path / "log"
        second.start(**changes)
        assert second.wait() == 1, changes
        assert word in second.log.read_text()
        assert "Traceback" not in second.log.read_text()
    assert worker.status()["pid"] == worker.pid
