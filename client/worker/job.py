"""One job of the resident worker: its request, progress and result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition
from typing import Literal

from client.device.engine import Cancelled
from zo_common.wire.plan import Status

Kind = Literal["train", "evaluate", "sync"]
_ORDER: dict[str, int] = {"sync": 0, "evaluate": 0, "train": 1}  # within a round, as a server asks


@dataclass(frozen=True)
class Request:
    """The identity of a job.

    Attributes:
        digest: hash of all that the answer depends on.
        run: base id, run seed and client id; only a later round of the same run supersedes.
        refuse: makes the packed reply of this kind with a status other than OK and a message.
        repeats: whether an earlier answer may be given again; not where the work is to say why it is refused.
    """

    kind: Kind
    digest: bytes
    server_round: int
    run: tuple[int, int, int]
    refuse: Callable[[Status, str], bytes] = field(compare=False)
    steps: int = 0
    num_queries: int = 0
    repeats: bool = True

    def supersedes(self, other: Request) -> bool:
        """Return whether the sender of this request no longer waits for `other`."""
        mine, theirs = ((r.server_round, _ORDER[r.kind]) for r in (self, other))
        return self.run == other.run and mine > theirs


@dataclass(frozen=True)
class Progress:
    """Progress of a job; `seconds_left` is negative while unknown."""

    kind: str
    server_round: int
    step: int
    steps: int
    loss: float
    queries_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Failure:
    """Reason for a missing answer: the job was cancelled, the worker is stopping, or an unexpected error."""

    kind: Literal["cancelled", "closing", "failed"]
    message: str


class Job:
    """Work in progress; `condition` is its queue's and guards all attributes.

    Attributes:
        callers: number of callers that wait for the answer.
        departures: number of times that the last of them left.
        answer: the packed reply, once there is one.
        stop: why it must stop; None while it may continue.
    """

    def __init__(self, request: Request, condition: Condition, pace: float = 0.0, answer: bytes | None = None) -> None:
        self.request = request
        self.callers = self.departures = 0
        self.answer = answer
        self.failure: Failure | None = None
        self.stop: Failure | None = None
        self._condition = condition
        self._pace = pace  # seconds a step, from earlier work
        self._started = 0.0
        self._stepped = 0.0
        self._step, self._steps, self._loss = 0, request.steps, 0.0
        self._version = 0

    @property
    def done(self) -> bool:
        """Whether the job has ended, with an answer or without."""
        return self.answer is not None or self.failure is not None

    @property
    def pace(self) -> float:
        """Seconds per step so far, of this job if it has made one."""
        return (self._stepped - self._started) / self._step if self._step else self._pace

    def begin(self) -> None:
        """Start the clock of the first step."""
        with self._condition:
            self._started = self._stepped = time.monotonic()

    def on_step(self, step: int, loss: float) -> None:
        """Record a local step. After the last one a job is not cancelled: its answer is complete.

        Raises:
            Cancelled: the job must stop.
        """
        self._advance(step + 1, self._steps, loss)

    def on_hidden_step(self, step: int, loss: float) -> None:
        """As `on_step`, for a loss that no caller is to see: one of them is the server's app."""
        self.on_step(step, 0.0)

    def on_progress(self, done: int, total: int) -> None:
        """As `on_step`, in utterances."""
        self._advance(done, total, 0.0)

    def _advance(self, done: int, total: int, loss: float) -> None:
        with self._condition:
            self._step, self._steps, self._loss = done, total, loss
            self._stepped = time.monotonic()
            self._version += 1
            self._condition.notify_all()
            if self.stop is not None and done < total:
                raise Cancelled(self.stop.message)

    def end(self, answer: bytes | None, failure: Failure | None = None) -> None:
        """Set the result and wake all callers."""
        with self._condition:
            self.answer, self.failure = answer, failure
            self._version += 1
            self._condition.notify_all()

    def progress(self) -> Progress:
        """Return the present progress."""
        with self._condition:
            left = -1.0
            if self.pace and self._steps:
                since = time.monotonic() - self._stepped if self._stepped else 0.0
                left = max(0.0, self.pace * (self._steps - self._step) - since)
            rate = self.request.num_queries / self.pace if self._step and self.pace else 0.0
            r = self.request
            return Progress(r.kind, r.server_round, self._step, self._steps, self._loss, rate, left)

    def wait(self, seen: int, seconds: float) -> int:
        """Wait until the progress is beyond `seen`, the job ends, or `seconds` pass; return the progress' number."""
        with self._condition:
            self._condition.wait_for(lambda: self._version > seen or self.done, seconds)
            return self._version
