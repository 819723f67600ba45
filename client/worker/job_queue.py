"""The worker's job queue: one job at a time; repeats attach to it or get its answer again, others are refused."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, RLock, Thread, Timer

from client.device.engine import Cancelled
from client.worker.job import Failure, Job, Request
from zo_common.errors import kind_of_error

logger = logging.getLogger(__name__)
Work = Callable[[Job], tuple[bytes, bool]]  # the packed reply, and whether it may be repeated
Outcome = tuple[bytes | None, Failure | None, bool]  # with whether the answer may be repeated
MAX_ANSWERS = 8
BUSY = "busy with other work"  # which, and for how long, may be about another server's run


@dataclass(frozen=True)
class Busy:
    """Other work in progress, for about `seconds_left` (negative: unknown), which no server is told."""

    message: str
    seconds_left: float


class Closing(Exception):
    """The worker is stopping and accepts no new work."""


class JobQueue:
    """Job queue with one thread of its own, so that one job at a time uses the model.

    Args:
        orphan_seconds: seconds that work continues without a caller.
    """

    def __init__(self, orphan_seconds: float = 15.0) -> None:
        self._orphan_seconds = orphan_seconds
        self._changed = Condition(RLock())
        self._running: tuple[Job, Work] | None = None
        self._next: tuple[Job, Work] | None = None
        self._answers: OrderedDict[bytes, bytes] = OrderedDict()
        self._paces: dict[str, float] = {}
        self._closed = False
        self._thread = Thread(target=self._run, name="work", daemon=True)
        self._thread.start()

    @property
    def job(self) -> Job | None:
        """The work in progress."""
        with self._changed:
            return self._running[0] if self._running else None

    def remember(self, digest: bytes, answer: bytes) -> None:
        """Store an answer for repeats of its request."""
        with self._changed:
            self._answers[digest] = answer
            self._answers.move_to_end(digest)
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)

    def submit(self, request: Request, work: Work) -> Job | Busy:
        """Start work, attach to the same work, or report how long other work will take.

        1. An answer that is known is a job that has ended.
        2. The same request attaches to its job.
        3. A later round of the same run stops the present work after its step, and runs next.
        4. If the present work is stopping already, a new request runs next.

        The caller of a job must `leave` it.

        Raises:
            Closing: the worker is stopping.
        """
        with self._changed:
            if self._closed:
                raise Closing
            if request.repeats and request.digest in self._answers:
                return Job(request, self._changed, answer=self._answers[request.digest])
            for entry in (self._running, self._next):
                if entry and entry[0].request.digest == request.digest and entry[0].stop is None:
                    entry[0].callers += 1
                    return entry[0]
            if not self._may_follow(request):
                return self._busy()
            job = Job(request, self._changed, self._paces.get(request.kind, 0.0))
            job.callers = 1
            if self._running is None:
                self._running = job, work
            else:
                self._queue(job, work)
            self._changed.notify_all()
            return job

    def _may_follow(self, request: Request) -> bool:
        if self._running is None:
            return True
        running = self._running[0]
        if self._next is not None:
            return request.supersedes(self._next[0].request)
        return running.stop is not None or request.supersedes(running.request)

    def _queue(self, job: Job, work: Work) -> None:
        message = f"round {job.request.server_round} superseded it"
        if self._next is not None:
            self._next[0].end(None, Failure("cancelled", message))
        self._next = job, work
        if self._running is not None:
            self._stop(self._running[0], Failure("cancelled", message))

    def _busy(self) -> Busy:
        assert self._running is not None
        now = self._running[0].progress()
        left = f" for {now.seconds_left:.0f} s more" if now.seconds_left >= 0 else ""
        logger.info(f"a request is not taken: busy with {_named(self._running[0].request)}{left}")
        return Busy(BUSY, now.seconds_left)

    def leave(self, job: Job) -> None:
        """Release a caller that has its answer or has disconnected; work without callers is stopped after a while."""
        with self._changed:
            job.callers = max(0, job.callers - 1)
            if job.callers == 0 and not job.done and not self._closed:
                job.departures += 1
                timer = Timer(self._orphan_seconds, self._orphaned, [job, job.departures])
                timer.daemon = True
                timer.start()

    def _orphaned(self, job: Job, departure: int) -> None:
        with self._changed:
            if job.callers == 0 and departure == job.departures and not job.done:
                failure = Failure("cancelled", f"no caller has waited for it for {self._orphan_seconds:g} s")
                if self._next and self._next[0] is job:
                    self._next = None
                    job.end(None, failure)
                else:
                    self._stop(job, failure)

    def cancel(self) -> str:
        """Stop the work in progress after its step; return its name, or ""."""
        with self._changed:
            if self._running is None:
                return ""
            self._stop(self._running[0], Failure("cancelled", "the operator of the device cancelled it"))
            return _named(self._running[0].request)

    def _stop(self, job: Job, why: Failure) -> None:
        if job.stop is None and not job.done:
            job.stop = why
            logger.info(f"{_named(job.request)} is stopped after its step: {why.message}")

    def close(self, seconds: float) -> bool:
        """Accept no new work and stop the work in progress after its step; return False if that takes longer."""
        with self._changed:
            self._closed = True
            closing = Failure("closing", "the worker is stopping")
            if self._next is not None:
                self._next[0].end(None, closing)
                self._next = None
            if self._running is not None:
                self._stop(self._running[0], closing)
            self._changed.notify_all()
        deadline = time.monotonic() + seconds
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running is not None or self._closed)
                if self._running is None:
                    return
                job, work = self._running
            ended: Outcome = None, Failure("failed", "an error that could not even be told"), False
            with suppress(BaseException):  # whatever it is, the job ends and this thread lives
                ended = self._attempt(job, work)
            self._end(job, *ended)

    def _end(self, job: Job, answer: bytes | None, failure: Failure | None, again: bool) -> None:
        with self._changed:
            if answer is not None and again:
                self.remember(job.request.digest, answer)
            if job.pace:
                self._paces[job.request.kind] = job.pace
            self._running, self._next = self._next, None
            job.end(answer, failure)

    def _attempt(self, job: Job, work: Work) -> Outcome:
        """Run the work and catch all that it raises: the thread must live for the next request."""
        try:
            if job.stop is not None:
                return None, job.stop, False
            job.begin()
            answer, again = work(job)
            return answer, None, again
        except Cancelled as error:
            return None, job.stop or Failure("cancelled", str(error)), False
        except BaseException as error:
            logger.exception(f"{_named(job.request)} failed")
            return None, Failure("failed", kind_of_error(error)), False


def _named(request: Request) -> str:
    noun = {"train": "training", "evaluate": "evaluation", "sync": "catching up"}[request.kind]
    return f"{noun} of round {request.server_round}"
