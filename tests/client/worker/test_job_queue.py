"""One piece of work at a time: repeats attach, later rounds supersede, others hear that it is busy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from listening import listen, listen_with

from client.device.engine import Cancelled
from client.worker.job import Job, Request
from client.worker.job_queue import BUSY, MAX_ANSWERS, Busy, Closing, JobQueue, Work
from zo_common.errors import kind_of_error
from zo_common.wire.plan import Status

SECONDS = 20.0
ORPHAN_SECONDS = 1.0  # long beside what a test does meanwhile


def _refused(status: Status, message: str) -> bytes:
    return f"{status.name}: {message}".encode()


def _request(
    server_round: int = 7, kind: Any = "train", run: tuple[int, int, int] = (1, 2, 3), **changes: Any
) -> Request:
    digest = f"{kind} {server_round} {run}".encode()
    return replace(Request(kind, digest, server_round, run, _refused, steps=4, num_queries=8), **changes)


class Steps:
    """Work whose steps the test takes: `step()` lets one happen and returns when it has."""

    def __init__(self, answer: bytes = b"answer", again: bool = True, steps: int = 4) -> None:
        self.answer, self.again, self.steps = answer, again, steps
        self.runs = 0
        self._go = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self.begun = threading.Event()

    def __call__(self, job: Job) -> tuple[bytes, bool]:
        self.runs += 1
        self.begun.set()
        for step in range(self.steps):
            assert self._go.acquire(timeout=SECONDS)
            try:
                job.on_step(step, 1.0 / (step + 1))
            finally:
                self._done.release()
        return self.answer, self.again

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._go.release()
            assert self._done.acquire(timeout=SECONDS)


@pytest.fixture
def words() -> list[str]:
    return listen("client.worker.job_queue")


@pytest.fixture
def queue(words: list[str]) -> Iterator[JobQueue]:
    made = JobQueue(ORPHAN_SECONDS)
    yield made
    made.close(0.0)


def _submit(queue: JobQueue, request: Request, work: Work) -> Job:
    job = queue.submit(request, work)
    assert isinstance(job, Job)
    return job


def _ended(job: Job) -> Job:
    seen = -1
    for _ in range(100):
        if job.done:
            return job
        seen = job.wait(seen, SECONDS / 100)
    raise AssertionError("the job did not end")


def test_work_is_answered_and_its_progress_is_told(queue: JobQueue) -> None:
    work = Steps()
    job = _submit(queue, _request(), work)
    work.step(3)

    progress = job.progress()
    assert (progress.kind, progress.server_round, progress.step, progress.steps) == ("train", 7, 3, 4)
    assert progress.loss == pytest.approx(1 / 3)
    assert progress.queries_per_second > 0 and progress.seconds_left >= 0
    work.step()
    assert _ended(job).answer == b"answer"
    assert queue.job is None


def test_other_work_is_busy_with_the_seconds_left(queue: JobQueue) -> None:
    work = Steps()
    _submit(queue, _request(), work)
    assert work.begun.wait(SECONDS)
    unknown = queue.submit(_request(7, "evaluate"), Steps())
    work.step()
    known = queue.submit(_request(9, run=(1, 2, 4)), Steps())

    assert isinstance(unknown, Busy) and isinstance(known, Busy)
    assert (unknown.message, unknown.seconds_left < 0) == (BUSY, True)
    assert (known.message, known.seconds_left >= 0) == (BUSY, True)


def test_the_same_request_attaches_and_both_get_one_answer(queue: JobQueue) -> None:
    work = Steps()
    first = _submit(queue, _request(), work)
    work.step(2)
    second = _submit(queue, _request(), work)
    work.step(2)

    assert second is first and first.callers == 2
    assert _ended(second).answer == b"answer"
    assert work.runs == 1


def test_a_repeat_after_the_end_is_answered_without_work(queue: JobQueue) -> None:
    work = Steps(steps=0)
    _ended(_submit(queue, _request(), work))

    again = _submit(queue, _request(), Steps())

    assert (again.done, again.answer, work.runs) == (True, b"answer", 1)


def test_an_answer_that_is_not_of_finished_work_is_not_given_again(queue: JobQueue) -> None:
    work = Steps(b"behind", again=False, steps=0)
    for _ in range(2):
        assert _ended(_submit(queue, _request(), work)).answer == b"behind"

    assert work.runs == 2


def test_only_the_last_answers_are_kept(queue: JobQueue) -> None:
    for server_round in range(MAX_ANSWERS + 1):
        queue.remember(_request(server_round).digest, b"%d" % server_round)

    kept = _submit(queue, _request(MAX_ANSWERS), Steps())
    assert kept.answer == b"%d" % MAX_ANSWERS
    work = Steps(steps=0)
    _ended(_submit(queue, _request(0), work))
    assert work.runs == 1


def test_a_later_round_of_the_same_run_stops_the_older_after_its_step(queue: JobQueue, words: list[str]) -> None:
    old, new = Steps(), Steps(b"new", steps=0)
    first = _submit(queue, _request(7), old)
    old.step()
    second = _submit(queue, _request(8), new)
    assert new.runs == 0  # not before the step has ended
    old.step()

    assert _ended(second).answer == b"new"
    assert _ended(first).failure is not None and first.failure.kind == "cancelled"
    assert "round 8 superseded it" in first.failure.message
    assert words == ["training of round 7 is stopped after its step: round 8 superseded it"]


def test_work_whose_last_step_has_ended_is_not_thrown_away(queue: JobQueue) -> None:
    old = Steps(steps=1)
    first = _submit(queue, _request(7, steps=1), old)
    assert old.begun.wait(SECONDS)
    second = _submit(queue, _request(8), Steps(b"new", steps=0))
    old.step()

    assert _ended(first).answer == b"answer"
    assert _ended(second).answer == b"new"


@pytest.mark.parametrize(
    ("running", "asked", "supersedes"),
    [
        ((7, "train"), (8, "evaluate"), True),
        ((8, "evaluate"), (8, "train"), True),
        ((8, "train"), (8, "evaluate"), False),
        ((7, "train"), (8, "sync"), True),
        ((7, "train"), (7, "sync"), False),
        ((7, "train"), (6, "train"), False),
    ],
)
def test_what_supersedes_what(running: tuple[int, str], asked: tuple[int, str], supersedes: bool) -> None:
    assert _request(*asked).supersedes(_request(*running)) is supersedes


@pytest.mark.parametrize("run", [(9, 2, 3), (1, 9, 3), (1, 2, 9)])
def test_another_base_run_or_device_supersedes_nothing(run: tuple[int, int, int]) -> None:
    assert not _request(8, run=run).supersedes(_request(7))


def test_of_several_later_rounds_the_last_is_next(queue: JobQueue) -> None:
    old, new = Steps(), Steps(b"10", steps=0)
    _submit(queue, _request(7), old)
    assert old.begun.wait(SECONDS)
    work = Steps()
    skipped = _submit(queue, _request(8), work)
    newest = _submit(queue, _request(10), new)
    behind = queue.submit(_request(9), Steps())
    old.step()

    assert isinstance(behind, Busy)
    assert _ended(newest).answer == b"10"
    assert _ended(skipped).failure is not None and work.runs == 0


def test_cancel_stops_after_the_step_and_says_what(queue: JobQueue) -> None:
    work = Steps()
    job = _submit(queue, _request(), work)
    work.step()

    assert queue.cancel() == "training of round 7"
    work.step()
    assert _ended(job).failure is not None and "operator" in job.failure.message
    assert queue.cancel() == ""


def test_what_is_asked_while_work_is_stopping_is_next_even_the_same(queue: JobQueue) -> None:
    work = Steps()
    first = _submit(queue, _request(), work)
    work.step()
    queue.cancel()
    second = _submit(queue, _request(), Steps(b"second", steps=0))
    work.step()

    assert second is not first
    assert _ended(first).answer is None
    assert _ended(second).answer == b"second"


def test_work_that_nobody_waits_for_is_stopped(queue: JobQueue, words: list[str]) -> None:
    work = Steps()
    job = _submit(queue, _request(), work)
    work.step()
    queue.leave(job)
    for _ in range(int(SECONDS / 0.05)):
        if job.stop is not None:
            break
        threading.Event().wait(0.05)
    assert job.stop is not None
    work.step()

    assert _ended(job).failure is not None and "no caller has waited" in job.failure.message
    assert "no caller has waited" in words[0]


def test_who_comes_back_in_time_keeps_it_going(queue: JobQueue) -> None:
    work = Steps()
    job = _submit(queue, _request(), work)
    queue.leave(job)
    assert _submit(queue, _request(), work) is job
    threading.Event().wait(1.5 * ORPHAN_SECONDS)
    work.step(4)

    assert _ended(job).answer == b"answer"


def test_work_with_another_caller_left_goes_on(queue: JobQueue) -> None:
    work = Steps()
    job = _submit(queue, _request(), work)
    _submit(queue, _request(), work)
    queue.leave(job)
    threading.Event().wait(1.5 * ORPHAN_SECONDS)

    assert job.stop is None
    work.step(4)
    assert _ended(job).answer == b"answer"


def test_a_job_that_waits_its_turn_and_is_left_never_starts(queue: JobQueue) -> None:
    old, new = Steps(), Steps()
    _submit(queue, _request(7), old)
    assert old.begun.wait(SECONDS)
    waiting = _submit(queue, _request(8), new)
    queue.leave(waiting)

    assert _ended(waiting).failure is not None
    old.step()
    assert new.runs == 0


def test_an_error_nobody_expected_is_told_and_the_next_request_is_served(queue: JobQueue, words: list[str]) -> None:
    def fail(job: Job) -> tuple[bytes, bool]:
        raise RuntimeError("out of memory\nand more")

    job = _ended(_submit(queue, _request(7), fail))

    assert job.failure is not None and (job.failure.kind, job.failure.message) == (
        "failed",
        "runtime-error: this device's own log says why",
    )
    assert "Traceback" in words[0]
    assert _ended(_submit(queue, _request(8), Steps(steps=0))).answer == b"answer"


@pytest.mark.parametrize("raised", [RuntimeError("no"), MemoryError(), SystemExit(3)])
def test_a_log_that_cannot_be_written_stops_no_work(raised: BaseException) -> None:
    def full(message: str) -> None:
        raise OSError(28, "No space left on device")

    def fail(job: Job) -> tuple[bytes, bool]:
        raise raised

    listen_with(full)
    queue = JobQueue(SECONDS)
    failed = _ended(_submit(queue, _request(7), fail))
    old = Steps()
    stopped = _submit(queue, _request(8), old)
    assert old.begun.wait(SECONDS)
    later = _submit(queue, _request(9), Steps(b"later", steps=0))  # its word on the older one is lost
    old.step()

    assert failed.failure is not None and failed.failure.message == kind_of_error(raised)
    assert _ended(stopped).failure is not None
    assert (_ended(later).answer, queue.job) == (b"later", None)
    assert queue.close(SECONDS)


def test_an_error_that_cannot_even_be_told_ends_the_job(queue: JobQueue) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise MemoryError

    def fail(job: Job) -> tuple[bytes, bool]:
        raise Unspeakable

    job = _ended(_submit(queue, _request(7), fail))

    assert job.failure is not None and job.failure.kind == "failed"
    assert _ended(_submit(queue, _request(8), Steps(steps=0))).answer == b"answer"


def test_closing_stops_after_the_step_and_takes_nothing_new(queue: JobQueue) -> None:
    work = Steps()
    job = _submit(queue, _request(), work)
    work.step()
    closer = threading.Thread(target=lambda: ended.append(queue.close(SECONDS)))
    ended: list[bool] = []
    closer.start()
    while job.stop is None:
        threading.Event().wait(0.01)
    with pytest.raises(Closing):
        queue.submit(_request(8), Steps())
    work.step()
    closer.join(SECONDS)

    assert ended == [True]
    assert job.failure is not None and job.failure.kind == "closing"


def test_a_step_that_takes_too_long_does_not_hold_the_close(queue: JobQueue) -> None:
    work = Steps()
    _submit(queue, _request(), work)
    assert work.begun.wait(SECONDS)

    assert queue.close(0.05) is False


def test_cancelled_work_raises_where_it_is_told(queue: JobQueue) -> None:
    seen: list[str] = []

    def work(job: Job) -> tuple[bytes, bool]:
        queue.cancel()
        try:
            job.on_progress(1, 2)
        except Cancelled as error:
            seen.append(str(error))
            raise
        return b"", False

    job = _ended(_submit(queue, _request(kind="evaluate"), work))
    assert seen == ["the operator of the device cancelled it"]
    assert job.answer is None
