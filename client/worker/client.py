"""Client of the resident worker, on its Unix socket or on a loopback port with a token; it imports nothing heavy."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc

from client.device_identity import DeviceIdentity
from client.worker.worker_pb2 import (
    CancelRequest,
    Event,
    InfoReply,
    InfoRequest,
    Progress,
    Request,
)
from client.worker.worker_pb2_grpc import WorkerStub
from zo_common.errors import ConfigError, NetworkError

MESSAGE_BYTES = 64 << 20
_RETRY_SECONDS = 0.3
_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # the worker is on this machine
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class WorkerError(NetworkError):
    """The worker cannot be reached or refused a request, with the reason.

    Args:
        address: the worker's.
        message: what it did; the server may see it.
        details: for whoever is at the device.
    """

    def __init__(self, address: str, message: str, details: str = "") -> None:
        super().__init__(f"the worker at {address} {message}{f' ({details})' if details else ''}")
        self._message = message

    @property
    def public_text(self) -> str:
        """The message without the address, which may be a path."""
        return f"the worker {self._message}"


def read_token(path: Path) -> str:
    """Read the shared secret in a file.

    Raises:
        ConfigError: the file cannot be read, others may read it, or its secret is too short.
    """
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise ConfigError(f"token file {path} cannot be read ({reason}): check the path and its rights") from None
    if mode & 0o077:
        raise ConfigError(f"token file {path} has mode {mode:04o}, expected 0600: run chmod 600 on it")
    if len(token) < 16:
        raise ConfigError(f"token file {path} holds {len(token)} characters, expected at least 16: write a random one")
    return token


def make_request(
    payload: bytes,
    settings: Mapping[str, Any],
    identity: DeviceIdentity,
    content: Request.Content = Request.PLAN,
    secure: bytes = b"",
) -> Request:
    """Return the request of a ClientApp: the server's bytes, the run config, and the device's id and partition.

    Args:
        secure: the list of sharers that came with a plan of a secure sum.
    """
    return Request(
        payload=payload,
        content=content,
        settings=json.dumps(dict(settings)),
        client_id=identity.client_id,
        partition_id=identity.partition_id,
        num_partitions=identity.num_partitions,
        secure=secure,
    )


class WorkerClient:
    """A connection that survives the worker's restart.

    Args:
        address: `unix:/path` or `127.0.0.1:port`.
        token: the worker's secret, needed on a port.
        wait: seconds to retry while the worker cannot be reached, as during its restart.
        timeout: seconds for one call, with its retries.
    """

    def __init__(self, address: str, token: str = "", *, wait: float = 0.0, timeout: float = 10.0) -> None:
        self.address = address
        self._wait, self._timeout = wait, timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub: Any = WorkerStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def info(self, hello: Request | None = None) -> InfoReply:
        """Return the worker's status; with `hello`, also its introduction to that run's server.

        Raises:
            WorkerError: as for all calls.
        """
        (answer,) = self._ask(lambda **how: [self._stub.Info(InfoRequest(hello=hello), **how)])
        found: InfoReply = answer
        return found

    def sync(self, request: Request) -> bytes:
        """Catch up; return the packed reply for the server."""
        return self._reply(lambda **how: [self._stub.Sync(request, **how)])

    def train(self, request: Request, on_progress: Callable[[Progress], None] = lambda progress: None) -> bytes:
        """Train, or attach to the same training; return the packed reply, which may say that the worker is busy."""
        return self._reply(lambda **how: self._stub.Train(request, **how), on_progress)

    def evaluate(self, request: Request, on_progress: Callable[[Progress], None] = lambda progress: None) -> bytes:
        """As `train`, for an evaluation."""
        return self._reply(lambda **how: self._stub.Evaluate(request, **how), on_progress)

    def secure(self, request: Request) -> bytes:
        """Take a step of a secure sum that needs no training; return the packed message for the server."""
        return self._reply(lambda **how: [self._stub.Secure(request, **how)])

    def cancel(self) -> str:
        """Stop the work in progress; return its name, or ""."""
        (answer,) = self._ask(lambda **how: [self._stub.Cancel(CancelRequest(), **how)])
        return str(answer.word)

    def _reply(
        self,
        call: Callable[..., Iterable[Event]],
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> bytes:
        def take(event: Event) -> None:
            if event.WhichOneof("what") == "progress":
                on_progress(event.progress)

        events = self._ask(call, take)
        last = events[-1] if events else Event()
        found = {"busy": last.busy.reply, "reply": last.reply}.get(str(last.WhichOneof("what")))
        if found is None:
            raise WorkerError(self.address, "ended without an answer: look at its log")
        return bytes(found)

    def _ask(self, call: Callable[..., Iterable[Any]], on_event: Callable[[Any], None] = lambda _: None) -> list[Any]:
        """Call until there is an answer; return the last event of a stream. An unreachable worker is called again.

        gRPC's own retry policy makes at most five attempts, and none once a stream has begun. A worker that restarts in
        the middle of a training loads its model first. `wait_for_ready` waits for a socket that does not exist yet, but
        until the call's deadline, which is the round's: a device without a worker would be silent all that time.
        """
        deadline = time.monotonic() + self._timeout
        lost: float | None = None
        while True:
            last: list[Any] = []
            try:
                for event in call(timeout=max(0.01, deadline - time.monotonic()), metadata=self._metadata):
                    lost, last = None, [event]
                    on_event(event)
                return last
            except grpc.RpcError as error:
                now = time.monotonic()
                lost = now if lost is None else lost
                if error.code() != grpc.StatusCode.UNAVAILABLE or now > min(lost + self._wait, deadline):
                    raise self._explain(error) from None
            time.sleep(_RETRY_SECONDS)

    def _explain(self, error: Any) -> WorkerError:
        code, details = error.code(), " ".join(str(error.details()).split())
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            return WorkerError(self.address, f"refused the request: {details}")  # the worker's own words
        message = {
            grpc.StatusCode.UNAVAILABLE: (
                f"could not be reached for {self._wait:g} s: start zo-asr worker, or correct worker-address"
            ),
            grpc.StatusCode.DEADLINE_EXCEEDED: (
                f"did not answer within {self._timeout:g} s: raise round-timeout or lower local-steps"
            ),
            grpc.StatusCode.UNAUTHENTICATED: "refused the token: give worker-token-file the file that the worker has",
            grpc.StatusCode.RESOURCE_EXHAUSTED: "refused the message: lower message-bytes",
        }.get(code, "failed: look at its log")
        return WorkerError(self.address, message, details)
