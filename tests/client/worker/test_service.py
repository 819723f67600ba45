"""A resident worker as a process of its own, on a real socket with a tiny Whisper, and what happens to it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from worker_process import IDENTITY, Truth, Worker

from client.device.warm import warm_dataset
from client.worker.cli import app
from client.worker.client import WorkerClient, WorkerError, make_request
from client.worker.job_queue import BUSY
from client.worker.worker_pb2 import Request
from zo_common.speech.metrics import Scores
from zo_common.wire.evaluation import decode_evaluation
from zo_common.wire.plan import Status, decode_reply, encode_plan

ENDLESS = 60_000  # steps; a test ends the training long before


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the workers have it: losses are then equal to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_worker_answers_as_an_engine_in_this_process_does(worker: Worker, truth: Truth) -> None:
    worker.start()
    found = worker.ready()
    assert (found["round"], found["job"], found["model"]) == (0, None, worker.config.model)
    with worker.client() as client:
        hello = json.loads(client.info(make_request(b"", worker.config.to_mapping(), IDENTITY)).hello)
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
    with worker.client() as client:
        look = make_request(encode_plan(truth.plan(4, 2)), worker.config.to_mapping(), IDENTITY, Request.LOOK)
        looked = decode_evaluation(client.evaluate(look))
    assert (looked.status, looked.scores) == (Status.OK, Scores(utterances=3))
    assert looked.loss_sum == pytest.approx(evaluation.loss_sum)
    behind = worker.train(truth.plan(5, 4))
    assert (behind.status, behind.have_round) == (Status.BEHIND, 3)
    synced = decode_reply(worker.ask(truth.plan(5, 3), "sync"))
    assert (synced.status, synced.have_round, synced.checksum) == (Status.OK, 4, truth.records[3].checksum)
    other = worker.train(truth.plan(5, 4, base_id=9))
    assert other.status is Status.CHECKSUM and "0000000000000009" in other.message

    status = worker.status()
    assert (status["round"], status["checksum"]) == (4, f"{truth.records[3].checksum:016x}")
    assert status["counts"]["answered"] == 7 and status["unsaved"] == ""
    assert status["memory_bytes"] > 1 << 20


def test_rebuild_snapshot_and_other_settings(worker: Worker, truth: Truth) -> None:
    worker.start()
    worker.ready()
    settings = worker.config.to_mapping()
    with worker.client() as client:
        assert decode_reply(client.sync(make_request(encode_plan(truth.plan(3)), settings, IDENTITY))).have_round == 2
        rebuild = make_request(encode_plan(truth.plan(3, records=())), settings, IDENTITY, Request.REBUILD)
        rebuilt = decode_reply(client.sync(rebuild))
        assert (rebuilt.status, rebuilt.have_round, rebuilt.checksum) == (Status.OK, 0, truth.base_checksum)
        parts = [
            decode_reply(client.sync(make_request(p, settings, IDENTITY, Request.PART))) for p in truth.snapshot(3)
        ]
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
    assert busy.message == BUSY
    assert decode_evaluation(worker.ask(truth.plan(3), "evaluate")).status is Status.BUSY
    with worker.client() as client:  # who asks who it is gets an answer meanwhile, for other settings a word
        request = make_request(b"", replace(worker.config, trained_tensors="encoder-conv").to_mapping(), IDENTITY)
        assert BUSY in json.loads(client.info(request).hello)["error"]
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
    request = make_request(encode_plan(plan), worker.config.to_mapping(), IDENTITY)
    with WorkerClient(worker.address, timeout=1.5) as client, pytest.raises(WorkerError, match=r"within 1\.5 s"):
        client.train(request)
    deadline = time.monotonic() + 10
    while worker.status()["job"] is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "no caller has waited for it for 0.5 s" in worker.log.read_text()
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


@pytest.mark.slow
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
        client.train(make_request(encode_plan(truth.plan()), {"nonsense": 1}, IDENTITY))
    with worker.client() as client, pytest.raises(WorkerError, match="plan starts with"):
        client.train(make_request(b"junk", {}, IDENTITY))

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
