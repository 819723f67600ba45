"""How a ClientApp and a command line reach the worker, and what they say when they cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from listening import listen

from client.app import make_client_app
from client.device_identity import DeviceIdentity
from client.worker.client import MESSAGE_BYTES, WorkerClient, WorkerError, make_request
from client.worker.listen import SERVER_OPTIONS, TokenCheck, bind
from client.worker.worker_pb2 import Busy, Event, InfoReply, InfoRequest, Progress, Request
from client.worker.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from zo_common.secure_sum.messages import Invitation
from zo_common.secure_sum.terms import Terms


class Scripted(WorkerServicer):
    """Answers as the test says and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.events: Callable[[Any], Iterator[Event]] = lambda context: iter([Event(reply=b"reply")])

    def Info(self, request: InfoRequest, context: Any) -> InfoReply:
        self.asked.append(("info", request.hello))
        return InfoReply(status="{}", hello=b"hello")

    def Sync(self, request: Request, context: Any) -> Event:
        self.asked.append(("sync", request))
        return Event(reply=b"synced")

    def Train(self, request: Request, context: Any) -> Iterator[Event]:
        self.asked.append(("train", request))
        yield from self.events(context)

    def Evaluate(self, request: Request, context: Any) -> Iterator[Event]:
        self.asked.append(("evaluate", request))
        yield from self.events(context)

    def Secure(self, request: Request, context: Any) -> Event:
        self.asked.append(("secure", request))
        return Event(reply=b"a step")


@pytest.fixture
def service() -> Scripted:
    return Scripted()


@pytest.fixture
def address() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="zo")
    yield f"unix:{folder}/w.sock"
    shutil.rmtree(folder)


@pytest.fixture
def serve(service: Scripted) -> Iterator[Callable[..., grpc.Server]]:
    servers = []

    def start(address: str, token: str = "") -> grpc.Server:
        server = grpc.server(
            ThreadPoolExecutor(4), interceptors=[TokenCheck(token)] if token else [], options=SERVER_OPTIONS
        )
        add_WorkerServicer_to_server(service, server)
        server.address = bind(server, address, token)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(0).wait(5)


REQUEST = make_request(b"plan", {"run-seed": 3}, DeviceIdentity(7, 1, 4))


def test_a_request_carries_bytes_settings_and_place() -> None:
    assert (REQUEST.payload, json.loads(REQUEST.settings)) == (b"plan", {"run-seed": 3})
    assert (REQUEST.client_id, REQUEST.partition_id, REQUEST.num_partitions) == (7, 1, 4)
    assert not make_request(b"", {}, DeviceIdentity(2**64 - 1)).HasField("partition_id")


def test_progress_is_handed_on_and_the_reply_returned(
    service: Scripted, serve: Callable[..., Any], address: str
) -> None:
    serve(address)
    service.events = lambda context: iter([Event(progress=Progress(step=n)) for n in (1, 2)] + [Event(reply=b"done")])
    steps: list[int] = []
    with WorkerClient(address) as client:
        assert client.train(REQUEST, lambda progress: steps.append(progress.step)) == b"done"
    assert steps == [1, 2]


def test_busy_is_a_reply_for_the_server(service: Scripted, serve: Callable[..., Any], address: str) -> None:
    serve(address)
    service.events = lambda context: iter([Event(busy=Busy(reply=b"busy"))])
    with WorkerClient(address) as client:
        assert client.evaluate(REQUEST) == b"busy"


def test_no_event_at_all_is_an_error(service: Scripted, serve: Callable[..., Any], address: str) -> None:
    serve(address)
    service.events = lambda context: iter([])
    with WorkerClient(address) as client, pytest.raises(WorkerError, match="ended without an answer"):
        client.train(REQUEST)


def test_a_large_message_passes_and_a_larger_is_refused(
    service: Scripted, serve: Callable[..., Any], address: str
) -> None:
    serve(address)
    with WorkerClient(address, timeout=30) as client:
        assert client.sync(make_request(bytes(20 << 20), {}, DeviceIdentity(1))) == b"synced"
        with pytest.raises(WorkerError, match="lower message-bytes"):
            client.sync(make_request(bytes(MESSAGE_BYTES), {}, DeviceIdentity(1)))


def test_nobody_there_is_said_after_the_wait(address: str) -> None:
    began = time.monotonic()
    with (
        WorkerClient(address, wait=0.8) as client,
        pytest.raises(WorkerError, match=r"could not be reached for 0\.8 s: start zo-asr worker, or correct"),
    ):
        client.train(REQUEST)
    assert 0.8 <= time.monotonic() - began < 5


def test_a_worker_that_comes_later_is_asked(serve: Callable[..., Any], address: str) -> None:
    timer = threading.Timer(0.7, serve, [address])
    timer.start()
    with WorkerClient(address, wait=20.0, timeout=20.0) as client:
        assert client.train(REQUEST) == b"reply"
    timer.join(5)


def test_a_worker_lost_on_the_way_is_asked_the_same_again(
    service: Scripted, serve: Callable[..., Any], address: str
) -> None:
    serve(address)

    def lose(context: Any) -> Iterator[Event]:
        yield Event(progress=Progress(step=1))
        if len(service.asked) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is stopping")
        yield Event(reply=b"third time")

    service.events = lose
    with WorkerClient(address, wait=5.0) as client:
        assert client.train(REQUEST) == b"third time"
    assert [request for _, request in service.asked] == [REQUEST] * 3


def test_the_deadline_ends_the_wait(service: Scripted, serve: Callable[..., Any], address: str) -> None:
    serve(address)
    gone = threading.Event()

    def endless(context: Any) -> Iterator[Event]:
        context.add_callback(gone.set)
        while context.is_active():
            time.sleep(0.05)
            yield Event(progress=Progress(step=1))

    service.events = endless
    with (
        WorkerClient(address, wait=60.0, timeout=0.5) as client,
        pytest.raises(WorkerError, match=r"did not answer within 0\.5 s: raise round-timeout or lower local-steps"),
    ):
        client.train(REQUEST)
    assert gone.wait(5)  # the worker hears that nobody waits


@pytest.mark.parametrize(
    ("code", "word"),
    [("INTERNAL", "failed: look at its log .RuntimeError: oh."), ("INVALID_ARGUMENT", "refused the request")],
)
def test_a_failure_is_one_sentence(
    service: Scripted, serve: Callable[..., Any], address: str, code: str, word: str
) -> None:
    serve(address)
    service.events = lambda context: context.abort(grpc.StatusCode[code], "RuntimeError: oh")
    with WorkerClient(address) as client, pytest.raises(WorkerError, match=word):
        client.train(REQUEST)


class TestAdapter:
    """The ClientApp where the node config names a worker."""

    @pytest.fixture
    def ask(self, address: str) -> Callable[..., dict[str, Any]]:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

        def ask(kind: str, record: dict[str, bytes], **node: Any) -> dict[str, Any]:
            message = Message(RecordDict({"zo": ConfigRecord(record)}), dst_node_id=5, message_type=kind)
            config = {"worker-address": address, "worker-wait": 0.3, "client-id": 7} | node
            context = Context(1, 5, config, RecordDict(), {"run-seed": 3, "round-timeout": 5.0})
            return dict(make_client_app()(message, context).content.config_records["zo"])

        return ask

    @pytest.mark.parametrize(
        ("kind", "record", "called", "content", "answer"),
        [
            ("query", {"hello": b""}, "info", Request.PLAN, {"hello": b"hello"}),
            ("query.sync", {"plan": b"plan"}, "sync", Request.PLAN, {"reply": b"synced"}),
            ("query.sync", {"part": b"plan"}, "sync", Request.PART, {"reply": b"synced"}),
            ("query.rebuild", {"plan": b"plan"}, "sync", Request.REBUILD, {"reply": b"synced"}),
            ("train", {"plan": b"plan"}, "train", Request.PLAN, {"reply": b"reply"}),
            ("evaluate", {"plan": b"plan"}, "evaluate", Request.PLAN, {"reply": b"reply"}),
            ("evaluate.look", {"plan": b"plan"}, "evaluate", Request.LOOK, {"reply": b"reply"}),
        ],
    )
    def test_every_message_is_handed_on(
        self,
        service: Scripted,
        serve: Callable[..., Any],
        address: str,
        ask: Callable[..., dict[str, Any]],
        kind: str,
        record: dict[str, bytes],
        called: str,
        content: Any,
        answer: dict[str, bytes],
    ) -> None:
        serve(address)

        assert ask(kind, record) == answer
        (name, request), *rest = service.asked
        assert (name, request.content, request.client_id, rest) == (called, content, 7, [])
        assert request.payload == (b"" if kind == "query" else b"plan")
        assert json.loads(request.settings) == {"run-seed": 3, "round-timeout": 5.0}

    def test_a_worker_that_is_not_there_is_a_sentence_for_the_server(self, ask: Callable[..., dict[str, Any]]) -> None:
        assert "start zo-asr worker" in ask("train", {"plan": b""})["error"]

    def test_a_message_without_a_plan_is_a_sentence(self, ask: Callable[..., dict[str, Any]]) -> None:
        logged = listen("client")
        assert "cannot be used (KeyError): update the older side" in ask("train", {})["error"]
        assert any("KeyError('plan')" in line for line in logged)

    def test_a_port_with_its_token_file(
        self, serve: Callable[..., Any], ask: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        port = serve("127.0.0.1:0", "0123456789abcdef").address
        (tmp_path / "token").write_text("0123456789abcdef\n")
        (tmp_path / "token").chmod(0o600)
        node = {"worker-address": port, "worker-token-file": str(tmp_path / "token")}
        assert ask("train", {"plan": b"plan"}, **node) == {"reply": b"reply"}
        assert "refused the token" in ask("train", {"plan": b"plan"}, **{"worker-address": port})["error"]
        logged = listen("client")
        missing = ask("train", {"plan": b"plan"}, **node | {"worker-token-file": "/nowhere"})
        assert missing["error"] == "config-error: this device's own log says why"
        assert any("token file /nowhere cannot be read" in line for line in logged)

    def test_nothing_heavy_is_imported(self, serve: Callable[..., Any], address: str) -> None:
        """Not for any kind of message, and not for the device's side of secure aggregation."""
        serve(address)
        invitation = Invitation(Terms(bytes(16), 1, 8)).encode()
        code = f"""
import sys
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
from client.app import app
plan = {{"plan": b"x"}}
for kind, record in (
    ("query", {{"hello": b""}}), ("train", plan), ("evaluate", plan), ("evaluate.look", plan), ("query.sync", plan),
    ("query.sync", {{"part": b"x"}}), ("query.rebuild", plan), ("query.calibrate", {{"calibration": b"x"}}),
    ("query.secure", {{"secure": bytes.fromhex("{invitation.hex()}")}}),
):
    message = Message(RecordDict({{"zo": ConfigRecord(record)}}), dst_node_id=5, message_type=kind)
    answer = app(message, Context(1, 5, {{"worker-address": "{address}"}}, RecordDict(), {{}}))
    assert "error" not in answer.content.config_records["zo"], answer.content
heavy = {{"torch", "transformers", "numba", "datasets", "numpy.testing"}} & set(sys.modules)
assert "client.secure_sum" in sys.modules
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
