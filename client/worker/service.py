"""The gRPC service of the resident worker."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import grpc

from client.device_identity import DeviceIdentity
from client.error_text import error_text
from client.worker.job import Job, Kind
from client.worker.job_queue import Busy, Closing, JobQueue
from client.worker.listen import SERVER_OPTIONS, TokenCheck, bind
from client.worker.runtime import WorkerRuntime
from client.worker.worker_pb2 import Busy as BusyEvent
from client.worker.worker_pb2 import CancelReply, CancelRequest, Event, InfoReply, InfoRequest, Request
from client.worker.worker_pb2 import Progress as ProgressEvent
from client.worker.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from zo_common.errors import Refusal, ZOError
from zo_common.wire.plan import Status

MAX_CALLS = 32  # at once; each holds a thread while it waits
_LOOK_SECONDS = 0.5


class WorkerService(WorkerServicer):
    """The service: it turns requests into work on the queue, and returns progress and answers to the callers."""

    def __init__(self, runtime: WorkerRuntime, queue: JobQueue) -> None:
        self._runtime, self._queue = runtime, queue
        self._counts: Counter[str] = Counter()

    def Info(self, request: InfoRequest, context: Any) -> InfoReply:  # noqa: N802
        """Return the worker's status and the device's introduction."""
        hello = b""
        if request.HasField("hello"):
            try:
                hello = self._runtime.hello(self._runtime.settings(request.hello.settings), _identity(request.hello))
            except ZOError as error:
                _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error_text(error))
        return InfoReply(status=json.dumps(self.status(refresh=not hello)), hello=hello)

    def Sync(self, request: Request, context: Any) -> Event:  # noqa: N802
        """Catch up; return the reply alone."""
        events = list(self._answer("sync", request, context))
        return events[-1] if events else Event()  # none: the caller has disconnected

    def Train(self, request: Request, context: Any) -> Iterator[Event]:  # noqa: N802
        """Yield the progress and the reply of a training."""
        yield from self._answer("train", request, context)

    def Evaluate(self, request: Request, context: Any) -> Iterator[Event]:  # noqa: N802
        """Yield the progress and the reply of an evaluation."""
        yield from self._answer("evaluate", request, context)

    def Secure(self, request: Request, context: Any) -> Event:  # noqa: N802
        """Take a step of a secure sum beside the work in progress, which it does not touch."""
        try:
            return Event(reply=self._runtime.sums.step(request.payload, request.client_id))
        except ZOError as error:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error_text(error))

    def Cancel(self, request: CancelRequest, context: Any) -> CancelReply:  # noqa: N802
        """Stop the work in progress after its step."""
        message = self._queue.cancel()
        return CancelReply(cancelled=bool(message), word=message)

    def status(self, *, refresh: bool = True) -> dict[str, Any]:
        """Return the runtime's status (`refresh`: see there), the work in progress, and counts of past answers."""
        job = self._queue.job
        return self._runtime.status(refresh=refresh) | {
            "job": asdict(job.progress()) | {"callers": job.callers} if job else None,
            "counts": dict(self._counts),
            "memory_bytes": _resident_bytes(),
            "pid": os.getpid(),
        }

    def _answer(self, kind: Kind, request: Request, context: Any) -> Iterator[Event]:
        try:
            asked, work = self._runtime.prepare(kind, request, _identity(request))
        except ZOError as error:
            self._counts["malformed"] += 1
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error_text(error))
        try:
            job = self._queue.submit(asked, work)
        except Closing:
            _abort(context, grpc.StatusCode.UNAVAILABLE, "the worker is stopping")
        if isinstance(job, Busy):
            self._counts["busy"] += 1
            reply = asked.refuse(Status.BUSY, job.message)
            yield Event(busy=BusyEvent(seconds_left=job.seconds_left, reply=reply, word=job.message))
            return
        if not context.add_callback(lambda: self._queue.leave(job)):
            self._queue.leave(job)
            return
        yield from self._follow(job, context)

    def _follow(self, job: Job, context: Any) -> Iterator[Event]:
        """Yield progress until the job ends or the caller disconnects, then the result."""
        seen = 0
        while not job.done and context.is_active():
            found = job.wait(seen, _LOOK_SECONDS)
            if found != seen and not job.done:
                yield Event(progress=ProgressEvent(**asdict(job.progress())))
            seen = found
        if job.answer is not None:
            self._counts["answered"] += 1
            yield Event(reply=job.answer)
        elif job.failure is not None:
            self._counts[job.failure.kind] += 1
            if job.failure.kind == "cancelled":
                message = f"the work was stopped: {job.failure.message}"
                yield Event(reply=job.request.refuse(Status.ERROR, message))
            else:
                codes = {"closing": grpc.StatusCode.UNAVAILABLE, "failed": grpc.StatusCode.INTERNAL}
                _abort(context, codes[job.failure.kind], job.failure.message)


def start_server(
    runtime: WorkerRuntime, queue: JobQueue, address: str, token: str
) -> tuple[grpc.Server, WorkerService, str]:
    """Start a server on a Unix socket or a loopback port; return it with its service and address.

    Raises:
        ConfigError: see `client.worker.listen.bind`.
    """
    service = WorkerService(runtime, queue)
    server = grpc.server(
        ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="call"),
        interceptors=[TokenCheck(token)] if token else [],
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    add_WorkerServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    address = bind(server, address, token)
    server.start()
    return server, service, address


def _identity(request: Request) -> DeviceIdentity:
    """Return whom a caller asks.

    Raises:
        Refusal: for a share of the recordings, which would be by a column and of a size of the caller's choice.
    """
    if request.HasField("partition_id"):
        raise Refusal(
            "a share of the recordings was asked for, a worker's recordings are one device's: remove partition-id "
            "from its node config"
        )
    return DeviceIdentity(request.client_id)


def _abort(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(code, message[:2000])
    raise AssertionError("abort raises")


def _resident_bytes() -> int:
    """Return the memory of this process, 0 if the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    except (OSError, StopIteration, ValueError):
        return 0
