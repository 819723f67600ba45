"""One piece of work of the resident worker: what is asked, how far it is, how it ended."""

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
    """What identifies a piece of work.

    Attributes:
        digest: of all that its answer depends on.
        run: base id, run seed and client id; only a later round of the same run supersedes.
        refuse: the packed reply of this kind with a status other than OK and a word.
    """

    kind: Kind
    digest: bytes
    server_round: int
    run: tuple[int, int, int]
    refuse: Callable[[Status, str], bytes] = field(compare=False)
    steps: int = 0
    num_queries: int = 0

    def supersedes(self, other: Request) -> bool:
        """Whether whoever asks this has given up on `other`."""
        mine, theirs = ((r.server_round, _ORDER[r.kind]) for r in (self, other))
        return self.run == other.run and mine > theirs


@dataclass(frozen=True)
class Progress:
    """How far a job is; `seconds_left` is negative while nothing is known."""

    kind: str
    server_round: int
    step: int
    steps: int
    loss: float
    queries_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Failure:
    """Why there is no answer: stopped on purpose, the worker ends, or an error nobody expected."""

    kind: Literal["cancelled", "closing", "failed"]
    word: str


class Job:
    """Work in progress; `condition` is its desk's, which guards all of it.

    Attributes:
        callers: how many wait for the answer.
        departures: how often the last of them went.
        answer: the packed reply, once there is one.
        stop: why it was told to stop; empty while it may go on.
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
        """Whether it has ended, with an answer or without."""
        return self.answer is not None or self.failure is not None

    @property
    def pace(self) -> float:
        """Seconds a step so far, of this job if it has made one."""
        return (self._stepped - self._started) / self._step if self._step else self._pace

    def begin(self) -> None:
        """The clock of the first step starts."""
        with self._condition:
            self._started = self._stepped = time.monotonic()

    def on_step(self, step: int, loss: float) -> None:
        """After a local step. The last one is never cancelled: its answer is there.

        Raises:
            Cancelled: it was told to stop.
        """
        self._advance(step + 1, self._steps, loss)

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
                raise Cancelled(self.stop.word)

    def end(self, answer: bytes | None, failure: Failure | None = None) -> None:
        """Its result, told to all who wait."""
        with self._condition:
            self.answer, self.failure = answer, failure
            self._version += 1
            self._condition.notify_all()

    def progress(self) -> Progress:
        """How far it is now."""
        with self._condition:
            left = -1.0
            if self.pace and self._steps:
                since = time.monotonic() - self._stepped if self._stepped else 0.0
                left = max(0.0, self.pace * (self._steps - self._step) - since)
            rate = self.request.num_queries / self.pace if self._step and self.pace else 0.0
            r = self.request
            return Progress(r.kind, r.server_round, self._step, self._steps, self._loss, rate, left)

    def wait(self, seen: int, seconds: float) -> int:
        """Wait until it is further than `seen`, has ended, or the seconds are over; how far it is."""
        with self._condition:
            self._condition.wait_for(lambda: self._version > seen or self.done, seconds)
            return self._version
