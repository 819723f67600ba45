"""Workers that are not what they should be, for the device's place in a fleet.

    python stand_in.py garbage …    introduces itself honestly, then answers everything with random bytes
    python stand_in.py drifting …   the real worker that always moves the weights too far when rounds are applied

The further arguments are those of `zo-asr-worker`.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from client.device import follower as follower_module
from client.device.engine import Engine
from client.worker.cli import main
from client.worker.listen import bind
from client.worker.worker_pb2 import Event, InfoReply, InfoRequest, Request
from client.worker.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from zo_common.config.run import RunConfig
from zo_common.lattice.update import Update


class Garbage(WorkerServicer):
    """Knows the base model, and nothing of messages."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._draw = random.Random(7)
        self._description: dict[str, Any] = {}

    def Info(self, request: InfoRequest, context: Any) -> InfoReply:
        """An introduction like any other."""
        settings = json.loads(request.hello.settings) if request.HasField("hello") else {}
        if settings and not self._description:
            self._description = Engine(RunConfig.from_mapping(settings | {"model": self._model})).describe()
        hello = {"client_id": request.hello.client_id, "num_examples": 3, "skipped": 0} | self._description
        return InfoReply(status=json.dumps({"round": 0}), hello=json.dumps(hello).encode())

    def Train(self, request: Request, context: Any) -> Iterator[Event]:
        """Any bytes; every second time they begin like a reply."""
        noise = self._draw.randbytes(self._draw.randrange(1, 2000))
        yield Event(reply=(b"ZR\x01" if self._draw.random() < 0.5 else b"") + noise)

    def Evaluate(self, request: Request, context: Any) -> Iterator[Event]:
        """As trained."""
        yield from self.Train(request, context)

    def Sync(self, request: Request, context: Any) -> Event:
        """As trained."""
        return next(self.Train(request, context))


def serve_garbage(arguments: list[str]) -> None:
    """Until SIGTERM."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    server = grpc.server(ThreadPoolExecutor(4))
    add_WorkerServicer_to_server(Garbage(given["--model"]), server)
    bind(server, given["--listen"], "")
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    server.stop(1.0)


def drift() -> None:
    """From now on, whenever rounds are applied in this process, the weights move a little farther than they should."""
    right = follower_module.apply_all

    def wrong(state: Any, updates: Any, sign: int = 1) -> None:
        right(state, [*updates, Update(seed=99, coefficient=0.01)], sign)

    follower_module.apply_all = wrong


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "garbage":
        serve_garbage(rest)
    else:
        drift()
        sys.argv = ["zo-asr-worker", *rest]
        main()
